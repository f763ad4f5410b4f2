"""A student beside its teacher, object by object, as its diagnosis leaves them for tables and figures."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from kdlab.jobs.files import read_bytes, replacing

RANKINGS = ("score", "iou", "both")
"""What an object's priors are ranked by: class probability, IoU of the decoded box, their product."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Finds:
    """How one model finds each of G objects.

    Args:
        met: (G,) at how many of the ten IoU thresholds the evaluation matched a detection with it.
        precision: (G,) the precision at the rank of that detection, 0 to 1, mean over the thresholds and 0
            where there is none: over the objects of a class it averages to the class's AP.
        score: (G,) of the kept detection, NaN where none finds it.
        box: (G, 4) of the same, xyxy.
        prior: (G,) the flat place of the prior behind it, -1 where there is none to name.
        prior_box: (G, 4) that anchor; a point has its corners in one place; NaN where `prior` is -1.
    """

    met: Array
    precision: Array
    score: Array
    box: Array
    prior: Array
    prior_box: Array

    def of(self, mask: Array) -> Self:
        """The same of some of the objects, by a mask (G,)."""
        return type(self)(**{name: values[mask] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Maps:
    """Maps of P and F of some images, without the padding.

    Args:
        strides: (L,) of the levels.
        image: (M,) which of the I images.
        sizes: (M, L, 2) height and width of each map in cells.
        prediction: all cells of P, one map after the other; empty where the pair has no P.
        feature: the same of F.
    """

    strides: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    image: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    sizes: Array = field(default_factory=lambda: np.zeros((0, 0, 2), np.int32))
    prediction: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    feature: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    def of(self, image: int) -> list[tuple[int, Array | None, Array]]:
        """(stride, P, F) of each level of an image; nothing where its maps were not kept."""
        kept = np.flatnonzero(self.image == image)
        if not len(kept):
            return []
        (place,) = kept
        ends = self.sizes.prod(-1).cumsum()
        found = []
        for level, stride in enumerate(self.strides.tolist()):
            shape = tuple(self.sizes[place, level].tolist())
            end = int(ends[place * len(self.strides) + level])
            cells = slice(end - shape[0] * shape[1], end)
            prediction = self.prediction[cells].reshape(shape) if len(self.prediction) else None
            found.append((stride, prediction, self.feature[cells].reshape(shape)))
        return found


@dataclass(frozen=True)
class Diagnosis:
    """A student beside its teacher on I validation images with G objects. Boxes are in pixels of the image.

    Args:
        files: (I,) names of the images below the dataset's folder.
        sizes: (I, 2) their heights and widths.
        image: (G,) which image each object is in.
        place: (G,) which of that image's annotations it is, in the order of the labels.
        label: (G,) its class.
        box: (G, 4) xyxy.
        area: (G,) as the labels have it.
        overlap: (G,) the largest IoU with another object of the image, of any class.
        positives: (G,) priors that the student's own assigner gives to it; 0 where nothing was ranked.
        tau: (G, 3) Kendall's tau of the two models' rankings of these, one a column of `RANKINGS`; NaN below
            two priors.
        top: (G, 3) 1 where both rank the same prior first, else 0; NaN below two priors.
        student: how the student finds it.
        teacher: how the teacher does.
        maps: of some images.
    """

    files: Array
    sizes: Array
    image: Array
    place: Array
    label: Array
    box: Array
    area: Array
    overlap: Array
    positives: Array
    tau: Array
    top: Array
    student: Finds
    teacher: Finds
    maps: Maps = field(default_factory=Maps)

    @property
    def other_prior(self) -> Array:
        """(G,) 1 where the models' kept boxes stem from different priors; NaN unless both have one."""
        both = (self.student.prior >= 0) & (self.teacher.prior >= 0)
        return np.where(both, self.student.prior != self.teacher.prior, np.nan)

    def summary(self) -> dict[str, Any]:
        """Means over the objects, without those that cannot be told."""
        other = self.other_prior
        return {
            "objects": len(self.image),
            "ranked": int(np.isfinite(self.top[:, 0]).sum()),
            "tau": _means(self.tau),
            "top": _means(self.top),
            "found_by_both": int(np.isfinite(other).sum()),
            "other_prior": _mean(other),
        }

    def write(self, path: Path) -> None:
        """Replace the file by this: a compressed `.npz`."""
        plain: dict[str, Any] = {
            name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        for prefix, part in (("student.", self.student), ("teacher.", self.teacher), ("maps.", self.maps)):
            plain |= {f"{prefix}{name}": value for name, value in vars(part).items()}
        with replacing(path) as file:
            np.savez_compressed(file, **plain)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The diagnosis in a file; None where there is no whole one."""
        parts: dict[str, Any] = {"student": Finds, "teacher": Finds, "maps": Maps}
        try:
            with np.load(BytesIO(read_bytes(path)), allow_pickle=False) as file:
                made = {
                    name: kind(**{one.name: file[f"{name}.{one.name}"] for one in fields(kind)})
                    for name, kind in parts.items()
                }
                plain = {one.name: file[one.name] for one in fields(cls) if one.name not in parts}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
        return cls(**plain, **made)


def _mean(values: Array) -> float | None:
    known = values[np.isfinite(values)]
    return round(float(known.mean()), 6) if len(known) else None


def _means(columns: Array) -> dict[str, float]:
    """By ranking, without those that no object has."""
    found = {name: _mean(columns[:, place]) for place, name in enumerate(RANKINGS)}
    return {name: mean for name, mean in found.items() if mean is not None}
