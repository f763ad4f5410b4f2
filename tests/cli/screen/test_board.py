from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kdlab.cli.screen.board import Board
from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.lines import Lines
from kdlab.cli.screen.progress import PlanStatus, makespan_s
from kdlab.cli.screen.rows import losses, row
from kdlab.devices import Gpu, Machine
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobCheckpointed,
    JobEvaluated,
    JobFailed,
    JobFinished,
    JobProgress,
    JobQueued,
    JobRetried,
    JobReused,
    JobSkipped,
    JobStarted,
)
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job, Resources
from kdlab.jobs.lease import LeaseInfo, Process
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from tests.stubs.jobs import make, method

GPUS = Machine((0, 1), (Gpu(0, "GPU-aaaa", 80.0), Gpu(1, "GPU-bbbb", 80.0)))
CORES = Machine((0, 1))
RM, PFI = method("rm"), method("pfi")
ARMS: dict[str, dict[str, Any]] = {"baseline": {}, "rm": {"rm": RM}, "rm+pfi": {"rm": RM, "pfi": PFI}}
HOUR = 3600.0


def make_plan(costs: dict[str, float | None] | None = None, gpus: int = 0) -> Plan:
    """A teacher and the arms; `costs` by arm."""
    resources = Resources(gpus=gpus)
    jobs = [make("teacher-9c1e22ab", "teacher", resources=resources)]
    for number, (arm, methods) in enumerate(ARMS.items()):
        parents = ("teacher-9c1e22ab",) if methods else ()
        job = make(f"student-{number:08x}", arm, parents=parents, resources=resources, methods=methods)
        jobs.append(job)
    planned = [PlannedJob(job, False, "new", (costs or {}).get(job.arm)) for job in jobs]
    return Plan("7f3a0001", {"name": "coco/retinanet_r101_r50"}, tuple(planned), "cpu", {})


def make_view(
    costs: dict[str, float | None] | None = None, machine: Machine = CORES, at_once: int | None = None
) -> PlanStatus:
    return PlanStatus(make_plan(costs, gpus=1 if machine.gpus else 0), machine, at_once)


def started(job: str, iteration: int = 0) -> JobStarted:
    return JobStarted(job=job, time=0.0, device="cpu", epochs=12, iterations=1200, iteration=iteration)


def progress(job: str, iteration: int = 450, time: float = 0.0, **terms: float) -> JobProgress:
    losses = {f"loss_{name}": value for name, value in terms.items()} | {"loss_cls": 0.5, "loss_bbox": 0.31}
    losses["loss"] = sum(losses.values())
    return JobProgress(
        job=job, time=time, epoch=4, epochs=12, iteration=iteration, iterations=1200,
        losses=losses | {f"raw_{name}": 10 * value for name, value in terms.items()},
        lr=0.01, step_s=0.1, data_s=0.0, eta_s=3900.0,
    )  # fmt: skip


def finished(job: str, ap: float = 31.8, wall_s: float = 60.0) -> JobFinished:
    return JobFinished(job=job, metrics={"AP": ap}, wall_s=wall_s)


def teach(view: PlanStatus, *events: Event) -> PlanStatus:
    for event in events:
        view.see(event)
    return view


class TestPlanStatus:
    def test_counts_follow_the_events(self) -> None:
        view = teach(
            make_view(),
            JobReused(job="teacher-9c1e22ab", metrics={"AP": 38.9}),
            *(JobQueued(job=f"student-{number:08x}") for number in range(3)),
            started("student-00000000"),
            JobFailed(job="student-00000000", what="out of luck"),
            started("student-00000001"),
        )
        assert view.counts == {"done": 1, "failed": 1, "running": 1, "queued": 1}

    def test_the_detector_s_loss_leaves_the_methods_out(self) -> None:
        view = teach(
            make_view(), started("student-00000002"), progress("student-00000002", rm=0.05, pfi=0.11)
        )
        det, terms = losses(view.jobs["student-00000002"])
        assert det == pytest.approx(0.81)
        assert terms == pytest.approx({"rm": 0.05, "pfi": 0.11})

    @pytest.mark.parametrize(
        ("iteration", "epoch"), [(0, "1/12"), (99, "1/12"), (100, "2/12"), (1200, "12/12")]
    )
    def test_the_epoch_under_way_counts_from_one(self, iteration: int, epoch: str) -> None:
        view = teach(make_view(), started("student-00000000"), progress("student-00000000", iteration))
        assert view.jobs["student-00000000"].epoch == epoch

    def test_time_left_of_a_job_is_its_last_word_minus_what_passed(self) -> None:
        view = teach(make_view(), started("student-00000000"), progress("student-00000000", time=100.0))
        job = view.jobs["student-00000000"]
        assert job.left_s(400.0) == 3600.0
        assert job.left_s(9999.0) == 0.0

    def test_time_left_is_unknown_as_soon_as_one_job_is(self) -> None:
        known = {"teacher": HOUR, "baseline": HOUR, "rm": HOUR}
        assert make_view(known).left_s(0.0) is None
        assert make_view(known | {"rm+pfi": HOUR}).left_s(0.0) == 2 * HOUR

    def test_a_finished_seed_tells_what_the_others_of_its_arm_take(self) -> None:
        view = make_view({"teacher": 0.0, "rm": 0.0, "rm+pfi": 0.0})
        twin = make("student-0000000b", "baseline", 1)
        plan = replace(view.plan, jobs=(*view.plan.jobs, PlannedJob(twin, False, "new")))
        view = teach(
            PlanStatus(plan, CORES), started("student-00000000"), finished("student-00000000", wall_s=77.0)
        )
        assert view.left_s(0.0) == 77.0

    def test_a_retried_job_waits_again_and_is_told_once_when_it_ends(self) -> None:
        job = "student-00000000"
        view = teach(make_view(), started(job), JobRetried(job=job, why="killed"))
        assert view.jobs[job].state == "queued"
        teach(view, started(job, 400), finished(job))
        assert [ended.job.id for ended in view.ended] == [job]


class TestGrowing:
    """A plan of which jobs are still to come, as of a search."""

    @staticmethod
    def trial(number: int) -> PlannedJob:
        job = make(f"student-1000000{number}", f"pfi {number}")
        return PlannedJob(job, False, "trial")

    @pytest.fixture
    def view(self) -> PlanStatus:
        """A search of 5 trials after its teacher, one at work and one at its end."""
        plan = make_plan()
        view = PlanStatus(replace(plan, jobs=plan.jobs[:1]), CORES, to_come=5)
        view.grow([self.trial(0), self.trial(1)], to_come=3)
        first, second = (f"student-1000000{number}" for number in range(2))
        events = (finished("teacher-9c1e22ab"), started(first), started(second))
        return teach(view, *events, replace(finished(first), time=100.0))

    def test_what_is_to_come_counts_as_queued(self, view: PlanStatus) -> None:
        assert view.counts == {"done": 2, "running": 1, "queued": 3}

    def test_time_left_takes_trials_for_what_such_took(self, view: PlanStatus) -> None:
        teach(view, replace(progress("student-10000001", time=100.0), eta_s=50.0))
        # three of 100 s on two cores, of which one is busy for 50 s more
        assert view.left_s(100.0) == 250.0 - 50.0

    def test_time_left_is_unknown_before_one_has_ended(self) -> None:
        view = PlanStatus(make_plan(dict.fromkeys(["teacher", *ARMS], HOUR)), CORES, to_come=3)
        assert view.left_s(0.0) is None
        view.grow([], to_come=0)
        assert view.left_s(0.0) == 2 * HOUR

    def test_job_that_is_given_again_is_queued_again(self, view: PlanStatus) -> None:
        view.grow([self.trial(0)], to_come=3)
        assert view.jobs["student-10000000"].state == "queued"
        assert len(view.jobs) == 3

    def test_job_that_a_search_has_ended_is_pruned(self, view: PlanStatus) -> None:
        job = "student-10000001"
        teach(view, progress(job, 400), JobEvaluated(job=job, epoch=4, iteration=400, metrics={"AP": 3.2}))
        view.jobs[job].pruned = True
        teach(view, JobCancelled(job=job, iteration=400))
        assert view.jobs[job].state == "pruned"
        assert view.counts["pruned"] == 1

    def test_lines_tell_pruned_trials_and_count_all(
        self, view: PlanStatus, capfd: pytest.CaptureFixture[str]
    ) -> None:
        job, lines = "student-10000001", Lines(view, Screen())
        lines.see(JobEvaluated(job=job, epoch=4, iteration=400, metrics={"AP": 3.2}))
        view.jobs[job].pruned = True
        lines.see(JobCancelled(job=job, iteration=400))
        told = capfd.readouterr().err.splitlines()[-1]
        assert "pruned: AP 3.2 after epoch" in told
        assert "promised too little  (2 of 6 done" in told

    def test_board_tells_pruned_trials_apart(self, view: PlanStatus, tmp_path: Path) -> None:
        view.jobs["student-10000001"].pruned = True
        teach(view, JobCancelled(job="student-10000001", iteration=400))
        lines = frame(view, Runs(tmp_path), 120)
        assert "done 2  running 0  queued 3  failed 0  pruned 1" in lines[0]
        assert any(line.startswith("pruned ") for line in lines)


class TestMakespan:
    @staticmethod
    def jobs(*chains: int) -> list[Job]:
        """Jobs in chains of the given lengths, parents first."""
        made = []
        for chain, length in enumerate(chains):
            for place in range(length):
                parents = (f"student-{chain}{place - 1}",) if place else ()
                made.append(make(f"student-{chain}{place}", parents=parents))
        return made

    def span(self, jobs: list[Job], cores: int, at_once: int | None = None) -> float:
        return makespan_s({job.id: 10.0 for job in jobs}, jobs, Machine(tuple(range(cores))), at_once)

    def test_a_chain_takes_the_sum(self) -> None:
        assert self.span(self.jobs(3), cores=8) == 30.0

    def test_independent_jobs_share_the_cores(self) -> None:
        assert self.span(self.jobs(1, 1, 1), cores=2) == 20.0

    def test_a_limit_counts_as_devices_do(self) -> None:
        assert self.span(self.jobs(1, 1, 1), cores=8, at_once=1) == 30.0

    def test_a_job_larger_than_the_machine_runs_alone(self) -> None:
        large = replace(self.jobs(1)[0], resources=Resources(threads=4))
        assert self.span([large, *self.jobs(0, 1)], cores=2) == 20.0

    def test_nothing_left_takes_no_time(self) -> None:
        assert self.span([], cores=2) == 0.0

    @given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 4))
    def test_lies_between_the_longest_chain_and_one_after_the_other(
        self, chains: list[int], cores: int
    ) -> None:
        jobs = self.jobs(*chains)
        assert max(10 * max(chains), 10 * len(jobs) / cores) <= self.span(jobs, cores) <= 10 * len(jobs)


@pytest.fixture
def busy(tmp_path: Path) -> tuple[PlanStatus, Runs]:
    """A plan at work: the teacher done, two students running on GPUs, the last one starting."""
    runs = Runs(tmp_path)
    view = teach(
        make_view(machine=GPUS),
        started("teacher-9c1e22ab"),
        finished("teacher-9c1e22ab", 38.9),
        started("student-00000000"),
        progress("student-00000000"),
        JobEvaluated(job="student-00000000", epoch=4, iteration=400, metrics={"AP": 30.2}),
        started("student-00000002"),
        progress("student-00000002", rm=0.05, pfi=0.11),
    )
    for number, uuid in enumerate(("GPU-aaaa", "GPU-bbbb", "GPU-bbbb")):
        paths = runs.job(f"student-{number:08x}")
        paths.folder.mkdir(parents=True)
        Handle("local", Process.of(1), (uuid,)).write(paths)
    return view, runs


def frame(view: PlanStatus, runs: Runs, width: int, height: int = 25) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(Board(view, runs, console, lambda: view.machine.gpus if view.machine else ()))
    return console.file.getvalue().splitlines()


class TestBoard:
    @pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
    def test_no_line_wraps_at_any_width(self, busy: tuple[PlanStatus, Runs], width: int) -> None:
        lines = frame(*busy, width)
        assert len(lines) == 5
        assert max(map(len, lines)) <= width

    def test_a_wide_terminal_shows_everything(self, busy: tuple[PlanStatus, Runs]) -> None:
        head, baseline, rm_pfi, *_ = frame(*busy, 200)
        counts = "done 1  running 3  queued 0  failed 0  0s, ETA ?"
        assert head.rstrip() == f"plan 7f3a  coco/retinanet_r101_r50  {counts}"
        assert re.sub("=+>", "BAR", baseline).split() == [
            *("gpu0", "student-0000", "baseline", "seed", "0", "ep", "5/12", "BAR"),
            *("AP", "30.2", "det", "0.81", "ETA", "0s"),
        ]
        assert rm_pfi.split()[-8:] == ["det", "0.81", "rm", "0.05", "pfi", "0.11", "ETA", "0s"]

    def test_eighty_columns_keep_what_matters(self, busy: tuple[PlanStatus, Runs]) -> None:
        row = frame(*busy, 80)[2]
        for part in ("rm+pfi seed 0", "ep 5/12", "det 0.81", "rm 0.05", "pfi 0.11", "ETA"):
            assert part in row

    @pytest.mark.parametrize(
        ("loss", "text"), [(0.0004, "4e-4"), (0.05, "0.05"), (12.34, "12.3"), (456.7, "457"), (0.0, "0.00")]
    )
    def test_losses_keep_to_four_characters(self, loss: float, text: str, tmp_path: Path) -> None:
        job = "student-00000001"
        view = teach(make_view(), started(job), progress(job, rm=loss))
        assert f"  rm {text}  " in frame(view, Runs(tmp_path), 100)[1]

    def test_columns_line_up(self, busy: tuple[PlanStatus, Runs]) -> None:
        baseline, rm_pfi = frame(*busy, 200)[1:3]
        assert baseline.index("det 0.81") == rm_pfi.index("det 0.81")
        assert "AP 30.2" in baseline

    def test_a_process_that_has_not_spoken_yet_is_shown(self, busy: tuple[PlanStatus, Runs]) -> None:
        assert re.search(r"rm seed 0 +starts", "\n".join(frame(*busy, 100)))

    def test_waiting_for_devices_is_said(self, tmp_path: Path) -> None:
        lines = frame(make_view(), Runs(tmp_path), 80)
        assert lines[-1] == "waiting for a free device"

    def test_the_end_shows_no_eta(self, tmp_path: Path) -> None:
        view = teach(make_view(), *(finished(job) for job in make_view().jobs))
        head, *ended = frame(view, Runs(tmp_path), 100)
        assert "done 4  running 0  queued 0" in head
        assert "ETA" not in head
        assert ended[0].split() == ["done", "teacher", "AP", "31.8,", "1m00s"]

    def test_stopping_is_shown_and_what_waits_is_not_called_skipped(
        self, busy: tuple[PlanStatus, Runs]
    ) -> None:
        view, runs = busy
        console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
        board = Board(view, runs, console)
        board.stopping()
        teach(view, JobSkipped(job="student-00000001", why="it needs teacher"))
        console.print(board)
        text = console.file.getvalue()
        assert "Ctrl-C again kills" in text
        assert "skipped" not in text

    def test_a_failure_shows_its_cause(self, tmp_path: Path) -> None:
        view = teach(make_view(), JobFailed(job="student-00000001", what="loss_rm is not finite"))
        assert "failed     rm seed 0  loss_rm is not finite" in frame(view, Runs(tmp_path), 100)


class TestGpus:
    """A line a GPU."""

    @staticmethod
    def board(
        folder: Path, jobs: dict[str, tuple[int, ...]], gpus: int, *, busy: tuple[int, ...] = ()
    ) -> tuple[PlanStatus, Runs]:
        """Jobs at work on some of `gpus` GPUs, by arm; those of `busy` are a stranger's."""
        machine = Machine((0,), tuple(Gpu(n, f"GPU-{n:02}", 80.0, n in busy) for n in range(gpus)))
        runs, made = Runs(folder), []
        for number, (arm, numbers) in enumerate(jobs.items()):
            resources = Resources(gpus=len(numbers) or 1)
            job = make(f"student-{number:08x}", arm, resources=resources, methods=ARMS["rm+pfi"])
            made.append(PlannedJob(job, False, "new", HOUR))
            if numbers:
                paths = runs.job(job.id)
                paths.folder.mkdir(parents=True)
                Handle("local", Process.of(1), tuple(f"GPU-{n:02}" for n in numbers)).write(paths)
        view = PlanStatus(Plan("7f3a0001", {"name": "coco/x"}, tuple(made), "cuda", {}), machine)
        return teach(view, *(started(each.job.id) for each in made if jobs[each.job.arm])), runs

    @pytest.fixture(autouse=True)
    def own_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))

    def test_every_gpu_has_a_line_in_the_order_of_gpus(self, tmp_path: Path) -> None:
        jobs = {"late": (4,), "wide": (0, 1, 2, 3), "torn": (5, 7)}
        lines = frame(*self.board(tmp_path, jobs, 9), 60)
        assert [line.split()[:2] for line in lines[1:]] == [
            *(["gpu0-3", "wide"], ["gpu4", "late"], ["gpu5,7", "torn"]),
            *(["gpu6", "idle"], ["gpu8", "idle"]),
        ]

    def test_idle_gpus_in_a_row_share_a_line_and_a_stranger_s_says_so(self, tmp_path: Path) -> None:
        lines = frame(*self.board(tmp_path, {"a": (0,)}, 8, busy=(3,)), 100)
        assert [line.rstrip() for line in lines[2:]] == [
            *("gpu1-2  idle", "gpu3    used by others", "gpu4-7  idle"),
        ]

    def test_jobs_that_share_a_gpu_have_a_line_each(self, tmp_path: Path) -> None:
        lines = frame(*self.board(tmp_path, {"a": (1,), "b": (0,), "c": (0,)}, 2), 60)
        assert [line.split()[:2] for line in lines[1:]] == [["gpu0", "b"], ["gpu0", "c"], ["gpu1", "a"]]

    def test_another_run_s_gpu_is_not_called_idle(self, tmp_path: Path) -> None:
        view, runs = self.board(tmp_path, {"a": (0,)}, 2)
        with Machine((), view.machine.gpus[1:]).lease("gpu", 1) or pytest.fail("not leased"):
            assert frame(view, runs, 100)[-1].rstrip() == "gpu1  used by another kdlab run"

    @pytest.mark.parametrize("width", [80, 100, 200])
    def test_sixteen_gpus_fit_a_screen_of_24_rows(self, width: int, tmp_path: Path) -> None:
        view, runs = self.board(tmp_path, {f"arm{n}": (n,) for n in range(16)}, 16)
        teach(view, *(progress(job, rm=0.05, pfi=0.11) for job in view.jobs))
        lines = frame(view, runs, width, height=24)
        assert len(lines) == 17
        assert all(line.startswith(f"gpu{number}") for number, line in enumerate(lines[1:]))
        assert all("pfi 0.11" in line for line in lines[1:])
        assert max(map(len, lines)) <= width

    def test_what_does_not_fit_is_counted(self, tmp_path: Path) -> None:
        jobs = {f"arm{n}": (n // 2,) for n in range(32)}
        lines = frame(*self.board(tmp_path, jobs, 17), 80, height=24)
        assert len(lines) < 24
        assert lines[-1].startswith("and 11 more")

    def test_what_ended_gives_way_to_what_runs(self, tmp_path: Path) -> None:
        view, runs = self.board(tmp_path, {f"arm{n}": (n,) if n < 8 else () for n in range(12)}, 8)
        teach(view, *(finished(f"student-{n:08x}") for n in range(8, 12)))
        lines = frame(view, runs, 80, height=12)
        assert [line.split()[0] for line in lines[9:]] == ["done", "done"]

    def test_the_last_frame_of_a_stopped_plan_speaks_of_no_device(self, tmp_path: Path) -> None:
        view, runs = self.board(tmp_path, {"a": (), "b": ()}, 8)
        teach(view, JobCancelled(job="student-00000000", iteration=9))
        console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
        board = Board(view, runs, console, lambda: view.machine.gpus if view.machine else ())
        board.stopping()
        console.print(board)
        text = console.file.getvalue()
        assert "idle" not in text
        assert "Ctrl-C" not in text


def test_a_resized_terminal_is_cleared_once(busy: tuple[PlanStatus, Runs]) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    board = Board(*busy, console)
    frames = []
    for width in (120, 120, 80, 80):
        console.width = width
        with console.capture() as shown:
            console.print(board)
        frames.append("\x1b[2J" in shown.get())
    assert frames == [False, False, True, False]


class TestClusters:
    def test_a_job_in_a_cluster_s_queue_counts_as_queued(self, tmp_path: Path) -> None:
        view, runs = make_view(), Runs(tmp_path)
        runs.job("student-00000000").folder.mkdir(parents=True)
        Handle("slurm", ref="1234").write(runs.job("student-00000000"))
        head, line, *_ = frame(view, runs, 120)
        assert "running 0  queued 4" in head
        assert line.split()[:7] == [
            *("slurm", "1234", "student-0000", "baseline", "seed", "0", "queued"),
        ]

    def test_a_job_at_work_on_a_node_names_it(self, tmp_path: Path) -> None:
        view, runs = teach(make_view(), started("student-00000000")), Runs(tmp_path)
        paths = runs.job("student-00000000")
        paths.folder.mkdir(parents=True)
        Handle("slurm", ref="1234").write(paths)
        LeaseInfo(1, Process("node3.cluster", 77, None), time.time()).write(paths)
        assert frame(view, runs, 120)[1].startswith("slurm node3  student-0000")


class TestLines:
    @staticmethod
    def told(capfd: pytest.CaptureFixture[str], *events: Event, verbose: bool = False) -> list[str]:
        lines = Lines(make_view(), Screen(verbose=verbose))
        with lines:
            for event in events:
                lines.see(event)
        return capfd.readouterr().err.splitlines()

    def test_the_first_stock_is_left_to_the_preview(self, capfd: pytest.CaptureFixture[str]) -> None:
        stock = [JobReused(job="teacher-9c1e22ab", metrics={"AP": 38.9}), JobQueued(job="student-00000000")]
        assert self.told(capfd, *stock) == []

    def test_each_line_has_a_time_an_id_and_a_label(self, capfd: pytest.CaptureFixture[str]) -> None:
        (line,) = self.told(capfd, started("student-00000002"))
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  student-0000  rm\+pfi seed 0  "
            r"started on cpu: 12 epochs, 1200 iterations",
            line,
        )

    def test_progress_is_told_once_in_ten_seconds(self, capfd: pytest.CaptureFixture[str]) -> None:
        job = "student-00000002"
        lines = self.told(capfd, started(job), *(progress(job, step, rm=0.05) for step in range(1, 50)))
        assert len(lines) == 2
        assert "ep 1/12  det 0.81  rm 0.05  ETA" in lines[1]

    def test_checkpoints_are_told_on_request(self, capfd: pytest.CaptureFixture[str]) -> None:
        event = JobCheckpointed(job="student-00000000", iteration=400)
        assert self.told(capfd, event) == []
        assert "checkpoint at iteration 400" in self.told(capfd, event, verbose=True)[0]

    @pytest.mark.parametrize(
        ("event", "text"),
        [
            (started("student-00000000", 300), "goes on after iteration 300 of 1200 on cpu"),
            (finished("student-00000000"), "done: AP 31.8, 1m00s  (1 of 4 done, ETA ?)"),
            (JobFailed(job="student-00000000", what="no memory"), "failed: no memory  (0 of 4 done, ETA ?)"),
            (
                JobCancelled(job="student-00000000", iteration=9),
                "cancelled: checkpoint at iteration 9",
            ),
            (JobSkipped(job="student-00000000", why="it needs teacher"), "skipped: it needs teacher"),
            (JobRetried(job="student-00000000", why="the process vanished"), "the process vanished; another"),
            (
                JobEvaluated(job="student-00000000", epoch=4, iteration=400, metrics={"AP": 30.24}),
                "AP 30.2 after epoch 4",
            ),
        ],
    )
    def test_what_happens_is_said(self, event: Event, text: str, capfd: pytest.CaptureFixture[str]) -> None:
        (line,) = self.told(capfd, event)
        assert f"baseline seed 0  {text}" in line


def test_a_measured_teacher_counts_its_images(capfd: pytest.CaptureFixture[str]) -> None:
    job = make("evaluate-9c1e22ab", "teacher")
    plan = Plan("7f3a0002", {"name": "tiny"}, (PlannedJob(job, False, "new"),), "cpu", {})
    view = PlanStatus(plan, CORES)
    begun = JobStarted(job=job.id, device="cpu", epochs=1, iterations=200)
    at = JobProgress(
        job=job.id, epoch=1, epochs=1, iteration=80, iterations=200, losses={}, lr=0.0, step_s=0.1,
        data_s=0.0, eta_s=12.0,
    )  # fmt: skip
    evaluated = JobEvaluated(job=job.id, epoch=1, iteration=200, metrics={"AP": 38.9})
    assert row(teach(view, begun).jobs[job.id], 0.0)["epoch"] == "images 0/200"
    assert row(teach(view, at).jobs[job.id], 0.0)["epoch"] == "images 80/200"
    lines = Lines(PlanStatus(plan, CORES), Screen())
    for event in (begun, at, evaluated):
        lines.see(event)
    told = [line.partition("teacher  ")[2] for line in capfd.readouterr().err.splitlines()]
    assert told[0] == "measures on cpu: 200 images"
    assert told[1].startswith("images 80/200")
    assert told[2] == "AP 38.9 on 200 images"


def test_a_job_that_scales_losses_counts_its_steps(capfd: pytest.CaptureFixture[str]) -> None:
    job = make("scale-9c1e22ab", "scale rm", methods={"rm": RM})
    plan = Plan("7f3a0002", {"name": "tiny"}, (PlannedJob(job, False, "new"),), "cpu", {})
    view = PlanStatus(plan, CORES)
    begun = JobStarted(job=job.id, device="cpu", epochs=1, iterations=30)
    at = JobProgress(
        job=job.id, epoch=0, epochs=1, iteration=12, iterations=30, lr=0.0, step_s=0.1, data_s=0.0, eta_s=2.0,
        losses={"loss": 1.0, "loss_rm": 0.25, "raw_rm": 0.5},
    )  # fmt: skip
    end = JobFinished(job=job.id, metrics={}, wall_s=3.0)
    assert row(teach(view, begun).jobs[job.id], 0.0)["epoch"] == "step 0/30"
    cells = row(teach(view, at).jobs[job.id], 0.0)
    assert [cells[name] for name in ("label", "epoch", "det", "terms")] == [
        "scale rm", "step 12/30", "det 0.75", "rm 0.25"
    ]  # fmt: skip
    lines = Lines(PlanStatus(plan, CORES), Screen())
    for event in (begun, at, end):
        lines.see(event)
    told = [line.partition("scale rm  ")[2] for line in capfd.readouterr().err.splitlines()]
    assert told[0] == "started on cpu: 30 iterations"
    assert told[1].startswith("step 12/30  det 0.75  rm 0.25")
    assert told[2].startswith("done: 3s")
