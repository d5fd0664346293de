"""The notebooks of tpu/notebooks/ run from top to bottom on a CPU with a tiny model, and what they show is what was made."""

import base64
import io
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import av
import jax
import nbformat
import numpy as np
import pytest
import soundfile
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tpu" / "notebooks"
NAMES = ("quickstart", "video_with_sound")
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
# What the tests ask a notebook's own variables, in a cell that the file does not have.
ASKED = {
    "quickstart": "reply=reply.audio, streamed=streamed, pieces=len(chunks), spoken=spoken.audio, written=reply.text",
    "video_with_sound": "written=reply.text, without=reply_without.text",
}
TELL = """import json
import numpy as np
print(json.dumps({{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in dict({}).items()}}))"""


def opened(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def cells(notebook):
    return {cell.id: cell for cell in notebook.cells}


def source(name, cell):
    return cells(opened(name))[cell].source


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Where both notebooks keep their compiled programs, for they share most of them."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(params=NAMES)
def run(request, tmp_path, programs, monkeypatch):
    """A notebook's name, its cells after it ran, and what its variables are at the end."""
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    notebook = opened(request.param)
    notebook.cells.append(new_code_cell(TELL.format(ASKED[request.param]), id="tell"))
    # One device, and programs that are compiled fast rather than run fast.
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm wants widgets for its bars
    }
    environment.pop("COLAB_RELEASE_TAG", None)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment)
    found = cells(notebook)
    return request.param, found, json.loads(printed(found["tell"]))


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def embedded(cell, kind):
    """The content of the one player that a cell shows, "audio" or "video"."""
    html = [output.data.get("text/html", "") for output in cell.outputs if output.output_type == "display_data"]
    (found,) = re.findall(rf'<{kind}\b.*?"data:{kind}/[\w-]+;base64,([^"]+)"', "".join(html), re.DOTALL)
    return base64.b64decode(found)


def heard(cell):
    """Samples of the one player that a cell shows, and their rate."""
    return soundfile.read(io.BytesIO(embedded(cell, "audio")), dtype="float32")


def is_played(cell, samples):
    """The player has these samples, and they are not silence."""
    found, rate = heard(cell)
    assert rate == 24_000
    # IPython cuts to steps of 1/32767, which are read as 1/32768: less than two steps in all.
    np.testing.assert_allclose(found, samples, rtol=0, atol=2 / 32_768)
    assert np.abs(found).max() > 0.01


def test_a_notebook_runs_and_plays_what_it_made(run):
    name, found, made = run
    outputs = [(cell.id, output) for cell in found.values() for output in cell.get("outputs", [])]
    assert not [(cell, output.text) for cell, output in outputs if output.get("name") == "stderr"]
    assert printed(found["install"]) == ""  # not on Colab
    assert printed(found["choose"]) == "cpu: a tiny model of random weights\n"
    if name == "quickstart":
        assert printed(found["load"]) == "voices: Chelsie, Ethan\n"
        assert heard(found["ask"])[1] == 16_000  # the recording
        assert printed(found["hear"]) == made["written"] + "\n"
        is_played(found["hear"], made["reply"])
        assert printed(found["stream"]).startswith(made["written"] + "\n0.5 s of speech in ")
        np.testing.assert_allclose(made["streamed"], made["reply"], rtol=0, atol=1e-4)  # docs/parity.md
        is_played(found["stream"], made["streamed"])
        is_played(found["speak"], made["spoken"])
    else:
        with av.open(io.BytesIO(embedded(found["clip"], "video"))) as clip:
            pictures, sound = clip.streams.video[0], clip.streams.audio[0]
            assert (pictures.frames, pictures.width, pictures.height) == (40, 224, 224)
            assert float(sound.duration * sound.time_base) == pytest.approx(4, abs=0.1)
        counted = re.fullmatch(r"(\d+) tokens without its sound, (\d+) with it\n", printed(found["prepare"]))
        assert int(counted[2]) >= int(counted[1]) + 4 * 25
        assert printed(found["answer"]) == made["written"] + "\n"
        assert printed(found["without"]) == made["without"] + "\n"
        assert made["without"] != made["written"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_outputs_and_with_ids(name):
    notebook = opened(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)  # ids are part of the format
    assert notebook.metadata.accelerator == "TPU"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, cell.id
            assert cell.execution_count is None, cell.id
        assert not cell.metadata, cell.id


@pytest.mark.parametrize("name", NAMES)
def test_the_badge_opens_the_notebook_in_colab(name):
    """Straight away where pyproject.toml names a repository of GitHub, else Colab's list of repositories."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project.get("urls", {}).get("Repository")
    if repository:
        path = f"/{repository.removeprefix('https://github.com/')}/blob/main/tpu/notebooks/{name}.ipynb"
        default = f"git+{repository}"
    else:
        path = default = ""
    assert f"[![Open in Colab]({BADGE})](https://colab.research.google.com/github{path})" in source(name, "title")
    assert f'\nSOURCE = "{default}"' in source(name, "install")


def test_the_notebooks_install_and_choose_alike():
    for cell in ("install-text", "install", "choose-text", "choose"):
        assert source(NAMES[0], cell) == source(NAMES[1], cell)


@pytest.fixture
def colab(monkeypatch):
    """Runs the cell that installs, on a Colab that has no omni_jax yet; what it had run."""
    commands = []
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append((command[1:], check)))

    def install(address):
        cell = re.sub(r'(?m)^SOURCE = ""', f'SOURCE = "{address}"', source("quickstart", "install"))
        exec(compile(cell, "install", "exec"), {})
        return commands

    return install


def test_on_colab_pip_installs_the_source(colab):
    pip = ["-m", "pip", "install", "--quiet", "omni-jax[tpu] @ git+https://example.org/omni_jax"]
    assert colab("git+https://example.org/omni_jax") == [(pip, True)]


def test_on_colab_a_missing_source_is_said(colab):
    with pytest.raises(ValueError, match="SOURCE: expected what pip is to install"):
        colab("")


def choose(monkeypatch, chip, backend, wanted=""):
    """The cell that chooses a model, on a machine with that chip: the model, and whether it is the tiny one."""
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=chip)])
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr("omni_jax.testing.write_tiny", lambda folder, config: "tiny")
    names = {}
    exec(compile(source("quickstart", "choose").replace('MODEL = ""', f'MODEL = "{wanted}"'), "choose", "exec"), names)
    assert names["text"]["thinker_max_new_tokens"] == (16 if names["tiny"] else 256)
    assert bool(names["speech"]) == names["tiny"]
    return names["model"], names["tiny"]


@pytest.mark.parametrize(
    ("chip", "model"),
    [
        ("TPU v5 lite", "Qwen/Qwen2.5-Omni-3B"),
        ("TPU v5e", "Qwen/Qwen2.5-Omni-3B"),
        ("TPU v6 lite", "Qwen/Qwen2.5-Omni-7B"),
        ("TPU v6e", "Qwen/Qwen2.5-Omni-7B"),
    ],
)
def test_the_chip_chooses_the_model(monkeypatch, chip, model):
    assert choose(monkeypatch, chip, "tpu") == (model, False)
    assert choose(monkeypatch, chip, "tpu", "mine/own") == ("mine/own", False)


def test_without_a_tpu_it_is_the_tiny_model_unless_another_is_named(monkeypatch):
    assert choose(monkeypatch, "cpu", "cpu") == ("tiny", True)
    assert choose(monkeypatch, "cpu", "cpu", "mine/own") == ("mine/own", False)


def test_an_unknown_chip_is_said(monkeypatch):
    with pytest.raises(ValueError, match=r"TPU v2: expected one of TPU v5 lite, .*MODEL"):
        choose(monkeypatch, "TPU v2", "tpu")
