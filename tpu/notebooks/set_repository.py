"""Writes this repository's address into the notebooks: what they install on Colab, and where their badges lead.

    python tpu/notebooks/set_repository.py

The address stands in pyproject.toml alone, as ``Repository`` under ``[project.urls]``. Without one, the notebooks ask for it.
"""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
COLAB, GITHUB = "https://colab.research.google.com/github", "https://github.com/"


def repository(pyproject: Path = FOLDER.parents[1] / "pyproject.toml") -> str:
    """The address, without a slash or .git at its end; empty where there is none."""
    found = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"].get("urls", {}).get("Repository", "")
    return found.rstrip("/").removesuffix(".git")


def badge(name: str, address: str) -> str:
    """The line below a notebook's heading: it opens the notebook on Colab, or Colab's list of repositories."""
    if address.startswith(GITHUB):
        return f"{BADGE}({COLAB}/{address.removeprefix(GITHUB)}/blob/main/tpu/notebooks/{name}.ipynb)"
    return f"{BADGE}({COLAB})\n(choose this repository in the list, then `tpu/notebooks/{name}.ipynb`)"


def with_repository(notebook: dict[str, Any], name: str, address: str) -> dict[str, Any]:
    """A notebook with the address in its cells ``title`` and ``install``."""
    source = f'SOURCE = "{f"git+{address}" if address else ""}"'

    def edited(cell: dict[str, Any]) -> dict[str, Any]:
        text = "".join(cell["source"])
        if cell["id"] == "title":
            heading, _, *rest = text.split("\n\n")
            text = "\n\n".join([heading, badge(name, address), *rest])
        elif cell["id"] == "install":
            text = re.sub(r'^SOURCE = "[^"]*"', lambda _: source, text, flags=re.MULTILINE)
        return {**cell, "source": text.splitlines(keepends=True)}

    return {**notebook, "cells": [edited(cell) for cell in notebook["cells"]]}


def main() -> None:
    address = repository()
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = with_repository(json.loads(path.read_text(encoding="utf-8")), path.stem, address)
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        path.write_text(text, encoding="utf-8")
    print(f"the notebooks install {address or 'what their readers name, for pyproject.toml names no Repository'}")


if __name__ == "__main__":
    main()
