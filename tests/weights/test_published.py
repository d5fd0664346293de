"""Loading the published layout: values, casts, shards over devices, and reports of every fault."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from omni_jax import weights
from omni_jax.config import from_hf
from omni_jax.models import parts
from omni_jax.testing import tiny_config, write_tiny
from omni_jax.weights import layerwise
from omni_jax.weights.safetensors_reader import Safetensors
from tests.support.trees import same

EXPERT = "thinker.model.layers.1.mlp.experts.3.up_proj.weight"
CONFIG = from_hf(tiny_config())


def test_leaves_have_the_values_of_their_tensors(loaded, tensors):
    """A few leaves, assembled by hand."""
    found = parts.leaves(loaded)
    q = tensors["thinker.model.layers.2.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(found["thinker.decoder.layers.attention.q.kernel"][2], q.T.reshape(64, 4, 16))
    gate, up = (tensors[EXPERT.replace("up_proj", name)] for name in ("gate_proj", "up_proj"))
    np.testing.assert_array_equal(
        found["thinker.decoder.experts.gate_up"][1, 3], np.concatenate([gate.T, up.T], axis=1)
    )
    qkv = tensors["thinker.visual.blocks.3.attn.qkv.weight"]
    k = found["vision_encoder.layers.qkv.kernel"][3, :, 1]
    np.testing.assert_array_equal(k, qkv[32:64].T.reshape(32, 2, 16))
    up = tensors["code2wav.decoder.2.block.1.conv.weight"]
    np.testing.assert_array_equal(found["code2wav.stages.1.conv.kernel"], up.transpose(2, 0, 1))
    out = tensors["thinker.audio_tower.conv_out.weight"]
    np.testing.assert_array_equal(found["audio_encoder.stem.kernel"][5, 7], out[:, 7 * 16 + 5])


def test_large_leaves_are_filled_layer_by_layer(tiny, loaded, monkeypatch):
    monkeypatch.setattr(layerwise, "SMALL_BYTES", 0)
    device = SingleDeviceSharding(jax.devices()[3])
    shardings = dict.fromkeys(parts.leaves(loaded), device)
    made = weights.load(tiny, CONFIG, dtype="float32", speech=False, shardings=shardings)
    assert {leaf.sharding for leaf in jax.tree.leaves(made)} == {device}
    same(made, {name: part for name, part in loaded.items() if name in made})


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
@pytest.mark.parametrize("small", [0, 32 << 20])
def test_weights_are_sharded_over_eight_devices(tiny, loaded, monkeypatch, kind, small):
    monkeypatch.setattr(layerwise, "SMALL_BYTES", small)
    mesh = jax.make_mesh((2, 4), ("data", "expert"), axis_types=(kind, kind))
    experts = NamedSharding(mesh, PartitionSpec(None, "expert"))
    table = NamedSharding(mesh, PartitionSpec("data", None))
    shardings = {"thinker.decoder.experts.down": experts, "thinker.embedding.table": table}
    made = weights.load(tiny, CONFIG, dtype="float32", speech=False, shardings=shardings)
    same(made, {name: part for name, part in loaded.items() if not parts.is_spoken(name)})
    found = parts.leaves(made)
    assert found["thinker.decoder.experts.down"].sharding.is_equivalent_to(experts, 4)
    assert found["thinker.embedding.table"].addressable_shards[0].data.shape == (256, 64)


def test_values_are_cast(tiny, loaded):
    made = weights.load(tiny, CONFIG, dtype="bfloat16")
    same(made, jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), loaded))


def test_float16_and_bfloat16_are_read(tensors, folder_of):
    halves = {
        name: tensor.astype(np.float16 if i % 2 else ml_dtypes.bfloat16)
        for i, (name, tensor) in enumerate(tensors.items())
    }
    made = parts.leaves(weights.load(folder_of(halves), CONFIG, dtype="float32"))
    norm = np.stack(
        [halves[f"thinker.model.layers.{layer}.input_layernorm.weight"].astype(np.float32) for layer in range(4)]
    )
    np.testing.assert_array_equal(made["thinker.decoder.layers.attention_norm.scale"], norm)


def test_the_stored_dtype_is_recognised(tiny, tensors, folder_of):
    brain = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    assert weights.published(tiny, CONFIG)[0].dtype == np.float32
    assert weights.published(folder_of(brain), CONFIG)[0].dtype == ml_dtypes.bfloat16
    mixed = brain | {"thinker.model.norm.weight": tensors["thinker.model.norm.weight"]}
    assert weights.published(folder_of(mixed, "mixed"), CONFIG)[0].dtype == np.float32


@pytest.mark.parametrize("dtype", ["int8", "float16", "nonsense", 3])
def test_dtype_must_be_one_of_two(tiny, dtype):
    with pytest.raises(ValueError, match="dtype: expected float32 or bfloat16"):
        weights.load(tiny, CONFIG, dtype=dtype)


def test_progress_ends_at_all_bytes(tiny, loaded):
    calls = []
    weights.load(tiny, CONFIG, dtype="float32", progress=lambda *call: calls.append(call))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    assert {call[1] for call in calls} == {total}
    assert calls[-1][0] == total
    done = [call[0] for call in calls]
    assert done == sorted(done)


def faults(folder, *lines, config=CONFIG, speech=True):
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        weights.load(folder, config, dtype="float32", speech=speech)
    text = str(caught.value)
    for line in lines:
        assert line in text
    assert "\n" not in text
    return text


def test_every_fault_is_in_one_report(tensors, folder_of):
    wrong = dict(tensors)
    for layer in range(4):
        del wrong[f"thinker.model.layers.{layer}.mlp.gate.weight"]
    wrong["thinker.lm_head.weight"] = np.zeros((512, 32), np.float32)
    wrong["thinker.model.norm.weight"] = np.zeros(64, np.int32)
    wrong["talker.surprise"] = np.zeros(1, np.float32)
    wrong["thinker.model.layers.9.surprise.weight"] = np.zeros(1, np.float32)
    text = faults(
        folder_of(wrong),
        "4 missing, 2 unknown, 2 wrong",
        "thinker.model.layers.[0..3].mlp.gate.weight: missing (4 times)",
        "thinker.lm_head.weight: expected shape [512, 64], got [512, 32]",
        "thinker.model.norm.weight: expected float32, bfloat16 or float16, got I32",
        "talker.surprise: unknown tensor",
        "thinker.model.layers.9.surprise.weight: unknown tensor",
    )
    assert "\n" not in text


def test_a_missing_expert_is_named(tensors, folder_of):
    faults(folder_of({name: tensor for name, tensor in tensors.items() if name != EXPERT}), f"{EXPERT}: missing")


def test_weights_of_another_model_are_refused(tensors, folder_of, tmp_path):
    text = faults(
        folder_of({"transformer.wte.weight": np.zeros((4, 4), np.float32), "x" * 10_000: np.zeros(1, np.float32)}),
        "transformer.wte.weight: unknown tensor",
        " more",
    )
    assert len(text) < 500 + len(str(tmp_path))


def test_a_config_of_more_layers_is_refused(tensors, folder_of):
    config = tiny_config()
    config["thinker_config"]["text_config"]["num_hidden_layers"] = 1000
    words = "thinker_config.text_config.num_hidden_layers = 1000, but the tensors thinker.model.layers.* end at 3"
    faults(folder_of(tensors), words, config=from_hf(config))
    config = tiny_config()
    config["thinker_config"]["text_config"]["num_experts"] = 4096
    words = "text_config.num_experts = 4096, but the tensors thinker.model.layers.0.mlp.experts.* end at 7"
    faults(folder_of(tensors, "experts"), words, config=from_hf(config))


def alone(tensors, rename):
    """A thinker's tensors under the names of a thinker saved alone."""
    held = {name: tensor for name, tensor in tensors.items() if name.startswith("thinker.")}
    return {rename(name.removeprefix("thinker.")): tensor for name, tensor in held.items()}


def in_memory(name):
    """The in-memory names of Transformers 5."""
    moved = {"model.": "model.language_model.", "audio_tower.": "model.audio_tower.", "visual.": "model.visual."}
    return next((new + name.removeprefix(old) for old, new in moved.items() if name.startswith(old)), name)


@pytest.mark.parametrize(
    "rename", [str, in_memory, "thinker.{}".format], ids=["written", "in memory", "as of the whole"]
)
def test_a_thinker_saved_alone_is_loaded(tensors, folder_of, loaded, rename):
    folder = folder_of(alone(tensors, rename))
    config = {**tiny_config()["thinker_config"], "model_type": "qwen3_omni_moe_thinker"}
    (folder / "config.json").write_text(json.dumps(config))
    made = weights.load(folder, weights.config_of(folder), dtype="float32")
    same(made, {name: loaded[name] for name in ("thinker", "audio_encoder", "vision_encoder")})
    config_of_it = weights.config_of(folder)
    assert config_of_it.im_end == CONFIG.im_end  # of the tokenizer
    again = weights.save(made, folder.parent / "again", config, files_from=folder)
    assert json.loads((again / "config.json").read_text()) == {**config, "dtype": "float32"}
    same(weights.load(again, weights.config_of(again), dtype="float32"), made)


def test_a_talker_without_any_tensor_is_absent(tensors, folder_of):
    folder = folder_of({name: tensor for name, tensor in tensors.items() if name.startswith("thinker.")})
    assert CONFIG.talker is not None
    config = weights.config_of(folder)
    assert config == CONFIG.silent()
    assert config.talker is None
    assert weights.published(folder, config)
    assert weights.config_of(folder_of(tensors, "whole")) == CONFIG


@pytest.mark.parametrize("kept", ["talker.codec_head.weight", "code2wav.code_embedding.weight"])
def test_an_incomplete_talker_is_refused(tensors, folder_of, kept):
    folder = folder_of({name: tensor for name, tensor in tensors.items() if name.startswith(("thinker.", kept))})
    config = weights.config_of(folder)
    assert config == CONFIG
    faults(folder, "missing", config=config)


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".qweight", np.int32), (".weight_packed", np.int32), (".weight_scale_inv", np.float32), (".absmax", np.float32)],
)
def test_quantized_tensors_are_refused_as_such(tensors, folder_of, suffix, dtype):
    name = "thinker.model.layers.0.self_attn.q_proj.weight"
    changed = {**tensors, name.replace(".weight", suffix): np.zeros((8, 64), dtype)}
    text = faults(folder_of(changed), "the checkpoint is quantized", suffix, "Qwen/Qwen3-Omni")
    assert len(text) < 500


def test_tensors_of_eight_bits_are_refused_as_quantized(tensors, folder_of):
    name = "thinker.model.layers.0.self_attn.q_proj.weight"
    changed = {**tensors, name: tensors[name].astype(ml_dtypes.float8_e4m3fn)}
    faults(folder_of(changed), "the checkpoint is quantized", "F8_E4M3")


def test_computed_buffers_are_ignored(tensors, folder_of, loaded):
    extra = {
        "thinker.model.rotary_emb.inv_freq": np.zeros(8, np.float32),
        "thinker.audio_tower.positional_embedding.positional_embedding": np.zeros((15, 32), np.float32),
        "code2wav.code_offset": np.zeros((1, 4, 1), np.int64),
    }
    same(weights.load(folder_of(tensors | extra), CONFIG, dtype="float32"), loaded)


def test_in_memory_names_of_transformers_are_read(tensors, folder_of, loaded):
    """The thinker is one level deeper and experts are fused, as Transformers holds them."""
    fused = {}
    for name, tensor in tensors.items():
        if ".experts." not in name:
            fused[name.replace("thinker.model.", "thinker.model.language_model.")] = tensor
    for part, layers, experts in (("thinker.model.language_model", 4, 8), ("talker.model", 3, 8)):
        for layer in range(layers):
            where = f"{part.replace('.language_model', '')}.layers.{layer}.mlp.experts"
            gate, up, down = (
                np.stack([tensors[f"{where}.{e}.{name}_proj.weight"] for e in range(experts)])
                for name in ("gate", "up", "down")
            )
            fused[f"{part}.layers.{layer}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
            fused[f"{part}.layers.{layer}.mlp.experts.down_proj"] = down
    moved = {}
    for name, tensor in fused.items():
        for old in ("audio_tower", "visual"):
            name = name.replace(f"thinker.{old}.", f"thinker.model.{old}.")
        moved[name] = tensor
    assert len(moved) == 410
    same(weights.load(folder_of(moved), CONFIG, dtype="float32"), loaded)
    del moved["talker.model.layers.2.mlp.experts.down_proj"]
    faults(
        folder_of(moved, "less"),
        "talker.model.layers.2.mlp.experts.down_proj: missing",
        "1 missing, 0 unknown, 0 wrong",
    )


def test_one_tensor_under_two_names_is_refused(tensors, folder_of):
    twice = {"thinker.model.language_model.norm.weight": tensors["thinker.model.norm.weight"]}
    faults(folder_of(tensors | twice), "thinker.model.norm.weight", "the same tensor as")


def test_without_speech_its_tensors_are_not_read(tiny, monkeypatch):
    names = []
    read = Safetensors.read
    monkeypatch.setattr(
        Safetensors, "read", lambda self, name, spans=None: names.append(name) or read(self, name, spans)
    )
    made = weights.load(tiny, CONFIG, dtype="float32", speech=False)
    assert set(made) == {"thinker", "audio_encoder", "vision_encoder"}
    assert names
    assert not [name for name in names if not name.startswith("thinker.")]


def test_without_speech_its_shards_may_be_absent(tmp_path, loaded):
    folder = write_tiny(tmp_path / "many", shards=8)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    thinking = {file for name, file in index.items() if name.startswith("thinker.")}
    speaking = set(index.values()) - thinking
    assert speaking
    for file in speaking:
        (folder / file).unlink()
    made = weights.load(folder, CONFIG, dtype="float32", speech=False)
    same(made, {name: part for name, part in loaded.items() if name in made})
    faults(folder, "names files that are not there")


def test_a_config_without_speech_ignores_its_tensors(tiny):
    config = from_hf({**tiny_config(), "enable_audio_output": False})
    assert set(weights.load(tiny, config, dtype="float32")) == {"thinker", "audio_encoder", "vision_encoder"}
