"""Do p and intervals keep their promises? Detections of known worth, compared as kdlab compares them.

A detector's skill is drawn for each seed; how hard an image is, what a method does to it, and the luck of a
seed on it are drawn too, so that seeds, images and both together make noise. What an arm is worth is known
from very many images and seeds. `pytest -s -m slow tests/reporting/test_promises.py` takes ten minutes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kdlab.jobs.plan import Plan
from kdlab.jobs.resampled import Resampled
from kdlab.jobs.result import Evaluation
from kdlab.jobs.status import JobStatus, State
from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import compare
from kdlab.training.matching import IOU_THRESHOLDS, Matches
from kdlab.training.resampling import average_precision, draw
from tests.stubs.jobs import make
from tests.stubs.stub_job import make_result

TRIALS, SEEDS, IMAGES, OBJECTS, RESAMPLES = 2000, 3, 80, 3, 200
OF_SEEDS, OF_IMAGES, OF_METHODS, OF_BOTH = 0.12, 0.6, 0.35, 0.35
"""Deviations of skill: between seeds, of all models on an image, of a method on one, of a seed on one."""

pytestmark = pytest.mark.slow


class World:
    """Validation images and the models that are shown them."""

    def __init__(self, rng: np.random.Generator, images: int = IMAGES) -> None:
        self.rng, self.images = rng, images
        self.hard = rng.normal(0, OF_IMAGES, images)
        self.moved: dict[str, np.ndarray] = {}

    def model(self, skill: float, method: str) -> Matches:
        """One seed of an arm; models of one `method` share what it does to each image."""
        rng, images = self.rng, self.images
        if method not in self.moved:
            self.moved[method] = rng.normal(0, OF_METHODS if method else 0, images)
        at = skill + rng.normal(0, OF_SEEDS) - self.hard + self.moved[method] + rng.normal(0, OF_BOTH, images)
        quality = np.repeat(at, OBJECTS) + rng.normal(0, 0.8, images * OBJECTS)
        levels = np.clip(np.round(5 + 3 * quality), 0, IOU_THRESHOLDS).astype(int)
        false = 2 * images
        image = np.concatenate([np.repeat(np.arange(images), OBJECTS), rng.integers(0, images, false)])
        score = np.concatenate([quality + rng.normal(0, 0.7, len(quality)), rng.normal(-1, 0.8, false)])
        right = np.concatenate([(1 << levels) - 1, np.zeros(false, int)])
        order = np.argsort(-score, kind="stable")
        none = np.zeros(len(image))
        return Matches(
            np.arange(images), image[order].astype(np.int32), none.astype(np.int16), score[order],
            right[order].astype(np.uint16), none.astype(np.uint16), np.full((images, 1), OBJECTS, np.uint16),
        )  # fmt: skip


def experiment(rng: np.random.Generator, skill: float, method: str):
    """What kdlab says of an arm of three seeds against its baseline."""
    world = World(rng)
    times = np.vstack(
        [
            np.ones((1, IMAGES), np.int32),
            draw(IMAGES, RESAMPLES, np.random.default_rng(rng.integers(2**31))),
        ]
    )
    arms, resampled = [], {}
    for arm, about in (("baseline", (0.0, "")), ("rm", (skill, method))):
        records = []
        for seed in range(SEEDS):
            job = make(f"student-{arm}{seed}", arm, seed)
            ap, *others = average_precision(world.model(*about), times)
            resampled[job.id] = Resampled(np.array(others), IMAGES, "truth")
            result = replace(make_result(job), last=Evaluation({"AP": float(ap)}))
            records.append(JobStatus(job, state=State.DONE, result=result))
        arms.append(Arm(arm, arm != "baseline", False, tuple(records), SEEDS))
    plan = Plan("7f3a", {"arms": {"baseline": {}, "rm": {"rm": {}}}}, (), "cpu", {})
    return compare(plan, [record for arm in arms for record in arm.records], resampled).gains["rm"]


def test_under_no_effect_3_to_7_percent_of_experiments_have_a_star() -> None:
    rng = np.random.default_rng(0)
    stars = [experiment(rng, 0.0, "").supported for _ in range(TRIALS)]
    print(f"p < 0.05 in {100 * np.mean(stars):.1f} % of {TRIALS} experiments without an effect")
    assert 0.03 <= np.mean(stars) <= 0.07


@pytest.mark.parametrize("skill", [0.0, 0.3])
def test_intervals_cover_the_gain_in_93_to_97_percent_of_experiments(skill: float) -> None:
    rng = np.random.default_rng(1)
    worth = np.mean([_worth(rng, skill, "rm") - _worth(rng, 0.0, "") for _ in range(300)])
    gains = [experiment(rng, skill, "rm") for _ in range(TRIALS)]
    both = np.mean([gain.interval.low <= worth <= gain.interval.high for gain in gains])
    images = np.mean([gain.other_images.low <= worth <= gain.other_images.high for gain in gains])
    wide = np.mean([gain.interval.high - gain.interval.low for gain in gains])
    print(
        f"true gain {worth:.2f} AP: the interval, {wide:.1f} wide on average, covers it in {100 * both:.1f} %"
        f" of {TRIALS} experiments, that of these weights on other images in {100 * images:.1f} %"
    )
    assert 0.93 <= both <= 0.97


def _worth(rng: np.random.Generator, skill: float, method: str) -> float:
    """AP of one seed on very many images."""
    images = 4000
    return float(
        average_precision(World(rng, images).model(skill, method), np.ones((1, images), np.int32))[0]
    )
