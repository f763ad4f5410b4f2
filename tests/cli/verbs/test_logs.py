from __future__ import annotations

import json
import threading
import time

import pytest

from kdlab.cli.verbs import logs
from kdlab.running.driver import driving
from tests.cli.conftest import BEGAN, Lab


def written(lab: Lab, text: str, key: str = "b0") -> None:
    lab.save()
    lab.said(key, BEGAN).log.write_text(text)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_ASK_EVERY_S", 0.1)


@pytest.mark.parametrize(
    ("text", "lines", "shown"),
    [
        ("a\nb\nc\n", 2, "b\nc\n"),
        ("a\nb\nc", 2, "b\nc"),
        ("a\nb\n", 2, "a\nb\n"),
        ("a\nb\n", 9, "a\nb\n"),
        ("a\nb\n", 0, "a\nb\n"),
        ("a\n\n\n", 2, "\n\n"),
        ("", 2, ""),
        ("x" * 70_000 + "\n" + "y" * 70_000 + "\nz\n", 2, "y" * 70_000 + "\nz\n"),
    ],
)
def test_the_last_lines_are_shown(text: str, lines: int, shown: str, lab: Lab) -> None:
    written(lab, text)
    code, out, err = lab(f"logs student-b0000000 -n {lines}")
    assert (code, out) == (0, shown)
    assert err.splitlines() == ["next: kdlab status"]


def test_a_hundred_lines_are_shown_unless_told_otherwise(lab: Lab) -> None:
    written(lab, "".join(f"{number}\n" for number in range(500)))
    assert lab("logs 'baseline seed 0'")[1].splitlines() == [str(number) for number in range(400, 500)]


def test_bytes_that_are_no_text_are_shown_as_such(lab: Lab) -> None:
    written(lab, "")
    lab.paths("b0").log.write_bytes(b"caf\xe9\n")
    assert lab("logs 'baseline seed 0'")[1] == "caf\ufffd\n"


def test_json_is_one_object(lab: Lab) -> None:
    written(lab, "a\nb\n")
    _, out, err = lab("logs 'baseline seed 0' --json")
    assert json.loads(out) == {
        **{"schema": 1, "job": "student-b0000000", "lines": ["a", "b"]},
        "log": "runs/jobs/student-b0000000/log.txt",
    }
    assert err == ""


def test_a_job_that_printed_nothing_says_why(lab: Lab) -> None:
    lab.save()
    code, out, err = lab("logs rm")
    assert (code, out) == (2, "")
    assert "rm seed 0 has printed nothing yet: it is queued" in err
    assert err.splitlines()[-1] == "  fix    kdlab logs rm -f"


def test_an_unknown_job_is_answered_with_the_known(lab: Lab) -> None:
    lab.save()
    code, _, err = lab("logs teahcer")
    assert code == 2
    assert "did you mean teacher?" in err


def test_nothing_run_here_names_the_quickstart(lab: Lab) -> None:
    code, _, err = lab("logs teacher")
    assert code == 2
    assert "kdlab run digits/quickstart" in err


class TestFollow:
    def test_shows_what_comes_until_the_job_ends(self, lab: Lab) -> None:
        lab.save()
        lab.start("b0", steps=40)
        code, out, _ = lab("logs 'baseline seed 0' -f")
        assert code == 0
        assert out.splitlines()[-40:] == [f"step {number}" for number in range(1, 41)]

    def test_goes_on_across_attempts_while_a_run_drives_the_plan(self, lab: Lab) -> None:
        written(lab, "first\n")

        def next_attempt() -> None:
            time.sleep(0.5)
            with lab.paths("b0").log.open("a") as log:
                log.write("second\n")
            lab.done("b0")

        later = threading.Thread(target=next_attempt)
        with driving("7f3a0001", lab.runs, ""):
            later.start()
            _, out, _ = lab("logs 'baseline seed 0' -f")
        later.join()
        assert out == "first\nsecond\n"

    def test_waits_for_a_job_that_has_yet_to_start(self, lab: Lab) -> None:
        lab.save()
        later = threading.Timer(0.5, lambda: lab.start("b0", steps=3))
        with driving("7f3a0001", lab.runs, ""):
            later.start()
            _, out, _ = lab("logs 'baseline seed 0' -f")
        later.join()
        assert out.splitlines()[-3:] == ["step 1", "step 2", "step 3"]

    def test_ends_where_nobody_will_go_on_with_the_job(self, lab: Lab) -> None:
        written(lab, "first\n")
        assert lab("logs 'baseline seed 0' -f")[:2] == (0, "first\n")

    def test_ctrl_c_is_a_good_end(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        written(lab, "first\n")
        lab.at_work("b0")
        monkeypatch.setattr("kdlab.cli.verbs.logs.time.sleep", interrupt)
        assert lab("logs 'baseline seed 0' -f") == (0, "first\n", "")
