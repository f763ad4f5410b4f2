"""200 trials on 8 simulated GPUs: how long one is idle between two of them, and what the driver costs."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.recipe import loader as recipes
from kdlab.running import scheduler
from kdlab.tuning import space
from kdlab.tuning.study import OptunaStudy, storage_of
from kdlab.tuning.trials import Trials, Variant
from kdlab.tuning.tuner import Tuner
from tests.planning.test_build import FACTS, FILES
from tests.stubs.simulated import Simulated

GPUS, TRIALS, EPOCH_S, POLL_S = 8, 200, 0.1, 0.02


def trials_of(*overrides: str) -> Trials:
    """Those of the recipe for GFL on digits, 6 epochs each, as if this machine had GPUs."""
    recipe = recipes.load("digits/gfl", overrides)
    arm = space.searched_arm(recipe)
    learned = replace(FILES, fingerprint="e" * 16)
    facts = replace(FACTS, learned=learned, device="cuda", gpu_gb=80.0)
    return Trials({(): Variant(recipe, facts)}, arm, space.dimensions(recipe, arm))


def ap(job: Job, epoch: int) -> float:
    """Best where PFI weighs 30, with noise of its own for each trial; higher with each epoch."""
    weights = {name: method.weight for name, method in job.spec.methods.items()}
    noise = random.Random(job.id).uniform(0, 3)
    given = weights.get("pfi", 0.001)
    return (30 - 8 * abs(math.log10(given / 30)) + noise) * (0.5 + epoch / 12)


def epoch_s(job: Job) -> float:
    """Seconds of an epoch, within half of the usual ones."""
    return EPOCH_S * random.Random(job.id).uniform(0.5, 1.5)


def opened(runs: Runs, trials: Trials) -> OptunaStudy:
    """The study as `kdlab tune` opens it, in SQLite."""
    tune = trials.recipe.tune
    return OptunaStudy(
        name="benchmark",
        objectives=tune.objectives,
        sampler=tune.sampler,
        pruner=tune.pruner,
        epochs=trials.epochs,
        seed=tune.seed,
        storage=storage_of(None, runs),
    )


def pauses_s(executor: Simulated, until: float) -> Iterator[float]:
    """For each trial that began after another had ended: seconds since a GPU was free for it."""
    trials = sorted(times for name, times in executor.ended.items() if name.startswith("student"))
    free = sorted(end for _, end in trials)
    for begin, _ in trials[GPUS:]:
        if begin <= until:
            yield begin - free.pop(0)


def main() -> None:
    """Print two lines."""
    with TemporaryDirectory() as name:
        runs, trials = Runs(Path(name)), trials_of()
        executor = Simulated(runs, GPUS, ap, epoch_s)
        tuner = Tuner(
            trials,
            opened(runs, trials),
            runs,
            count=TRIALS,
            budget_s=math.inf,
            at_once=executor.slots,
            stop_request=runs.stop_request("0" * 8),
        )
        jobs = tuple(PlannedJob(job, False, "new") for job in trials.preparation())
        plan = Plan(id="0" * 8, recipe={"name": "benchmark"}, jobs=jobs, device="cuda", dataset={})
        driver, cpu_s = Stopwatch(), time.process_time()
        feed, see = driver.timed(tuner.feed), driver.timed(tuner.see)
        for event in scheduler.run(plan, executor, runs, poll_s=POLL_S, feed=feed):
            see(event)
        cpu_s = time.process_time() - cpu_s
    report(tuner, executor, driver.cpu_s, cpu_s)


class Stopwatch:
    """What some functions take of a core, together."""

    def __init__(self) -> None:
        self.cpu_s = 0.0

    def timed(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same function, measured."""

        def measured(argument: Any) -> Any:
            began = time.thread_time()
            try:
                return function(argument)
            finally:
                self.cpu_s += time.thread_time() - began

        return measured


def report(tuner: Tuner, executor: Simulated, driver_s: float, cpu_s: float) -> None:
    """Say how idle the GPUs were while trials remained, and what driving them took."""
    states = [trial.state for trial in tuner.study.trials()]
    assert len(states) == TRIALS
    spans = sorted(times for name, times in executor.ended.items() if name.startswith("student"))
    first, last_begin = spans[0][0], spans[-1][0]
    pauses = sorted(pauses_s(executor, last_begin))
    worked_s = sum(min(end, last_begin) - begin for begin, end in spans)
    used = worked_s / GPUS / (last_begin - first)
    print(
        f"{TRIALS} trials on {GPUS} GPUs, {states.count('pruned')} pruned, {last_begin - first:.1f} s: "
        f"a GPU waits {1000 * median(pauses):.0f} ms for its next trial, {1000 * pauses[-1]:.0f} ms at most; "
        f"in use {100 * used:.1f} %"
    )
    print(
        f"driver {1000 * driver_s / TRIALS:.1f} ms of a core a trial, "
        f"with scheduler and simulation {1000 * cpu_s / TRIALS:.1f} ms"
    )


if __name__ == "__main__":
    main()
