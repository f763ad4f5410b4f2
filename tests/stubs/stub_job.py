"""Keeps the file contract of a job without training: counts steps, checkpoints them, and ends as it is told.

`steering(job)` steers it: `steps`, `step_s` (seconds a step), `save_every` (steps from one checkpoint to the
next), `terms` (how many losses), and `end`, one of finish, fail, exit, kill, kill_once (in the first attempt
alone), full_once (out of GPU memory, likewise), torn (as kill_once, within a line of its events), deaf (to
SIGTERM) or orphan (kill, and leave a process of its group behind).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kdlab.errors import JobError, OutOfMemory
from kdlab.jobs.events import EventLog, JobCancelled, JobCheckpointed, JobFinished, JobProgress, JobStarted
from kdlab.jobs.files import read_json, write_json
from kdlab.jobs.job import Job, Resources, read_job
from kdlab.jobs.lease import Lease
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.result import Evaluation, JobResult
from tests.stubs.jobs import make, steering

if TYPE_CHECKING:
    from kdlab.jobs.plan import Plan

COMMAND = (sys.executable, str(Path(__file__)))
METRICS = {"AP": 12.5, "AP50": 25.0}
STOP = threading.Event()


def make_job(
    name: str = "a", parents: tuple[str, ...] = (), resources: Resources | None = None, **settings: object
) -> Job:
    return make(f"student-{name}", name, parents=parents, resources=resources, stub=settings)


def make_plan(*jobs: Job, **cost_s: float) -> Plan:
    # Not above: the job's process, which runs this file too, has no use for it.
    from kdlab.jobs.plan import Plan, PlannedJob

    planned = tuple(PlannedJob(job, False, "new", cost_s.get(job.arm)) for job in jobs)
    return Plan(id="00000000", recipe={"name": "stub"}, jobs=planned, device="cpu", dataset={})


def prepared(runs: Runs, job: Job) -> JobPaths:
    paths = runs.job(job.id)
    paths.folder.mkdir(parents=True, exist_ok=True)
    write_json(paths.job, job.to_dict())
    return paths


def make_result(job: Job, attempts: int = 1) -> JobResult:
    last = Evaluation(dict(METRICS), epoch=1)
    return JobResult(
        job.id, job.kind, job.arm, job.seed, last, last, wall_s=1.0, peak_memory_gb=0.1, attempts=attempts
    )


class Stub:
    """One attempt at the job in `paths`."""

    def __init__(self, paths: JobPaths, lease: Lease) -> None:
        self.paths, self.lease, self.job = paths, lease, read_job(paths)
        self.log = EventLog(paths.events, self.job.id, lease.attempt)
        self.told = steering(self.job)
        self.steps = int(self.told.get("steps", 3))
        self.end = str(self.told.get("end", "finish"))

    def run(self) -> JobResult | None:
        saved = self.paths.checkpoints / "step.json"
        first = read_json(saved) or 0
        self.log.write(JobStarted, device="cpu", epochs=1, iterations=self.steps, iteration=first)
        for step in range(first + 1, self.steps + 1):
            if STOP.is_set() or self.paths.stop_request.exists():
                self.log.write(JobCancelled, iteration=step - 1)
                return None
            self.step(step)
            self.lease.check()
            if step % int(self.told.get("save_every", 1)) == 0:
                self.paths.checkpoints.mkdir(exist_ok=True)
                write_json(saved, step)
                self.log.write(JobCheckpointed, iteration=step)
            print(f"step {step}", flush=True)
        return self.finish()

    def step(self, step: int) -> None:
        time.sleep(float(self.told.get("step_s", 0.01)))
        seconds = {"step_s": 0.01, "data_s": 0.0, "eta_s": 0.0}
        counts = {"epoch": 1, "epochs": 1, "iteration": step, "iterations": self.steps}
        terms = {f"rm{number or ''}": 1.0 for number in range(int(self.told.get("terms", 1)))}
        self.log.write(JobProgress, losses=terms, lr=0.1, **counts, **seconds)
        if step == 2:
            self.misbehave()

    def misbehave(self) -> None:
        match self.end:
            case "fail":
                raise JobError("the loss is not finite", got="nan", fix="lower schedule.lr")
            case "full_once" if self.lease.attempt == 1:
                facts = {"peak_gb": 8.0, "total_gb": 79.6, "micro_batch": 16, "batchnorm": False}
                raise OutOfMemory("the GPU is out of memory", facts=facts)
            case "exit":
                print("no module named nothing", flush=True)
                sys.exit(1)
            case "torn" if self.lease.attempt == 1:
                with self.paths.events.open("ab") as file:
                    file.write(b'{"event": "JobProg')
                os.kill(os.getpid(), signal.SIGKILL)
            case "orphan":
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                os.kill(os.getpid(), signal.SIGKILL)
            case "kill_once" if self.lease.attempt > 1:
                pass
            case "kill" | "kill_once":
                os.kill(os.getpid(), signal.SIGKILL)

    def finish(self) -> JobResult:
        self.lease.check()
        result = make_result(self.job, self.lease.attempt)
        result.write(self.paths)
        self.log.write(JobFinished, metrics=METRICS, wall_s=1.0)
        return result


def run_job(paths: JobPaths) -> JobResult | None:
    with Lease.acquire(paths) as lease:
        stub = Stub(paths, lease)
        try:
            return stub.run()
        except JobError as error:
            memory = {"kind": error.kind, **error.facts} if isinstance(error, OutOfMemory) else {}
            told = {**vars(error.faults[0]), "after_s": 0.5, "traceback": "somewhere", **memory}
            write_json(paths.failure, told)
            raise
        finally:
            stub.log.close()


def main(folder: Path) -> int:
    paths = JobPaths(folder)
    deaf = steering(read_job(paths)).get("end") == "deaf"
    signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else lambda *_: STOP.set())
    try:
        return 0 if run_job(paths) else 143
    except JobError as error:
        print(error, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
