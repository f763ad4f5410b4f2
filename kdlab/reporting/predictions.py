"""What models found in images: as rows of COCO's results format, and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from kdlab.reporting.tables import Cell, Column, Table

GROUPS = {"best": "gains", "worst": "loses"}
LONGEST = 24
"""Characters of an image's name in a table."""
_READING = "AP: of that image alone, mean over the classes in it and IoU 0.50 to 0.95"


@dataclass(frozen=True)
class Seen:
    """One image and what models found in it; boxes are x, y, w, h in its pixels.

    Args:
        id: in the validation labels, or a number of its own.
        name: of its file.
        path: of its file.
        height: pixels.
        width: pixels.
        group: "best" or "worst" where it is drawn for what the arms gain or lose in it, else "".
        objects: box and label of each object; None where nobody labelled it.
        ap: by model, points 0 to 100 of this image alone; None without objects.
        found: by model box, score and label of each detection, the best first.
    """

    id: int
    name: str
    path: str
    height: int
    width: int
    group: str
    objects: Sequence[Sequence[float]] | None
    ap: Mapping[str, float | None]
    found: Mapping[str, Sequence[Sequence[float]]]

    def shown(self, model: str, threshold: float) -> list[Sequence[float]]:
        """The detections of a model with at least this score."""
        return [row for row in self.found[model] if row[4] >= threshold]


@dataclass(frozen=True)
class Predictions:
    """What all models found in all images.

    Args:
        title: of the recipe, the job or the file.
        threshold: least score of a detection that is drawn.
        models: their names in the order of the columns.
        baseline: the one that arms are compared with; None without one.
        classes: names in the order of the labels.
        categories: their ids, likewise.
        images: in the order of the rows.
    """

    title: str
    threshold: float
    models: tuple[str, ...]
    baseline: str | None
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    images: tuple[Seen, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any], **fields: Any) -> Predictions:
        """From what `training/predicting.py` answers and the first four fields."""
        images = tuple(Seen(**image) for image in told["images"])
        classes, categories = tuple(told["classes"]), tuple(told["categories"])
        return cls(classes=classes, categories=categories, images=images, **fields)

    @property
    def labelled(self) -> bool:
        """Whether the objects of an image are known at least."""
        return any(image.objects is not None for image in self.images)

    def rows(self) -> list[dict[str, Any]]:
        """All detections, also those below the threshold, in COCO's results format and whose they are."""
        return [
            {
                "image_id": image.id,
                "category_id": self.categories[int(label)],
                "bbox": box,
                "score": score,
                "category": self.classes[int(label)],
                "model": model,
                "file_name": image.name,
            }
            for image in self.images
            for model in self.models
            for *box, score, label in image.found[model]
        ]

    def to_json(self) -> str:
        """The same as the text of a JSON file, a detection on a line."""
        lines = ",\n".join(json.dumps(row) for row in self.rows())
        return f"[\n{lines}\n]\n"

    def table(self) -> Table:
        """A row an image: AP of each model, or the number of boxes drawn where no image has labels."""
        notes = [f"boxes: with a score of {self.threshold:g} or more"]
        columns = [Column("image", "image", digits=None)]
        if any(image.group for image in self.images):
            columns.append(Column("group", "arms", digits=None))
            notes.append("arms: gain or lose AP over the baseline in that image, mean over them")
        if self.labelled:
            columns.append(Column("objects", "objects", digits=0))
            notes.append(_READING)
        digits, what = (1, "AP") if self.labelled else (0, "boxes")
        columns += [Column(model, f"{model}, {what}", digits) for model in self.models]
        rows = tuple(tuple(self._cells(image, columns)) for image in self.images)
        return Table(f"Detections: {self.title}", tuple(columns), rows, tuple(notes))

    def _called(self, image: Seen) -> str:
        """Its path; of a long one what is enough to tell it from the others."""
        names = [_short(one.name) for one in self.images]
        short = _short(image.name)
        return short if names.count(short) == 1 else image.name

    def _cells(self, image: Seen, columns: Sequence[Column]) -> Iterator[Cell]:
        words = {"image": self._called(image), "group": GROUPS.get(image.group, "")}
        for column in columns:
            if column.key in words and column.digits is None:
                yield Cell(words[column.key])
                continue
            number: float | None = image.ap.get(column.key)
            if column.key == "objects":
                number = None if image.objects is None else len(image.objects)
            elif not self.labelled:
                number = len(image.shown(column.key, self.threshold))
            if number is not None:
                yield column.cell(number)
            elif column.key == "objects":
                yield Cell("-")
            else:
                # one that is not labelled among others
                boxes = len(image.shown(column.key, self.threshold))
                yield Cell(f"{boxes} box{'es' * (boxes != 1)}")


def _short(path: str) -> str:
    """The path; of a long one its end, without the middle of a long name."""
    if len(path) <= LONGEST:
        return path
    name = PurePath(path).name
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 11]}...{name[-8:]}"
