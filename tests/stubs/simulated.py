"""A machine of simulated GPUs: jobs that take their time, tell an AP after each epoch, and leave a result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

from kdlab.devices import Gpu, Machine
from kdlab.jobs.events import EventLog, JobCancelled, JobEvaluated, JobFailed, JobFinished, JobStarted
from kdlab.jobs.files import write_json
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job, read_job
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.result import Curves, Evaluation
from tests.stubs.stub_job import make_result

TERM_SHARE = {"rm": 0.02, "pfi": 0.1}
"""What a job of kind "scale" says of each method's term beside the detection loss."""


@dataclass
class Simulated:
    """An executor whose jobs are entries of a dictionary.

    Args:
        runs: where the job folders are.
        gpus: how many.
        ap: the AP of a student after an epoch.
        epoch_s: seconds of an epoch.
        fails: whether a start of a job fails; asked with its attempt, from 1.
        stop_looks: how many looks a job takes to stop.
    """

    runs: Runs
    gpus: int
    ap: Callable[[Job, int], float]
    epoch_s: Callable[[Job], float] = lambda job: 0.0
    fails: Callable[[Job, int], bool] = lambda job, attempt: False
    stop_looks: int = 1
    started: list[str] = field(default_factory=list)
    ended: dict[str, tuple[float, float]] = field(default_factory=dict)
    looks: list[int] = field(default_factory=list)
    _alive: dict[str, tuple[float, int]] = field(default_factory=dict)
    _stopping: Counter[str] = field(default_factory=Counter)

    @property
    def machine(self) -> Machine:
        return Machine(
            tuple(range(16)), tuple(Gpu(index, f"gpu-{index}", memory_gb=80.0) for index in range(self.gpus))
        )

    def slots(self, job: Job) -> int:
        return self.gpus

    def waits_for(self, job: Job) -> str:
        return ""

    def start(self, job: Job, paths: JobPaths) -> Handle | None:
        if len(self._alive) >= self.gpus:
            return None
        self.started.append(job.id)
        self._alive[job.id] = (time.monotonic(), 0)
        self._say(job, JobStarted, device="gpu", epochs=self._epochs(job), iterations=self._epochs(job))
        handle = Handle("simulated", ref=job.id)
        handle.write(paths)
        return handle

    def poll(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        self.looks.append(len(self._alive))
        gone: dict[str, int | None] = dict.fromkeys(handles.keys() - self._alive.keys())
        codes = {name: self._go_on(read_job(self.runs.job(name))) for name in handles.keys() - gone.keys()}
        return gone | {name: code for name, code in codes.items() if code is not None}

    def cancel(self, handle: Handle, grace_s: float) -> None:
        self.runs.job(handle.ref).stop_request.touch()

    def _go_on(self, job: Job) -> int | None:
        began, epoch = self._alive[job.id]
        paths = self.runs.job(job.id)
        if paths.stop_request.exists():
            self._stopping[job.id] += 1
            if self._stopping[job.id] % self.stop_looks:
                return None
            self._say(job, JobCancelled, iteration=epoch)
            return self._end(job, 143)
        if self.fails(job, self.started.count(job.id)):
            write_json(paths.failure, {"what": "the loss is not finite"})
            self._say(job, JobFailed, what="the loss is not finite")
            return self._end(job, 1)
        if time.monotonic() - began < (epoch + 1) * self.epoch_s(job):
            return None
        epoch += 1
        self._alive[job.id] = (began, epoch)
        if job.kind == "student":
            self._say(job, JobEvaluated, epoch=epoch, iteration=epoch, metrics={"AP": self.ap(job, epoch)})
        return self._finish(job) if epoch >= self._epochs(job) else None

    def _finish(self, job: Job) -> int:
        epochs = range(1, self._epochs(job) + 1)
        evaluations = [Evaluation({"AP": self.ap(job, epoch)}, {}, epoch, epoch) for epoch in epochs]
        last = evaluations[-1] if job.kind != "scale" else Evaluation()
        losses = [{"loss": 1.0 + sum(TERM_SHARE.values())}]
        for name, share in TERM_SHARE.items():
            losses[0] |= {f"loss_{name}": share, f"raw_{name}": share}
        timing = {"latency_s": job.spec.model.width / 1000} if job.kind == "scale" else {}
        wall_s = time.monotonic() - self._alive[job.id][0]
        Curves(evaluations, losses).write(self.runs.job(job.id))
        replace(make_result(job), last=last, timing=timing, wall_s=wall_s).write(self.runs.job(job.id))
        self._say(job, JobFinished, metrics=last.metrics, wall_s=wall_s)
        return self._end(job, 0)

    def _end(self, job: Job, code: int) -> int:
        self.ended[job.id] = (self._alive.pop(job.id)[0], time.monotonic())
        return code

    def _epochs(self, job: Job) -> int:
        return job.spec.schedule.epochs if job.kind == "student" else 1

    def _say(self, job: Job, kind: type, **fields: object) -> None:
        with closing(EventLog(self.runs.job(job.id).events, job.id, 1)) as log:
            log.write(kind, **fields)
