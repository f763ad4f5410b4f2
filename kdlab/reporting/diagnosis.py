"""Plan and files -> what is known of its students beside their teacher, arm by arm and seed by seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kdlab.errors import MachineError, UsageError, suggestion
from kdlab.jobs import store
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.jobs.result import JobResult

if TYPE_CHECKING:
    from kdlab.jobs.diagnosis import Diagnosis, Finds


@dataclass(frozen=True)
class Diagnosed:
    """A student's diagnosis: its numbers, and the objects that they are made of."""

    result: JobResult
    rows: Diagnosis


Pair = tuple[Diagnosed, Diagnosed]
"""Of an arm and of the baseline."""


@dataclass(frozen=True)
class Diagnoses:
    """All that tables and figures of a diagnosis are made of.

    Args:
        plan: the recipe's.
        classes: names in the order of the models' labels.
        arms: by name the diagnoses by seed; arms without any are left out.
        baseline: the first arm of the recipe that learns from no teacher; None without one.
    """

    plan: Plan
    classes: tuple[str, ...]
    arms: Mapping[str, Mapping[int, Diagnosed]]
    baseline: str | None

    @property
    def title(self) -> str:
        """ "RetinaNet R101 -> R50"."""
        recipe = self.plan.recipe
        return str(recipe.get("title") or recipe["name"])

    @property
    def any(self) -> Diagnosed:
        """One of them, for what all share: the teacher's numbers, the objects."""
        return next(one for seeds in self.arms.values() for one in seeds.values())

    @cached_property
    def lacks(self) -> dict[str, str]:
        """What cannot be told of the pair, each with the reason."""
        found: dict[str, str] = self.any.result.diagnosis["lacks"]
        return found

    def pairs(self, arm: str) -> dict[int, Pair]:
        """By seed those of an arm and of the baseline that saw the same objects."""
        plain = self.arms.get(self.baseline or "", {})
        shared = {seed: (one, plain[seed]) for seed, one in self.arms[arm].items() if seed in plain}
        return {seed: pair for seed, pair in shared.items() if _same_objects(*(one.rows for one in pair))}


def of_plan(plan: Plan, runs: Runs) -> Diagnoses:
    """What the finished diagnoses of a plan's students say; some may have none.

    Args:
        plan: the recipe's own.
        runs: where the jobs are.

    Raises:
        MachineError: the file of one is missing or damaged.
    """
    from kdlab.jobs.diagnosis import Diagnosis

    jobs = [planned.job for planned in plan.jobs]
    students = {job.id: job for job in jobs if job.is_student}
    results = store.diagnosed(runs, students, [job.id for job in jobs if job.is_teacher])
    arms: dict[str, dict[int, Diagnosed]] = {name: {} for name in plan.recipe["arms"]}
    for name, result in results.items():
        path = runs.job(result.id).diagnosis
        rows = Diagnosis.read(path)
        if rows is None:
            fix = f"make it again: rm -r {path.parent}, then kdlab diagnose"
            raise MachineError("a diagnosis is damaged", where=str(path), fix=fix)
        if students[name].arm in arms:
            arms[students[name].arm][students[name].seed] = Diagnosed(result, rows)
    known = {name: dict(sorted(seeds.items())) for name, seeds in arms.items() if seeds}
    classes = jobs[0].inputs.dataset.classes
    return Diagnoses(plan, classes, known, next(iter(plan.plain_arms), None))


@dataclass(frozen=True)
class Scene:
    """One image for figures, of one seed.

    Args:
        title: the image's name and the seed.
        pixels: (H, W, 3) RGB.
        boxes: (G, 4) xyxy of its objects.
        names: (G,) of their classes.
        models: by name how each finds the objects: the teacher, the baseline, arms.
        maps: by the name of a student (stride, P, F) of each level; nothing where they were not kept.
    """

    title: str
    pixels: Any
    boxes: Any
    names: tuple[str, ...]
    models: Mapping[str, Finds]
    maps: Mapping[str, list[tuple[Any, ...]]]


MOST_ARMS = 4
"""Arms of a figure beside the baseline; of more those that change most in the image."""


def scene(found: Diagnoses, image: int, pixels: Any) -> Scene:
    """An image by the first seed that all arms have, or most of them.

    Args:
        found: with a diagnosis at least.
        image: its place in the diagnoses.
        pixels: (H, W, 3) RGB.
    """
    seeds = Counter(seed for own in found.arms.values() for seed in own)
    seed = max(sorted(seeds), key=lambda seed: seeds[seed])
    arms = {name: own[seed].rows for name, own in found.arms.items() if seed in own}
    change = {name: abs(change_of(found, name, image)) for name in arms}
    drawn = sorted((name for name in arms if name != found.baseline), key=lambda name: -change[name])
    names = [name for name in arms if name == found.baseline or name in drawn[:MOST_ARMS]]
    first = arms[names[0]]
    own = first.image == image
    models = {"teacher": first.teacher.of(own)}
    models |= {name: arms[name].student.of(arms[name].image == image) for name in names}
    return Scene(
        title=f"{first.files[image]}, {found.title}, seed {seed}",
        pixels=pixels,
        boxes=first.box[own],
        names=tuple(found.classes[label] for label in first.label[own].tolist()),
        models=models,
        maps={name: arms[name].maps.of(image) for name in names},
    )


def change_of(found: Diagnoses, arm: str, image: int) -> float:
    """Objects' thresholds that an arm meets in an image and the baseline does not, mean over seeds."""
    changes = [
        float(one.rows.student.met[one.rows.image == image].sum())
        - float(base.rows.student.met[base.rows.image == image].sum())
        for one, base in found.pairs(arm).values()
    ]
    return fmean(changes) if changes else 0.0


def most_changed(found: Diagnoses, count: int) -> list[int]:
    """The images in which the arms' recall differs most from the baseline's; all have objects."""
    import numpy as np

    images = len(found.any.rows.files)
    moved = np.zeros(images)
    for arm in found.arms:
        met = np.zeros(images)
        for one, base in found.pairs(arm).values():
            difference = one.rows.student.met.astype(float) - base.rows.student.met
            met += np.bincount(one.rows.image, difference, images)
        moved = np.maximum(moved, np.abs(met))
    shown = np.bincount(found.any.rows.image, minlength=images) > 0
    order = np.lexsort((np.arange(images), -moved, ~shown))
    return [int(image) for image in order[:count] if shown[image]]


def named(found: Diagnoses, text: str) -> list[int]:
    """The images of these file names, parted by commas, with or without folder and ending.

    Raises:
        UsageError: there is none of such a name, or several.
    """
    files = found.any.rows.files.tolist()
    places: dict[str, set[int]] = {}
    for place, file in enumerate(files):
        path = PurePath(file)
        for name in (path.stem, path.name, file):
            places.setdefault(name, set()).add(place)
    words = [text] if text in places else [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in places]:
        raise UsageError(
            f"no validation image is called {unknown[0]}",
            got=unknown[0],
            known=f"{', '.join(files[:3])}, ... ({len(files)})",
            fix=suggestion(unknown[0], files) or "--images 3 draws those in which the arms change most",
        )
    for word in words:
        if len(places[word]) > 1 and word not in files:
            known = ", ".join(files[place] for place in sorted(places[word])[:3])
            fix = "name it with its folder and ending"
            raise UsageError(f"several validation images are called {word}", got=word, known=known, fix=fix)
    return [files.index(word) if word in files else min(places[word]) for word in words]


def _same_objects(one: Diagnosis, other: Diagnosis) -> bool:
    """Whether the rows of two diagnoses are the same objects; where images were left out they may differ."""
    if len(one.image) != len(other.image) or len(one.files) != len(other.files):
        return False
    files = (one.files == other.files).all()
    return bool(files and (one.image == other.image).all() and (one.place == other.place).all())
