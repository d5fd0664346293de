"""Qwen2.5-Omni's vision encoder against Transformers: cut windows, images of several sizes, videos, and calls that mix them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as theirs

from omni_jax.config import Qwen25VisionEncoderConfig
from omni_jax.models import parts
from omni_jax.models.qwen2_5_omni.vision_encoder import VisionEncoder
from omni_jax.processing import vision_packing
from tests.parity.parity_close import assert_close
from tests.parity.parity_qwen2_5 import filled

# Windows of 4 x 4 groups as published; blocks of both kinds at both ends of a run.
CONFIG = Qwen25VisionEncoderConfig(
    layers=5, width=48, heads=3, ffn_width=60, channels=3, patch=2, temporal_patch=2, merge=2, out_width=40, window=8,
    whole=(1, 4),
)  # fmt: skip
# Frames, rows and columns in patches: less than a window, exact windows, cut at one edge and at both, thin ones, several
# sizes in one call, videos, more patches than one block of keys.
GRIDS = [
    [(1, 2, 2)],
    [(1, 16, 8)],
    [(1, 20, 12)],
    [(1, 10, 18)],
    [(1, 34, 2)],
    [(1, 2, 50)],
    [(2, 8, 12)],
    [(1, 4, 6), (1, 22, 10), (1, 2, 2), (1, 8, 8)],
    [(2, 10, 14), (1, 6, 18), (3, 4, 2)],
    [(1, 26, 44)],
]


def reference_config():
    return theirs.Qwen2_5OmniVisionEncoderConfig(
        depth=CONFIG.layers, hidden_size=CONFIG.width, num_heads=CONFIG.heads, intermediate_size=CONFIG.ffn_width,
        in_channels=CONFIG.channels, patch_size=CONFIG.patch, spatial_merge_size=CONFIG.merge,
        temporal_patch_size=CONFIG.temporal_patch, window_size=CONFIG.window * CONFIG.patch,
        out_hidden_size=CONFIG.out_width, fullatt_block_indexes=list(CONFIG.whole),
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    """All parameters are random: a zero bias or a scale of one would hide a wrong place."""
    model, generator = theirs.Qwen2_5OmniVisionEncoder(reference_config()), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        random = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            norm = name.endswith("weight")
            parameter.data.copy_(norm + (0.3 if norm else 0.5) * random)
        else:
            # Attention far from uniform, so that the masks matter.
            sharp = 2 if ".attn.q." in name or ".attn.k." in name else 1
            parameter.data.copy_(sharp * random / parameter[0].numel() ** 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def encoder(reference):
    return filled("vision_encoder", lambda init: VisionEncoder(init, CONFIG), "thinker.visual", reference)


def pixels(grids):
    count = sum(t * h * w for t, h, w in grids)
    return np.random.default_rng(count).standard_normal((count, CONFIG.patch_width), np.float32)


def packed(patches, grids):
    """One call, with padding at its end."""
    (call,) = vision_packing.pack(*vision_packing.split_patches(patches, grids), CONFIG.merge)
    return call.patches, call.place, call.size, call.first


encode = jax.jit(lambda encoder, *call: encoder.encode(*call))


@pytest.mark.parametrize("grids", GRIDS)
def test_features_equal_the_reference(encoder, reference, grids):
    patches = pixels(grids)
    features, deep = encode(encoder, *packed(patches, grids))
    with torch.no_grad():
        expected = reference(torch.from_numpy(patches), grid_thw=torch.tensor(grids)).pooler_output
    assert_close(features[: len(expected)], expected)
    assert deep.shape == (0, *features.shape)


# Our leaf, its layer if stacked, their tensor, and how theirs is rearranged to ours.
GRADIENTS = [
    ("patches.kernel", None, "patch_embed.proj.weight", lambda x: np.moveaxis(x, 0, -1)),
    ("layers.qkv.kernel", (1, slice(None), 1), "blocks.1.attn.k.weight", lambda x: x.T.reshape(48, 3, 16)),
    ("layers.qkv.bias", (0, 2), "blocks.0.attn.v.bias", lambda x: x.reshape(3, 16)),
    ("layers.ffn.gate_up.kernel", (2, slice(None), 0), "blocks.2.mlp.gate_proj.weight", lambda x: x.T),
    ("layers.attention_norm.scale", 3, "blocks.3.norm1.weight", lambda x: x),
    ("merger.norm.scale", None, "merger.ln_q.weight", lambda x: x),
]


def test_gradients_equal_the_reference(encoder, reference):
    grids = [(2, 10, 14), (1, 6, 18)]
    patches = pixels(grids)
    call, count = packed(patches, grids), len(patches) // CONFIG.merge**2
    weight = np.random.default_rng(1).standard_normal((count, CONFIG.out_width), np.float32)
    found = jax.jit(jax.grad(lambda encoder: jnp.sum(encoder.encode(*call)[0][:count] * weight)))(encoder)
    found = parts.leaves(found)
    parameters = dict(reference.named_parameters())
    features = reference(torch.from_numpy(patches), grid_thw=torch.tensor(grids)).pooler_output
    loss = (features * torch.from_numpy(weight)).sum()
    expected = torch.autograd.grad(loss, [parameters[name] for _, _, name, _ in GRADIENTS])
    for (path, index, _, laid_out), gradient in zip(GRADIENTS, expected, strict=True):
        mine = np.asarray(found[path])
        assert_close(mine if index is None else mine[index], laid_out(gradient.numpy()))
