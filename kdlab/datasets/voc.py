"""PASCAL VOC XML: the devkit as it unpacks, or any folder of images, XML files and lists of stems."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdlab.datasets._voc_xml import Entry, Labels, converted
from kdlab.datasets.base import (
    DatasetFiles,
    Split,
    cache_dir,
    fingerprint_of,
    make_once,
    not_there,
    user_path,
)
from kdlab.errors import Fault, MachineError, UsageError

# Raise it in the commit that changes what is converted: labels converted before are then left alone.
VERSION = 1

_YEARS = ("VOC2007", "VOC2012")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_FLAG = re.compile(r"\s+-?[01]$")


@dataclass(frozen=True)
class _Layout:
    """Where a data set keeps what; `prepare` says what each means."""

    root: Path
    images: str
    annotations: str
    splits: str

    def list_of(self, split: str) -> Path:
        """The file that lists the stems of "VOC2007/trainval" or "train"."""
        folder, _, name = split.removesuffix(".txt").rpartition("/")
        return self.root / folder / self.splits / f"{name}.txt"

    def folder(self, split: str, part: str) -> Path:
        """The folder `part` beside the list of a split."""
        return self.root / split.rpartition("/")[0] / part


def prepare(
    *,
    root: str,
    images: str = "JPEGImages",
    annotations: str = "Annotations",
    splits: str = "ImageSets/Main",
    train: tuple[str, ...] = (),
    val: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> DatasetFiles:
    """Convert the XML to COCO JSON in the user's cache, or find what was converted before.

    What was converted is found again by the content of all XML files, so a changed label is never missed.
    docs/data.md says what becomes of boxes, sizes and `difficult`.

    Args:
        root: the data set's folder, or the devkit's that holds VOC2007 and VOC2012.
        images: folder of the images, relative to `root`, as the next two.
        annotations: folder of the XML files.
        splits: folder of the split files, one stem a line, with or without VOC's flag behind it.
        train: names of the split files to learn from; "VOC2007/trainval" is that of a folder below `root`.
            Left out, trainval, of 2007 and 2012 where both are there; train where there is no test.
        val: names of the split files to measure on; left out, test (of 2007), else val.
        classes: names in the order of the labels; left out, those found in the XML, sorted.

    Raises:
        UsageError: all that is missing, or all that is wrong with the labels, at once.
        MachineError: a file cannot be read, or the cache cannot be written.
    """
    layout = _Layout(user_path(root), images, annotations, splits)
    try:
        if not layout.root.is_dir():
            fix = "set dataset.root to the folder that holds the images and annotations"
            raise UsageError("dataset.root is not a folder", where=str(layout.root), fix=fix)
        if len(set(classes)) < len(classes):
            raise UsageError(
                "dataset.classes names a class twice", got=", ".join(classes), fix="name it once"
            )
        chosen = _chosen(layout, train, val)
        _refuse(_missing(layout, chosen))
        entries = _entries(layout, chosen)
        folder = cache_dir() / "voc" / _key(layout.root, entries, classes)
        made = None if folder.is_dir() else converted(layout.root, entries, classes)
    except OSError as error:
        raise MachineError(
            f"this part of the data set cannot be read: {error.strerror or error}",
            where=str(error.filename or layout.root),
            fix="check its permissions, and that its disk is mounted",
        ) from error
    if made is not None:
        make_once(folder, partial(_write, *made))
    return _intact_files(folder, layout.root, entries)


def _chosen(layout: _Layout, train: Sequence[str], val: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The split files of train and val, by VOC's custom where an option was left out."""
    years = [year for year in _YEARS if (layout.root / year / layout.splits).is_dir()]
    alone = (layout.root / layout.splits).is_dir()
    if len(years) == len(_YEARS) and not alone:
        usual = {"train": tuple(f"{year}/trainval" for year in years), "val": (f"{years[0]}/test",)}
    else:
        before = f"{years[0]}/" if years and not alone else ""
        has_test = all(layout.list_of(before + name).is_file() for name in ("trainval", "test"))
        names = ("trainval", "test") if has_test else ("train", "val")
        usual = {part: (before + name,) for part, name in zip(("train", "val"), names, strict=True)}
    return {"train": tuple(train) or usual["train"], "val": tuple(val) or usual["val"]}


def _missing(layout: _Layout, chosen: dict[str, tuple[str, ...]]) -> Iterator[Fault]:
    """A fault for each folder or split file that is not there."""
    told = set()
    for option, splits in chosen.items():
        for split in splits:
            for part in ("images", "annotations", "splits"):
                path = layout.folder(split, getattr(layout, part))
                if path not in told and not path.is_dir():
                    told.add(path)
                    yield not_there(part, path, "folder")
            path = layout.list_of(split)
            if path.parent not in told and not path.is_file():
                yield not_there(option, path, "file")


def _entries(layout: _Layout, chosen: dict[str, tuple[str, ...]]) -> dict[str, list[Entry]]:
    """The images of train and val in the order of the split files.

    Raises:
        UsageError: a split is empty, a stem occurs twice, or its XML or image is not there.
    """
    entries: dict[str, list[Entry]] = {"train": [], "val": []}
    faults: list[Fault] = []
    for part, splits in chosen.items():
        for split in splits:
            found, wrong = _entries_of(layout, split)
            entries[part] += found
            faults += wrong
        counts = Counter(entry.xml for entry in entries[part])
        twice = [name for name, count in counts.items() if count > 1]
        faults += _stem_fault(
            f"listed twice in dataset.{part}", str(layout.root), twice, "list each one once"
        )
    _refuse(faults)
    return entries


def _entries_of(layout: _Layout, split: str) -> tuple[list[Entry], list[Fault]]:
    path = layout.list_of(split)
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    images, annotations = (layout.folder(split, name) for name in (layout.images, layout.annotations))
    # "cell 1" may be a stem, or the stem "cell" with VOC's flag
    stems = [
        line if (annotations / f"{line}.xml").is_file() else _FLAG.sub("", line)
        for line in map(str.strip, lines)
        if line
    ]
    if not stems:
        return [], [Fault("this split lists no images", where=str(path), fix="write one stem a line")]
    found, no_xml, no_image = [], [], []
    for stem in stems:
        image, xml = _image(images, stem), annotations / f"{stem}.xml"
        if not xml.is_file():
            no_xml.append(stem)
        if image is None:
            no_image.append(stem)
        else:
            names = [Path(os.path.relpath(file, layout.root)).as_posix() for file in (image, xml)]
            found.append(Entry(names[0], names[1], image.stat().st_size))
    fix = f"put the files there, or take the stems out of {path}"
    faults = [
        *_stem_fault("without an XML file", str(annotations), no_xml, fix),
        *_stem_fault("without an image", str(images), no_image, fix),
    ]
    return found, faults


def _image(folder: Path, stem: str) -> Path | None:
    spellings = (f"{stem}{spelt}" for suffix in _SUFFIXES for spelt in (suffix, suffix.upper()))
    return next((path for name in spellings if (path := folder / name).is_file()), None)


def _stem_fault(what: str, where: str, stems: list[str], fix: str) -> list[Fault]:
    if not stems:
        return []
    got = ", ".join(stems[:3]) + (f" and {len(stems) - 3} more" if len(stems) > 3 else "")
    return [Fault(f"stems {what}: {len(stems)}", where=where, got=got, fix=fix)]


def _key(root: Path, entries: dict[str, list[Entry]], classes: Sequence[str]) -> str:
    """12 hex digits over all that the conversion reads."""
    digest = hashlib.sha256(json.dumps([VERSION, list(classes)]).encode())
    for part in entries.values():
        digest.update(b"%d\n" % len(part))
        for entry in part:
            digest.update(json.dumps([entry.image, entry.xml, entry.size_bytes]).encode())
            digest.update(hashlib.sha256((root / entry.xml).read_bytes()).digest())
    return digest.hexdigest()[:12]


def _write(classes: Sequence[str], labels: dict[str, Labels], folder: Path) -> None:
    for part, content in labels.items():
        (folder / f"{part}.json").write_text(json.dumps(content, sort_keys=True))
    made = {"version": VERSION, "classes": list(classes), "labels": _labels_hash(folder)}
    (folder / "made.json").write_text(json.dumps(made, indent=1))


def _labels_hash(folder: Path) -> str:
    return fingerprint_of((folder / f"{part}.json", ()) for part in ("train", "val"))


def _intact_files(folder: Path, root: Path, entries: dict[str, list[Entry]]) -> DatasetFiles:
    """The files of a finished folder, if they still are what was written there."""
    train, val = (Split(root, folder / f"{part}.json") for part in ("train", "val"))
    try:
        made = json.loads((folder / "made.json").read_text())
        if _labels_hash(folder) == made["labels"]:
            images = {part: [(entry.image, entry.size_bytes) for entry in entries[part]] for part in entries}
            seal = fingerprint_of([(train.labels, images["train"]), (val.labels, images["val"])])
            return DatasetFiles("voc", tuple(made["classes"]), train, val, seal, ("coco", "voc"))
    except (OSError, ValueError, KeyError):
        pass  # A file that is gone or torn is the same to the user as one that was changed.
    raise MachineError(
        "converted labels in the cache were changed or removed",
        where=str(folder),
        fix=f"rm -r {shlex.quote(str(folder))}",
    )


def _refuse(faults: Iterable[Fault]) -> None:
    if found := list(faults):
        raise UsageError(faults=found)
