"""Do p and intervals keep their promises? Detections of known worth, compared as kdlab compares them.

A detector's skill is drawn for each seed; how hard an image is, what a method does to it, and the luck of a
seed on it are drawn too, so that seeds, images and both together make noise, in several proportions. What an
arm is worth is known from very many images and seeds. `pytest -s -m slow tests/reporting/test_promises.py`
takes ten minutes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from kdlab.jobs.plan import Plan
from kdlab.jobs.resampled import Resampled
from kdlab.jobs.result import Evaluation
from kdlab.jobs.status import JobStatus, State
from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import Gain, compare
from kdlab.training.matching import IOU_THRESHOLDS, Matches
from kdlab.training.resampling import average_precision, draw
from tests.reporting.satterthwaite import satterthwaite
from tests.stubs.jobs import make
from tests.stubs.stub_job import make_result

TRIALS, SEEDS, IMAGES, OBJECTS, RESAMPLES = 1500, 3, 80, 3, 200
OF_IMAGES, OF_METHODS, OF_BOTH = 0.6, 0.35, 0.35
"""Deviations of skill: of all models on an image, of a method on one, of a seed on one."""

pytestmark = pytest.mark.slow


class World:
    """Validation images and models that are shown them; seeds of a model differ in skill by `of_seeds`."""

    def __init__(self, rng: np.random.Generator, of_seeds: float, images: int = IMAGES) -> None:
        self.rng, self.of_seeds, self.images = rng, of_seeds, images
        self.hard = rng.normal(0, OF_IMAGES, images)
        self.moved: dict[str, np.ndarray] = {}

    def model(self, skill: float, method: str) -> Matches:
        """One seed of an arm; models of one `method` share what it does to each image."""
        rng, images = self.rng, self.images
        if method not in self.moved:
            self.moved[method] = rng.normal(0, OF_METHODS if method else 0, images)
        own = rng.normal(0, self.of_seeds) + rng.normal(0, OF_BOTH, images)
        at = skill + own - self.hard + self.moved[method]
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


def experiment(rng: np.random.Generator, skill: float, method: str, of_seeds: float) -> Gain:
    """What kdlab says of an arm of three seeds against its baseline."""
    world = World(rng, of_seeds)
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


@pytest.mark.parametrize(
    ("skill", "method", "of_seeds"),
    [(0.0, "", 0.12), (0.3, "rm", 0.12), (0.3, "rm", 0.3), (0.0, "rm", 0.02)],
    ids=["no effect", "noise of both", "noise of seeds", "noise of images"],
)
def test_intervals_cover_the_gain_in_94_percent_of_experiments_or_more_and_p_agrees(
    skill: float, method: str, of_seeds: float
) -> None:
    rng = np.random.default_rng(1)
    worths = [_worth(rng, skill, method, of_seeds) - _worth(rng, 0.0, "", of_seeds) for _ in range(300)]
    worth = np.mean(worths) if method else 0.0
    gains = [experiment(rng, skill, method, of_seeds) for _ in range(TRIALS)]
    off = np.array([gain.mean - worth for gain in gains])
    seeds = np.array([np.var(gain.differences, ddof=1) / SEEDS for gain in gains])
    images = np.array([(gain.other_images.half_width / 1.96) ** 2 for gain in gains])
    covered = {
        "the interval": [gain.interval.low <= worth <= gain.interval.high for gain in gains],
        "Satterthwaite": abs(off) <= satterthwaite(seeds, images, SEEDS, IMAGES),
        "these weights": [gain.other_images.low <= worth <= gain.other_images.high for gain in gains],
        "the t test": abs(off) <= stats.t.ppf(0.975, SEEDS - 1) * np.sqrt(seeds),
    }
    told = ", ".join(f"{name} {100 * np.mean(found):.1f} %" for name, found in covered.items())
    wide = np.mean([gain.interval.half_width for gain in gains])
    ratio = np.sqrt(images.mean() / seeds.mean())
    stars = np.mean([gain.supported for gain in gains])
    print(
        f"true gain {worth:.2f} AP, error over images {ratio:.2f} of that over seeds, interval ± {wide:.1f}, "
        f"p < 0.05 in {100 * stars:.1f} %; covered by {told} of {TRIALS}"
    )
    assert all((gain.p < 0.05) != (gain.interval.low <= 0 <= gain.interval.high) for gain in gains)
    assert np.mean(covered["the interval"]) >= 0.94


def _worth(rng: np.random.Generator, skill: float, method: str, of_seeds: float) -> float:
    """AP of one seed on very many images."""
    images = 4000
    model = World(rng, of_seeds, images).model(skill, method)
    return float(average_precision(model, np.ones((1, images), np.int32))[0])
