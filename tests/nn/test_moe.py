"""The mixture of experts against a plain loop, in both of its forms, and the work that the CPU form does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from omni_jax.nn import expert_parallel, grouped_matmul, moe
from omni_jax.parallel.sharding import spec

PLAN = jax.jit(jax.vmap(grouped_matmul.tile_at, in_axes=(0, None, None)), static_argnums=2)
FORMS = [grouped_matmul._tiled, grouped_matmul._ragged, grouped_matmul._each, grouped_matmul._all]
COUNT, WIDTH, FFN, LAYERS, OFFSET = 8, 12, 10, 3, 8


def kernels(seed=0):
    rng = np.random.default_rng(seed)
    gate_up = rng.normal(size=(LAYERS * COUNT, WIDTH, 2 * FFN)).astype(np.float32)
    down = rng.normal(size=(LAYERS * COUNT, FFN, WIDTH)).astype(np.float32)
    return gate_up, down


def plain(x, chosen, weights, gate_up, down):
    x, chosen, weights = np.asarray(x), np.asarray(chosen), np.asarray(weights)
    out = np.zeros_like(x)
    for token in range(len(x)):
        for expert, weight in zip(chosen[token], weights[token], strict=True):
            if expert < COUNT:
                gate, up = np.split(x[token] @ gate_up[OFFSET + expert], 2)
                out[token] += weight * ((gate / (1 + np.exp(-gate)) * up) @ down[OFFSET + expert])
    return out


def inputs(tokens, per_token, seed=0, same=None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, WIDTH)).astype(np.float32)
    chosen = np.stack([rng.permutation(COUNT)[:per_token] for _ in range(tokens)]).astype(np.int32)
    if same is not None:
        chosen[:] = same
    weights = rng.uniform(0.1, 1, size=chosen.shape).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(chosen), jnp.asarray(weights)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("tokens", "per_token"), [(1, 2), (1, 8), (3, 2), (77, 3), (300, 4)])
def test_both_forms_equal_a_plain_loop(form, tokens, per_token):
    x, chosen, weights = inputs(tokens, per_token)
    gate_up, down = kernels()
    y = jax.jit(lambda *a: form(*a, count=COUNT))(x, chosen, weights, gate_up, down, jnp.int32(OFFSET))
    np.testing.assert_allclose(y, plain(x, chosen, weights, gate_up, down), atol=2e-4)


@pytest.mark.parametrize("rows_a_piece", [1, 2, 5])
def test_a_kernel_multiplied_in_pieces_equals_the_whole(monkeypatch, rows_a_piece):
    gate_up, down = kernels()
    monkeypatch.setattr(grouped_matmul, "PIECE", rows_a_piece * 4 * 2 * FFN)
    assert [grouped_matmul.pieces(kernel) for kernel in (gate_up, down)] == {1: [12, 10], 2: [6, 5], 5: [3, 2]}[
        rows_a_piece
    ]
    x, chosen, weights = inputs(77, 3)
    y = grouped_matmul._tiled(x, chosen, weights, gate_up, down, jnp.int32(OFFSET), count=COUNT)
    np.testing.assert_allclose(y, plain(x, chosen, weights, gate_up, down), atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_every_token_reaches_its_expert_when_all_choose_one(form):
    x, chosen, weights = inputs(200, 1, same=5)
    gate_up, down = kernels()
    y = form(x, chosen, weights, gate_up, down, jnp.int32(OFFSET), count=COUNT)
    np.testing.assert_allclose(y, plain(x, chosen, weights, gate_up, down), atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_padding_reaches_no_expert_and_changes_no_row(form):
    x, chosen, weights = inputs(40, 2)
    gate_up, down = kernels()
    chosen = chosen.at[1::3].set(COUNT)
    y = form(x, chosen, weights, gate_up, down, jnp.int32(OFFSET), count=COUNT)
    np.testing.assert_allclose(y, plain(x, chosen, weights, gate_up, down), atol=2e-4)
    assert not np.asarray(y)[1::3].any()


@given(
    tokens=st.integers(1, 4096),
    per_token=st.sampled_from([1, 2, 6, 8]),
    count=st.sampled_from([8, 64, 128]),
    skew=st.floats(0, 3),
    seed=st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
def test_tiles_multiply_at_most_half_more_than_needed(tokens, per_token, count, skew, seed):
    """Rows in tiles against rows needed, for any distribution of tokens over experts."""
    slots = tokens * per_token
    rng = np.random.default_rng(seed)
    popularity = np.log(rng.dirichlet(np.full(count, 10.0**-skew)) + 1e-30)
    chosen = np.argsort(-(popularity + rng.gumbel(size=(tokens, count))), axis=1)[:, :per_token]
    sizes = grouped_matmul.tile_sizes(slots, count, tokens)
    loads = jnp.asarray(np.bincount(chosen.reshape(-1), minlength=count))
    tiles = int(np.sum(-(-np.asarray(loads) // sizes[-1])))
    expert, first, which = (np.asarray(part) for part in PLAN(jnp.arange(4096), loads, sizes))
    rows = np.array(sizes)[which[:tiles]]
    left = np.asarray(loads)[expert[:tiles]] - first[:tiles]
    assert np.minimum(rows, left).sum() == slots
    assert rows.sum() <= 1.5 * slots


def test_gradients_equal_those_of_the_dense_formula():
    x, chosen, weights = inputs(9, 3)
    gate_up, down = kernels()

    def dense(x, weights, gate_up, down):
        gate, up = jnp.split(jnp.einsum("td,edf->tef", x, gate_up[OFFSET : OFFSET + COUNT]), 2, axis=-1)
        y = jnp.einsum("tef,efd->ted", jax.nn.silu(gate) * up, down[OFFSET : OFFSET + COUNT])
        return jnp.sum(jnp.sin(jnp.einsum("tr,trd->td", weights, jnp.take_along_axis(y, chosen[..., None], axis=1))))

    def ours(x, weights, gate_up, down):
        kernels = tuple(kernel.reshape(LAYERS, COUNT, *kernel.shape[1:]) for kernel in (gate_up, down))
        return jnp.sum(jnp.sin(moe.mixture(x, chosen, weights, kernels, jnp.int32(OFFSET // COUNT))))

    for mine, theirs in zip(
        jax.jit(jax.grad(ours, argnums=(0, 1, 2, 3)))(x, weights, gate_up, down),
        jax.grad(dense, argnums=(0, 1, 2, 3))(x, weights, gate_up, down),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 1, 4)])
@pytest.mark.parametrize(("tokens", "per_token", "same"), [(40, 3, None), (40, 1, 5), (1024, 3, None), (1024, 1, 5)])
def test_experts_on_several_devices_drop_no_token(sizes, tokens, per_token, same):
    """Each device holds some of the experts; all tokens may choose one of them, and padding none. Many are sent."""
    mesh, placed = spread_kernels(sizes)
    x, chosen, weights = inputs(tokens, per_token, same=same)
    chosen = chosen.at[1::7].set(COUNT)
    program = jax.jit(moe.mixture).lower(x, chosen, weights, placed, jnp.int32(OFFSET // COUNT)).compile()
    y = program(x, chosen, weights, placed, jnp.int32(OFFSET // COUNT))
    np.testing.assert_allclose(y, plain(x, chosen, weights, *kernels()), atol=2e-4)
    assert (len(y.sharding.device_set) > 1 and not y.sharding.is_fully_replicated) == (
        tokens >= expert_parallel.MIN_EXCHANGED_TOKENS * mesh.size
    )
    if tokens < expert_parallel.MIN_EXCHANGED_TOKENS:
        assert "all-gather" not in program.as_text()


def spread_kernels(sizes):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes), ("data", "expert", "model"))
    placed = tuple(
        jax.device_put(
            leaf.reshape(LAYERS, COUNT, *leaf.shape[1:]),
            NamedSharding(mesh, spec(("expert", None, None), (LAYERS, COUNT, 1, 1), mesh)),
        )
        for leaf in kernels()
    )
    assert placed[0].addressable_shards[0].data.nbytes * np.prod(sizes) == kernels()[0].nbytes
    return mesh, placed


def test_gradients_with_tokens_sent_equal_those_of_one_device():
    _, placed = spread_kernels((2, 2, 2))
    x, chosen, weights = inputs(1024, 3)
    whole = [jnp.asarray(np.asarray(leaf)) for leaf in placed]

    def loss(x, weights, gate_up, down):
        return jnp.sum(jnp.sin(moe.mixture(x, chosen, weights, (gate_up, down), jnp.int32(1))))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    for sent, alone in zip(gradients(x, weights, *placed), gradients(x, weights, *whole), strict=True):
        np.testing.assert_allclose(sent, alone, atol=2e-5 * np.abs(alone).max())
