"""The conversion scripts: both directions, the comparison, and one line with exit code 2 for a user error."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omni_jax import checkpoint
from omni_jax.testing import tiny_qwen2_5_config, write_tiny
from omni_jax.testing.qwen2_5_omni import tiny_speakers
from omni_jax.weights.speakers import write_speakers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    """Loads a script as Python would run it, from its own folder."""
    monkeypatch.syspath_prepend(ROOT / "convert")

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "convert" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def converted(tiny, tmp_path_factory):
    return checkpoint.convert(tiny, tmp_path_factory.mktemp("converted") / "folder")


def everything(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_from_hf_and_to_hf_are_inverse(script, tiny, tmp_path):
    there, back = tmp_path / "there", tmp_path / "back"
    assert script("from_hf").main([str(tiny), str(there)]) == 0
    assert checkpoint.is_converted(there)
    assert script("to_hf").main([str(there), str(back), "--shard-gb", "0.001"]) == 0
    assert len(list(back.glob("*.safetensors"))) > 2
    tensors, again = everything(tiny), everything(back)
    assert tensors.keys() == again.keys()
    assert all(np.array_equal(again[name], tensor) for name, tensor in tensors.items())


def test_from_hf_casts_to_the_given_dtype(script, tiny, tmp_path):
    assert script("from_hf").main([str(tiny), str(tmp_path / "there"), "--dtype", "bfloat16"]) == 0
    assert script("to_hf").main([str(tmp_path / "there"), str(tmp_path / "back")]) == 0
    assert {tensor.dtype.name for tensor in everything(tmp_path / "back").values()} == {"bfloat16"}


def test_check_reports_equal_folders(script, tiny, converted, capsys):
    assert script("check").main([str(tiny), str(converted)]) == 0
    out = capsys.readouterr().out
    assert "314,048" in out  # values of the thinker
    assert out.splitlines()[-1] == "equal"
    for part in ("thinker", "audio_encoder", "vision_encoder", "talker", "code_predictor", "code2wav"):
        assert part in out


def test_check_compares_in_the_converted_dtype(script, tiny, tmp_path, capsys):
    checkpoint.convert(tiny, tmp_path / "brain", dtype="bfloat16")
    assert script("check").main([str(tiny), str(tmp_path / "brain")]) == 0
    assert "bfloat16" in capsys.readouterr().out


def test_check_names_the_tensors_that_differ(script, tiny, converted, tmp_path, capsys):
    folder = shutil.copytree(tiny, tmp_path / "other")
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if "thinker.model.layers.2.mlp.experts.5.up_proj.weight" in tensors:
            tensors["thinker.model.layers.2.mlp.experts.5.up_proj.weight"][3, 4] += 0.5
            tensors["thinker.model.norm.weight"][7] = np.nan
            save_file(tensors, path)
    assert script("check").main([str(folder), str(converted)]) == 1
    out = capsys.readouterr().out
    assert "thinker.decoder.experts.gate_up [layer 2]: 1 of 32,768 values differ, by up to 0.5" in out
    assert "thinker.decoder.norm.scale: 1 of 64 values differ, by up to nan" in out
    assert out.splitlines()[-1] == "the converted checkpoint differs"


def test_qwen2_5_is_converted_in_its_two_dtypes(script, tmp_path, capsys):
    source, there, back = (tmp_path / name for name in ("source", "there", "back"))
    write_tiny(source, config=tiny_qwen2_5_config(), dtype="bfloat16", shards=6)
    assert script("from_hf").main([str(source), str(there)]) == 0
    assert script("check").main([str(source), str(there)]) == 0
    out = capsys.readouterr().out
    assert "in bfloat16, float32" in out
    assert "32,528" in out  # values of bigvgan
    assert script("to_hf").main([str(there), str(back), "--shard-gb", "0.001"]) == 0
    tensors, again = everything(source), everything(back)
    assert tensors.keys() == again.keys()
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.tobytes()) == (again[name].dtype, again[name].tobytes()), name
    capsys.readouterr()
    write_speakers(there, {"Ethan": tiny_speakers(seed=1)["Ethan"]})
    assert script("check").main([str(source), str(there)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ["voice Chelsie differs", "voice Ethan differs", "the converted checkpoint differs"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("from_hf", ["GONE", "NEW"], "no such folder"),
        ("from_hf", ["CONVERTED", "NEW"], "needs no conversion"),
        ("to_hf", ["TINY", "NEW"], "found no omni_jax.json"),
        ("to_hf", ["CONVERTED", "TINY"], "already holds safetensors"),
        ("to_hf", ["CONVERTED", "NEW", "--shard-gb", "0"], "--shard-gb: expected a size above 0"),
        ("to_hf", ["CONVERTED", "NEW", "--shard-gb", "nan"], "--shard-gb: expected a size above 0"),
        ("to_hf", ["CONVERTED", "NEW", "--shard-gb", "inf"], "--shard-gb: expected a size above 0"),
        ("check", ["TINY", "TINY"], "found no omni_jax.json"),
        ("check", ["TINY"], "the following arguments are required: converted"),
        ("from_hf", ["TINY", "NEW", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        ("to_hf", ["CONVERTED", "NEW", "--shard-gb", "big"], "argument --shard-gb: invalid float value: 'big'"),
        ("to_hf", ["CONVERTED", "NEW", "--shards", "2"], "unrecognized arguments: --shards 2"),
    ],
)
def test_a_user_error_prints_one_line_and_exits_with_2(
    script, tiny, converted, tmp_path, capsys, name, arguments, words
):
    places = {"GONE": tmp_path / "gone", "NEW": tmp_path / "new", "TINY": tiny, "CONVERTED": converted}
    module = script(name)
    with pytest.raises(SystemExit) as left:
        module.run(lambda: module.main([str(places.get(argument, argument)) for argument in arguments]), "script")
    assert left.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "new").exists()


def test_a_script_runs_in_a_separate_process(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "convert" / "from_hf.py"]
    (tmp_path / "bare").mkdir()
    run = subprocess.run(
        [*command, tmp_path / "bare", tmp_path / "new"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "config.json" in run.stderr
    assert "Traceback" not in run.stderr
