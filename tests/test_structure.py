"""The arrows between folders: who may import whom, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "omni_jax"

# Which of our own modules a folder or file may import; of libraries, all but those in FORBIDDEN.
ARROWS = {
    "buckets": [],
    "config": ["config", "buckets", "errors"],
    "parallel": ["errors", "parallel"],
    "nn": ["parallel", "nn"],
    "models": ["config", "parallel", "nn", "models"],
    "processing": ["config", "buckets", "errors", "processing"],
    "errors": [],
    "decoding": ["config", "buckets", "parallel", "errors", "nn.cache", "decoding"],
    "locks": [],
    "weights": ["config", "locks", "errors", "models", "parallel", "weights"],
    "cli.sound_file": [],
}
FORBIDDEN = {
    "processing": ["jax", "jaxlib", "flax", "orbax"],
    "config": ["jax", "flax"],
    "": ["torch", "convert", "tpu", "benchmarks", "tests"],
}
TERMINAL = ("typer", "click", "rich")


def sources(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path):
    """Dotted names that a file imports, anywhere in it; ``from a import b`` is both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level or "tests" in path.parts, f"{path}: imports by full names"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name, parents):
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def own(path):
    """Modules of ours that a file imports, without the package's name: ``nn.cache`` and the like."""
    return {name.removeprefix("omni_jax.") for name in imports(path) if name.startswith("omni_jax.")}


@pytest.mark.parametrize("part", ARROWS)
def test_a_part_imports_only_what_is_below_it(part):
    files = sources(PACKAGE / part) if (PACKAGE / part).is_dir() else [PACKAGE / f"{part.replace('.', '/')}.py"]
    assert files
    for path in files:
        for name in own(path):
            assert within(name, ARROWS[part]), f"{path.relative_to(ROOT)} imports omni_jax.{name}"


@pytest.mark.parametrize("part", FORBIDDEN)
def test_libraries_stay_where_they_belong(part):
    for path in sources(PACKAGE / part):
        for name in imports(path):
            assert not within(name, FORBIDDEN[part]), f"{path.relative_to(ROOT)} imports {name}"


def test_only_the_shell_talks_to_a_terminal_and_nothing_imports_it():
    for path in sources(PACKAGE):
        if not path.is_relative_to(PACKAGE / "cli"):
            for name in imports(path):
                assert not within(name, ["omni_jax.cli", *TERMINAL]), f"{path.relative_to(ROOT)} imports {name}"


def test_torch_is_the_references_alone():
    """Parity tests and benchmarks compare with it; our code and all other tests run where it is not."""
    for folder in ("omni_jax", "convert", "tpu", "tests"):
        for path in sources(ROOT / folder):
            if not path.is_relative_to(ROOT / "tests" / "parity"):
                for name in imports(path):
                    assert not within(name, ["torch"]), f"{path.relative_to(ROOT)} imports {name}"


def test_imports_are_found(tmp_path):
    (tmp_path / "a.py").write_text("import x.y\nfrom omni_jax.nn import cache\ndef f():\n    import torch\n")
    assert imports(tmp_path / "a.py") == {"x.y", "omni_jax.nn", "omni_jax.nn.cache", "torch"}
    assert own(tmp_path / "a.py") == {"nn", "nn.cache"}
    assert not within("torchaudio", ["torch"])
