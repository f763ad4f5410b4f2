"""8 jobs that say 20 things a second each: CPU time of the scheduler, the board and MLflow."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from rich.console import Console

from kdlab import session
from kdlab.cli.screen.board import Board
from kdlab.cli.screen.progress import PlanStatus
from kdlab.jobs.events import Event
from kdlab.jobs.job import Resources
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.running import scheduler
from kdlab.running.executors.local import Local
from tests.benchmarks.machine import simulated
from tests.stubs.stub_job import COMMAND, make_job, make_plan

JOBS, A_SECOND, SAVE_S, LOSSES = 8, 20, 10, 10
MOST_S = 600


class Samples:
    """CPU seconds of the threads of this process, looked at while events come in.

    Args:
        ready: whether to begin; importing mlflow and making its database come before, and once.
        seconds: from the second look to the last one, after which the plan is stopped as by Ctrl-C.
    """

    def __init__(self, ready: Callable[[], bool], seconds: float) -> None:
        self._began, self._ready, self._seconds = time.monotonic(), ready, seconds
        self.taken = [(0.0, _cpu_s())]

    def __call__(self, _event: Event) -> None:
        """Look, if it is time."""
        now = time.monotonic() - self._began
        if len(self.taken) == 1 and self._ready():
            self.taken.append((now, _cpu_s()))
        elif len(self.taken) == 2 and now >= self.taken[1][0] + self._seconds:
            self.taken.append((now, _cpu_s()))
            os.kill(os.getpid(), signal.SIGINT)

    def shares(self, first: int, last: int) -> str:
        """Percents of a core between two looks, in all and by thread."""
        (began, before), (ended, after) = self.taken[first], self.taken[last]
        parts = {
            name: 100 * (cpu_s - before.get(name, 0.0)) / (ended - began) for name, cpu_s in after.items()
        }
        told = ", ".join(f"{name} {share:.2f}" for name, share in parts.items() if name != "all")
        return f"{parts['all']:.2f} % of a core ({told})"


def _cpu_s() -> dict[str, float]:
    found = {"all": time.process_time()}
    for thread in threading.enumerate():
        told = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
        name = {"MainThread": "scheduler", "kdlab-mlflow": "MLflow"}.get(thread.name, "board")
        found[name] = int(told.split()[0]) / 1e9
    return found


def plan_of(seconds: int) -> Plan:
    """The jobs, which talk for so long."""
    steps = {"steps": seconds * A_SECOND, "step_s": 1 / A_SECOND, "save_every": SAVE_S * A_SECOND}
    jobs = [
        make_job(f"j{number}", resources=Resources(gpus=1), terms=LOSSES, **steps) for number in range(JOBS)
    ]
    return make_plan(*jobs, **{job.arm: float(seconds) for job in jobs})


def alone(plan: Plan, seconds: int) -> str:
    """What the scheduler costs with nobody who watches."""
    with simulated(JOBS) as folder:
        began = time.monotonic()
        samples = Samples(lambda: time.monotonic() > began + 3, seconds)
        with suppress(KeyboardInterrupt):
            for event in scheduler.run(plan, Local(command=COMMAND), Runs(folder / "runs"), grace_s=5):
                samples(event)
        return samples.shares(1, 2)


def watched(plan: Plan, seconds: int) -> tuple[str, str]:
    """What all costs with board and MLflow, once that has begun; and what its beginning took."""
    with simulated(JOBS) as folder:
        executor, runs = Local(command=COMMAND), Runs(folder / "runs")
        view = PlanStatus(plan, executor.machine)
        console = Console(file=io.StringIO(), force_terminal=True, width=140, height=40)
        with Board(view, runs, console, lambda: executor.machine.gpus) as board:
            samples = Samples(lambda: shown(runs.folder / "mlflow.db"), seconds)
            session.drive(plan, executor, runs, (board.see, samples))
        return samples.shares(1, 2), f"{samples.taken[1][1].get('MLflow', 0.0):.1f} s"


def shown(database: Path) -> bool:
    """Whether MLflow has the status of the plan, which comes last in its first turn."""
    query = "select count(*) from runs join tags using (run_uuid) where value = 'plan' and status = 'RUNNING'"
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as found:
        return bool(found.execute(query).fetchone()[0])
    return False


def main() -> None:
    """Print a line without and one with board and MLflow; the argument is for how many seconds each."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    plan = plan_of(MOST_S)
    said = f"{JOBS} jobs, {A_SECOND} events a second each"
    print(f"{said}: scheduler alone {alone(plan, seconds)} (target 1)", flush=True)
    share, begin = watched(plan, seconds)
    print(f"{said}: all {share} (target 5); before that MLflow took {begin} once")


if __name__ == "__main__":
    main()
