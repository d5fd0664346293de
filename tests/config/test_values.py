"""Any single value of config.json gives a model or one short line, without a long wait or much memory.

A share runs here. ``python tests/config/test_values.py`` runs all of it, with its times and its memory.
"""

import copy
import itertools
import math
import random

import pytest

from omni_jax import weights
from omni_jax.config import from_hf
from omni_jax.testing import tiny_config, tiny_qwen2_5_config, write_tiny

VALUES = (
    2**31 - 1,
    2**20,
    1000,
    10**400,
    -1,
    0,
    1e308,
    math.nan,
    math.inf,
    True,
    None,
    "x",
    "x" * 100_000,
    [],
    [1],
    {},
)
CONFIGS = {"Qwen3-Omni": tiny_config, "Qwen2.5-Omni": tiny_qwen2_5_config}


def places(config, path=()):
    """The paths of every field and of every entry of a list."""
    for name, value in config.items() if isinstance(config, dict) else enumerate(config):
        yield (*path, name)
        if isinstance(value, dict | list):
            yield from places(value, (*path, name))


def changed(config, path, value):
    config = copy.deepcopy(config)
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return config


def outcome(config, folder=None):
    """None if the configuration gives a model, else the line of the error."""
    try:
        made = from_hf(config)
        hash(made)
        if folder is not None:
            weights.published(folder, made)
    except ValueError as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) < 500 + len(str(folder))
        return said
    return None


@pytest.mark.parametrize("family", CONFIGS)
def test_any_value_of_any_field_is_read_or_refused_in_one_short_line(family):
    config = CONFIGS[family]()
    drawn = random.Random(0)
    refused = [outcome(changed(config, path, value)) for path in places(config) for value in drawn.sample(VALUES, 4)]
    assert len(refused) - refused.count(None) > 100


SIZES = ("num_hidden_layers", "num_experts", "encoder_layers", "depth", "num_code_groups", "vocab_size", "hidden_size")


@pytest.mark.parametrize("family", CONFIGS)
def test_sizes_allocate_no_memory_before_the_tensors_are_read(family, tmp_path):
    config = CONFIGS[family]()
    folder = write_tiny(tmp_path, config=config)
    paths = [path for path in places(config) if path[-1] in SIZES and path[-2] != "audio_config"]
    for path, value in zip(paths, itertools.cycle((1000, 2**20, 2**31 - 1))):
        sized = changed(config, path, value)
        # A field that is not read may have any value.
        assert outcome(sized, folder) is not None or from_hf(sized) == from_hf(config)


def main():
    """Tries all fields and values of both families against the tensors of a folder."""
    import resource
    import tempfile
    import time

    for family, make in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            config, slowest, count = make(), (0.0, ()), 0
            write_tiny(folder, config=config)
            for path in places(config):
                for value in VALUES:
                    begun = time.process_time()
                    outcome(changed(config, path, value), folder)
                    slowest, count = max(slowest, (time.process_time() - begun, path)), count + 1
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{family}: {count} configurations, the slowest {slowest[0]:.2f} s {slowest[1]}, memory {most:.2f} GB")


if __name__ == "__main__":
    main()
