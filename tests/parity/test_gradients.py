"""Gradients through the audio encoder and the thinker equal torch's: the training to come stands on them."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from parity_close import assert_close
from parity_inputs import clip, ids, pad, reference_inputs

from omni_jax.models.parts import leaves
from omni_jax.models.thinker import Embedded
from omni_jax.processing.packing import pack
from omni_jax.processing.request import Batch

# Ours and theirs, the axes that theirs must be moved by, and which layer of a stack.
PAIRS = {
    "audio_encoder.conv1.kernel": ("audio_tower.conv2d1.weight", (2, 3, 1, 0), None),
    "audio_encoder.conv3.bias": ("audio_tower.conv2d3.bias", (0,), None),
    "audio_encoder.layers.ffn.up.kernel": ("audio_tower.layers.1.fc1.weight", (1, 0), 1),
    "audio_encoder.layers.attention_norm.scale": ("audio_tower.layers.0.self_attn_layer_norm.weight", (0,), 0),
    "audio_encoder.projection.down.kernel": ("audio_tower.proj2.weight", (1, 0), None),
    "thinker.embedding.table": ("language_model.embed_tokens.weight", (0, 1), None),
    "thinker.decoder.layers.attention.q_norm.scale": ("language_model.layers.2.self_attn.q_norm.weight", (0,), 2),
    "thinker.decoder.layers.ffn.router.kernel": ("language_model.layers.1.mlp.gate.weight", (1, 0), 1),
    "thinker.decoder.experts.gate_up": ("language_model.layers.1.mlp.experts.gate_up_proj", (0, 2, 1), 1),
    "thinker.decoder.experts.down": ("language_model.layers.3.mlp.experts.down_proj", (0, 2, 1), 3),
    "thinker.decoder.norm.scale": ("language_model.norm.weight", (0,), None),
}


def test_gradients_of_the_next_token_loss(omni, reference):
    tokens, mask = pad([ids(omni, 237), ids(omni, 120, words=4, seed=1)], left=False)
    clips = [clip(237), clip(120, 1)]
    batch = Batch.from_tokens(tokens, mask, clips)
    index = batch.audio_index(omni.config.thinker)
    packs = list(pack(clips, omni.config.thinker.audio_encoder))

    def loss(parts):
        embedded = Embedded(parts["thinker"].embed(jnp.asarray(batch.tokens)))
        for item in packs:
            features = parts["audio_encoder"].encode(item.mel, item.extent, item.window)
            embedded = embedded.hear(features.reshape(-1, features.shape[-1]), item.rows(index))
        logits = jax.nn.log_softmax(
            parts["thinker"].logits(embedded, batch.positions, jnp.asarray(batch.lengths))[:, :-1]
        )
        picked = jnp.take_along_axis(logits, batch.tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(picked * batch.mask[:, 1:]) / batch.mask[:, 1:].sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(
        {name: omni.parts[name] for name in ("thinker", "audio_encoder")}
    )
    gradients = leaves(gradients)

    reference.zero_grad()
    logits = torch.log_softmax(reference.thinker(**reference_inputs(tokens, mask, clips)).logits[:, :-1], -1)
    picked = logits.gather(-1, torch.from_numpy(tokens[:, 1:, None]))[..., 0]
    expected = -(picked * torch.from_numpy(mask[:, 1:])).sum() / mask[:, 1:].sum()
    expected.backward()

    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    named = dict(reference.thinker.model.named_parameters())
    for ours, (theirs, order, layer) in PAIRS.items():
        mine = gradients[ours] if layer is None else gradients[ours][layer]
        assert_close(mine, named[theirs].grad.numpy().transpose(order))
    reference.zero_grad()
