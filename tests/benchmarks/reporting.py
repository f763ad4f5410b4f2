"""A table over 10,000 finished jobs, first and again; a bootstrap of models as large as COCO's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job
from kdlab.jobs.matches import IOU_THRESHOLDS, Matches
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.result import JobResult
from kdlab.reporting.index import RESAMPLES, Index, _keep, _stamps
from tests.benchmarks.planning import METRICS, timed
from tests.stubs.jobs import make, method

ARMS, SEEDS = 100, 100
MODELS, IMAGES, CLASSES, FOUND = 10, 5000, 80, 100


def record(runs: Runs) -> None:
    """A plan of 10,000 finished jobs, with results and matches of the size of digits'."""
    rng = np.random.default_rng(0)
    arms = {f"arm{number}": {"rm": {}} if number else {} for number in range(ARMS)}
    jobs = [
        make(f"student-{seed:04x}{place:04x}", arm, seed, methods={"rm": method("rm")} if place else {})
        for seed in range(SEEDS)
        for place, arm in enumerate(arms)
    ]
    runs.folder.mkdir(parents=True)
    for job in jobs:
        paths = runs.job(job.id)
        paths.folder.mkdir(parents=True)
        write_json(paths.job, job.to_dict())
        _result(job, rng.normal(30, 1)).write(paths)
        paths.matches.write_bytes(b"resampled already")
    planned = tuple(PlannedJob(job, True, "reused") for job in jobs)
    Plan("0badcafe", {"name": "bench", "arms": arms}, planned, "cpu", {}).save(runs)
    _resampled(runs, jobs, rng)


def _resampled(runs: Runs, jobs: Sequence[Job], rng: np.random.Generator) -> None:
    """Put AP on resampled images into the index, which would take an hour to make for so many."""
    index = Index(runs)
    stamps = _stamps({job.id: runs.job(job.id).matches for job in jobs})
    rows = [(job.id, stamps[job.id], 200, "truth", rng.normal(30, 1, RESAMPLES).tobytes()) for job in jobs]
    with closing(index._open()) as store:
        _keep(store, "INSERT INTO resampled VALUES (?, ?, ?, ?, ?)", rows)


def _result(job: Job, ap: float) -> JobResult:
    losses = [{"iteration": 7 * i, "lr": 0.0004311428571428571, "loss": 0.12345} for i in range(85)]
    metrics = METRICS | {"AP": ap}
    return JobResult(
        job.id, job.kind, job.arm, job.seed, metrics, {"epoch": 6, **metrics}, {"seven": ap},
        [{"epoch": 6, "iteration": 750, **metrics}], losses, {"student_step_s": 0.1}, {"params": 10},
        {"torch": "1", "mmdet": "1"}, 60.0, 1.0, 1,
    )  # fmt: skip


def scenes(images: int, classes: int, found: int, rng: np.random.Generator) -> Matches:
    """Seven objects an image, two of three found; the rest is wrong; a few crowds."""
    count = rng.poisson(7.3, images)
    share = 1 / np.arange(1, classes + 1) ** 0.8
    label = rng.choice(classes, count.sum(), p=share / share.sum())
    image = np.repeat(np.arange(images), count)
    objects = np.zeros((images, classes), np.uint16)
    np.add.at(objects, (image, label), 1)
    hit = rng.random(len(label)) < 0.66
    wrong = max(0, images * found - hit.sum())
    image = np.concatenate([image[hit], rng.integers(0, images, wrong)]).astype(np.int32)
    label = np.concatenate([label[hit], rng.choice(classes, wrong, p=share / share.sum())]).astype(np.int16)
    levels = np.concatenate([rng.integers(1, IOU_THRESHOLDS + 1, hit.sum()), np.zeros(wrong, int)])
    score = rng.beta(2, 2 + 20 * (levels == 0)).astype(np.float32)
    ignored = np.where(rng.random(len(label)) < 0.005, 2**IOU_THRESHOLDS - 1, 0).astype(np.uint16)
    right = ((1 << levels) - 1).astype(np.uint16) & ~ignored
    order = np.lexsort((image, -score, label))
    parts = (part[order] for part in (image, label, score, right, ignored))
    return Matches(np.arange(images), *parts, objects)


def report(runs: Runs) -> None:
    """`kdlab report` as a person calls it, its start included."""
    command = [sys.executable, "-c", "from kdlab.cli.app import main; main(['report', '-q'])"]
    environment = {**os.environ, "KDLAB_RUNS": str(runs.folder)}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print a line a step."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder) / "coco")
        for number in range(MODELS):
            paths = runs.job(f"student-{number:08x}")
            paths.folder.mkdir(parents=True)
            scenes(IMAGES, CLASSES, FOUND, np.random.default_rng(number)).write(paths.matches)
        jobs = [f"student-{number:08x}" for number in range(MODELS)]
        what = f"{RESAMPLES} resamples of {MODELS} models on {IMAGES} images of {CLASSES} classes"
        with timed(f"{what} (target 120 s on two cores)"):
            Index(runs).resampled(jobs)
        with timed("the same again (cached)"):
            Index(runs).resampled(jobs)
        runs = Runs(Path(folder) / "many")
        record(runs)
        with timed(f"table over {ARMS * SEEDS} jobs, their results read for the first time"):
            report(runs)
        with timed("the same again (target 2 s)"):
            report(runs)


if __name__ == "__main__":
    main()
