"""Checks over all splits: what they share, what none of them lists, what is rare in the whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdlab.datasets.base import EXPORTED, gone_link
from kdlab.inspection.findings import Found, Place
from kdlab.inspection.images import files_below
from kdlab.inspection.labels import SMALL_PX2, Labels

_RARE = 0.05
FEW_IMAGES = 50
"""Validation images below which one of them moves AP by points."""
FEW_OBJECTS = 10
"""Objects of a class below which its AP says little, and its training less."""
_SMALL_SHARE = 0.5
_NUMBERED = re.compile(r"(.*?)(\d+)([^\d]*)")
_GAPS_SHOWN = 12
_SIGNS = re.compile(r"[\W_]+")


def ids(splits: Sequence[Labels]) -> Found:
    """Ids of a split that another one has too."""
    splits = [labels for labels in splits if not labels.is_converted]
    for what in ("image", "annotation"):
        first: dict[int, str] = {}
        counts: Counter[tuple[str, str]] = Counter()
        for labels in splits:
            entries = labels.images if what == "image" else labels.objects
            for number in {entry["id"] for entry in entries}:
                if first.setdefault(number, labels.split) != labels.split:
                    counts[labels.split, first[number]] += 1
        for (split, other), count in counts.items():
            yield "id-over-splits", Place(split, detail=f"{count} {what} ids of {other}", count=count)


def sources(splits: Sequence[Labels]) -> Found:
    """An export makes several augmented copies of a photograph; they must not lie on both sides."""
    homes: dict[str, tuple[str, str]] = {}
    for labels in splits:
        for name in labels.files:
            if EXPORTED.search(name):
                source = EXPORTED.sub("", name)
                split, other = homes.setdefault(source, (labels.split, name))
                if split != labels.split:
                    yield "source-leak", Place(labels.split, name, detail=f"of {split} {Path(other).name}")


def classes(splits: Sequence[Labels]) -> Found:
    """Classes that are never learned or never measured, rare classes, and mostly small objects."""
    seen: dict[str, Counter[str]] = {"train": Counter(), "val": Counter()}
    for labels in splits:
        seen[labels.split] = Counter(labels.classes[label] for label in labels.label.tolist())
    train, val = seen["train"].keys(), seen["val"].keys()
    yield from (("never-trained", Place("val", detail=name)) for name in sorted(val - train))
    yield from (("never-measured", Place("train", detail=name)) for name in sorted(train - val))
    for split in ("train", "val"):
        few = [(count, name) for name, count in seen[split].items() if count < FEW_OBJECTS]
        yield from (("few-objects", Place(split, detail=f"{name} {count}")) for count, name in sorted(few))
    counts = sum(seen.values(), Counter())
    total = counts.total()
    for name, count in sorted(counts.items(), key=lambda item: item[1]):
        if count < _RARE * total:
            yield "imbalance", Place("", detail=f"{name} {count / total:.1%}".replace("%", " %"))
    small = sum(int((labels.box_areas < SMALL_PX2).sum()) for labels in splits)
    if total and small > _SMALL_SHARE * total:
        sides = np.concatenate([labels.boxes[:, 2:] for labels in splits])
        width, height = sides.min(axis=0)
        detail = f"{small / total:.0%}, narrowest {width:g} px, lowest {height:g} px".replace("%", " %")
        yield "small-objects", Place("", detail=detail, count=small)


def names(splits: Sequence[Labels]) -> Found:
    """Classes that look like one, written in two ways."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for labels in splits for name in labels.classes):
        groups.setdefault(_SIGNS.sub("", name).casefold() or name, []).append(name)
    for same in groups.values():
        if len(same) > 1:
            yield "class-spelling", Place("", detail=" = ".join(same))


def few_images(splits: Sequence[Labels]) -> Found:
    """A validation split in which every image counts for much."""
    for labels in splits:
        if labels.split == "val" and 0 < len(labels.images) < FEW_IMAGES:
            yield "few-images", Place("val", count=len(labels.images))


def files(splits: Sequence[Labels]) -> Found:
    """Image files that no labels list, and gaps in their numbers."""
    listed = {labels.folder / name for labels in splits for name in labels.files}
    there = [file for folder in sorted({path.parent for path in listed}) for file in files_below(folder)]
    yield from (
        ("unlisted", Place("", str(file), detail=gone_link(file))) for file in there if file not in listed
    )
    yield from _gaps({*there, *listed})


def _gaps(files: set[Path]) -> Found:
    """Numbers that lack in ranges of which most are there: such images were taken out."""
    groups: dict[tuple[Path, str, str], dict[int, str]] = {}
    for file in files:
        if match := _NUMBERED.fullmatch(file.stem):
            groups.setdefault((file.parent, match[1], match[3]), {})[int(match[2])] = match[2]
    for (folder, _, _), numbers in sorted(groups.items()):
        low, high = min(numbers), max(numbers)
        missing = high - low + 1 - len(numbers)
        if 0 < missing < len(numbers):
            gaps = sorted(set(range(low, high)) - numbers.keys())
            shown = ", ".join(map(str, gaps[:_GAPS_SHOWN])) + ", ..." * (missing > _GAPS_SHOWN)
            detail = f"{numbers[low]}..{numbers[high]} without {shown}"
            yield "number-gaps", Place("", folder.name, detail=detail, count=missing)


CHECKS = (ids, sources, classes, names, few_images, files)
