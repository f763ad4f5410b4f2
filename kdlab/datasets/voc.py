"""PASCAL VOC XML: the devkit as it unpacks, or any folder of images, XML files and lists of stems."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from kdlab.datasets._coco_labels import is_printable, name_key
from kdlab.datasets._voc_xml import Entry, converted
from kdlab.datasets.base import (
    IMAGE_SUFFIXES,
    NOT_REGULAR,
    PARTS,
    DatasetFiles,
    Split,
    cache_dir,
    fingerprint_of,
    first_of,
    gone_link,
    intact,
    is_odd,
    make_once,
    not_there,
    root_folder,
    unreadable,
    write_labels,
)
from kdlab.errors import Fault, UsageError

# Raise it in the commit that changes what is converted: labels converted before are then left alone.
VERSION = 1
# Raise it where the conversion refuses more: what was converted before is then looked at again.
_CHECKS = 3

_YEARS = ("VOC2007", "VOC2012")
_FLAG = re.compile(r"\s+-?[01]$")


@dataclass(frozen=True)
class _Layout:
    """Folders of a dataset; `prepare` says what each means."""

    root: Path
    images: str
    annotations: str
    splits: str

    def list_of(self, split: str) -> Path:
        """The file that lists the stems of "VOC2007/trainval" or "train"."""
        folder, _, name = split.removesuffix(".txt").rpartition("/")
        return self.root / folder / self.splits / f"{name}.txt"

    def folder(self, split: str, part: str) -> Path:
        """The folder `part` next to the list of a split."""
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
        root: the dataset's folder, or the devkit's that holds VOC2007 and VOC2012.
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
    layout = _Layout(root_folder(root), images, annotations, splits)
    if len(set(classes)) < len(classes):
        raise UsageError("dataset.classes names a class twice", got=", ".join(classes), fix="name it once")
    if odd := [name for name in classes if not is_printable(name)]:
        what, fix = "dataset.classes has control characters in a name", "take them out"
        raise UsageError(what, got=first_of([*map(ascii, odd)], 3), fix=fix)
    try:
        chosen = _chosen(layout, train, val)
        if faults := list(_missing(layout, chosen)):
            raise UsageError(faults=faults)
        entries = _entries(layout, chosen)
        digest = hashlib.sha256(json.dumps([VERSION, _CHECKS, list(classes)]).encode())
        for part in entries.values():
            digest.update(b"%d\n" % len(part))
            for entry in part:
                digest.update(json.dumps([entry.image, entry.xml, entry.size_bytes]).encode())
                digest.update(hashlib.sha256((layout.root / entry.xml).read_bytes()).digest())
        folder = cache_dir() / "voc" / digest.hexdigest()[:12]
        made = None if folder.is_dir() else converted(layout.root, entries, classes)
    except OSError as error:
        raise unreadable(error, layout.root) from error
    if made is not None:
        found, labels = made
        make_once(folder, partial(write_labels, labels, version=VERSION, classes=found))
    stored = intact(folder, "converted labels")
    learned, measured = (Split(layout.root, folder / f"{part}.json") for part in PARTS)
    sizes = {part: [(entry.image, entry.size_bytes) for entry in entries[part]] for part in PARTS}
    seal = fingerprint_of([(learned.labels, sizes["train"]), (measured.labels, sizes["val"])])
    return DatasetFiles("voc", tuple(stored["classes"]), learned, measured, seal, ("coco", "voc"))


def _chosen(layout: _Layout, train: Sequence[str], val: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The split files of train and val, by VOC's custom where an option was left out."""
    alone = (layout.root / layout.splits).is_dir()
    years = [] if alone else [year for year in _YEARS if (layout.root / year / layout.splits).is_dir()]
    if len(years) == len(_YEARS):
        usual = {"train": tuple(f"{year}/trainval" for year in years), "val": (f"{years[0]}/test",)}
    else:
        before = f"{years[0]}/" if years else ""
        has_test = all(layout.list_of(before + name).is_file() for name in ("trainval", "test"))
        names = ("trainval", "test") if has_test else ("train", "val")
        usual = {part: (before + name,) for part, name in zip(PARTS, names, strict=True)}
    return {"train": tuple(train) or usual["train"], "val": tuple(val) or usual["val"]}


def _missing(layout: _Layout, chosen: dict[str, tuple[str, ...]]) -> Iterator[Fault]:
    """A fault for each folder or split file that is missing."""
    told = set()
    lists = {layout.list_of(split) for splits in chosen.values() for split in splits}
    for option, splits in chosen.items():
        for split in splits:
            for part in ("images", "annotations", "splits"):
                path = layout.folder(split, getattr(layout, part))
                if path not in told and not path.is_dir():
                    told.add(path)
                    yield not_there(part, path, "folder")
            path = layout.list_of(split)
            if path.parent not in told and not path.is_file():
                yield not_there(option, path, "file", lists)


def _entries(layout: _Layout, chosen: dict[str, tuple[str, ...]]) -> dict[str, list[Entry]]:
    """The images of train and val in the order of the split files.

    Raises:
        UsageError: a split is empty, a stem occurs twice, or its XML or image is not there.
    """
    entries: dict[str, list[Entry]] = {part: [] for part in PARTS}
    faults: list[Fault] = []
    for part, splits in chosen.items():
        for split in splits:
            entries[part] += _entries_of(layout, split, faults)
        counts = Counter(entry.xml for entry in entries[part])
        if twice := [name for name, count in counts.items() if count > 1]:
            what = f"stems listed twice in dataset.{part}: {len(twice)}"
            where = str(layout.root)
            faults.append(Fault(what, where=where, got=first_of(twice, 3), fix="list each one once"))
    if faults:
        raise UsageError(faults=faults)
    return entries


def _entries_of(layout: _Layout, split: str, faults: list[Fault]) -> list[Entry]:
    """The images of a split; what is missing is added to `faults`."""
    path = layout.list_of(split)
    images, annotations = (layout.folder(split, name) for name in (layout.images, layout.annotations))
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if "\0" in text:
        faults.append(Fault("this list is not UTF-8", where=str(path), fix="save it as UTF-8"))
        return []
    lines = text.splitlines()
    found: list[Entry] = []
    lacking: dict[str, list[str]] = {"an XML file": [], "an image": []}
    stems = [*filter(None, map(str.strip, lines))]
    if odd := [stem for stem in stems if not is_printable(stem)]:
        what, fix = f"stems with control characters: {len(odd)}", "rename the files and the stems"
        faults.append(Fault(what, where=str(path), got=first_of([*map(ascii, odd)], 3), fix=fix))
        return []
    for line in stems:
        # "cell 1" may be a stem, or the stem "cell" with VOC's flag
        stem = line if _is_file(annotations / f"{line}.xml") else _FLAG.sub("", line)
        xml = annotations / f"{stem}.xml"
        names = [f"{stem}{spelt}" for suffix in IMAGE_SUFFIXES for spelt in (suffix, suffix.upper())]
        image = next((images / name for name in names if _is_file(images / name)), None)
        if not _is_file(xml):
            lacking["an XML file"].append(stem)
        if image is None:
            lacking["an image"].append(stem)
            continue
        relative = [Path(os.path.relpath(file, layout.root)).as_posix() for file in (image, xml)]
        found.append(Entry(relative[0], relative[1], image.stat().st_size))
    if not found and not any(lacking.values()):
        faults.append(Fault("this split lists no images", where=str(path), fix="write one stem a line"))
    for (what, gone), folder in zip(lacking.items(), (annotations, images), strict=True):
        if gone:
            told = f"stems without {what}: {len(gone)}"
            fix = _nearer(folder, gone[0]) or f"put the files there, or take the stems out of {path}"
            faults.append(Fault(told, where=str(folder), got=first_of(gone, 3), fix=fix))
    return found


def _is_file(path: Path) -> bool:
    """False, too, for a name that is too long for a file."""
    return os.path.isfile(path)  # noqa: PTH113 - pathlib's raises


def _nearer(folder: Path, stem: str) -> str:
    """What to write where a list names files, not stems, or a name differs in form; "" where it is gone."""
    backslash = " (a backslash is no separator here)" if "\\" in stem else ""
    bare = PurePath(stem.split()[0].replace("\\", "/")).stem
    if bare != stem and any(folder.glob(f"{glob.escape(bare)}.*")):
        return f"list stems alone: {bare} in the place of {stem}{backslash}"
    near = [file for file in folder.iterdir() if name_key(file.stem) == name_key(stem)]
    if not near:
        return ""
    if why := gone_link(near[0]) or NOT_REGULAR * is_odd(near[0]):
        return f"{near[0].name!a} is {why}: put the file there"
    return f"there is {near[0].name!a}: rename it, or change the list"
