"""Ultralytics' layout: a data.yaml, images, and for each image a text file of normalised boxes."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from kdlab.datasets import _images, _yolo_yaml
from kdlab.datasets._coco_labels import UNPRINTABLE, is_printable, name_key
from kdlab.datasets._yolo_labels import Entry, converted
from kdlab.datasets.base import (
    IMAGE_SUFFIXES,
    PARTS,
    DatasetFiles,
    Split,
    cache_dir,
    content_of,
    fingerprint_of,
    first_of,
    intact,
    make_once,
    not_there,
    root_folder,
    sizes_below,
    unreadable,
    write_labels,
)
from kdlab.errors import Fault, UsageError
from kdlab.redaction import ADDRESS_START, masked

# Raise it in the commit that changes what is converted: labels converted before are then left alone.
VERSION = 1
# Raise it where the conversion refuses more: what was converted before is then looked at again.
_CHECKS = 2

_DATA = "data.yaml"
_SHOWN = 3
_UP = re.compile(r"(\.\./)+")


def prepare(
    *,
    root: str,
    data: str = "data.yaml",
    train: tuple[str, ...] = (),
    val: tuple[str, ...] = (),
) -> DatasetFiles:
    """Convert the label files to COCO JSON in the user's cache, or find what was converted before.

    What was converted is found again by the content of all label files and the names in data.yaml, so a
    changed label is never missed. Nothing is ever downloaded. docs/data.md says where images and labels are
    looked for, and what becomes of boxes and polygons.

    Args:
        root: the dataset's folder.
        data: the YAML file with the names of the classes, relative to `root`; where there is no data.yaml,
            the only YAML file there.
        train: folders of images or .txt lists of their paths to learn from, relative to `root`; left out,
            those that the YAML file names.
        val: the same to measure on.

    Raises:
        UsageError: all that is missing, or all that is wrong with the labels, at once.
        MachineError: a file cannot be read, or the cache cannot be written.
    """
    folder = Path(os.path.normpath(root_folder(root)))
    options = {"train": train, "val": val}
    try:
        file = _yaml_file(folder, data)
        said = _yolo_yaml.read(file, [part for part in PARTS if not options[part]])
        path = [file.parent / said.path.replace("\\", "/")] if said.path else []
        bases = {part: [folder] if options[part] else [*path, file.parent, folder] for part in PARTS}
        entries = _entries(folder, {part: options[part] or said.splits[part] for part in PARTS}, bases)
        digest = hashlib.sha256(json.dumps([VERSION, _CHECKS, list(said.names)]).encode())
        for listed in entries.values():
            digest.update(b"%d\n" % len(listed))
            for entry in listed:
                digest.update(json.dumps([entry.image, entry.txt, entry.size_bytes]).encode())
                content = content_of(folder / entry.txt) if entry.has_txt else b""
                digest.update(hashlib.sha256(content).digest())
        cache = cache_dir() / "yolo" / digest.hexdigest()[:12]
        labels = None if cache.is_dir() else converted(folder, entries, said.names)
    except OSError as error:
        raise unreadable(error, folder) from error
    if labels is not None:
        make_once(cache, partial(write_labels, labels, version=VERSION))
    intact(cache, "converted labels")
    learned, measured = (Split(folder, cache / f"{part}.json") for part in PARTS)
    sizes = {part: [(entry.image, entry.size_bytes) for entry in entries[part]] for part in PARTS}
    seal = fingerprint_of([(learned.labels, sizes["train"]), (measured.labels, sizes["val"])])
    return DatasetFiles("yolo", said.names, learned, measured, seal)


def _yaml_file(root: Path, data: str) -> Path:
    """The YAML file.

    Raises:
        UsageError: there is none, or several that may be meant.
    """
    file = Path(os.path.normpath(root / data.replace("\\", "/")))
    if file.is_file():
        return file
    others = sorted(path for path in root.glob("[!.]*.y*ml") if path.is_file()) if data == _DATA else []
    if len(others) == 1:
        return others[0]
    if others:
        known = first_of([path.name for path in others], 8)
        fix = f"name one of them: dataset.data: {others[0].name}"
        raise UsageError(
            "there is no data.yaml, and several other YAML files", where=str(root), known=known, fix=fix
        )
    raise UsageError(faults=[not_there("data", file, "file")])


def _entries(
    root: Path, sources: dict[str, tuple[str, ...]], bases: dict[str, list[Path]]
) -> dict[str, list[Entry]]:
    """The images of train and val: of a folder by name, of a list in its order.

    Raises:
        UsageError: a folder, a list or an image is not there, a split is empty, or labels would be missed.
    """
    faults: list[Fault] = []
    images: dict[str, list[tuple[str, int]]] = {}
    for part, texts in sources.items():
        images[part] = []
        for text in texts:
            place = _place(part, text, bases[part])
            if isinstance(place, Fault):
                faults.append(place)
            elif place.is_dir():
                images[part] += _below(place, faults)
            else:
                images[part] += _listed(place, bases[part], faults)
    if not faults:
        faults += _name_faults(root, images)
    entries = {part: _with_labels(root, found) for part, found in images.items()}
    if not faults:
        faults += _label_faults(root, entries)
    if faults:
        raise UsageError(faults=faults)
    return entries


def _place(part: str, text: str, bases: Sequence[Path]) -> Path | Fault:
    """The folder or list that a split names.

    Roboflow's exports write ../train/images of a folder next to the YAML file, so that is the second choice.
    """
    if scheme := ADDRESS_START.match(text):
        what, fix = (
            f"{part} is an address",
            "kdlab downloads nothing: fetch the images, and name their folder",
        )
        return Fault(f"dataset.{what}", got=f"{scheme[1]}://...", fix=fix)
    if not is_printable(text):
        fix = "between double quotes YAML reads a backslash and a letter as one character: write / in paths"
        return Fault(f"dataset.{part} {UNPRINTABLE}", got=ascii(text), fix=fix)
    plain = text.replace("\\", "/")
    forms = dict.fromkeys([plain, _UP.sub("", plain, count=1) if plain.startswith("../") else plain])
    places = [Path(os.path.normpath(base / form)) for form in forms for base in bases]
    for place in places:
        if place.is_dir() or (place.suffix == ".txt" and place.is_file()):
            return place
    gone = next((place for place in places if place.exists()), places[-1])
    return not_there(part, gone, "file" if gone.suffix == ".txt" else "folder")


def _below(folder: Path, faults: list[Fault]) -> list[tuple[str, int]]:
    """Path and size in bytes of all images below a folder, by name."""
    found = sorted(
        (name, size) for name, size in sizes_below(folder) if name.lower().endswith(IMAGE_SUFFIXES)
    )
    if not found:
        known, fix = " ".join(IMAGE_SUFFIXES), "put images there, or name another folder"
        faults.append(Fault("there is no image below this folder", where=str(folder), known=known, fix=fix))
    return [(f"{folder}/{name}", size) for name, size in found]


def _listed(file: Path, bases: Sequence[Path], faults: list[Fault]) -> list[tuple[str, int]]:
    """Path and size in bytes of the images that a list names; what is missing is added to `faults`."""
    found: list[tuple[str, int]] = []
    lacking: dict[int, str] = {}
    text = content_of(file).decode("utf-8-sig", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if not (plain := line.strip().replace("\\", "/")):
            continue
        # as Ultralytics reads it: "./" is where the list is
        order = [file.parent, *bases] if plain.startswith("./") else [*bases, file.parent]
        places = dict.fromkeys(os.path.normpath(base / plain) for base in order)
        image = next(filter(os.path.isfile, places), None)
        if image is None:
            lacking[number] = plain
        else:
            found.append((image, Path(image).stat().st_size))
    if lacking:
        what = f"listed images that are not there: {len(lacking)}"
        got = first_of([f"line {number}: {masked(name)!a}" for number, name in lacking.items()], _SHOWN)
        near = _images.elsewhere(bases[-1], next(iter(lacking.values()))).rpartition("; ")[2]
        fix = (
            f"{near}: change the list, or rename the file" if near else "write paths relative to dataset.root"
        )
        faults.append(Fault(what, where=str(file), got=got, fix=fix))
    elif not found:
        faults.append(Fault("this list is empty", where=str(file), fix="write the path of an image a line"))
    return found


def _name_faults(root: Path, images: dict[str, list[tuple[str, int]]]) -> Iterator[Fault]:
    """Images that are named twice in a split, and names that no terminal should see."""
    for part, found in images.items():
        counts = Counter(image for image, _ in found)
        if twice := [os.path.relpath(image, root) for image, count in counts.items() if count > 1]:
            what, fix = f"images named twice in dataset.{part}: {len(twice)}", "name each one once"
            yield Fault(what, where=str(root), got=first_of([*map(ascii, twice)], _SHOWN), fix=fix)
    names = dict.fromkeys(image for found in images.values() for image, _ in found)
    if odd := [os.path.relpath(image, root) for image in names if not is_printable(image)]:
        what = f"images whose name {UNPRINTABLE}: {len(odd)}"
        yield Fault(what, where=str(root), got=first_of([*map(ascii, odd)], _SHOWN), fix="rename the files")


def _with_labels(root: Path, images: Sequence[tuple[str, int]]) -> list[Entry]:
    """The images with their label files."""
    listings: dict[str, set[str]] = {}
    entries = []
    for image, size in images:
        txt = _txt_of(image)
        folder, _, name = txt.rpartition("/")
        if folder not in listings:
            listings[folder] = _names_in(folder)
        entries.append(Entry(_relative(image, root), _relative(txt, root), name in listings[folder], size))
    return entries


def _txt_of(image: str) -> str:
    """Path of the label file of an image: images/a/b.jpg has labels/a/b.txt, and others one next to them."""
    folder, _, name = image.rpartition("/")
    before, is_sibling, behind = f"{folder}/".rpartition("/images/")
    labels = f"{before}/labels/{behind}" if is_sibling else f"{folder}/"
    return f"{labels}{posixpath.splitext(name)[0]}.txt"


def _names_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as found:
            return {entry.name for entry in found}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _relative(path: str, root: Path) -> str:
    """The same below `root`, where most are; `relpath` alone takes seconds for 100,000."""
    short = path.removeprefix(f"{root}/")
    return os.path.relpath(path, root) if short == path else short


def _label_faults(root: Path, entries: dict[str, list[Entry]]) -> Iterator[Fault]:
    """Labels that would be missed, or read for an image that is not theirs."""
    sharing: dict[str, dict[str, None]] = {}
    for listed in entries.values():
        for entry in listed:
            sharing.setdefault(entry.txt, {})[entry.image] = None
    if several := [" and ".join(images) for images in sharing.values() if len(images) > 1]:
        what = f"images that differ in their ending alone, and so share a label file: {len(several)}"
        fix = "remove or rename one of each"
        yield Fault(what, where=str(root), got=first_of(several, _SHOWN), fix=fix)
    for part, listed in entries.items():
        if not any(entry.has_txt for entry in listed):
            folder = posixpath.dirname(str(root / listed[0].txt))
            what = f"no image of dataset.{part} has a label file"
            fix = "put the labels of images/NAME.jpg into labels/NAME.txt, next to the folder images"
            yield Fault(what, where=folder, got=f"there is no {posixpath.basename(listed[0].txt)!a}", fix=fix)
    if alike := [*_alike(root, entries, sharing.keys())]:
        what = f"label files that differ from their image in case or Unicode form (NFC, NFD): {len(alike)}"
        yield Fault(
            what, where=str(root), got=first_of(alike, _SHOWN), fix="rename the label files, or the images"
        )


def _alike(root: Path, entries: dict[str, list[Entry]], taken: Collection[str]) -> Iterator[str]:
    """Label files that an image without labels would have but for the form of their name."""
    listings: dict[str, dict[str, str]] = {}
    for entry in dict.fromkeys(entry for listed in entries.values() for entry in listed if not entry.has_txt):
        folder, _, name = entry.txt.rpartition("/")
        if folder not in listings:
            listings[folder] = {name_key(there): there for there in _names_in(str(root / folder))}
        near = listings[folder].get(name_key(name))
        if near and posixpath.join(folder, near) not in taken:
            yield f"{near!a} of {entry.image!a}"
