from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.text import Text

from kdlab.cli.screen.console import Screen, grid, show_error
from kdlab.cli.screen.failures import boxes
from kdlab.cli.screen.terminal import Terminal
from kdlab.errors import Fault, UsageError, visible
from kdlab.jobs.events import JobFailed

ODD = "a\x1b[31m\x07\x9b2J\r\u202eb\u2028error: forged\udc80"


@pytest.mark.parametrize(
    "show",
    [
        lambda screen: screen.say(ODD),
        lambda screen: screen.data(Text(ODD)),
        lambda screen: screen.data(grid([(ODD, ODD)])),
        lambda screen: screen.text(ODD),
        lambda screen: screen.emit(name=ODD),
        lambda screen: show_error(str(UsageError(ODD, where=ODD, got=ODD))),
        lambda screen: screen.err.print(f"{ODD}. Go on?", end=""),
    ],
)
def test_nothing_that_is_printed_steers_the_terminal(
    show: Callable[[Screen], None], capsys: pytest.CaptureFixture[str]
) -> None:
    show(Screen())
    out, err = capsys.readouterr()
    assert (out + err).replace("\n", "").isprintable()
    assert "\\" in out + err, "what was there is still seen"


def test_a_terminal_keeps_its_own_colours_and_shows_those_of_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Terminal(file=sys.stdout, force_terminal=True, color_system="standard")
    console.print(Text("a\x1b[31mb", style="bold"))
    assert capsys.readouterr().out == "\x1b[1ma\\x1b[31mb\x1b[0m\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\u2028", "\x0b", "\x85", "\x1c"])
def test_no_name_forges_an_error(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"recipe{end}error: your disk is full"
    screen = Screen()
    screen.say(f"written: {name}")
    screen.data(f"plan {name}")
    for line in boxes([JobFailed(job="a", what=name, fix=name, where="b")], {"a": "job a"}):
        screen.say(line)
    show_error(str(Fault("is wrong", where=name, got=name, fix=name)))
    out, err = capsys.readouterr()
    began = [line for line in (out + err).split("\n") if line.startswith("error:")]
    assert [line for line in began if "disk" in line.partition("recipe")[0]] == []
    assert len(began) == 1


@given(st.text())
@example(ODD)
def test_text_is_shown_whole_and_twice_the_same(text: str) -> None:
    once = visible(text)
    assert visible(once) == once
    assert once == text or not text.replace("\n", "").replace("\t", "").isprintable()
