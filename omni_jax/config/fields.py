"""Reading JSON objects field by field: typed, and with every fault in one report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_jax.config.defaults import Defaults
from omni_jax.errors import REPORT, cut, kind_of, listed, shown

# No size, id or number of these models comes near these upper bounds; a larger one would only fill the memory.
MOST, LARGEST = 1 << 20, 1e12


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: the file is absent, unreadable or holds no object, in one line.
        RetryableError: the file system does not answer.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: expected a Hugging Face or converted model folder, found no {path.name} in it"
        ) from None
    except OSError as error:
        raise kind_of(error)(f"{path}: cannot be read ({shown(error)})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected a JSON object, got a file that does not parse ({shown(error)}); copy it again"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def json_or_empty(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one where the file is absent, cannot be read or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


ABSENT = object()


class Fields:
    """Reads typed fields of nested JSON objects and collects every fault, so that one error can report them all.

    Args:
        values: the object.
        path: the object's path, with a dot at its end.
        faults: the list to which faults are added; None for a new one.
        defaults: values of fields that are left out, by the path of their object.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        path: str = "",
        faults: list[str] | None = None,
        *,
        defaults: Defaults | None = None,
    ):
        self.values, self.path = values, path
        self.faults: list[str] = [] if faults is None else faults
        self.defaults: Defaults = defaults or {}
        self.left_out: list[str] = []

    def report(self) -> None:
        """Raises all faults as one ValueError, with the missing fields: they may be why sizes disagree."""
        if not self.faults:
            return
        said, left = listed(self.faults), ", ".join(self.left_out)
        if left and len(said) < REPORT - 80:
            said += f"; missing fields taken from Transformers' defaults: {cut(left, REPORT - len(said))}"
        raise ValueError(f"config.json: {said}")

    def fault(self, text: str) -> None:
        self.faults.append(text)

    @property
    def sound(self) -> bool:
        """Whether nothing under this path is at fault yet: what contradicts a faulty field is no second fault."""
        return not any(fault.startswith(self.path) for fault in self.faults)

    def default(self, name: str, otherwise: Any = ABSENT) -> Any:
        """The default of a field that is left out; it is noted in ``left_out``."""
        found = self.defaults.get(self.path.removesuffix("."), {}).get(name, otherwise)
        if found is not otherwise and f"{self.path}{name}" not in self.left_out:
            self.left_out.append(f"{self.path}{name}")
        return found

    def sub(self, name: str) -> "Fields":
        value = self.values.get(name)
        if not isinstance(value, Mapping):
            self.fault(f"{self.path}{name}: expected an object, got {'nothing' if value is None else shown(value)}")
            return Silent({}, f"{self.path}{name}.", [], defaults=self.defaults)
        made = type(self)(value, f"{self.path}{name}.", self.faults, defaults=self.defaults)
        made.left_out = self.left_out
        return made

    def get(self, name: str, kind: type, default: Any = ABSENT) -> Any:
        value = self.values[name] if name in self.values else self.default(name, default)
        if value is ABSENT:
            self.fault(f"{self.path}{name}: missing (expected {kind.__name__})")
            return kind()
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1000:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fault(f"{self.path}{name}: expected {kind.__name__}, got {shown(value)}")
            return kind()
        return value

    def size(self, name: str, most: int = MOST) -> int:
        value = self.get(name, int)
        if type(self.values.get(name)) is int and not 1 <= value <= most:
            bound = "at least 1" if value < 1 else f"at most {most:,}"
            self.fault(f"{self.path}{name}: expected a size of {bound}, got {shown(value)}")
            return 1
        return max(value, 1)

    def positive(self, name: str, most: float = LARGEST) -> float:
        value = self.get(name, float)
        if type(self.values.get(name)) in (int, float) and not 0 < value <= most:
            bound = f" and at most {most:g}" if most < value < float("inf") else ""
            if not any(fault.startswith(f"{self.path}{name}: ") for fault in self.faults):
                self.fault(
                    f"{self.path}{name}: expected a finite number above 0{bound}, got {shown(self.values[name])}"
                )
            return 1.0
        return value or 1.0

    def ints(self, name: str, most: int = 256) -> tuple[int, ...]:
        """A list of at most ``most`` integers."""
        value = self.get(name, list)
        if len(value) > most or not all(type(item) is int and abs(item) <= MOST for item in value):
            self.fault(f"{self.path}{name}: expected a list of integers, got {shown(value)}")
            return ()
        return tuple(value)

    def must(self, name: str, wanted: Any, why: str) -> None:
        """Reports a value other than the only one that this architecture supports; null counts as absent."""
        value = self.values.get(name)
        if value is not None and value != wanted:
            self.fault(f"{self.path}{name}: expected {wanted!r}, got {shown(value)} ({why})")

    def same(self, *names: str) -> str:
        """The first of several spellings that is present. Reports a fault where two of them differ."""
        found = [name for name in names if self.values.get(name) is not None]
        first = self.values.get(found[0]) if found else None
        if any(self.values[name] != first or type(self.values[name]) is not type(first) for name in found):
            both = " and ".join(f"{name} = {shown(self.values[name])}" for name in found)
            self.fault(f"{self.path}{both} contradict each other")
        return found[0] if found else names[0]


class Silent(Fields):
    """Stands in for an absent object: its absence is already reported, so nothing else is."""

    @property
    def sound(self) -> bool:
        return False

    def fault(self, text: str) -> None:
        del text

    def size(self, name: str, most: int = MOST) -> int:
        del name, most
        return 1
