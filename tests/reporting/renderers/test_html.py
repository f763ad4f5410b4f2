from __future__ import annotations

import base64
import re

from kdlab.reporting.renderers.html import Picture, Section, page, to_html
from kdlab.reporting.tables import Cell, Column, Table

WORDS, NUMBER = Column("arm", "arm", digits=None), Column("AP", "AP")
NASTY = "<script>alert('a')</script> & \"b\""


def table(*rows, title="t", footnotes=()):
    return Table(title, (WORDS, NUMBER), rows, footnotes)


def test_page_asks_for_no_other_file():
    made = page([Section(table(), [Picture("<svg/>", "AP by epoch")])])
    addresses = re.findall(r"(?:src|href)=\"?([^\"> ]+)|url\(([^)]+)\)|@import\s+(\S+)", made)
    assert all("".join(found).startswith("data:") for found in addresses)
    assert len(addresses) == 1


def test_no_text_of_a_table_becomes_markup():
    made = to_html(table((Cell(NASTY), Cell(NASTY, how=NASTY)), title=NASTY, footnotes=[NASTY]))
    assert "alert('a')" not in made
    assert made.count("<script>") == 1


def test_numbers_sort_by_their_value_and_not_by_their_text():
    made = to_html(table((Cell("rm"), NUMBER.cell(9.96, 0.1)), (Cell("pfi"), Cell("-"))))
    assert re.findall(r'<td class="" data-value="(.*?)"', made) == ["9.96"]


def test_each_heading_is_a_button_that_says_how_it_sorts():
    heads = re.findall(r"<th .*?</button></th>", to_html(table()))
    assert len(heads) == 2
    assert all('aria-sort="none"' in head and '<button type="button">' in head for head in heads)


def test_several_tables_follow_each_other_with_their_plots():
    one, two = (
        Section(table(title=name), [Picture(f"<svg>{name}</svg>", name, f"{name} & more")]) for name in "ab"
    )
    made = page([one, two])
    pictures = re.findall(r'src="data:image/svg\+xml;base64,(.*?)" alt="(.*?)"', made)
    assert [(base64.b64decode(data).decode(), title) for data, title in pictures] == [
        ("<svg>a</svg>", "a"),
        ("<svg>b</svg>", "b"),
    ]
    assert made.count("<h1") == made.count("<h2") == 1
    assert "<figcaption>b &amp; more</figcaption>" in made


def test_how_a_number_was_made_is_told_on_hovering():
    assert 'title="mean of 3"' in to_html(table((Cell("rm"), Cell("1.0", 1.0, how="mean of 3"))))
