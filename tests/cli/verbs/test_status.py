from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from kdlab.cli.screen.progress import PlanStatus
from kdlab.cli.verbs import status
from kdlab.jobs.events import JobCheckpointed
from kdlab.jobs.files import write_json
from kdlab.running.driver import driving
from tests.cli.conftest import BEGAN, Lab, at


def mixed(lab: Lab) -> None:
    """One job of each kind of state."""
    lab.done("teacher")
    lab.at_work("b0", attempt=2)
    write_json(lab.said("b1", BEGAN, at(450)).failure, {"what": "out of luck", "after_s": 3.0})
    lab.said("rm", BEGAN, (JobCheckpointed, {"iteration": 400}), at(450))
    lab.save()


def test_nothing_run_here_names_the_quickstart(lab: Lab) -> None:
    code, out, err = lab("status")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "  fix    kdlab run digits/quickstart"


def test_each_job_has_a_line_with_its_state(lab: Lab) -> None:
    mixed(lab)
    code, out, err = lab("status")
    assert code == 0
    head, drive, *rows = out.splitlines()
    assert head == "plan 7f3a  digits/quickstart  done 1  running 1  queued 0  failed 1  interrupted 1"
    assert drive == "  no kdlab run drives it: kdlab run digits/quickstart goes on"
    assert [" ".join(row.split()) for row in rows] == [
        "running node3 student-b000 baseline seed 0 ep 5/12 ETA 1h05m attempt 2",
        "failed student-b000 baseline seed 1 ep 5/12 out of luck",
        "interrupted student-aa00 rm seed 0 ep 5/12 checkpoint at iteration 400",
        "done teacher-9c1e teacher AP 12.5 1s",
    ]
    assert err.splitlines() == ["next: kdlab status -w"]


def test_a_plan_that_is_driven_says_by_whom(lab: Lab) -> None:
    lab.save()
    with driving("7f3a0001", lab.runs, "kdlab run digits/quickstart -y"):
        _, out, _ = lab("status")
    assert out.splitlines()[1].startswith("  driven by process ")
    assert out.splitlines()[1].endswith(": kdlab run digits/quickstart -y")


def test_a_plan_that_is_done_leads_to_its_table(lab: Lab) -> None:
    for key in lab.jobs:
        lab.done(key)
    lab.save()
    _, out, err = lab("status")
    assert out.splitlines()[1] == "  all done"
    assert err.splitlines() == ["next: kdlab report --table digits/quickstart"]


@pytest.mark.parametrize(("about", "verb"), [("diagnoses", "diagnose"), ("benches", "bench")])
def test_a_plan_that_compares_no_arms_leads_to_its_own_table(lab: Lab, about: str, verb: str) -> None:
    for key in lab.jobs:
        lab.done(key)
    lab.save(**{about: "9c2e0001"})
    _, _, err = lab("status")
    assert err.splitlines() == [f"next: kdlab {verb} digits/quickstart"]


def test_a_plan_that_lost_its_jobs_is_shown_without_any(lab: Lab) -> None:
    lab.jobs.clear()
    lab.save()
    code, out, _ = lab("status -v")
    assert code == 0
    assert out.splitlines()[0] == "plan 7f3a  digits/quickstart  done 0  running 0  queued 0  failed 0"


def test_a_plan_can_be_chosen(lab: Lab) -> None:
    lab.save()
    lab.save("aaaa0001", "digits/bench")
    assert lab("status")[1].startswith("plan aaaa")
    assert lab("status 7f3a")[1].startswith("plan 7f3a")
    assert lab("status digits/quickstart")[1].startswith("plan 7f3a")
    assert lab("status digits/quikstart")[0] == 2


def test_verbose_shows_whole_ids_and_the_box_of_a_failure(lab: Lab) -> None:
    mixed(lab)
    _, out, _ = lab("status -v")
    assert "student-b0000001  baseline seed 1" in out
    box = out[out.index("error: baseline seed 1 (student-b0000001)  out of luck") :].splitlines()
    assert box[1] == "  when   iteration 450, after 3s"
    assert box[-1] == "  more   kdlab logs student-b0000001"


def test_json_is_one_object(lab: Lab) -> None:
    mixed(lab)
    code, out, err = lab("status --json")
    told = json.loads(out)
    assert (code, err, told["schema"], told["plan"], told["driven"]) == (0, "", 1, "7f3a0001", False)
    assert told["counts"] == {
        **{
            "running": 1,
            "failed": 1,
            "interrupted": 1,
            "cancelled": 0,
            "queued": 0,
            "skipped": 0,
            "pruned": 0,
            "done": 1,
        }
    }
    first = told["jobs"][0]
    assert {key: first[key] for key in ("id", "state", "where", "epoch", "iteration", "attempt")} == {
        **{"id": "student-b0000000", "state": "running", "where": "node3"},
        **{"epoch": "5/12", "iteration": 450, "attempt": 2},
    }


class TestWatch:
    def test_ends_when_nothing_more_happens(self, lab: Lab) -> None:
        lab.done("b0")
        lab.save()
        code, _, err = lab("status -w")
        assert code == 0
        assert "student-b000  baseline seed 0  done  1s" in err

    def test_tells_each_change_off_a_terminal(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(status, "_EVERY_S", 0.1)
        lab.save()
        paths = lab.start("b0", steps=30)
        code, _, err = lab("status -w")
        assert code == 0
        states = [line.split()[6:] for line in err.splitlines() if "  baseline seed 0  " in line]
        assert [words[0] for words in states] == ["running", "done"]
        assert states[0][1].startswith("core")
        assert paths.result.exists()

    def test_json_gives_a_line_a_change(self, lab: Lab) -> None:
        mixed(lab)
        lab.paths("b0").lease.unlink()
        _, out, _ = lab("status -w --json")
        assert [json.loads(line)["state"] for line in out.splitlines()] == [
            *("failed", "interrupted", "interrupted", "done")
        ]

    def test_ctrl_c_is_a_good_end(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        mixed(lab)
        monkeypatch.setattr("kdlab.cli.verbs.status.time.sleep", interrupt)
        code, out, err = lab("status -w")
        assert code == 0
        assert "running 1" in out
        assert err.splitlines()[-1] == "next: kdlab status -w"

    @pytest.mark.parametrize("width", [20, 80, 100, 200])
    def test_a_frame_fits_its_screen_and_counts_the_rest(self, width: int, lab: Lab) -> None:
        for number in range(40):
            lab.jobs[f"more{number}"] = lab.job(f"student-{number:08x}", "rm+pfi+cwd", number)
        mixed(lab)
        console = Console(file=io.StringIO(), width=width, height=24, force_terminal=True, color_system=None)
        console.print(status.frame(PlanStatus.read(lab.save(), lab.runs)))
        lines = console.file.getvalue().splitlines()
        assert len(lines) < 24
        assert max(map(len, lines)) <= width
        assert lines[-1].split() == ["and", "24", "more"]
        assert "running" in lines[2]

    def test_eighty_columns_leave_room_for_a_cause(self, lab: Lab) -> None:
        mixed(lab)
        lines = [line.plain for line in status.lines(PlanStatus.read(lab.save(), lab.runs), 80, 24)]
        assert lines[3].endswith("out of luck")
        assert lines[4].endswith("checkpoint at iteration 400")

    def test_a_narrow_screen_keeps_where_a_job_runs(self, lab: Lab) -> None:
        lab.at_work("b0")
        lines = [line.plain for line in status.lines(PlanStatus.read(lab.save(), lab.runs), 60, 24)]
        assert lines[2].split() == ["running", "node3", "baseline", "seed", "0", "ep", "5/12", "ETA", "1h05m"]


def test_what_a_driven_plan_waits_for_is_shown(lab: Lab) -> None:
    lab.save()
    with driving("7f3a0001", lab.runs, "kdlab run digits/quickstart -j 1", 1) as say:
        say("1 core: core 0 held by pfi seed 0 (student-1) in /other/runs")
        out, data = lab("status")[1], json.loads(lab("status --json")[1])
    assert "  waits for 1 core: core 0 held by pfi seed 0 (student-1) in /other/runs\n" in out
    assert data["waits"].startswith("1 core: core 0")
    assert "waits for" not in lab("status")[1]
