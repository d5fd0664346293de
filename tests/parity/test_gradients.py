"""Gradients through both encoders and the thinker equal torch's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import torch

from omni_jax.models.memory_layout import to_canonical
from omni_jax.models.parts import leaves
from omni_jax.models.qwen3_omni import Qwen3OmniParts
from omni_jax.processing import audio_packing, vision_packing
from tests.parity.parity_close import assert_close
from tests.parity.parity_scenes import batch, scene, theirs

# Our leaf and their tensor, the axes by which theirs is transposed, and the layer of a stack.
PAIRS = {
    "audio_encoder.conv1.kernel": ("audio_tower.conv2d1.weight", (2, 3, 1, 0), None),
    "audio_encoder.conv3.bias": ("audio_tower.conv2d3.bias", (0,), None),
    "audio_encoder.layers.ffn.up.kernel": ("audio_tower.layers.1.fc1.weight", (1, 0), 1),
    "audio_encoder.layers.attention_norm.scale": ("audio_tower.layers.0.self_attn_layer_norm.weight", (0,), 0),
    "audio_encoder.projection.down.kernel": ("audio_tower.proj2.weight", (1, 0), None),
    "vision_encoder.patches.bias": ("visual.patch_embed.proj.bias", (0,), None),
    "vision_encoder.layers.ffn.up.kernel": ("visual.blocks.0.mlp.linear_fc1.weight", (1, 0), 0),
    "vision_encoder.merger.mlp.down.kernel": ("visual.merger.mlp.2.weight", (1, 0), None),
    "vision_encoder.deepstack.mlp.down.kernel": ("visual.merger_list.1.mlp.2.weight", (1, 0), 1),
    "thinker.embedding.table": ("language_model.embed_tokens.weight", (0, 1), None),
    "thinker.decoder.layers.attention.q_norm.scale": ("language_model.layers.2.self_attn.q_norm.weight", (0,), 2),
    "thinker.decoder.layers.ffn.router.kernel": ("language_model.layers.1.mlp.gate.weight", (1, 0), 1),
    "thinker.decoder.experts.gate_up": ("language_model.layers.1.mlp.experts.gate_up_proj", (0, 2, 1), 1),
    "thinker.decoder.experts.down": ("language_model.layers.3.mlp.experts.down_proj", (0, 2, 1), 3),
    "thinker.decoder.norm.scale": ("language_model.norm.weight", (0,), None),
}


def test_gradients_of_the_next_token_loss_equal_torch(omni, reference):
    """A row with sound and images, including deepstack, beside a row with sound."""
    config = omni.config.thinker
    rows = [scene(omni, ("audio", 237), ("image", 4, 6)), scene(omni, ("audio", 120), words=4, seed=1)]
    made = batch(rows, left=False).located(config)
    audio_index, visual_index = made.audio_index(config), made.visual_index(config)
    clips = list(audio_packing.pack(made.mel, config.audio_encoder))
    (sight,) = vision_packing.pack([made.images[0].patches], [made.images[0].grid], 2)

    def loss(parts):
        embedded = parts.thinker.prompt(jnp.asarray(made.tokens), taps=len(config.vision_encoder.taps))
        for item in clips:
            features = parts.audio_encoder.encode(item.mel, item.extent, item.window)
            embedded = embedded.insert_audio(features.reshape(-1, features.shape[-1]), item.rows(audio_index))
        features = parts.vision_encoder.encode(sight.patches, sight.place, sight.size, sight.first)
        embedded = embedded.insert_visual(*features, sight.rows(visual_index))
        logits = parts.thinker.logits(embedded, made.positions, jnp.asarray(made.lengths))
        logits = jax.nn.log_softmax(logits[:, :-1])
        picked = jnp.take_along_axis(logits, made.tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(picked * made.mask[:, 1:]) / made.mask[:, 1:].sum()

    parts = Qwen3OmniParts(**to_canonical(omni.parts))
    value, gradients = jax.jit(jax.value_and_grad(loss))(
        replace(parts, talker=None, code_predictor=None, code2wav=None)
    )
    gradients = leaves(gradients)

    reference.zero_grad()
    inputs = theirs(rows, left=False)
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    logits = torch.log_softmax(reference.thinker(**inputs).logits[:, :-1], -1)
    picked = logits.gather(-1, tokens[:, 1:, None])[..., 0]
    expected = -(picked * mask[:, 1:]).sum() / mask[:, 1:].sum()
    expected.backward()

    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    named = dict(reference.thinker.model.named_parameters())
    for ours, (name, order, layer) in PAIRS.items():
        mine = gradients[ours] if layer is None else gradients[ours][layer]
        assert_close(mine, named[name].grad.numpy().transpose(order))
    reference.zero_grad()
