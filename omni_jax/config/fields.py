"""Reading JSON objects field by field: typed, and with every fault in one report."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError in one line where it is absent, unreadable or not an object."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: expected a Hugging Face or converted model folder, found no {path.name} in it"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: expected a JSON object, got a file that does not parse ({error}); copy it again"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


ABSENT = object()


class Fields:
    """Reads typed fields of nested JSON objects and collects every fault, so that one error can report them all."""

    def __init__(self, values: Mapping[str, Any], path: str = "", faults: list[str] | None = None):
        self.values, self.path = values, path
        self.faults: list[str] = [] if faults is None else faults

    def fault(self, text: str) -> None:
        self.faults.append(text)

    @property
    def sound(self) -> bool:
        """Whether nothing under this path is at fault yet; what contradicts a missing field is no second fault."""
        return not any(fault.startswith(self.path) for fault in self.faults)

    def sub(self, name: str) -> "Fields":
        value = self.values.get(name)
        if not isinstance(value, Mapping):
            self.fault(f"{self.path}{name}: expected an object, got {'nothing' if value is None else repr(value)}")
            return Silent({}, f"{self.path}{name}.", [])
        return type(self)(value, f"{self.path}{name}.", self.faults)

    def get(self, name: str, kind: type, default: Any = ABSENT) -> Any:
        value = self.values.get(name, default)
        if value is ABSENT:
            self.fault(f"{self.path}{name}: missing (expected {kind.__name__})")
            return kind()
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fault(f"{self.path}{name}: expected {kind.__name__}, got {value!r}")
            return kind()
        return value

    def size(self, name: str) -> int:
        value = self.get(name, int, self.values.get(name, ABSENT))
        if value < 1 and name in self.values and isinstance(self.values[name], int):
            self.fault(f"{self.path}{name}: expected a size of at least 1, got {value}")
        return max(value, 1)

    def positive(self, name: str) -> float:
        value = self.get(name, float)
        if name in self.values and isinstance(self.values[name], int | float) and not 0 < value < math.inf:
            self.fault(f"{self.path}{name}: expected a finite number above 0, got {self.values[name]!r}")
        return value

    def ints(self, name: str) -> tuple[int, ...]:
        value = self.get(name, list)
        if not all(isinstance(item, int) for item in value):
            self.fault(f"{self.path}{name}: expected a list of integers, got {value!r}")
            return ()
        return tuple(value)

    def must(self, name: str, wanted: Any, why: str) -> None:
        """Refuses a value other than the only one that this architecture has; null says no more than absence."""
        value = self.values.get(name)
        if value is not None and value != wanted:
            self.fault(f"{self.path}{name}: expected {wanted!r}, got {value!r} ({why})")

    def same(self, *names: str) -> str:
        """The first of several spellings that is present; a fault where two of them differ."""
        found = [name for name in names if self.values.get(name) is not None]
        if len({repr(self.values[name]) for name in found}) > 1:
            self.fault(
                f"{self.path}{' and '.join(f'{name} = {self.values[name]!r}' for name in found)} contradict each other"
            )
        return found[0] if found else names[0]


class Silent(Fields):
    """Stands in for an absent object, whose absence is already reported."""

    @property
    def sound(self) -> bool:
        return False

    def fault(self, text: str) -> None:
        del text

    def size(self, name: str) -> int:
        del name
        return 1
