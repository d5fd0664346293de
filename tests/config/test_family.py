"""A family is files of its name and a line: a third one is added here, and works from its configuration to its speech."""

import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from omni_jax import Omni, weights
from omni_jax.config import Family, family_of, from_hf, qwen3_omni, register
from omni_jax.config.family import FAMILIES
from omni_jax.models import parts
from omni_jax.testing import tiny_config, write_tiny

# Its files: Qwen3-Omni's parts under names of its own, with one sentence of code each where it differs.
FILES = {
    "models/toy_omni/__init__.py": "from omni_jax.models.qwen3_omni import PARTS, builders",
    "weights/tables/toy_omni.py": """
from omni_jax.weights.tables.qwen3_omni import FLOAT32, IGNORED, counted, is_spoken, rows
""",
    "speech/toy_omni.py": """
from omni_jax.speech.qwen3_omni import Qwen3Synthesizer

class SYNTHESIZER(Qwen3Synthesizer):
    first = "chelsie"
""",
    "testing/toy_omni.py": "from omni_jax.testing.qwen3_omni import TINY",
}


def read(config, words):
    return replace(qwen3_omni.read({**config, "model_type": "qwen3_omni_moe"}, words), family="toy_omni")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder of the third family, while it is registered."""
    root = tmp_path_factory.mktemp("toys")
    for name, code in FILES.items():
        path = root / "toy_package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code + "\n")
    sys.path.insert(0, str(root))
    register(Family("toy_omni", "toy_omni", read, package="toy_package"))
    try:
        yield write_tiny(root / "model", config={**tiny_config(), "model_type": "toy_omni"})
    finally:
        del FAMILIES["toy_omni"]
        sys.path.remove(str(root))
        for name in [name for name in sys.modules if name.partition(".")[0] == "toy_package"]:
            del sys.modules[name]


def test_a_third_family_is_its_files_and_a_line(toy, omni):
    """Loaded, it writes and speaks as the family whose parts it has, with its own first speaker."""
    found = Omni.load(toy)
    assert found.config.family == "toy_omni"
    assert found.synthesizer.first == "chelsie"
    ask, few = [{"role": "user", "content": "Hi"}], {"thinker_max_new_tokens": 2, "talker_max_new_tokens": 3, "seed": 1}
    found, expected = found.generate(ask, **few), omni.generate(ask, speaker="chelsie", **few)
    assert found.tokens == expected.tokens
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.audio, expected.audio)


def test_its_thinker_alone_is_known(toy):
    thinker = tiny_config()["thinker_config"] | {"model_type": "toy_omni_thinker"}
    config = from_hf({**tiny_config(), "model_type": "toy_omni"})
    assert (family_of(config).name, config.talker is None) == ("toy_omni", False)
    ids = {name: value for name, value in tiny_config().items() if name.endswith("_token_id")}
    assert from_hf({**thinker, **ids}).talker is None


def test_its_weights_are_those_of_its_table(toy):
    config = weights.config_of(toy)
    loaded = weights.load(toy, config, dtype="float32")
    assert loaded.keys() == parts.abstract(config, np.float32).keys()


def test_where_it_is_not_registered_it_is_refused():
    config = {**tiny_config(), "model_type": "other_omni"}
    known = "expected model_type qwen3_omni_moe or qwen2_5_omni.*, got 'other_omni'"
    with pytest.raises(ValueError, match=known):
        from_hf(config)


@pytest.mark.parametrize("family", ["qwen3_omni_moe", "qwen2_5_omni"])
def test_every_family_has_its_files(family):
    found = FAMILIES[family]
    for folder, names in {
        "models": ["PARTS", "builders"],
        "weights.tables": ["rows", "counted", "is_spoken", "FLOAT32", "IGNORED"],
        "speech": ["SYNTHESIZER"],
        "testing": ["TINY"],
    }.items():
        module = found.module(folder)
        assert module is import_module(f"omni_jax.{folder}.{found.name}")
        assert all(hasattr(module, name) for name in names)
