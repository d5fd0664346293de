"""Whether a model fits a slice: names, sums, refusals, and tiny programs through the TPU's own compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from omni_jax.config import from_hf
from omni_jax.parallel.mesh import make_mesh
from omni_jax.parallel.topology import CHIPS, topology
from omni_jax.plan import Plan, lower_bound, plan, read
from omni_jax.plan.lowering import Programs
from omni_jax.plan.workload import Workload
from omni_jax.testing import tiny_config, tiny_qwen2_5_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "configs"


def test_topologies_are_found_by_name():
    assert [topology(name).chips for name in ("v5e-1", "v6e-4", "v6e-8", "v5p-8", "v5e-256")] == [1, 4, 8, 4, 256]
    assert topology("v6e-8").shape == "2x4"
    assert topology("v6e-1").chip.limit == int(31.25 * 2**30)
    assert {device.platform for device in topology("v6e-4").devices} == {"tpu"}


@pytest.mark.parametrize("name", ["v6e", "v9e-8", "v6e-3", "v5p-3", "cpu-8", "v6e-8 "])
def test_unknown_topologies_are_refused(name):
    with pytest.raises(ValueError, match=r"topology: .*expected"):
        topology(name)


def test_too_large_a_model_is_refused_before_anything_is_compiled():
    found = plan(CONFIGS / "qwen3_omni_instruct.json", "v6e-1")
    assert not found.fits
    assert found.weights_bytes == found.weights > 60e9
    said = found.json()
    assert list(said) == ["fits", "chips", "weights_bytes", "per_chip", "programs"]
    assert (said["fits"], said["chips"], said["programs"]) == (False, 1, [])
    assert said["per_chip"]["limit"] == CHIPS["v6e"].limit


def test_weights_and_caches_are_counted_per_chip():
    """Weights and caches alone, from shapes: an eighth of the experts a chip, and heads over four of eight chips."""
    config = read(CONFIGS / "qwen3_omni_instruct.json")
    devices = topology("v6e-8").devices
    entries = Programs(config, make_mesh("data=2,model=4", devices=devices), Workload(batch=64, context=8192))
    experts = entries.parts.thinker.decoder.experts
    assert 8 * lower_bound.bytes_per_device(experts) == 2 * lower_bound.size(experts)
    layers, kv_heads, width = 48, 4, 128
    whole = 2 * 2 * layers * 64 * 8192 * kv_heads * width
    assert lower_bound.bytes_per_device((entries.cache.k, entries.cache.v)) == whole // 8


def test_the_lower_bound_of_a_decoder_is_every_weight_once_and_the_cache():
    config = from_hf(tiny_config())
    entries = Programs(
        config, make_mesh("data=1", devices=jax.devices()), Workload(batch=2, context=64, dtype=jnp.float32)
    )
    decoder, experts = config.thinker.decoder, config.thinker.decoder.experts
    thinker = entries.parts.thinker
    once = 4 * (lower_bound.size(thinker.decoder.layers) + decoder.width + lower_bound.size(thinker.head))
    chosen = 4 * lower_bound.size(thinker.decoder.experts) * 2 * experts.per_token // experts.count
    cache = 2 * 4 * decoder.layers * 2 * 64 * decoder.kv_heads * decoder.head_width
    found = entries.decode().cost
    assert found.bytes == once + chosen + cache + 2 * 4 * decoder.width
    active = (
        lower_bound.size(thinker.decoder.layers)
        + lower_bound.size(thinker.decoder.experts) * experts.per_token // experts.count
    )
    attention = 4 * decoder.layers * decoder.heads * decoder.head_width * 64
    assert found.flops == 2 * (2 * (active + lower_bound.size(thinker.head)) + attention)


def test_programs_of_both_families_lower():
    """Each program lowers; compiling them all would take too long."""
    for config, sounding in ((tiny_config(), ["code2wav"]), (tiny_qwen2_5_config(), ["DiT", "BigVGAN"])):
        mesh = make_mesh("data=1", devices=topology("v6e-1").devices)
        entries = Programs(from_hf(config), mesh, Workload(batch=2, context=250, speech=True))
        made = list(entries)
        # A prompt has its bucket, the cache grows from the one below, and speech has room after the text.
        for part in ("prefill, 1 x 256 tokens", "grow the cache to 256", "a token of 2 x 256", "a frame of 2 x 768"):
            assert any(part in entry.name for entry in made)
        assert entries.cache.slots == 4 * made[3].arguments[0].slots // 3
        names = [entry.name.split(",")[0].split(" the ")[0] for entry in made]
        assert names == ["audio encoder", "vision encoder", "prefill", "grow", "decode", "speech", *sounding]
        for entry in made:
            assert entry.lower().in_tree
            assert entry.cost.bytes > 0


def test_programs_for_gpus_lower():
    """Attention and experts in their forms for CUDA, on a mesh of all axes; nothing here compiles or runs them."""
    mesh = make_mesh("data=2,expert=2,model=2", devices=jax.devices())
    entries = Programs(from_hf(tiny_config()), mesh, Workload(batch=2, context=4096, speech=True))
    for entry in (entries.prefill(4096), entries.decode(), entries.frame()):
        text = entry.function.trace(*entry.arguments, **entry.options).lower(lowering_platforms=("cuda",)).as_text()
        assert "tpu_custom_call" not in text
        assert ("ragged_all_to_all" in text) == entry.name.startswith("prefill")


def test_operations_of_traced_functions_are_counted():
    def run(x, w):
        def step(x, _):
            return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x), None

        return jax.lax.scan(step, x, None, length=5)[0]

    x, w = jnp.ones((3, 8)), jnp.ones((8, 8))
    found = lower_bound.traced(jax.jit(run), (x, w), chips=2)
    assert found.flops == 5 * 2 * 3 * 8 * 8 // 2
    assert found.bytes == 4 * (3 * 8 + 8 * 8) + 4 * 3 * 8 // 2


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The plan of a tiny model on four chips, from the shell, in a separate process."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    asked = ("--topology", "v6e-4", "--batch", "2", "--context", "256", "--only", "decode", "--only", "grow")
    ran = shell(folder, *asked, "--json", folder / "plan.json")
    return ran, json.loads((folder / "plan.json").read_text())


def shell(*arguments, program=("-m", "omni_jax.cli", "plan")):
    # A TPU host's own settings must not reach a compiler that is to run without a TPU.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU", "XLA_FLAGS"))}
    environment |= {"COLUMNS": "80", "JAX_COMPILATION_CACHE_DIR": ""}
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_shell_prints_and_writes_a_plan(planned):
    ran, found = planned
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "As far as these programs go, it fits v6e-4." in ran.stdout
    assert "estimate" in ran.stdout
    assert any("decode, a token of 2 x 256" in line and "all-reduce" in line for line in ran.stdout.splitlines())
    assert (found["fits"], found["chips"]) == (True, 4)
    assert list(found["per_chip"]) == ["weights", "cache", "temporaries", "limit"]
    names = [program["name"].split(",")[0] for program in found["programs"]]
    assert names == ["grow the cache to 256", "decode"]
    keys = ["name", "compile_s", "bytes", "least_bytes", "flops", "least_flops", "temporaries", "collectives"]
    for program in found["programs"]:
        assert list(program) == keys
        assert program["compile_s"] > 0
        assert program["bytes"] > 0
    decode = found["programs"][names.index("decode")]
    assert {each["kind"] for each in decode["collectives"]} >= {"all-reduce"}
    assert all(each["bytes"] > 0 and each["count"] > 0 for each in decode["collectives"])


def test_the_script_exits_with_3_or_with_2_and_one_line(tmp_path):
    script = (str(ROOT / "tpu" / "plan.py"),)
    ran = shell(CONFIGS / "qwen3_omni_instruct.json", "--topology", "v6e-1", program=script)
    assert (ran.returncode, "It does not fit v6e-1" in ran.stdout) == (3, True), ran.stderr[-2000:]
    ran = shell(CONFIGS / "qwen3_omni_instruct.json", "--topology", "v6e-9", program=script)
    assert ran.returncode == 2
    assert ran.stderr.startswith("plan: topology: v6e-9: no slice has this size; expected one of v6e-1")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mesh": "data=8"}, "has 8 devices, and v6e-4 has 4 chips; use them all"),
        ({"batch": 0}, "batch: expected at least 1"),
        ({"context": 10**6}, "context: expected 1 to"),
        ({"mesh": "data=2"}, "has 4 chips; use them all"),
        ({"mesh": "rows=4"}, "mesh: expected"),
        ({"only": lambda name: name == "speak"}, "only: no program has such a name; there are: audio encoder, "),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        plan(from_hf(tiny_config()), "v6e-4", **{"context": 256, **options})


def test_speech_of_a_model_without_a_talker_is_refused():
    with pytest.raises(ValueError, match="speech: this checkpoint has no talker"):
        plan(CONFIGS / "qwen3_omni_thinking.json", "v6e-4", speech=True)


def test_a_program_that_is_too_large_does_not_fit():
    """Weights and caches fit, but a program's temporaries do not."""
    config, keys = from_hf(tiny_config()), []
    jax.monitoring.register_event_listener(lambda event, **_: keys.append(event))
    few = plan(config, "v6e-1", only=lambda name: name.startswith("grow"))
    assert (
        "/jax/compilation_cache/task_disabled_cache" in keys
    )  # cached programs for absent chips could not be read again
    assert few.fits
    assert Plan(**{**vars(few), "temporaries": CHIPS["v6e"].limit}).fits is False
