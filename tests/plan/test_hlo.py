"""Counts of programs with known bytes, operations and collectives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omni_jax.nn.expert_parallel import RARELY
from omni_jax.plan.hlo import Collective, Grouped, HloProgram
from omni_jax.plan.kernel_costs import visited

LAYERS, WIDTH = 7, 256
MATRIX, VECTOR = 4 * WIDTH**2, 4 * WIDTH


def program(function, *shapes, **options):
    text = jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text()
    return HloProgram(text, **options)


def test_a_product_reads_and_writes_each_array_once():
    assert program(lambda x, w: x @ w, (WIDTH, WIDTH), (WIDTH, WIDTH)).bytes() == 3 * MATRIX


def test_a_loop_body_counts_once_per_iteration():
    def run(x, w):
        return jax.lax.fori_loop(0, LAYERS, lambda _, x: x @ w, x)

    found = program(run, (1, WIDTH), (WIDTH, WIDTH))
    assert LAYERS * (MATRIX + 2 * VECTOR) <= found.bytes() < LAYERS * (MATRIX + 8 * VECTOR)
    assert found.flops() == LAYERS * 2 * WIDTH**2


def test_a_loop_of_unknown_length_counts_once():
    def run(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

    found = program(run, (1, WIDTH), (WIDTH, WIDTH))
    assert MATRIX + 2 * VECTOR <= found.bytes() < MATRIX + 12 * VECTOR
    assert found.flops() == 2 * WIDTH**2


def test_a_loop_of_unknown_length_counts_the_given_number_of_times():
    def run(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

    found = program(run, (1, WIDTH), (WIDTH, WIDTH), runs=5)
    assert 5 * (MATRIX + 2 * VECTOR) <= found.bytes() < 5 * (MATRIX + 8 * VECTOR)
    assert found.flops() == 5 * 2 * WIDTH**2


def test_a_layer_of_a_stack_counts_as_a_layer():
    """Each layer is read and copied, then read by its product; the whole stack is never counted."""

    def run(x, stack):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, stack)[0]

    moved = program(run, (1, WIDTH), (LAYERS, WIDTH, WIDTH)).bytes()
    assert LAYERS * MATRIX < moved < 3.5 * LAYERS * MATRIX


TPU = """HloModule kernel

%take (p0: bf16[40,8,16], p1: s32[]) -> bf16[8,16] {
  %p0 = bf16[40,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %slice = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %out = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} bitcast(%slice)
}

ENTRY %main (a: bf16[4,8], w: bf16[40,8,16], s: s32[40], i: s32[]) -> bf16[4,16] {
  %a = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %w = bf16[40,8,16]{2,1,0:T(8,128)(2,1)} parameter(1)
  %s = s32[40]{0:T(128)} parameter(2)
  %i = s32[]{:T(128)} parameter(3)
  %one = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} fusion(%w, %i), kind=kLoop, calls=%take
  ROOT %y = bf16[4,16]{1,0:T(8,128)(2,1)} custom-call(%a, %w, %s), custom_call_target="tpu_custom_call"
}
"""


def test_a_captured_stack_counts_only_the_experts_that_are_read():
    """``a`` is in on-chip memory and counts nothing; ``take`` reads one matrix of the stack, the kernel three."""
    expert, sizes, result, index = 2 * 8 * 16, 4 * 40, 2 * 4 * 16, 4
    found = HloProgram(TPU, {(40, 8, 16): Grouped(groups=3, rows=3)})
    assert found.parts()["one"] == expert + index
    assert found.parts()["y"] == 3 * expert + sizes + result
    assert HloProgram(TPU).parts()["y"] == 40 * expert + sizes + result
    assert found.flops() == 2 * 3 * 8 * 16
    assert HloProgram(TPU, {(40, 8, 16): Grouped(groups=3, rows=9, room=2)}).flops() == 2 * (4 // 2) * 8 * 16


ATTENTION = """HloModule kernel

ENTRY %main (q: bf16[8,1024,128], k: bf16[1024,128], i: s32[1024,128], c: bf16[4096,128], s: s32[8,1024]) -> f32[8,1024,128] {
  %q = bf16[8,1024,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[1024,128]{1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[1024,128]{1,0:T(8,128)S(1)} parameter(2)
  %c = bf16[4096,128]{1,0:T(8,128)(2,1)} parameter(3)
  %s = s32[8,1024]{1,0:T(8,128)S(1)} parameter(4)
  %splash_mqa_fwd_residuals.1 = bf16[8,1024,128]{2,1,0:T(8,128)(2,1)} custom-call(%q, %k, %k, %i), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 512}"
}}, metadata={op_name="own"}
  %splash_mqa_fwd_segmented_residuals.2 = f32[8,1024,128]{2,1,0:T(8,128)S(1)} custom-call(%q, %c, %c, %s), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 512}"
}}, metadata={op_name="past"}
  ROOT %attend_spans.3 = bf16[8,1024,128]{2,1,0:T(8,128)S(1)} custom-call(%s, %q, %q, %q), custom_call_target="tpu_custom_call"
}
"""  # noqa: E501


def test_bytes_and_operations_of_attention_kernels():
    """Eight heads share their keys: two blocks of queries of each read one and two blocks of new keys, or all of a cache."""
    found = HloProgram(ATTENTION, seen=100)
    q, k, past, head = 2 * 8 * 1024 * 128, 2 * 1024 * 128, 2 * 4096 * 128, 4 * 1024 * 128
    assert found.parts()["splash_mqa_fwd_residuals.1"] == q + 8 * 3 * k // 2 * 2 + q
    assert found.parts()["splash_mqa_fwd_segmented_residuals.2"] == q + 8 * 2 * past * 2
    assert found.parts()["attend_spans.3"] == 3 * q
    assert found.flops() == 8 * head * (1024 * 3 // 4 + 4096 + 100)


def test_blocks_of_queries_count_the_keys_that_they_visit():
    """Whole blocks are counted, of both frames where a block of queries spans two."""
    assert visited(4096, 784, 256) == 1216
    assert visited(512, 100, 1) == (5 * 100 * 100 + 12 * 12) // 512
    assert visited(300, 300, 256) == 512


def test_operations_of_a_product_in_a_loop_count_every_iteration():
    def run(x, w):
        return jax.lax.fori_loop(0, LAYERS, lambda _, x: x @ w, x)

    assert program(run, (3, WIDTH), (WIDTH, WIDTH)).flops() == LAYERS * 2 * 3 * WIDTH**2


def test_a_branch_that_is_taken_rarely_does_not_count():
    def run(x, w, *, scope):
        def often(x):
            with jax.named_scope(scope):
                return x @ w @ w @ w

        return jax.lax.cond(x[0, 0] > 0, often, lambda x: x @ w, x)

    # Different sizes, because the compilation cache ignores scopes.
    assert program(partial(run, scope="often"), (3, WIDTH), (WIDTH, WIDTH)).flops() == 3 * 2 * 3 * WIDTH**2
    assert program(partial(run, scope=RARELY), (5, WIDTH), (WIDTH, WIDTH)).flops() == 2 * 5 * WIDTH**2


def test_a_product_as_multiply_and_sum_counts_the_same_operations():
    """A multiplication and a sum, as a compiler writes a product with one row."""
    found = program(lambda x, w: jnp.sum(x[:, None] * w, axis=0), (WIDTH,), (WIDTH, WIDTH))
    assert found.flops() == 2 * WIDTH**2


def convolution(x, w, *, stride=1, padding="SAME", base=1, dilation=1):
    return jax.lax.conv_general_dilated(
        x, w, (stride,), padding, (base,), (dilation,), dimension_numbers=("NWC", "WIO", "NWC")
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 3}, {"padding": [(4, 0)]}, {"padding": [(3, 5)], "base": 4}, {"dilation": 3}, {"padding": "VALID"}],
)
def test_convolutions_count_no_operations_on_padding(options):
    steps, width, ins, outs = 11, 5, 3, 2
    made = convolution(jnp.ones((1, steps, 1)), jnp.ones((width, 1, 1)), **options)
    found = program(lambda x, w: convolution(x, w, **options), (4, steps, ins), (width, ins, outs))
    assert found.flops() == 2 * 4 * ins * outs * int(np.sum(made))


def test_collectives_in_a_loop_count_every_iteration():
    devices = Mesh(np.array(jax.devices()[:4]), ("model",))
    whole, split = (NamedSharding(devices, PartitionSpec(*axes)) for axes in ((), ("model",)))

    def run(x, w):
        def step(_, x):
            return jax.lax.with_sharding_constraint(x @ w, whole)

        return jax.lax.fori_loop(0, LAYERS, step, x)

    shapes = ((3, WIDTH), whole), ((WIDTH, WIDTH), split)
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for shape, place in shapes)
    text = jax.jit(run).lower(*arguments).compile().as_text()
    found = HloProgram(text)
    assert found.collectives() == [Collective("all-reduce", "f32[3,256]", 3 * VECTOR, LAYERS)]
    assert found.flops() == LAYERS * 2 * 3 * WIDTH**2 // 4
