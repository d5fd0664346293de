"""What mkdocs cannot do alone: pages from outside of docs/, and links that mean the same here and on GitHub.

A link in a Markdown file is relative to that file, as GitHub reads it. On the site a link to a page leads to the page. A
link to another file of the repository leads to the repository's address, `Repository` in pyproject.toml; while that is
not set, its text remains without a link. A link to a file that does not exist is an error in either case.
"""

import posixpath
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files outside of docs/ that are pages of the site, and their names there.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tpu/launch/README.md": "launch.md",
    "tests/fuzz/README.md": "fuzz.md",
}
SOURCES = {page: source for source, page in OUTSIDE.items()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Sets the repository's address, if there is one, and reads links by ``Links``."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    LINKS.repository = urls.get("Repository", "").removesuffix("/")
    if LINKS.repository:  # not repo_url, with which the reader's browser would ask GitHub for numbers of stars
        config.extra["social"] = [{"icon": "fontawesome/brands/git-alt", "link": LINKS.repository}]
    config.markdown_extensions.append(LINKS)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside of docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Remembers which page's links are read next."""
    LINKS.page = page.file.src_uri
    return markdown


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Refuses a page for which a browser would fetch scripts, styles or pictures from another host."""
    if fetched := re.findall(r'<(?:link|script|img|iframe)\b[^>]*(?:src|href)="?(?:https?:)?//[^>]*>', output):
        raise PluginError(f"{page.file.src_uri}: expected nothing from other hosts, found {fetched[0]}")
    return output


class Links(Extension):
    """Rewrites links before mkdocs resolves them.

    Attributes:
        page: the page that is read, by its name on the site.
        repository: the repository's address; empty if it has none.
    """

    page: str = "index.md"
    repository: str = ""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 (Markdown's name)
        md.treeprocessors.register(_Rewrite(self, md), "omni_jax_links", 5)  # mkdocs' own has priority 0


LINKS = Links()


class _Rewrite(Treeprocessor):
    def __init__(self, links: Links, md: Markdown):
        super().__init__(md)
        self.links = links

    def run(self, root: Element) -> None:
        for link in root.iter("a"):
            target = link.get("href", "")
            if target and not urlsplit(target).scheme and not target.startswith("#"):
                found = rewritten(target, self.links.page, self.links.repository)
                if found is None:
                    link.tag = "span"
                    del link.attrib["href"]
                else:
                    link.set("href", found)


def rewritten(target: str, page: str, repository: str) -> str | None:
    """A link as the site has it; None for a file that is no page, while the repository has no address.

    Args:
        target: the link in the source, relative to the source's folder.
        page: the page's name on the site.
        repository: the repository's address, or "".

    Raises:
        PluginError: the file does not exist.
    """
    path, mark, anchor = target.partition("#")
    source = SOURCES.get(page, f"docs/{page}")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / file).exists():
        raise PluginError(f"{source}: the link {target} leads to no file")
    if file in OUTSIDE or (file.startswith("docs/") and file.endswith(".md")):
        inside = OUTSIDE.get(file, file.removeprefix("docs/"))
        return posixpath.relpath(inside, posixpath.dirname(page) or ".") + mark + anchor
    if not repository:
        return None
    kind = "tree" if (ROOT / file).is_dir() else "blob"
    return f"{repository}/{kind}/main/{file}{mark}{anchor}"
