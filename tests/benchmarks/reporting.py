"""A table over 10,000 finished jobs; AP on resampled images of a model on a set as large as COCO's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.resampled import RESAMPLES, Resampled
from kdlab.jobs.result import Curves, Evaluation, JobResult
from kdlab.training.job import PACKAGES
from kdlab.training.matching import IOU_THRESHOLDS, Matches
from kdlab.training.resampling import resample
from tests.benchmarks.planning import METRICS, timed
from tests.stubs.jobs import make, method

ARMS, SEEDS = 100, 100
IMAGES, CLASSES, FOUND = 5000, 80, 100


def record(runs: Runs) -> None:
    """A plan of 10,000 finished jobs, with results and AP on resampled images as those of digits."""
    rng = np.random.default_rng(0)
    arms = {f"arm{number}": {"rm": {}} if number else {} for number in range(ARMS)}
    jobs = [
        make(f"student-{seed:04x}{place:04x}", arm, seed, methods={"rm": method("rm")} if place else {})
        for seed in range(SEEDS)
        for place, arm in enumerate(arms)
    ]
    for job in jobs:
        paths = runs.job(job.id)
        paths.folder.mkdir(parents=True)
        write_json(paths.job, job.to_dict())
        Resampled(rng.normal(30, 1, RESAMPLES), 200, "truth").write(paths.resampled)
        _finish(job, paths, rng.normal(30, 1))
    planned = tuple(PlannedJob(job, True, "reused") for job in jobs)
    Plan("0badcafe", {"name": "bench", "arms": arms}, planned, "cpu", {}).save(runs)


def _finish(job: Job, paths: JobPaths, ap: float) -> None:
    losses = [{"iteration": 7 * i, "lr": 0.0004311428571428571, "loss": 0.12345} for i in range(85)]
    classes = dict.fromkeys(("zero", "one", "two", "three", "four", "five", "six", "seven"), ap)
    last = Evaluation(METRICS | {"AP": ap}, classes, epoch=6, iteration=750)
    Curves([last] * 6, losses).write(paths)
    timing = {"student_step_s": 0.1, "teacher_forward_s": 0.05, "distill_step_s": 0.2, "latency_s": 0.01}
    model = {"params": 10_000_000, "trained_parts": {"rm": 0}, "weights_sha256": 64 * "0"}
    environment = dict.fromkeys(PACKAGES, "3.1.4") | {"commit": "0a1b2c3d4e5f", "device": "cpu: EPYC"}
    JobResult(
        job.id,
        job.kind,
        job.arm,
        job.seed,
        last,
        replace(last, per_class={}),
        timing,
        model,
        environment,
        {"images": 200},
        60.0,
        1.0,
    ).write(paths)


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
    matches = scenes(IMAGES, CLASSES, FOUND, np.random.default_rng(0))
    with timed(f"{RESAMPLES} resamples of {IMAGES} images of {CLASSES} classes, {FOUND} detections each"):
        resample(matches)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder) / "many")
        record(runs)
        for _ in range(2):
            with timed(f"table over {ARMS * SEEDS} jobs (target 2 s)"):
                report(runs)


if __name__ == "__main__":
    main()
