"""The code that applies the tables, and the tables against the published names and shapes."""

import itertools
import json
import re
from functools import cache
from pathlib import Path

import einops
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.config import family_of, from_hf
from omni_jax.models import parts
from omni_jax.testing import tiny_config, tiny_qwen2_5_config
from omni_jax.weights.layerwise import leaves
from omni_jax.weights.table import bind, parse, report
from omni_jax.weights.tables import common, qwen2_5_omni, qwen3_omni

HERE = Path(__file__).parent
RUN = re.compile(r"\[(\d+)\.\.(\d+)\]")


def published(release):
    """Every published tensor of a release and its shape."""
    listed = HERE / ("published_keys.txt" if release.startswith("qwen3") else "published_keys_qwen2_5.txt")
    found = {}
    for line in listed.read_text().splitlines():
        if line.startswith("# 3B") and release != "qwen2_5_omni_3b":
            break
        if line.startswith("#"):
            continue
        name, *shape = line.split()
        runs = [range(int(low), int(high) + 1) for low, high in RUN.findall(name)]
        template = RUN.sub("{}", name)
        found |= {template.format(*numbers): tuple(map(int, shape)) for numbers in itertools.product(*runs)}
    silent = release in ("qwen3_omni_thinking", "qwen3_omni_captioner")
    return {name: shape for name, shape in found.items() if name.startswith("thinker.") or not silent}


RELEASES = {
    "qwen3_omni_instruct": 28_010,
    "qwen3_omni_thinking": 19_743,
    "qwen3_omni_captioner": 19_743,
    "qwen2_5_omni_7b": 2_447,
    "qwen2_5_omni_3b": 2_543,
}


@cache
def full_size(release):
    config = from_hf(json.loads((HERE.parent / "configs" / f"{release}.json").read_text())["config"])
    return config, leaves(parts.abstract(config, jnp.bfloat16))


def table(config):
    return family_of(config).module("weights.tables").rows(config)


@pytest.mark.parametrize("release", RELEASES)
def test_the_table_covers_exactly_the_published_tensors(release):
    config, found = full_size(release)
    wanted = published(release)
    bound, faults = bind(table(config), {path: leaf.shape for path, leaf in found.items()})
    assert not faults
    ours = {name: binding.shape for binding in bound.values() for name in binding.names()}
    assert len(wanted) == RELEASES[release]
    assert ours == wanted


@pytest.mark.parametrize("release", ["qwen3_omni_instruct", "qwen2_5_omni_7b"])
def test_rows_and_leaves_agree_on_what_is_stacked(release):
    config, found = full_size(release)
    bound, _ = bind(table(config), {path: leaf.shape for path, leaf in found.items()})
    assert {path: binding.stacked for path, binding in bound.items()} == {
        path: leaf.stacked for path, leaf in found.items()
    }


@pytest.mark.parametrize("release", ["qwen2_5_omni_7b", "qwen2_5_omni_3b"])
def test_published_dtypes_are_those_of_the_leaves(release):
    """All of token2wav is float32 in a model of bfloat16, and nothing else is."""
    config, found = full_size(release)
    bound, _ = bind(table(config), {path: leaf.shape for path, leaf in found.items()})
    for path, binding in bound.items():
        kind = "float32" if next(binding.names()).startswith("token2wav.") else "bfloat16"
        assert found[path].dtype.name == kind, path


def test_every_row_has_a_leaf():
    """Rows of one family have a leaf in it, shared rows in at least one."""
    found = {release: full_size(release)[1] for release in ("qwen3_omni_instruct", "qwen2_5_omni_7b")}
    for module, releases in (
        (qwen3_omni, ["qwen3_omni_instruct"]),
        (qwen2_5_omni, ["qwen2_5_omni_7b"]),
        (common, list(found)),
    ):
        blocks = [text for name, text in vars(module).items() if name.isupper() and isinstance(text, str)]
        assert len(blocks) >= 3
        for row in (row for block in blocks for row in parse(block)):
            pattern = re.compile(".*" + re.escape(row.ours).replace(r"\{i\}", r"\d+"))
            assert any(pattern.fullmatch(path) for release in releases for path in found[release]), row.ours


@pytest.mark.parametrize("tiny", [tiny_config, tiny_qwen2_5_config])
def test_pieces_equal_einops(tiny):
    """Each row of the tiny model, assembled by hand from all of its tensors, equals einops' result for the pattern."""
    config = from_hf(tiny())
    found = leaves(parts.abstract(config, jnp.float32))
    rows = table(config)
    random = np.random.default_rng(0)
    seen = 0
    for row in rows:
        pattern = re.compile(re.escape(row.ours).replace(r"\{i\}", r"\d+"))
        for path in filter(pattern.fullmatch, found):
            leaf = found[path]
            binding = bind([row], {path: leaf.shape})[0][path] if not row.alternative else None
            if binding is None:
                continue
            tensors = {name: random.standard_normal(binding.shape, np.float32) for name in binding.names()}
            slots = [len(labels) for _, labels in binding.slots]
            stacked = np.stack(list(tensors.values())).reshape(*slots, *binding.shape)
            sizes = dict(zip((name for group in row.right for name in group), _atoms(binding, leaf), strict=True))
            wanted = einops.rearrange(stacked, f"{_text(row.left)} -> {_text(row.right)}", **sizes)
            made = np.full(leaf.shape, np.nan, np.float32)
            for layer in range(binding.layers):
                piece = made[layer] if leaf.stacked else made
                for name, index in binding.tensors(layer if leaf.stacked else None):
                    binding.put(piece, index, tensors[name])
                    np.testing.assert_array_equal(binding.extract(piece, index), tensors[name])
            np.testing.assert_array_equal(made, wanted, err_msg=path)
            seen += 1
    assert seen == len(found)


def _atoms(binding, leaf):
    return (*leaf.shape[:1], *binding.atoms) if leaf.stacked else binding.atoms


def _text(groups):
    return " ".join("1" if not group else group[0] if len(group) == 1 else f"({' '.join(group)})" for group in groups)


def test_slots_and_lists_start_at_their_offsets():
    rows = parse(".{i}.units.k | .{i+1}.block.{l+2}.{p:a,b}.w | l p o k -> l k p o", "s", "decoder")
    bound, faults = bind(rows, {"s.3.units.k": (2, 5, 2, 7)})
    assert not faults
    assert list(bound["s.3.units.k"].names()) == [f"decoder.4.block.{n}.{p}.w" for n in (2, 3) for p in "ab"]
    assert bound["s.3.units.k"].shape == (7, 5)


def test_the_alternative_row_of_the_checkpoint_is_used():
    rows = parse("x | x.{l}.{e}.w | l e d -> l e d\nor | x.{l}.fused | l e d -> l e d")
    shapes = {"x": (2, 3, 4)}
    assert next(bind(rows, shapes)[0]["x"].names()) == "x.0.0.w"
    assert list(bind(rows, shapes, {"x.0.fused", "x.1.fused"})[0]["x"].names()) == ["x.0.fused", "x.1.fused"]


def test_bind_reports_leaves_without_a_row_with_two_and_tensors_claimed_twice():
    rows = parse("a | t | d -> d\na | u | d -> d\nb | t | d -> d")
    _, faults = bind(rows, {"a": (2,), "b": (2,), "c": (2,)})
    assert ("a", "two rows of the weight table fill it") in faults
    assert ("c", "no row of the weight table fills it") in faults
    assert ("t", "claimed by both a and b") in faults


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("a | t | d e -> d", (2,)),  # an axis is lost
        ("a | t.{l} | d l -> l d", (2, 2)),  # the slot is not first
        ("a | t | d -> d", (2, 2)),  # another rank
        ("a | t | (d e) -> (d e)", (4,)),  # no size for d and e
        ("a | t.{p:x,y} | p d -> (p d)", (3,)),  # two halves of three
    ],
)
def test_a_broken_table_is_reported(text, shape):
    with pytest.raises(ValueError, match="weight table"):
        bind(parse(text), {"a": shape})


def test_a_report_joins_runs_and_is_capped():
    faults = [(f"m.layers.{i}.e.{j}.w", "missing") for i in range(48) for j in range(128)]
    assert report(faults) == "m.layers.[0..47].e.[0..127].w: missing (6144 times)"
    assert report([("m.3.w", "missing"), ("m.3.w", "odd")]) == "m.3.w: missing; m.3.w: odd"
    text = report([(f"name{chr(97 + i)}", "unknown") for i in range(26)])
    assert "\n" not in text
    assert len(text.split("; ")) == 26
    assert text.endswith("; namey: unknown; and 1 more")
