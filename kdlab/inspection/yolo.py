"""Ultralytics' label files: polygons that became boxes, and files that belong to no image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdlab.datasets.base import IMAGE_SUFFIXES
from kdlab.inspection.findings import Found, Place
from kdlab.inspection.images import files_below
from kdlab.inspection.labels import Labels

_NO_LABELS = ("classes.txt",)
"""Files that labelling tools write next to the labels."""


def polygons(splits: Sequence[Labels]) -> Found:
    """Objects that their line gives as a polygon."""
    for labels in splits:
        converted = any("txt" in image for image in labels.images)
        if converted and (count := sum("polygon" in entry for entry in labels.objects)):
            yield "polygons", Place(labels.split, count=count)


def alone(splits: Sequence[Labels]) -> Found:
    """Label files in the folders of the labels for which no image is there, or none that is read."""
    folders: dict[Path, set[Path]] = {}
    homes: dict[Path, str] = {}
    for labels in splits:
        for image in labels.images:
            if isinstance(image.get("txt"), str):
                folder = (labels.folder / image["txt"]).parent
                folders.setdefault(folder, set()).add((labels.folder / image["file_name"]).parent)
                homes.setdefault(folder, labels.split)
    for folder, of_images in folders.items():
        # an image with an ending that is not read, as .gif, is none of this dataset
        files = (path for one in of_images for path in files_below(one))
        stems = {path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
        for path in sorted(folder.glob("[!.]*.txt")):
            if path.stem not in stems and path.name not in _NO_LABELS:
                yield "txt-alone", Place(homes[folder], str(path))


CHECKS = (polygons, alone)
