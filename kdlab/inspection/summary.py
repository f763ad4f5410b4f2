"""Numbers of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdlab.datasets._coco_labels import is_crowd
from kdlab.inspection.images import ImageFacts
from kdlab.inspection.labels import Labels, bins


@dataclass(frozen=True)
class Summary:
    """Numbers of one split, or of all together.

    Args:
        name: train, val, another split, or "all".
        images: how many the labels list.
        without_objects: images without any.
        objects: how many.
        crowds: objects that are crowds, or difficult.
        per_image: smallest, median and largest number of objects in an image.
        classes: objects by class, in the order of the category ids, also those without any.
        sizes: objects by COCO's bins of width x height: small, medium, large.
        narrowest_px: smallest width of a box.
        lowest_px: smallest height.
        formats: images by format and mode, "JPEG RGB".
        image_sizes: images by width and height, "640x480".
        levels: darkest and brightest pixel value that arrives, of 0 to 255.
        scaled_sizes: as `sizes`, in images as models see them; None where a recipe does not scale them.
    """

    name: str
    images: int
    without_objects: int
    objects: int
    crowds: int
    per_image: tuple[int, float, int]
    classes: dict[str, int]
    sizes: dict[str, int]
    narrowest_px: float
    lowest_px: float
    formats: dict[str, int]
    image_sizes: dict[str, int]
    levels: tuple[int, int] = (0, 255)
    scaled_sizes: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def summaries(
    splits: Sequence[Labels], facts: Sequence[ImageFacts], scale: Sequence[int] | None = None
) -> tuple[Summary, ...]:
    """The numbers of each split, and of all together where there are several.

    Args:
        splits: the labels.
        facts: of their images.
        scale: width and height that images are resized to fit.
    """
    found = []
    for labels in splits:
        own = [image for image in facts if image.task.split == labels.split]
        found.append(_summary(labels.split, [labels], own, scale))
    if len(splits) > 1:
        found.append(_summary("all", splits, facts, scale))
    return tuple(found)


def _summary(
    name: str, splits: Sequence[Labels], facts: Sequence[ImageFacts], scale: Sequence[int] | None
) -> Summary:
    counts = np.concatenate([labels.counts for labels in splits])
    boxes = np.concatenate([labels.boxes for labels in splits])
    objects = [entry for labels in splits for entry in labels.objects]
    narrowest, lowest = boxes[:, 2:].min(axis=0).tolist() if len(boxes) else (0.0, 0.0)
    whole = [found for found in facts if found.format]
    levels = [found.levels for found in facts if found.levels]
    per_image = (0, 0.0, 0)
    if len(counts):
        per_image = (int(counts.min()), float(np.median(counts)), int(counts.max()))
    classes = {name: 0 for labels in splits for name in labels.classes}
    for labels in splits:
        for label in labels.label.tolist():
            classes[labels.classes[label]] += 1
    return Summary(
        name,
        len(counts),
        int((counts == 0).sum()),
        len(objects),
        sum(map(is_crowd, objects)),
        per_image,
        classes,
        bins(np.concatenate([labels.box_areas for labels in splits])),
        narrowest,
        lowest,
        dict(Counter(f"{found.format} {found.mode}" for found in whole).most_common()),
        dict(Counter(f"{found.size[0]}x{found.size[1]}" for found in whole).most_common()),
        (min((low for low, _ in levels), default=0), max((high for _, high in levels), default=0)),
        bins(np.concatenate([labels.scaled_areas(scale) for labels in splits])) if scale else None,
    )
