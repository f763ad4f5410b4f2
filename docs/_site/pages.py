"""Hook of MkDocs: brings the repository's other pages into the site, and leads links to them.

Pages in `docs/` link to files of the repository (`../results/digits/gfl.md`), so that they can be read
without a site, and MkDocs knows only what lies in `docs/`. So every file that a page links to and that lies
elsewhere joins the site at its place in the repository, and links are rewritten to the places of the site. A
link to a hosting service would name one address and one branch; a copy in `docs/` would be one more to keep.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from reference import PAGES

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
BESIDES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
"""Pages of the repository's root that the site shows."""
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def site_path(path: str) -> str:
    """Where a file of the repository is in the site, by its path from the root."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def linked(path: str) -> Iterator[str]:
    """Files of the repository that a page links to, by their paths from the root."""
    for target in _LINK.findall((ROOT / path).read_text(encoding="utf-8")):
        found = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(target)))
        if (ROOT / found).is_file():
            yield found


def outside() -> list[str]:
    """The root's pages and all files outside of `docs/` that any page of the site leads to."""
    pages = [*BESIDES, *(f"docs/{path.relative_to(ROOT / 'docs')}" for path in (ROOT / "docs").rglob("*.md"))]
    seen = list(pages)
    # the list grows while it is read: what a page outside of docs/ links to joins as well
    for page in seen:
        if page.endswith(".md"):
            seen += [path for path in dict.fromkeys(linked(page)) if path not in seen]
    return [path for path in seen if not path.startswith("docs/")]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's pages, and those that are made from the code."""
    from mkdocs.structure.files import File

    for path in outside():
        files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between files of the repository to links between pages of the site."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    path = Path(source).relative_to(ROOT)
    here = path.parent.as_posix()
    start = posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        target = site_path(posixpath.normpath(posixpath.join(here, link[1])))
        return f"]({posixpath.relpath(target, start or '.')}"

    # tables have no heading of their own
    title = f"# {path.with_suffix('')}\n\n" if path.parts[0] == "results" else ""
    return title + _LINK.sub(rewritten, markdown)
