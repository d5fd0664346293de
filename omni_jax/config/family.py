"""A family of models is one name, and a file or folder of that name in each folder where families differ.

    config/NAME.py                 read: config.json to a configuration
    models/NAME/                   builders: its encoders, and the parts that only speaking needs; PARTS: the class of all
    weights/tables/NAME.py         rows, counted, is_spoken, FLOAT32, IGNORED: the published layout
    speech/NAME.py                 SYNTHESIZER: text and states to sound
    testing/NAME.py                TINY: what a tiny checkpoint holds beside its weights

Everything else asks the configuration: a number, or what both families' configurations have. These files are imported by name
where they are needed, so that a new family is its files and a line in ``config/__init__.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from omni_jax.config.parts import OmniConfig
from omni_jax.config.words import Words


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: of its files and folders.
        model_type: its name in config.json, and ``OmniConfig.family``.
        read: makes a configuration of a config.json.
        package: where its folders are.
    """

    name: str
    model_type: str
    read: Callable[[Mapping[str, Any], Words], OmniConfig]
    package: str = "omni_jax"

    def module(self, folder: str) -> ModuleType:
        """Its file or folder in a folder of the package, such as ``models`` or ``weights.tables``."""
        return import_module(f"{self.package}.{folder}.{self.name}")


FAMILIES: dict[str, Family] = {}  # by model_type


def register(*families: Family) -> None:
    """Makes families known, by their ``model_type``."""
    FAMILIES.update({family.model_type: family for family in families})


def family_of(config: OmniConfig) -> Family:
    """The family of a configuration."""
    return FAMILIES[config.family]
