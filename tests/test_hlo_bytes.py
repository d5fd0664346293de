"""What the counter of bytes says of programs whose bytes are known."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp

PATH = Path(__file__).parents[1] / "benchmarks" / "hlo_bytes.py"
SPEC = importlib.util.spec_from_file_location("hlo_bytes", PATH)
hlo_bytes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hlo_bytes)

LAYERS, WIDTH = 7, 256
MATRIX, VECTOR = 4 * WIDTH**2, 4 * WIDTH


def program(function, *shapes):
    text = jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text()
    return hlo_bytes.Program(text)


def test_a_product_reads_and_writes_each_array_once():
    assert program(lambda x, w: x @ w, (WIDTH, WIDTH), (WIDTH, WIDTH)).bytes() == 3 * MATRIX


def test_a_loop_counts_as_often_as_it_runs():
    def run(x, w):
        return jax.lax.fori_loop(0, LAYERS, lambda _, x: x @ w, x)

    found = program(run, (1, WIDTH), (WIDTH, WIDTH))
    (loop,) = found.loops()
    assert found.trips(loop) == LAYERS
    assert LAYERS * (MATRIX + 2 * VECTOR) <= found.parts()[loop.name] < LAYERS * (MATRIX + 8 * VECTOR)


def test_a_loop_of_unknown_length_counts_once():
    def run(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

    found = program(run, (1, WIDTH), (WIDTH, WIDTH))
    assert MATRIX + 2 * VECTOR <= found.parts()[found.loops()[0].name] < MATRIX + 8 * VECTOR


def test_a_layer_of_a_stack_counts_as_a_layer():
    """Each layer is read and copied, then read by its product: never the whole stack, which is as large as all of them."""

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


def test_a_captured_stack_counts_the_experts_that_are_read():
    """``a`` lies beside the processor and counts nothing; ``take`` reads one matrix of the stack, the kernel three."""
    expert, sizes, result, index = 2 * 8 * 16, 4 * 40, 2 * 4 * 16, 4
    found = hlo_bytes.Program(TPU, {(40, 8, 16): 3})
    assert found.parts()["one"] == expert + index
    assert found.parts()["y"] == 3 * expert + sizes + result
    assert hlo_bytes.Program(TPU).parts()["y"] == 40 * expert + sizes + result
