from __future__ import annotations

import errno
import os
import runpy
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdlab import __version__
from kdlab.cli import app
from kdlab.cli.screen.console import Screen, duration
from kdlab.errors import JobError, MachineError, UsageError

Raise = Callable[[BaseException], None]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """`verb(function)`: from then on `kdlab act` calls it with the screen."""

    def install(function: Callable[[Screen], int | None]) -> None:
        def act(screen: Screen) -> int | None:
            """Act."""
            return function(screen)

        monkeypatch.setattr(app, "verbs", lambda wanted: {"act": act})

    return install


@pytest.fixture
def failing(verb: Any) -> Raise:
    """`failing(error)`: from then on `kdlab act` raises it."""

    def install(error: BaseException) -> None:
        def act(screen: Screen) -> None:
            raise error

        verb(act)

    return install


def test_a_verb_that_is_named_is_the_only_one_imported() -> None:
    assert list(app.verbs(["report"])) == ["report"]
    assert len(app.verbs(["reprot"])) == len(app.verbs()) > 1


class Watched:
    """Something to which a weak reference can be held."""


@pytest.mark.parametrize("seconds", [0.0, 20.0])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_callback_of_python_is_not_lost(verb: Any, number: int, seconds: float) -> None:
    def act(screen: Screen) -> None:
        watched = Watched()
        kept = weakref.ref(watched, lambda _: signal.raise_signal(number))
        del watched
        assert kept() is None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.01)

    verb(act)
    # a shell ignores it for what it starts in the background
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    before, began = sys.unraisablehook, time.monotonic()
    if number == signal.SIGTERM:
        with pytest.raises(SystemExit) as exit_:
            app.main(["act"])
        assert exit_.value.code == 143
    else:
        assert app.main(["act"]) == 130
    signal.signal(signal.SIGINT, ignored)
    assert time.monotonic() - began < 5
    assert sys.unraisablehook == before


@pytest.mark.parametrize(("kind", "code"), [(JobError, 1), (UsageError, 2), (MachineError, 3)])
def test_a_known_error_has_its_exit_code_and_no_trace(
    kind: Any, code: int, failing: Raise, capfd: pytest.CaptureFixture[str]
) -> None:
    failing(kind("the thing is broken", where="here.yaml:9", got="[b]x[/b]", fix="mend it"))
    assert app.main(["act"]) == code
    out, err = capfd.readouterr()
    assert err == "error: here.yaml:9  the thing is broken\n  got    [b]x[/b]\n  fix    mend it\n"
    assert out == ""


def test_a_long_error_is_not_wrapped_off_a_terminal(
    failing: Raise, capfd: pytest.CaptureFixture[str]
) -> None:
    failing(UsageError("x" * 300))
    app.main(["act"])
    assert capfd.readouterr().err == f"error: {'x' * 300}\n"


def test_an_unknown_error_is_a_bug_of_exit_code_70(failing: Raise, capfd: pytest.CaptureFixture[str]) -> None:
    failing(RuntimeError("out of luck\nsecond line"))
    assert app.main(["act"]) == 70
    err = capfd.readouterr().err
    assert "RuntimeError: out of luck\n" in err
    assert "bug in kdlab" in err
    assert "Traceback" not in err


def test_an_error_in_a_plugin_of_one_s_own_names_its_file(
    failing: Raise, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "datasets" / "mine.py"
    plugin.parent.mkdir()
    plugin.write_text("import nosuchmodule\n")
    monkeypatch.setattr("kdlab.plugins.folders", lambda: (str(tmp_path),))
    try:
        runpy.run_path(str(plugin))
    except ModuleNotFoundError as error:
        failing(error)
    assert app.main(["act"]) == 2
    err = capfd.readouterr().err
    assert f"error: {plugin}:1  ModuleNotFoundError" in err
    assert "No module named 'nosuchmodule'" in err
    assert "mend this file of yours" in err
    assert "bug in kdlab" not in err


def test_a_full_disk_is_the_machine_s_fault(failing: Raise, capfd: pytest.CaptureFixture[str]) -> None:
    failing(OSError(errno.ENOSPC, "No space left on device", "/runs/x"))
    assert app.main(["act"]) == 3
    assert capfd.readouterr().err.startswith("error: /runs/x  No space left on device\n")


def test_debug_shows_the_trace(failing: Raise, capfd: pytest.CaptureFixture[str]) -> None:
    failing(UsageError("wrong"))
    assert app.main(["act", "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_the_exit_code_of_a_verb_is_kept(verb: Any) -> None:
    verb(lambda screen: 1)
    assert app.main(["act"]) == 1


def test_ctrl_c_gives_130(failing: Raise) -> None:
    failing(KeyboardInterrupt())
    assert app.main(["act"]) == 130


def test_sigterm_gives_143(verb: Any) -> None:
    verb(lambda screen: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        app.main(["act"])
    assert exit_.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_every_verb_has_the_four_common_flags(verb: Any) -> None:
    seen: list[Screen] = []
    verb(lambda screen: seen.append(screen))
    assert app.main(["act", "--json", "-q", "-v", "--debug"]) == 0
    assert (seen[0].json, seen[0].silent, seen[0].verbose) == (True, True, True)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"kdlab {__version__}\n"


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([]) == 0
    assert "kdlab run digits/quickstart" in capsys.readouterr().out


def test_an_unknown_verb_is_answered_with_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main(["rnu"]) == 2
    err = capfd.readouterr().err
    assert err.startswith(
        "error: rnu is not a verb of kdlab\n  known  ablate, bench, cp, diagnose, doctor, export, init, logs"
    )
    assert "did you mean run?" in err


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["run", "--dryrun"], "kdlab run  there is no option --dryrun"),
        (["run"], "kdlab run  missing argument 'RECIPE'"),
        (["ls", "methods", "rm", "more"], "kdlab ls  got unexpected extra argument"),
        (["run", "x", "-j", "many"], "kdlab run  invalid value for '-j'"),
        (["--jsno"], "kdlab  there is no option --jsno"),
    ],
)
def test_wrong_usage_has_the_house_form(
    argv: list[str], what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert app.main(argv) == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"error: {what}")
    assert "--help" in err.splitlines()[-1]
    assert out == ""


def test_a_misspelt_option_is_answered_with_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    app.main(["run", "--dryrun"])
    assert "did you mean --dry-run?" in capfd.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kdlab", "ls", "methods", "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (252, "4m12s"), (18600, "5h10m"), (273600, "3d04h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_command_is_repeated_without_what_must_not_be() -> None:
    screen = Screen(["run", "a/b", "--set", "seeds=[0, 1]", "--fresh"])
    assert screen.command("--fresh") == "kdlab run a/b --set 'seeds=[0, 1]'"


@pytest.mark.parametrize(
    "given", [["--set", "seeds=[0]"], ["--set=seeds=[0]"], ["--seeds", "0"], ["--seeds=0"]]
)
def test_what_a_command_says_of_seeds_can_be_left_out(given: list[str]) -> None:
    screen = Screen(["run", "a/b", *given, "--set", "schedule.lr=1"])
    assert screen.command("--set seeds=", "--seeds ") == "kdlab run a/b --set schedule.lr=1"


def test_nobody_is_asked_off_a_terminal() -> None:
    with pytest.raises(UsageError, match="-y") as error:
        Screen(["run", "a/b"]).ask("this is dear")
    assert error.value.faults[0].fix == "kdlab run a/b -y"


def test_no_summary_of_a_verb_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    app.main(["--help"])
    assert "..." not in capfd.readouterr().out.partition("Commands:")[2].replace("methods, ...,", "")


@pytest.mark.parametrize(("verb_", "listing"), [("run", "kdlab ls recipes"), ("logs", "kdlab status")])
def test_a_missing_argument_names_what_lists_it(
    verb_: str, listing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert app.main([verb_]) == 2
    assert f"  fix    see: {listing}   see: kdlab {verb_} --help" in capfd.readouterr().err
