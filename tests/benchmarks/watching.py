"""8 jobs that say 20 things a second each: CPU time of the scheduler, the board and MLflow."""

from __future__ import annotations

import io
import sys
import threading
import time
from pathlib import Path

from rich.console import Console

from kdlab import session
from kdlab.cli.board import Board
from kdlab.cli.progress import PlanView
from kdlab.jobs.events import Event
from kdlab.jobs.job import Resources, Runs
from kdlab.orchestration import scheduler
from kdlab.orchestration.executors.local import Local
from kdlab.orchestration.plan import Plan
from tests.benchmarks.machine import simulated
from tests.stubs.stub_job import COMMAND, make_job, make_plan

JOBS, A_SECOND, SAVE_S, LOSSES = 8, 20, 10, 10
SETTLED_S = 20
"""What begins once, importing mlflow and making its database above all, is over by then."""


class Samples:
    """CPU seconds of the threads of this process, looked at while events come in."""

    def __init__(self, *at_s: float) -> None:
        self._began, self._at_s = time.monotonic(), list(at_s)
        self.taken = [(0.0, _cpu_s())]

    def __call__(self, _event: Event) -> None:
        """Look, if it is time."""
        now = time.monotonic() - self._began
        if self._at_s and now >= self._at_s[0]:
            self._at_s.pop(0)
            self.taken.append((now, _cpu_s()))

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
        name = {"MainThread": "scheduler", "kdlab-tracking": "MLflow"}.get(thread.name, "board")
        found[name] = int(told.split()[0]) / 1e9
    return found


def plan_of(seconds: int) -> Plan:
    """The jobs, which talk for so long."""
    steps = {"steps": seconds * A_SECOND, "step_s": 1 / A_SECOND, "save_every": SAVE_S * A_SECOND}
    jobs = [
        make_job(f"j{number}", resources=Resources(gpus=1), terms=LOSSES, **steps) for number in range(JOBS)
    ]
    return make_plan(*jobs, **{job.arm: float(seconds) for job in jobs})


def main() -> None:
    """Print a line without and three with board and MLflow; the argument is for how many seconds each."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    plan = plan_of(seconds + 10)
    said = f"{JOBS} jobs, {A_SECOND} events a second each"
    with simulated(JOBS) as folder:
        samples = Samples(3, seconds)
        for event in scheduler.run(plan, Local(command=COMMAND), Runs(folder / "alone"), grace_s=5):
            samples(event)
            if len(samples.taken) == 3:
                break
        print(f"{said}: scheduler alone {samples.shares(1, 2)} (target 1)")
    with simulated(JOBS) as folder:
        executor, runs = Local(command=COMMAND), Runs(folder / "both")
        view = PlanView(plan, executor.machine)
        console = Console(file=io.StringIO(), force_terminal=True, width=140, height=40)
        with Board(view, runs, console, lambda: executor.machine.gpus) as board:
            samples = Samples(SETTLED_S, seconds)
            session.drive(plan, executor, runs, (board.see, samples))
        print(f"{said}: all, first {SETTLED_S} s {samples.shares(0, 1)}")
        print(f"{said}: all, then {samples.shares(1, 2)} (target 5)")
        print(f"{said}: all, {seconds} s {samples.shares(0, 2)}")


if __name__ == "__main__":
    main()
