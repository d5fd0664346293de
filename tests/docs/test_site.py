"""The site of docs/: links out of it, what its reference covers, and docstrings as its reader of docstrings reads them."""

import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import griffe
import pytest
from mkdocs.exceptions import PluginError

import omni_jax

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "target", "there"),
    [
        ("index.md", "docs/media.md", "media.md"),
        ("index.md", "docs/adr/README.md", "adr/README.md"),
        ("index.md", "CONTRIBUTING.md", "contributing.md"),
        ("index.md", "LICENSE", "https://example.org/us/blob/main/LICENSE"),
        ("glossary.md", "../CONTRIBUTING.md#names", "contributing.md#names"),
        ("glossary.md", "../convert", "https://example.org/us/tree/main/convert"),
        ("launch.md", "../../docs/batch.md", "batch.md"),
        ("launch.md", "jobset.sh", "https://example.org/us/blob/main/tpu/launch/jobset.sh"),
        ("adr/README.md", "0009-meshes.md", "0009-meshes.md"),
        ("adr/0009-meshes.md", "../meshes.md", "../meshes.md"),
        ("adr/0009-meshes.md", "../../README.md", "../index.md"),
    ],
)
def test_links_lead_to_pages_or_to_the_repository(hooks, page, target, there):
    assert hooks.rewritten(target, page, "https://example.org/us") == there
    assert hooks.rewritten(target, page, "") == (None if there.startswith("https") else there)


def test_a_link_to_no_file_is_an_error(hooks):
    with pytest.raises(PluginError, match=r"docs/media\.md: the link absent\.md leads to no file"):
        hooks.rewritten("absent.md", "media.md", "")


@pytest.mark.parametrize(
    "tag", ['<script src="https://cdn.example/a.js">', "<link rel=stylesheet href=//a.example/b.css>"]
)
def test_a_page_that_fetches_from_another_host_is_an_error(hooks, tag):
    page = type("Page", (), {"file": type("File", (), {"src_uri": "index.md"})})
    assert hooks.on_post_page('<a href="https://a.example">', page) == '<a href="https://a.example">'
    with pytest.raises(PluginError, match=r"index\.md: expected nothing from other hosts"):
        hooks.on_post_page(tag, page)


def test_the_reference_covers_the_public_names():
    shown = re.findall(
        r"^::: (omni_jax\S+)$", "\n".join(page.read_text() for page in DOCS.glob("reference/*.md")), re.M
    )
    said = re.search(r"users import\s+(.*?)\.\s", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
    assert said
    modules = {name.removeprefix("omni_jax").lstrip(".") for name in re.findall(r"`([\w.]+)`", said[1])}
    expected = {f"omni_jax.{name}" for name in modules | set(omni_jax.__all__)}
    assert len(expected) > 9
    for name in expected:
        assert any(found == name or found.startswith(f"{name}.") for found in shown), name


def test_the_site_builds_without_a_warning(tmp_path):
    """As the stage docs of .ci/run does: a link to nowhere or a name that the package does not have is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").exists()


def test_docstrings_are_understood(caplog):
    """griffe, which reads them for the site, warns of none in the package: every parameter is one of the signature's."""
    with caplog.at_level(logging.WARNING, logger="griffe"):
        parsed = read(griffe.load("omni_jax", search_paths=[ROOT], allow_inspection=False))
    assert parsed > 500
    assert [record.getMessage() for record in caplog.records] == []


def read(found):
    """Parses the docstrings of an object's members; returns how many there were."""
    count = 0
    for member in found.members.values():
        if not member.is_alias:
            if member.docstring:
                member.docstring.parse("google", warn_missing_types=False)
            count += bool(member.docstring) + read(member)
    return count
