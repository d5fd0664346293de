"""The notebooks of tpu/notebooks/ run completely on a CPU with a tiny model, and show what they made."""

import base64
import importlib
import io
import json
import os
import re
import subprocess
import sys
from importlib import metadata, util
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

from omni_jax import Omni, room
from omni_jax.testing import tiny_qwen2_5_config, write_tiny
from tests.support.compiling import flags

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tpu" / "notebooks"
NAMES = ("quickstart", "video_with_sound")
PROGRAM = util.spec_from_file_location("set_repository", FOLDER / "set_repository.py")
REPOSITORY = util.module_from_spec(PROGRAM)
PROGRAM.loader.exec_module(REPOSITORY)
# A cell that the tests append to read a notebook's variables.
ASKED = {
    "quickstart": "reply=reply.audio, streamed=streamed, pieces=len(chunks), spoken=spoken.audio, written=reply.text",
    "video_with_sound": "written=reply.text, without=reply_without.text",
}
TELL = """import json
import numpy as np
print(json.dumps({{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in dict({}).items()}}))"""

# Then a call fails, and the loading cell is run again with another model. Nothing of the first model must be left.
WATCH = """import weakref
first = [weakref.ref(leaf) for leaf in jax.tree.leaves(omni.parts)]
omni.generate(5)"""
COUNT = "print(len(first), sum(leaf() is not None for leaf in first), len(jax.tree.leaves(omni.parts)))"


def opened(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def cells(notebook):
    return {cell.id: cell for cell in notebook.cells}


def source(name, cell):
    return cells(opened(name))[cell].source


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The cache of compiled programs of both notebooks, which share most of them."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(params=NAMES)
def run(request, tmp_path, programs, monkeypatch):
    """A notebook's name, its cells after the run, and its variables at the end."""
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    notebook = opened(request.param)
    other = write_tiny(tmp_path / "other", config=tiny_qwen2_5_config())
    notebook.cells += [
        new_code_cell(TELL.format(ASKED[request.param]), id="tell"),
        new_code_cell(WATCH, id="watch", metadata={"tags": ["raises-exception"]}),
        new_code_cell(source(request.param, "choose").replace('MODEL = ""', f'MODEL = "{other}"'), id="choose-other"),
        new_code_cell(COUNT, id="count"),
    ]
    # One device, as Colab has.
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags(devices=1),
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
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
    """The content of the only player that a cell shows, "audio" or "video"."""
    html = [output.data.get("text/html", "") for output in cell.outputs if output.output_type == "display_data"]
    (found,) = re.findall(rf'<{kind}\b.*?"data:{kind}/[\w-]+;base64,([^"]+)"', "".join(html), re.DOTALL)
    return base64.b64decode(found)


def heard(cell):
    """Samples of the only player that a cell shows, and their rate."""
    return soundfile.read(io.BytesIO(embedded(cell, "audio")), dtype="float32")


def is_played(cell, samples):
    """Asserts that the player has these samples, and that they are not silence."""
    found, rate = heard(cell)
    assert rate == 24_000
    # IPython rounds down to steps of 1/32767, which are read as 1/32768: less than two steps in total.
    np.testing.assert_allclose(found, samples, rtol=0, atol=2 / 32_768)
    assert np.abs(found).max() > 0.01


def test_a_notebook_runs_and_plays_its_results(run):
    name, found, made = run
    outputs = [(cell.id, output) for cell in found.values() for output in cell.get("outputs", [])]
    assert not [(cell, output.text) for cell, output in outputs if output.get("name") == "stderr"]
    assert printed(found["install"]) == ""  # not on Colab
    told = (
        r"cpu: a tiny model of random weights\n/.*: \d\.\d\d MB of weights in float32, this host has .* of RAM free\n"
    )
    assert re.fullmatch(told, printed(found["choose"]))
    assert re.fullmatch(r"cpu: (/.*/other)\n\1: .* of RAM free\n", printed(found["choose-other"]))
    before, left, after = map(int, printed(found["count"]).split())
    assert before == after > 50
    assert left == 0
    if name == "quickstart":
        assert printed(found["speak"]) == "voices: Chelsie, Ethan\n"
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
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)  # the format requires ids
    assert notebook.metadata.accelerator == "TPU"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, cell.id
            assert cell.execution_count is None, cell.id
        assert not cell.metadata, cell.id


@pytest.mark.parametrize("name", NAMES)
def test_the_notebooks_have_the_repository_address_of_pyproject(name):
    """set_repository.py would change nothing."""
    stored = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert REPOSITORY.with_repository(stored, name, REPOSITORY.repository()) == stored


LIST = "github)\n(choose this repository in the list, then `tpu/notebooks/quickstart.ipynb`)"


@pytest.mark.parametrize(
    ("address", "leads_to", "install"),
    [
        ("", LIST, ""),
        (
            "https://github.com/o/n.git",
            "github/o/n/blob/main/tpu/notebooks/quickstart.ipynb)",
            "git+https://github.com/o/n",
        ),
        ("https://gitlab.com/o/n/", LIST, "git+https://gitlab.com/o/n"),  # Colab opens only files on GitHub
    ],
)
def test_the_address_is_written_into_badge_and_source(tmp_path, address, leads_to, install):
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\n[project.urls]\nRepository = "{address}"\n')
    notebook = json.loads((FOLDER / "quickstart.ipynb").read_text(encoding="utf-8"))
    for before in (notebook, REPOSITORY.with_repository(notebook, "quickstart", "https://github.com/an/other")):
        made = REPOSITORY.with_repository(before, "quickstart", REPOSITORY.repository(tmp_path / "pyproject.toml"))
        written = {cell["id"]: "".join(cell["source"]) for cell in made["cells"]}
        heading, badge, text = written["title"].split("\n\n")
        assert heading.startswith("# ")
        assert badge.endswith(f"colab-badge.svg)](https://colab.research.google.com/{leads_to}")
        assert text.startswith("A recording goes in")
        assert f'\nSOURCE = "{install}"  # @param' in written["install"]


def test_the_notebooks_share_their_install_and_model_cells():
    for cell in ("install-text", "install", "choose-text", "choose"):
        first, other = (re.sub(r"(?m)^SPEECH = .*", "", source(name, cell)) for name in NAMES)
        assert first == other


@pytest.fixture
def session(monkeypatch):
    """Runs the install cell in a Colab session with faked versions; returns pip's command lines.

    Args of the returned function: packages installed before, those that pip installs, imported modules, pip's answers.
    """
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "chosen")

    def run(*, before, after, imported=(), answers=((0, ""),), address="git+https://example.org/omni_jax"):
        versions, commands, answers = dict(before), [], list(answers)
        for name in ("jax", "numpy", "PIL", "flax", "soundfile", "typer"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        for name, version in dict(imported).items():
            monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__=version))

        def pip(command, **options):
            assert options == {"capture_output": True, "text": True}
            commands.append(command[1:])
            code, said = answers.pop(0)
            if code == 0:
                versions.update(after)
            return SimpleNamespace(returncode=code, stderr=said)

        with monkeypatch.context() as faked:
            faked.setattr(subprocess, "run", pip)
            faked.setattr(metadata, "version", versions.__getitem__)
            faked.setattr(metadata, "requires", lambda name: REQUIRES)
            faked.setattr(util, "find_spec", lambda name: versions.get("omni-jax"))
            text = re.sub(r'(?m)^SOURCE = ".*?"', f'SOURCE = "{address}"', source("quickstart", "install"))
            exec(compile(text, "install", "exec"), {"__name__": "__main__"})
        return commands

    return run


REQUIRES = [
    "jax>=0.10",
    "numpy>=2.0",
    "pillow>=11.3",
    "torch==2.13.0; extra == 'test'",
    "jax[tpu]>=0.10; extra == 'tpu'",
]
OLD = {"jax": "0.7.2", "numpy": "2.1.3", "pillow": "12.3.0", "torch": "2.9.0"}
NEW = {"jax": "0.11.2", "omni-jax": "0.1.0"}
PIP = ["-m", "pip", "install", "--quiet", "omni-jax[tpu] @ git+https://example.org/omni_jax"]


def test_on_colab_pip_keeps_numpy_and_needs_no_restart(session, capsys):
    """NumPy and Pillow are imported, as in Colab's sessions; jax is not, and may change."""
    imported = {"numpy": "2.1.3", "PIL": "12.3.0"}
    assert session(before=OLD, after=NEW, imported=imported) == [[*PIP, "numpy==2.1.3"]]
    assert session(before=OLD | NEW, after={}, imported=imported | {"jax": "0.11.2"}) == []  # the cell again
    assert capsys.readouterr().out == "installing: a few minutes\n"


@pytest.mark.parametrize(
    ("imported", "after", "named"),
    [
        ({"jax": "0.7.2", "numpy": "2.1.3"}, {}, "jax 0.7.2"),
        ({"PIL": "11.0.0"}, {"pillow": "12.3.0"}, "pillow 11.0.0"),
        ({"jax": "0.7.2", "numpy": "2.1.3"}, {"numpy": "2.5.0"}, "jax 0.7.2, numpy 2.1.3"),
    ],
)
def test_an_imported_module_of_another_version_needs_a_restart(session, imported, after, named):
    message = f"Runtime > Restart session, then run all again: this session still has {named} in memory"
    for before, commands in ((OLD, 1), (OLD | NEW | after, 0)):  # and again, until it is done
        with pytest.raises(Exception, match=f"^{re.escape(message)}$") as stopped:
            session(before=before, after=NEW | after, imported=imported, answers=commands * [(0, "")])
        assert stopped.value._render_traceback_() == [message]
    session(
        before=OLD | NEW | after,
        after={},
        imported={name: (OLD | NEW | after).get(name, "12.3.0") for name in imported},
    )


def test_pip_changes_numpy_where_it_cannot_keep_it(session):
    answers = [(1, "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io"), (0, "")]
    assert session(before=OLD, after=NEW, answers=answers) == [[*PIP, "numpy==2.1.3"], PIP]


def test_pip_conflicts_with_other_packages_are_printed_in_one_line(session, capsys):
    red = "ERROR: pip's dependency resolver does not currently take into account all the packages that are installed."
    session(before=OLD, after=NEW, answers=[(0, red)])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "pip found other packages (torch-xla, say) that want the versions from before; nothing here uses them"
    ]


def test_a_failed_install_prints_the_reason(session):
    with pytest.raises(Exception, match=r"^pip cannot install git.*omni_jax:\nERROR: no such host$"):
        session(before=OLD, after={}, answers=[(1, "ERROR: no such host\n")])


def test_on_colab_a_missing_source_is_reported(session):
    with pytest.raises(Exception, match=r"^SOURCE is empty: fill in git\+ and this repository's address"):
        session(before=OLD, after={}, address="")


def test_modules_imported_here_are_not_called_outdated(monkeypatch):
    """Modules whose own version differs from their package's would ask for endless restarts."""
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    names = {}
    exec(compile(source("quickstart", "install"), "install", "exec"), names)
    for line in metadata.requires("omni-jax"):
        name = re.match(r"[\w.-]+", line)[0]
        if "extra ==" not in line and name not in ("orbax-checkpoint", "pillow"):
            importlib.import_module(name.replace("-", "_"))
    assert names["outdated"]() == []


def test_compiled_programs_are_cached_in_the_shells_folder(monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setattr(os, "environ", {"HOME": "/home/me"})
    exec(compile(source("quickstart", "install"), "install", "exec"), {})
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == os.path.expanduser("~/.cache/omni_jax/programs")


def choose(monkeypatch, chip, backend, wanted=""):
    """Runs the cell that chooses a model, on a machine with that chip; returns the model and whether it is tiny."""
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=chip)])
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr("omni_jax.testing.write_tiny", lambda folder, config: "tiny")
    loaded = []
    monkeypatch.setattr(room, "forget", lambda: loaded.append("forgotten"))
    monkeypatch.setattr(room, "look", lambda model, speech: loaded.append(f"looked at {model}"))
    monkeypatch.setattr(Omni, "load", lambda model, speech: loaded.append(model))
    names = {"omni": "an older one"}
    exec(compile(source("quickstart", "choose").replace('MODEL = ""', f'MODEL = "{wanted}"'), "choose", "exec"), names)
    assert names["text"]["thinker_max_new_tokens"] == (16 if names["tiny"] else 256)
    assert bool(names["speech"]) == names["tiny"]
    assert loaded == ["forgotten", f"looked at {names['model']}", names["model"]]
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
def test_the_chip_determines_the_model(monkeypatch, chip, model):
    assert choose(monkeypatch, chip, "tpu") == (model, False)
    assert choose(monkeypatch, chip, "tpu", "mine/own") == ("mine/own", False)


def test_without_a_tpu_the_tiny_model_is_the_default(monkeypatch):
    assert choose(monkeypatch, "cpu", "cpu") == ("tiny", True)
    assert choose(monkeypatch, "cpu", "cpu", "mine/own") == ("mine/own", False)


def test_an_unknown_chip_is_reported(monkeypatch):
    with pytest.raises(ValueError, match=r"TPU v2: expected one of TPU v5 lite, .*MODEL"):
        choose(monkeypatch, "TPU v2", "tpu")
