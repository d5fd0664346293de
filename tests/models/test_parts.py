"""The container of a model's parts: a typed pytree whose paths are those of checkpoints."""

from dataclasses import FrozenInstanceError, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from omni_jax.config import from_hf
from omni_jax.models import parts
from omni_jax.models.qwen2_5_omni import Qwen25OmniParts
from omni_jax.models.qwen3_omni import Qwen3OmniParts
from omni_jax.testing import tiny_config, tiny_qwen2_5_config

CONFIG = from_hf(tiny_config())
READING = ["thinker", "audio_encoder", "vision_encoder"]
FAMILIES = {
    "qwen3_omni": (tiny_config, Qwen3OmniParts, [*READING, "talker", "code_predictor", "code2wav"]),
    "qwen2_5_omni": (tiny_qwen2_5_config, Qwen25OmniParts, [*READING, "talker", "dit", "bigvgan"]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_own_parts_and_without_speech_the_spoken_ones_are_none(family):
    config, kind, names = FAMILIES[family]
    whole = parts.abstract(from_hf(config()), jnp.float32)
    silent = parts.abstract(from_hf(config()), jnp.float32, speech=False)
    assert type(whole) is type(silent) is kind
    assert [list(whole), list(silent)] == [names, READING]
    assert [getattr(silent, name) for name in names[3:]] == [None] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_leaves_have_the_paths_and_the_order_that_a_dict_of_parts_gives_them(family):
    whole = parts.abstract(from_hf(FAMILIES[family][0]()), jnp.float32)
    assert list(parts.leaves(whole)) == list(parts.leaves(dict(whole)))
    assert parts.axes(whole) == parts.axes(dict(whole))
    assert parts.leaves(whole)["thinker.decoder.norm.scale"] is whole.thinker.decoder.norm.scale.get_value()


def test_parts_can_be_had_by_name_and_are_not_assigned_to(loaded):
    assert loaded["thinker"] is loaded.thinker
    assert dict(loaded.items()) == {name: getattr(loaded, name) for name in loaded}
    silent = replace(loaded, talker=None)
    assert "talker" not in silent
    for name in ("talker", "keys", "nothing"):
        with pytest.raises(KeyError, match=name):
            silent[name]
    with pytest.raises(FrozenInstanceError):
        silent.talker = loaded.talker


def test_gradients_and_optax_take_the_parts_as_they_are(loaded):
    """A step on the thinker changes what its loss reads, and leaves the parts that it does not read."""
    tokens = jnp.asarray([[3, 1, 4, 1, 5]])
    positions, lengths = jnp.broadcast_to(jnp.arange(5.0), (3, 1, 5)), jnp.asarray([5])

    @jax.jit
    def loss(model):
        thinker = model.thinker
        scores = jax.nn.log_softmax(thinker.logits(thinker.prompt(tokens), positions, lengths)[:, :-1])
        return -jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1).mean()

    optimizer = optax.sgd(0.1)
    value, gradients = jax.value_and_grad(loss)(loaded)
    updates, _ = optimizer.update(gradients, optimizer.init(loaded))
    stepped = optax.apply_updates(loaded, updates)
    assert type(gradients) is type(stepped) is Qwen3OmniParts
    assert loss(stepped) < value
    np.testing.assert_array_equal(stepped.talker.head.kernel[...], loaded.talker.head.kernel[...])
