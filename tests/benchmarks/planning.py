"""Plans of 1,000 jobs: made beside 1,000 finished ones, and run a second time when all is reused."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

from kdlab import session
from kdlab.cli.screen.console import Screen
from kdlab.cli.verbs.run import execute
from kdlab.jobs import store
from kdlab.jobs.events import EventLog, JobFinished
from kdlab.jobs.files import write_json
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.jobs.result import Curves, Evaluation, JobResult
from kdlab.planning import build as planning
from kdlab.prepared import Prepared
from kdlab.recipe import loader as recipe
from kdlab.running.executors.local import Local
from tests.benchmarks.machine import simulated
from tests.planning.test_build import FACTS

SEEDS, TERMS, LOSSES = 250, 14, 85
METRICS = {"AP": 31.1, "AP50": 51.25, "AP75": 34.9, "APs": 31.1}


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print what `what` took: on the clock, and of the processor alone."""
    began, cpu_s = time.perf_counter(), time.process_time()
    yield
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    print(f"{what}: {took_s:.2f} s, of it {cpu_s:.2f} s of a core", flush=True)


def build(runs: Runs, *overrides: str, seeds: int = SEEDS) -> Plan:
    """The plan of the digits recipe, of four arms, for many seeds."""
    loaded = recipe.load("digits/quickstart", [f"seeds={json.dumps(list(range(seeds)))}", *overrides])
    facts = replace(FACTS, versions=dict.fromkeys(FACTS.versions, "1"))
    return planning.build(loaded, facts, store.past_jobs(runs))


def finish(plan: Plan, runs: Runs) -> None:
    """Leave the files of finished jobs, of the size of real ones."""
    terms = {
        f"{kind}_m{number}.part": 0.1234567890123456
        for number in range(TERMS // 2)
        for kind in ("loss", "raw")
    }
    for planned in plan.jobs:
        job, paths = planned.job, runs.job(planned.job.id)
        paths.folder.mkdir(parents=True)
        write_json(paths.job, job.to_dict())
        log = EventLog(paths.events, job.id, 1)
        log.write(JobFinished, metrics=METRICS, wall_s=60.0)
        log.close()
        losses = [{"iteration": 7 * i, "lr": 0.0004311428571428571, **terms} for i in range(LOSSES)]
        last = Evaluation(METRICS, {str(n): 30.5 for n in range(10)}, epoch=6, iteration=750)
        Curves([last], losses).write(paths)
        JobResult(
            job.id, job.kind, job.arm, job.seed, last, last, {"step_s": 0.1}, {"params": 10},
            {"torch": "1", "mmdet": "1"}, wall_s=60.0, peak_memory_gb=1.0,
        ).write(paths)  # fmt: skip


def run(plan: Plan, runs: Runs) -> None:
    """Run a plan as `kdlab run --quiet` does, from its scheduler to its table and to MLflow."""
    executor = Local()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        execute(Screen([], quiet=True), Prepared(plan, executor, executor.machine, runs))


def main() -> None:
    """Print a line a step."""
    with simulated(8) as folder:
        os.chdir(folder)
        runs = Runs(Path("runs"))
        with timed(f"plan of {4 * SEEDS + 1} jobs, none finished (target 2 s)"):
            plan = build(runs)
        finish(plan, runs)
        size = sum(path.stat().st_size for path in runs.folder.glob("jobs/*/result.json"))
        print(f"results of {size / len(plan.jobs) / 1000:.0f} kB")
        with timed("plan of the same jobs, all finished (target 2 s)"):
            plan = build(runs)
        run(plan, runs)
        with timed("MLflow told of all of them"):
            session.catch_up([plan], runs)
        with timed("second run, all reused, planning included (target 5 s)"):
            run(build(runs), runs)
        with timed("plan of 1001 new jobs beside them (target 2 s)"):
            build(runs, "schedule.lr=0.00123")
        print(f"largest resident size {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
