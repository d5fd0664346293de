"""Weights in another order of axes are the same weights."""

import jax
import jax.numpy as jnp
import numpy as np

from omni_jax.config import from_hf
from omni_jax.layouts import arranged
from omni_jax.models import parts
from omni_jax.testing import tiny_config


def test_kernels_of_two_output_axes_lie_with_the_contracted_one_next_to_the_last():
    config = from_hf(tiny_config())
    made = jax.jit(lambda: parts.random(config, jnp.float32, jax.random.key(0)))()
    moved = arranged(made)
    before, after = parts.leaves(made), parts.leaves(moved)
    turned = {path for path, leaf in after.items() if leaf.format.layout.major_to_minor != tuple(range(leaf.ndim))}
    assert {path.rsplit(".", 2)[-2] for path in turned} == {"q", "k", "v", "gate_up"}
    assert all(after[path].format.layout.major_to_minor == (0, 2, 1, 3) for path in turned)
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf)

    def run(predictor):
        return predictor.residual(
            *jnp.ones((2, 1, config.talker.decoder.width)), lambda scores, _: jnp.argmax(scores, -1)
        )

    program = jax.jit(run)
    np.testing.assert_array_equal(program(moved["code_predictor"])[0], program(made["code_predictor"])[0])
