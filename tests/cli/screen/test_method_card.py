"""The page of one method: what its docstring and its literals say, in the order that a person asks."""

from __future__ import annotations

import pytest
from rich.console import Console

from kdlab import catalog
from kdlab.cli.screen.method_card import card, options_explained, serves


@pytest.mark.parametrize(
    ("method", "word"),
    [("rm", "one-stage"), ("dkd", "two-stage"), ("ld", "GFL"), ("fgfi", "with anchors"), ("fgd", "any")],
)
def test_whom_a_method_serves_is_told_in_a_word(method: str, word: str) -> None:
    assert serves(catalog.methods()[method]) == word


def test_options_are_explained_by_the_args_of_the_docstring() -> None:
    doc = "A.\n\nArgs:\n    pair: two\n        models.\n    tau: a\n        factor: of it.\n\nSource: x."
    assert options_explained(doc) == {"pair": "two models.", "tau": "a factor: of it."}
    assert options_explained("A.") == {}


@pytest.mark.parametrize("method", catalog.methods())
def test_every_option_of_every_method_is_explained(method: str) -> None:
    info = catalog.methods()[method]
    assert set(info.options) <= set(options_explained(info.doc))


def printed(method: str, width: int) -> str:
    console = Console(width=width)
    with console.capture() as caught:
        console.print(card(catalog.methods()[method]))
    return caught.get()


@pytest.mark.parametrize("method", catalog.methods())
def test_a_page_fits_80_columns_and_names_its_source(method: str) -> None:
    lines = printed(method, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("Source:") for line in lines)
    assert any(line.startswith("Differs:") for line in lines)


def test_a_page_shows_weights_of_other_options_and_families() -> None:
    assert "5 with on: cls" in printed("cwd", 120)
    assert "faster_rcnn" in printed("pkd", 120)
    assert "weight 6" in printed("pkd", 120)
