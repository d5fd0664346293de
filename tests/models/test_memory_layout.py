"""Memory layouts of weights change no values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.config import from_hf
from omni_jax.models import parts
from omni_jax.models.memory_layout import _held, _order, to_canonical, to_platform_layout
from omni_jax.testing import tiny_config

CONFIG = from_hf(tiny_config())


@pytest.fixture(scope="module")
def made(loaded):
    return loaded


def test_kernels_of_two_output_axes_lie_with_the_contracted_one_next_to_the_last(made):
    moved = to_platform_layout(made, "tpu")
    before, after = parts.leaves(made), parts.leaves(moved)
    turned = {path for path, leaf in after.items() if leaf.format.layout.major_to_minor != tuple(range(leaf.ndim))}
    orders = {(path.rsplit(".", 2)[-2], after[path].format.layout.major_to_minor) for path in turned}
    assert orders == {(name, (0, 2, 3, 1)) for name in ("gate_up", "q", "k", "v")}  # narrower than tiles, all of them
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf)

    def run(predictor):
        return predictor.residual(
            *jnp.ones((2, 1, CONFIG.talker.decoder.width)), lambda scores, _: jnp.argmax(scores, -1)
        )

    program = jax.jit(run)
    np.testing.assert_array_equal(program(moved.code_predictor)[0], program(made.code_predictor)[0])


def test_a_width_that_tiles_do_not_divide_lies_next_to_the_last():
    """Qwen2.5-Omni's vision encoder; with other widths only the kernel with two output axes is transposed."""
    assert _order(("embed", None, "ffn"), (32, 1280, 2, 3420)) == (0, 2, 3, 1)
    assert _order(("ffn", "embed"), (32, 3420, 1280)) == (0, 1, 2)
    assert _order(("embed", None, "ffn"), (36, 2048, 2, 11008)) == (0, 2, 1, 3)
    assert _order(("ffn", "embed"), (36, 11008, 2048)) is None


def test_heads_narrower_than_a_tile_do_not_lie_innermost():
    assert _order(("embed", "heads", "head"), (32, 1280, 20, 64)) == (0, 2, 3, 1)
    assert _order(("embed", "heads", "head"), (36, 2048, 16, 128)) == (0, 2, 1, 3)


def test_layouts_depend_on_a_devices_share_of_a_width():
    """A shared expert's 768 columns over four devices are 192 each, which is no whole number of tiles."""
    four = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("model",))
    leaf = jax.ShapeDtypeStruct(
        (20, 1024, 2, 768), jnp.float32, sharding=jax.NamedSharding(four, jax.P(None, None, None, "model"))
    )
    assert _held(leaf) == (20, 1024, 2, 192)
    assert _order(("embed", None, "ffn"), _held(leaf)) == (0, 2, 3, 1)
    assert _order(("embed", None, "ffn"), leaf.shape) == (0, 2, 1, 3)


def test_on_a_cpu_decoder_layers_are_unstacked(made):
    """The layers share the stack's buffer, so large stacks are not copied; and back to a stack, as in checkpoints."""
    before = parts.leaves(made)
    moved = to_platform_layout(made, "cpu")
    layers = moved.thinker.decoder.layers
    assert len(layers) == before["thinker.decoder.layers.attention.q.kernel"].shape[0]
    stack = before["thinker.decoder.layers.attention.q.kernel"]
    for layer, block in enumerate(layers):
        kernel = block.attention.q.kernel[...]
        np.testing.assert_array_equal(kernel, stack[layer])
        assert kernel.unsafe_buffer_pointer() == stack.unsafe_buffer_pointer() + layer * kernel.nbytes
    assert moved.vision_encoder is made.vision_encoder
    assert parts.leaves(to_platform_layout(made, "gpu")).keys() == before.keys()
    again = parts.leaves(to_canonical(moved))
    assert again.keys() == before.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(again[path], leaf)
