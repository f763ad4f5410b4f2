"""Kinds of defects of a dataset, each with its severity, and the places of those found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from kdlab.datasets._coco_labels import is_printable

SEVERITIES = ("error", "warn", "note", "info")
"""The last needs no action."""
TRAINED_ON = ("train", "val", "")
"""Splits that a job reads, and the set as a whole; a defect elsewhere stops nothing."""

BROKEN = ("image-missing", "image-empty", "image-unreadable", "image-truncated")

KINDS: dict[str, tuple[str, str]] = {
    "labels-unusable": ("error", "labels that cannot be used"),
    "nothing-left": ("error", "splits of which no object is left"),
    "image-missing": ("error", "labelled images without a file"),
    "image-empty": ("error", "image files of 0 bytes"),
    "image-unreadable": ("error", "files that are no readable image"),
    "image-truncated": ("error", "images cut short, though viewers may show them"),
    "image-id-twice": ("error", "images with the id of another"),
    "annotation-id-twice": ("error", "annotations with the id of another"),
    "leak": ("warn", "images with the same content in two splits"),
    "source-leak": ("warn", "copies of one source image in two splits"),
    "content-twice": ("warn", "images with the content of another in the split"),
    "size-differs": ("warn", "images of another size than the labels say"),
    "few-levels": ("warn", "images of 16 bits that arrive dark: scale them to all bits, or save 8"),
    "exif-turned": ("warn", "images that EXIF turns when shown"),
    "box-outside": ("warn", "boxes wholly outside their image"),
    "box-cut": ("warn", "boxes that reach out of their image"),
    "zero-area": ("warn", "boxes smaller than a pixel: training drops them"),
    "area-0": ("warn", "boxes whose area is not above 0: training drops them"),
    "ignore-marked": ("warn", "objects marked ignore: training drops them"),
    "difficult-text": ("warn", "objects whose difficult is text; it is not read"),
    "box-twice": ("warn", "pairs of equal boxes of one class"),
    "near-duplicate": ("warn", "pairs of near-equal boxes of one class (IoU > 0.8)"),
    "few-boxes": ("warn", "images with far fewer boxes: labels missing?"),
    "one-based": ("warn", "boxes at the far edge, none at 0: 1-based?"),
    "never-trained": ("warn", "classes in val that train never shows"),
    "few-images": ("warn", "validation images, few: each moves AP by points"),
    "few-objects": ("warn", "classes with fewer than 10 objects in a split"),
    "class-spelling": ("warn", "classes that differ in case, spaces or signs alone"),
    "imbalance": ("note", "classes with under 5 % of the boxes"),
    "polygons": ("note", "polygons, of which the bounding boxes are taken"),
    "txt-alone": (
        "warn",
        "label files without an image of their name, or whose image has an ending that is not read",
    ),
    "xml-unreadable": ("warn", "XML files that cannot be read"),
    "xml-filename": ("warn", "XML files whose <filename> is another"),
    "xml-size": ("warn", "XML files without a <size>"),
    "cmyk": ("info", "CMYK images: their colours are converted"),
    "grey": ("info", "greyscale images: three equal channels"),
    "alpha": ("info", "images with an alpha channel, which is dropped"),
    "palette": ("info", "palette images"),
    "other-mode": ("note", "images of an unusual pixel format"),
    "misnamed": ("info", "image files of another format than their name"),
    "same-name": ("info", "file names used in two splits, contents differ"),
    "no-objects": ("note", "images without objects"),
    "class-absent": ("note", "classes absent from a split"),
    "never-measured": ("note", "classes in train that val never shows"),
    "small-objects": ("note", "boxes are small (< 32 x 32 px), most of all"),
    "annotation-id-0": ("info", "annotations with id 0, which kdlab shifts"),
    "id-over-splits": ("info", "ids used in two splits: merge with new ones"),
    "category-gaps": ("info", "gaps in the category ids"),
    "category-0": ("info", "category ids start at 0"),
    "licence-missing": ("info", "images with a licence that is not defined"),
    "year-text": ("info", "info.year is text"),
    "segmentation-empty": ("info", "boxes with an empty segmentation, all of a file"),
    "crowd-rle": ("info", "crowds with an RLE segmentation"),
    "area-mask": ("info", "areas that are not width x height: a mask's"),
    "mixed-numbers": ("info", "box values mix whole numbers and fractions"),
    "whole-numbers": ("info", "box values are all whole numbers"),
    "export-hash": ("info", "file names that hold an export's hash"),
    "number-gaps": ("info", "numbers missing in the file names"),
    "unlisted": ("note", "image files that no labels list"),
    "xml-path": ("info", "XML files with a <path> on another machine"),
    "xml-folder": ("info", "XML files whose <folder> is not the usual"),
    "xml-one-based": ("info", "XML boxes at the far edge, none at 0: 1-based"),
    "xml-difficult": ("info", "objects of which none is marked difficult"),
    "xml-truncated": ("info", "objects marked truncated"),
}


@dataclass(frozen=True)
class Place:
    """Place of a defect.

    Args:
        split: the split; "" for the set as a whole.
        file: the image, or another file; "" where none can be named.
        objects: numbers of the objects in that image, counted from 0.
        detail: what was found there.
        count: how many of the kind this place stands for.
    """

    split: str
    file: str = ""
    objects: tuple[int, ...] = ()
    detail: str = ""
    count: int = 1

    def __str__(self) -> str:
        numbers = "#" + ",".join(map(str, self.objects)) if self.objects else ""
        text = " ".join(part for part in (self.file.rpartition("/")[2], numbers, self.detail) if part)
        return text if is_printable(text) else ascii(text)


Found = Iterator[tuple[str, Place]]
"""Kind and place of each defect that a check found."""


@dataclass(frozen=True)
class Defect:
    """All places of one kind."""

    kind: str
    severity: str
    what: str
    places: tuple[Place, ...]

    @property
    def count(self) -> int:
        """Number of defects, over all places."""
        return sum(place.count for place in self.places)

    @property
    def splits(self) -> dict[str, int]:
        """Number of defects in each split."""
        counts: Counter[str] = Counter()
        for place in self.places:
            counts[place.split] += place.count
        return dict(counts)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "what": self.what,
            "count": self.count,
            "splits": self.splits,
            "places": [asdict(place) for place in self.places],
        }


def defects(found: Iterable[tuple[str, Place]], *, skips_broken: bool = False) -> list[Defect]:
    """One defect a kind, the worst first; `skips_broken` if a job goes on without broken images."""
    places: dict[str, list[Place]] = {kind: [] for kind in KINDS}
    for kind, place in found:
        places[kind].append(place)
    made = []
    for kind, at in places.items():
        severity, what = KINDS[kind]
        skipped = kind in BROKEN and skips_broken
        if severity == "error" and (skipped or not any(place.split in TRAINED_ON for place in at)):
            severity = "warn"
        if at:
            made.append(Defect(kind, severity, what, tuple(at)))
    return sorted(made, key=lambda defect: SEVERITIES.index(defect.severity))
