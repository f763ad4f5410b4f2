"""Inspection of a dataset: read the labels, decode the images, gather the defects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlab.datasets.base import DatasetFiles, Split
from kdlab.inspection import across, boxes, entries, images, voc, yolo
from kdlab.inspection.findings import Defect, Place, defects
from kdlab.inspection.images import ImageTask
from kdlab.inspection.labels import Labels, arranged, read
from kdlab.inspection.summary import Summary, summaries
from kdlab.inspection.voc import XmlFile

OTHER = "other"
"""The split of labelled images that lie next to those of a recipe, which does not name them."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Inspection:
    """Numbers and defects of a dataset.

    Args:
        name: the dataset's key.
        fingerprint: of the files that jobs would use.
        summaries: of each split, and of all where there are several.
        defects: the worst first.
        left_out: broken images of train and val that a job skips.
    """

    name: str
    fingerprint: str
    summaries: tuple[Summary, ...]
    defects: tuple[Defect, ...]
    left_out: int = 0

    @property
    def usable(self) -> bool:
        """True where no defect makes a job stop."""
        return all(defect.severity != "error" for defect in self.defects)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "dataset": self.name,
            "fingerprint": self.fingerprint,
            "usable": self.usable,
            "left_out": self.left_out,
            "splits": [found.to_dict() for found in self.summaries],
            "defects": [defect.to_dict() for defect in self.defects],
        }


def examine(
    files: DatasetFiles,
    progress: Progress = lambda what, done, total: None,
    *,
    broken_images: str = "stop",
    scale: Sequence[int] | None = None,
) -> Inspection:
    """Look at every label and every image.

    Args:
        files: the dataset; labelled splits next to train and val are looked at too.
        progress: told what is counted, how much is done and how much there is.
        broken_images: what a job does at one, "stop" or "skip".
        scale: width and height that a job resizes images to fit.
    """
    splits, found = _labels(files, progress)
    xml_files = [
        XmlFile(labels.split, labels.folder / image["xml"], image["file_name"])
        for labels in splits
        for image in labels.images
        if isinstance(image.get("xml"), str)
    ]
    listed, wrong = voc.read(xml_files)
    others, more_wrong = voc.read(list(_other_xml(splits, xml_files)))
    found += [*wrong, *more_wrong]
    if others:
        splits.append(arranged(OTHER, splits[0].folder, voc.as_coco(others, files.classes)))
    tasks = [
        ImageTask(labels.split, labels.folder, name, *size)
        for labels in splits
        for name, size in zip(labels.files, labels.sizes.tolist(), strict=True)
    ]
    progress("images", 0, len(tasks))
    facts = images.look(tasks, lambda done: progress("images", done, len(tasks)))
    for check in (*boxes.CHECKS, *entries.CHECKS):
        found += [one for labels in splits for one in check(labels)]
    found += [*images.check(facts), *images.repeated(facts)]
    found += [one for check in (*across.CHECKS, *yolo.CHECKS) for one in check(splits)]
    found += [one for check in voc.CHECKS for one in check([*listed, *others])]
    left_out = images.skipped(facts) if broken_images == "skip" else 0
    told = tuple(defects(found, skips_broken=left_out > 0))
    return Inspection(files.name, files.fingerprint, summaries(splits, facts, scale), told, left_out)


def _labels(files: DatasetFiles, progress: Progress) -> tuple[list[Labels], list[tuple[str, Place]]]:
    places = {"train": files.train, "val": files.val, **_siblings(files)}
    splits: list[Labels] = []
    found: list[tuple[str, Place]] = []
    for done, (name, split) in enumerate(places.items()):
        progress("label files", done, len(places))
        labels, wrong = read(name, split.images, split.labels)
        splits += filter(None, [labels])
        found += wrong
    progress("label files", len(places), len(places))
    return splits, found


def _siblings(files: DatasetFiles) -> dict[str, Split]:
    """Splits next to train, where folder and labels bear the split's name: images/test, test.json."""
    if files.train.images == files.val.images:
        # a folder of both is no split's, and its neighbours are other data
        return {}
    folder = files.train.images
    labels = os.path.relpath(files.train.labels, folder.parent)
    named = {os.path.normpath(split.labels) for split in (files.train, files.val)}
    found = {}
    if folder.name in labels and folder.parent.is_dir():
        for other in sorted(folder.parent.iterdir()):
            path = Path(os.path.normpath(folder.parent / labels.replace(folder.name, other.name)))
            if other.is_dir() and path.is_file() and str(path) not in named:
                found[other.name] = Split(other, path)
    return found


def _other_xml(splits: Sequence[Labels], listed: Sequence[XmlFile]) -> Iterator[XmlFile]:
    """XML files next to those that are listed, each with the image of its stem where there is one."""
    known = {file.path: file.image for file in listed}
    pairs = {(path.parent, Path(image).parent) for path, image in known.items()}
    for xml_folder, folder in sorted(pairs):
        there = {path.stem: path.name for path in images.files_below(splits[0].folder / folder)}
        for path in sorted(xml_folder.glob("*.xml")):
            if path not in known:
                yield XmlFile(OTHER, path, (folder / there.get(path.stem, f"{path.stem}.jpg")).as_posix())
