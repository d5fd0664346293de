"""The vision encoder against Transformers: images of several sizes, videos, and calls that mix them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omni_jax.models.parts import leaves
from omni_jax.processing import vision_packing
from tests.parity.parity_close import assert_close

# Frames, rows and columns in patches: smallest, odd numbers of groups, tall, wide, larger than the table, videos.
GRIDS = [
    [(1, 2, 2)],
    [(1, 4, 6)],
    [(1, 34, 2)],
    [(1, 2, 50)],
    [(1, 22, 26)],
    [(3, 6, 8)],
    [(1, 4, 6), (1, 10, 4), (1, 2, 2)],
    [(2, 8, 4), (1, 6, 6), (4, 2, 6)],
]


def pixels(grids, seed=0):
    count = sum(t * h * w for t, h, w in grids)
    return np.random.default_rng([seed, count]).normal(size=(count, 3 * 2 * 16 * 16)).astype(np.float32)


def theirs(reference, patches, grids):
    with torch.no_grad():
        out = reference.thinker.model.visual(torch.from_numpy(patches), grid_thw=torch.tensor(grids))
    return out.pooler_output.numpy(), np.stack([level.numpy() for level in out.deepstack_features])


@pytest.mark.parametrize("grids", GRIDS)
def test_features_and_deepstack_equal_the_reference(omni, reference, grids):
    patches = pixels(grids)
    ours, expected = omni.encode_vision(patches, grids), theirs(reference, patches, grids)
    for mine, other in zip(ours, expected, strict=True):
        assert_close(mine, other)


def test_media_over_several_calls_equal_the_reference(omni, reference, monkeypatch):
    """Frames of 96 patches in calls of at most 256: a video is cut between its frames, a large image goes alone."""
    monkeypatch.setattr(vision_packing, "CALL_PATCHES", 256)
    grids = [(1, 2, 4), (6, 8, 12), (1, 20, 30), (2, 4, 4)]
    patches = pixels(grids)
    media, sizes = vision_packing.split_patches(patches, grids)
    calls = list(vision_packing.pack(media, sizes, 2))
    assert [len(call.patches) for call in calls] == [256, 256, 256, 640, 256]
    for mine, other in zip(omni.encode_vision(patches, grids), theirs(reference, patches, grids), strict=True):
        assert_close(mine, other)


def test_several_blocks_of_keys_of_the_published_width_equal_the_reference(tmp_path):
    """Heads of 72 and a frame of 1,144 patches: the attention's blocks of 512 keys are more than one and not full."""
    from transformers import Qwen3OmniMoeForConditionalGeneration

    from omni_jax import Omni
    from omni_jax.testing import tiny_config, write_tiny

    config = tiny_config()
    config["thinker_config"]["vision_config"] |= {"hidden_size": 144, "num_heads": 2, "num_position_embeddings": 2304}
    folder = write_tiny(tmp_path, config=config, seed=3)
    reference = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    omni, grids = Omni.load(folder, speech=False), [(1, 26, 44), (2, 14, 20)]
    patches = pixels(grids)
    for mine, other in zip(omni.encode_vision(patches, grids), theirs(reference, patches, grids), strict=True):
        assert_close(mine, other)


# Our leaf, their tensor, and how theirs is rearranged to ours.
GRADIENTS = {
    "patches.kernel": ("patch_embed.proj.weight", lambda x: np.moveaxis(x, 0, -1)),
    "positions.table": ("pos_embed.weight", lambda x: x),
    "layers.qkv.kernel": ("blocks.2.attn.qkv.weight", lambda x: x.T.reshape(32, 3, 2, 16)),
    "layers.ffn.down.kernel": ("blocks.0.mlp.linear_fc2.weight", lambda x: x.T),
    "merger.norm.scale": ("merger.ln_q.weight", lambda x: x),
    "deepstack.mlp.up.kernel": ("merger_list.1.mlp.0.weight", lambda x: x.T),
}
STACKED = {"layers.qkv.kernel": 2, "layers.ffn.down.kernel": 0, "deepstack.mlp.up.kernel": 1}


def test_gradients_equal_the_reference(omni, reference):
    grids = [(2, 8, 4), (1, 6, 6)]
    patches = pixels(grids)
    rng = np.random.default_rng(1)
    weight, deep_weight = (rng.normal(size=shape).astype(np.float32) for shape in ((25, 64), (2, 25, 64)))
    (call,) = vision_packing.pack(*vision_packing.split_patches(patches, grids), 2)

    @jax.jit
    @jax.grad
    def ours(encoder):
        features, deep = encoder.encode(call.patches, call.place, call.size, call.first)
        return jnp.sum(features[:25] * weight) + jnp.sum(deep[:, :25] * deep_weight)

    found = leaves(ours(omni.parts.vision_encoder))
    tower = reference.thinker.model.visual
    out = tower(torch.from_numpy(patches), grid_thw=torch.tensor(grids))
    loss = (out.pooler_output * torch.from_numpy(weight)).sum()
    loss = loss + sum(
        (level * torch.from_numpy(w)).sum() for level, w in zip(out.deepstack_features, deep_weight, strict=True)
    )
    parameters = dict(tower.named_parameters())
    names = [name for name, _ in GRADIENTS.values()]
    expected = torch.autograd.grad(loss, [parameters[name] for name in names])
    for path, gradient in zip(GRADIENTS, expected, strict=True):
        mine = found[path][STACKED[path]] if path in STACKED else found[path]
        assert_close(mine, GRADIENTS[path][1](gradient.numpy()))
