"""60 jobs of 1, 2, 4 and 8 GPUs that sleep, on 8 GPUs: how far their end is from the earliest possible."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from kdlab.jobs.events import JobFinished, JobStarted, read_from
from kdlab.jobs.job import Job, Resources
from kdlab.jobs.paths import Runs
from kdlab.running import scheduler
from kdlab.running.executors.local import Local
from tests.benchmarks.machine import simulated
from tests.stubs.stub_job import COMMAND, make_job, make_plan

GPUS, STARTUP_S = 8, 0.2
COUNTS = {1: 24, 2: 18, 4: 12, 8: 6}


def jobs() -> Iterator[tuple[Job, float]]:
    """The jobs, each with the seconds that it is expected to take, in an order that helps nobody."""
    draw = random.Random(0)
    sizes = [size for size, count in COUNTS.items() for _ in range(count)]
    draw.shuffle(sizes)
    for number, size in enumerate(sizes):
        sleep_s = draw.uniform(2, 8)
        job = make_job(f"j{number}", steps=1, step_s=sleep_s, resources=Resources(gpus=size))
        yield job, sleep_s + STARTUP_S


def held_s(runs: Runs, job: Job) -> float:
    """Seconds from the start of a job's process, before its first import, to its last word."""
    events = read_from(runs.job(job.id).events).events
    ended = next(event.time for event in events if isinstance(event, JobFinished))
    return ended - runs.job(job.id).handle.stat().st_mtime


def main() -> None:
    """Print one line."""
    wanted = list(jobs())
    with simulated(GPUS) as folder:
        runs = Runs(folder / "runs")
        plan = make_plan(*(job for job, _ in wanted), **{job.arm: cost for job, cost in wanted})
        began = time.time()
        cpu_s = time.process_time()
        events = list(scheduler.run(plan, Local(command=COMMAND), runs))
        took_s, cpu_s = time.time() - began, time.process_time() - cpu_s
        assert sum(isinstance(event, JobFinished) for event in events) == len(wanted)
        held = {job.id: held_s(runs, job) for job, _ in wanted}
        starts = sum(isinstance(event, JobStarted) for event in events)
    work_s = sum(job.resources.gpus * held[job.id] for job, _ in wanted) / GPUS
    least_s = max(work_s, *held.values())
    print(
        f"{starts} jobs on {GPUS} GPUs: {took_s:.1f} s, at least {least_s:.1f} s, "
        f"{took_s / least_s:.3f} of it (target 1.10); scheduler {100 * cpu_s / took_s:.2f} % of a core"
    )


if __name__ == "__main__":
    main()
