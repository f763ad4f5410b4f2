"""Pages that quote kdlab, and the pages of the site that are made from its code."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import kdlab
from kdlab import catalog
from kdlab.cli import app
from kdlab.jobs.spec import Schedule
from kdlab.recipe.settings import Resources, TuneSettings
from kdlab.reporting.columns import COLUMNS
from tests.test_imports import BELOW

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TROUBLES = (DOCS / "troubleshooting.md").read_text()
TABLES = (DOCS / "reading-the-tables.md").read_text()


@cache
def words_of_kdlab() -> str:
    """All text that kdlab's source holds as literals, a line each; what formats put in is "{}"."""
    found = []
    for path in Path(kdlab.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def quoted(page: str, pattern: str) -> list[str]:
    """The fixed words of messages that a page quotes: what stands between "..."."""
    messages = re.findall(r"`([^`]+)`", "\n".join(re.findall(pattern, page, re.MULTILINE)))
    return [words for message in messages for words in re.split(r" *\.\.\.,? *", message) if words]


# made of two literals each
MADE_OF = {
    "is not a key of schedule": "a key of {}",
    "the process was killed (SIGKILL)": "was killed ({})",
    "p < 0.05 but no star: among": " but no star: {}",
    "arms luck makes such a p too often": " arms luck makes such a p too often",
    "seeds cannot say what others would gain: no p, no star, no bold below 3":
        "{} cannot say what others would gain: no p, no star, no bold below {}",
}  # fmt: skip


@pytest.mark.parametrize("words", quoted(TROUBLES, r"^### (`.*)$"))
def test_a_message_in_troubleshooting_is_one_of_kdlab(words: str) -> None:
    assert MADE_OF.get(words, words) in words_of_kdlab()


@pytest.mark.parametrize("words", quoted(TABLES.partition("## Footnotes")[2], r"^\| (`[^|]*`) \|"))
def test_a_footnote_that_is_explained_is_one_of_kdlab(words: str) -> None:
    assert MADE_OF.get(words, words) in words_of_kdlab()


@pytest.mark.parametrize("title", [column.title for column, _ in COLUMNS])
def test_every_column_is_explained(title: str) -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", TABLES, re.MULTILINE)
    assert any(f"`{title}`" in row for row in rows)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "_site" / "reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_key_of_a_recipe_is_in_the_reference(reference: ModuleType) -> None:
    page = reference.recipe_keys()
    for section in (Schedule, Resources, TuneSettings):
        assert all(f"| `{key}` |" in page for key in section.model_fields.keys() - {"executors"})
    assert "| `batch_size` | whole number from 1 to 65,536 | the preset's | images of one step" in page
    assert "| `partition` | text or null | `null` | where to submit" in page


def test_every_method_and_option_is_in_the_reference(reference: ModuleType) -> None:
    page = reference.method_options()
    for key, info in catalog.methods().items():
        own = page.partition(f"## `{key}`\n")[2].partition("\n## ")[0]
        assert info.summary in own
        assert all(f"| `{option}` |" in own for option in info.options)


def test_every_option_of_a_dataset_is_explained_in_the_reference(reference: ModuleType) -> None:
    page = reference.built_in()
    assert all(
        f"`{name}`" in page for name in (*catalog.detectors(), *catalog.backbones(), *catalog.recipes())
    )
    assert not re.findall(r"^\| `\w+` \|.*\|  \|$", page, re.MULTILINE)


def test_every_verb_is_in_the_reference(reference: ModuleType) -> None:
    page = reference.command_line()
    assert all(f"## `kdlab {name}`\n\n```text\nUsage: kdlab {name} " in page for name in app.verbs())


def test_a_key_without_a_docstring_is_refused(reference: ModuleType) -> None:
    class Silent(Schedule):
        """A section whose new key nobody explains."""

        riddle: int = 0

    with pytest.raises(KeyError):
        reference.keys_table(Silent)


def test_the_arrows_in_contributing_are_those_that_are_tested() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Who may import whom")[2]
    written = {}
    for names, below in re.findall(r"^\| (`.*`) \| (.*) \|$", table, re.MULTILINE):
        words = set() if below == "nothing" else set(below.removeprefix("all but ").split(", "))
        if below.startswith("all but "):
            words = BELOW.keys() - words - {"cli", "__main__", "__init__"}
        written |= dict.fromkeys(re.findall(r"`(\w+)`", names), words)
    assert written == {room: below for room, below in BELOW.items() if not room.startswith("__")}


def test_citation_names_this_version() -> None:
    assert f"\nversion: {kdlab.__version__}\n" in (ROOT / "CITATION.cff").read_text()
