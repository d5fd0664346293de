"""Strict numerics for every test, eight devices for sharded tests, and one tiny checkpoint for all tests."""

import atexit
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from tests.support import shapes
from tests.support.compiling import flags

os.environ.setdefault("XLA_FLAGS", flags(devices=8))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Tests of all processes share compiled programs; the folder is deleted after the run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="omni_jax_programs_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
shapes.install()


TORCH = importlib.util.find_spec("torch") is not None
LEFT_OUT = "tests/parity is left out: it needs torch (pip install -e '.[test,parity]')"
collect_ignore = [] if TORCH else ["parity"]


def pytest_configure(config):
    if not TORCH and any("parity" in Path(name.partition("::")[0]).parts for name in config.args):
        raise pytest.UsageError(LEFT_OUT)  # paths given by name would not be ignored


def pytest_terminal_summary(terminalreporter):
    if TORCH:
        transformers, torch = map(importlib.metadata.version, ("transformers", "torch"))
        line = f"the reference of tests/parity: Transformers {transformers}, torch {torch}"
    else:
        line = LEFT_OUT
    terminalreporter.write_line(line)


# Two processes share the files: a file that takes minutes and comes last would leave a core idle.
LONGEST = (
    "plan/test_compiled.py",
    "end_to_end/test_speaks.py",
    "docs/test_docs.py",
    "tpu/test_pod.py",
    "parity/test_optimized.py",
    "parity/test_speaks.py",
    "parallel/test_sharding.py",
    "speech/test_token2wav.py",
    "decoding/test_text.py",
    "parity/test_generate.py",
    "end_to_end/test_qwen2_5_omni.py",
    "end_to_end/test_full_size.py",
    "fuzz/test_fuzz.py",
    "end_to_end/test_sees.py",
    "parity/test_sees.py",
)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).as_posix() not in LONGEST)


COMPILED: list[int] = []  # programs since the memory maps were last counted
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(0) if event == "/jax/core/compile/backend_compile_duration" else None
)


@pytest.fixture(autouse=True)
def room_for_programs():
    """Clears compiled programs before the kernel's limit of 65,530 memory maps a process, where compiling aborts."""
    yield
    maps = Path("/proc/self/maps")
    if len(COMPILED) > 20 and maps.exists():
        COMPILED.clear()
        # This leaves 20,000 maps to a single test; what is cleared is traced and read again.
        if maps.read_bytes().count(b"\n") > 45_000:
            jax.clear_caches()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny random Qwen3-Omni in the published layout."""
    from omni_jax.testing import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def omni(tiny):
    from omni_jax import Omni

    return Omni.load(tiny)


@pytest.fixture(scope="session")
def writer(tiny):
    """The same model without the parts of speech; it answers with text only."""
    from omni_jax import Omni

    return Omni.load(tiny, speech=False)


@pytest.fixture(scope="session")
def loaded(tiny):
    """The tiny checkpoint's parts, with those of speech."""
    from omni_jax import weights
    from omni_jax.config import from_hf

    return weights.load(tiny, from_hf(tiny), dtype="float32")


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """A folder with sounding.mp4 (3 s, 10 frames a second, 96 x 64, a tone of 440 Hz) and silent.mp4, the same without it."""
    from fractions import Fraction

    import av
    import numpy as np

    folder = tmp_path_factory.mktemp("films")
    tone = (np.sin(2 * np.pi * 440 / 16_000 * np.arange(3 * 16_000)) * 20_000).astype(np.int16)
    for name, sounding in (("sounding.mp4", True), ("silent.mp4", False)):
        with av.open(str(folder / name), "w") as container:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width, pictures.height, pictures.pix_fmt = 96, 64, "yuv420p"
            sound = container.add_stream("aac", rate=16_000, layout="mono") if sounding else None
            for number in range(30):
                shade = np.full((64, 96, 3), 8 * number, np.uint8)
                shade[:, : 3 * number] = 255 - 8 * number
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
            container.mux(pictures.encode(None))
            if sound is not None:
                frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
                container.mux([*sound.encode(frame), *sound.encode(None)])
    return folder


@pytest.fixture
def compiled():
    """Counts the programs that XLA compiles."""
    from omni_jax.parallel.jitted import _options

    _options()  # compiles a further program, once a process
    counted = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listen)
