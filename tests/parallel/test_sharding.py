"""Models on meshes: the shardings, and replies of many devices that equal those of one."""

import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh

from omni_jax import Omni
from omni_jax.config import from_hf
from omni_jax.models import parts
from omni_jax.models.placement import shardings, undivided
from omni_jax.nn import expert_parallel
from omni_jax.parallel.mesh import make_mesh, well_chosen
from omni_jax.parallel.sharding import mesh_axes
from omni_jax.testing import tiny_config, write_tiny
from omni_jax.testing.qwen2_5_omni import tiny_qwen2_5_config

GREEDY = {
    "thinker_max_new_tokens": 6, "thinker_do_sample": False, "thinker_eos_token_id": -1,
    "talker_max_new_tokens": 14, "talker_do_sample": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """A folder and a model on one device for each family."""
    made = {}
    for name, config in (("Qwen3-Omni", tiny_config()), ("Qwen2.5-Omni", tiny_qwen2_5_config())):
        folder = write_tiny(tmp_path_factory.mktemp(name) / "model", config=config)
        made[name] = folder, Omni.load(folder)
    return made


def conversations():
    rng = np.random.default_rng(0)
    sound = {"type": "audio", "audio": (rng.normal(size=5000).astype(np.float32), 16_000)}
    picture = {"type": "image", "image": rng.integers(0, 256, (64, 64, 3), np.uint8)}
    return [
        [{"role": "user", "content": [*media, {"type": "text", "text": words}]}]
        for media, words in (([sound], "a"), ([picture], "b"), ([], "What?"), ([sound, picture], "c"))
    ]


@pytest.fixture(scope="module")
def alone(families):
    return {name: answers(omni) for name, (_, omni) in families.items()}


def answers(omni):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tokens of the system prompt
        return omni.generate_batch(conversations(), **GREEDY)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("Qwen3-Omni", "data=8"),
        ("Qwen3-Omni", "expert=8"),
        ("Qwen3-Omni", "model=8"),
        ("Qwen3-Omni", "data=2,expert=2,model=2"),
        ("Qwen2.5-Omni", "data=8"),
        ("Qwen2.5-Omni", "model=8"),
        ("Qwen2.5-Omni", "data=2,expert=2,model=2"),
    ],
)
def test_eight_devices_give_the_answers_of_one(families, alone, name, mesh, monkeypatch):
    folder, _ = families[name]
    sent, exchanged = [], expert_parallel._exchanged
    if mesh == "expert=8":
        monkeypatch.setattr(
            expert_parallel, "MIN_EXCHANGED_TOKENS", 1
        )  # tokens of prompts are sent, as in long prompts
        monkeypatch.setattr(
            expert_parallel, "_exchanged", lambda *x, **more: sent.append(len(x[0])) or exchanged(*x, **more)
        )
    spread = Omni.load(folder, mesh=mesh)
    if name == "Qwen3-Omni":
        for part in ("thinker", "talker"):
            experts = getattr(spread.parts, part).decoder.experts
            for leaf in (experts.gate_up[...], experts.down[...]):
                assert {shard.data.nbytes for shard in leaf.addressable_shards} == {leaf.nbytes // 8}
                assert len(leaf.addressable_shards) == 8
    for found, expected in zip(answers(spread), alone[name], strict=True):
        assert found.tokens == expected.tokens
        np.testing.assert_array_equal(found.codes, expected.codes)
        assert found.audio.shape == expected.audio.shape != (0,)
        assert np.abs(found.audio - expected.audio).max() <= 1e-5 * np.abs(expected.audio).max()
    assert bool(sent) == (mesh == "expert=8")


# --- meshes


def sizes(mesh):
    return tuple(mesh.shape.values())


def test_meshes_are_made_by_name():
    assert sizes(make_mesh("v6e-8")) == (2, 1, 4)
    assert sizes(make_mesh("v5p-8")) == (1, 1, 4)  # of eight cores, two a chip
    assert sizes(make_mesh("v6e-8", kv_heads=2)) == (4, 1, 2)
    assert sizes(make_mesh("v5e-4", kv_heads=6)) == (2, 1, 2)
    assert sizes(make_mesh("expert=4, data=2")) == (2, 4, 1)
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    assert make_mesh(mesh) is mesh
    assert well_chosen(jax.devices(), kv_heads=4) is None  # on a CPU


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("v6e-16", "mesh: 'v6e-16' needs 16 devices, got 8; name a smaller one"),
        ("data=4,model=4", "needs 16 devices, got 8"),
        (
            "v6e",
            "mesh: expected a topology such as v6e-8, or sizes of data, expert, model such as data=2,expert=4, got 'v6e'",
        ),
        ("heads=2", "mesh: expected a topology"),
        ("data=0", "mesh: expected a topology"),
        ("v5p-1", "mesh: 'v5p-1' has no chip; of v5p the number counts cores"),
        ("", "mesh: expected a topology"),
        ("data=2,data=4", "mesh: 'data=2,data=4' names data twice"),
        ("v6e-7", "mesh: 'v6e-7': no slice has this size, they are 1, 4, 8, 16"),
        (8, "mesh: expected a shape .* got 8"),
        ((2, 4), r"mesh: expected a shape .* got \(2, 4\)"),
    ],
)
def test_impossible_meshes_are_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        make_mesh(spec)


def test_undivided_axes_are_replicated():
    """4 key heads on 8 devices, 20 heads of the audio encoder on 8; each at full size."""
    published = Path(__file__).parents[1] / "configs" / "qwen3_omni_instruct.json"
    config = from_hf(json.loads(published.read_text())["config"])
    abstract = parts.abstract(config, jnp.bfloat16)
    eight, four = (shardings(abstract, make_mesh(f"model={count}")) for count in (8, 4))
    kernels = [f"thinker.decoder.layers.attention.{name}.kernel" for name in "qk"]
    assert [eight[path].spec[2] for path in kernels] == ["model", None]
    assert [four[path].spec[2] for path in kernels] == ["model", "model"]
    heads = "audio_encoder.layers.q.kernel"
    assert [placed[heads].spec[2] for placed in (eight, four)] == [None, "model"]
    assert undivided(abstract, make_mesh("model=8")) == [
        "audio_encoder: 20 heads over model=8", "talker: 2 kv_heads over model=8", "thinker: 4 kv_heads over model=8",
    ]  # fmt: skip
    assert eight["thinker.decoder.experts.gate_up"].spec[1] == "model"
    # More devices than experts: the axes that leave the fewest experts to each device.
    pod = AbstractMesh((64, 1, 4), ("data", "expert", "model"))
    assert mesh_axes("expert", 128, pod) == ("data",)
    assert mesh_axes("expert", 256, pod) == ("model", "data")
    both = shardings(abstract, make_mesh("data=2,model=4"))
    assert both["thinker.decoder.experts.gate_up"].spec[1] == ("model", "data")
