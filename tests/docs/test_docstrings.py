"""Docstrings as documentation tools read them: each argument and attribute on a line of its own, under its own name."""

import ast
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("omni_jax", "convert", "tpu") for path in (ROOT / folder).rglob("*.py"))
SECTION = re.compile(r"^(Args|Keyword Args|Attributes):\n((?:(?: {4}.*)?\n?)*)", re.MULTILINE)
ITEM = re.compile(r"^ {4}(?! )(.*)$", re.MULTILINE)


def documented(node):
    """Items of a docstring's sections, each the line that it begins with."""
    text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
    for kind, body in SECTION.findall(text):
        yield from ((kind, line) for line in ITEM.findall(body))


def names(node):
    """The parameters of a function; the fields, properties and attributes of a class."""
    if not isinstance(node, ast.ClassDef):
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        return {argument.arg for argument in every}
    found = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    found |= {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}
    found |= {
        each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
    }
    for each in node.body:  # a class whose instances are made by its arguments
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            found |= names(each)
    return found | {
        each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_name_has_a_line_and_exists(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for _, line in documented(node):
                name, colon, words = line.partition(":")
                assert re.fullmatch(r"\*{0,2}\w+", name), f"{node.name}: {line!r}"
                assert colon, f"{node.name}: {line!r}"
                assert words.strip(), f"{node.name}: {line!r}"
                inherits = any(
                    isinstance(base, ast.Name) and base.id[0].isupper() for base in getattr(node, "bases", [])
                )
                if not inherits and not (isinstance(node, ast.FunctionDef) and node.args.kwarg):
                    assert name.strip("*") in names(node), f"{node.name} has no {name}"
