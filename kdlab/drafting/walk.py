"""Files below a folder, by kind."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kdlab.datasets.base import IMAGE_SUFFIXES
from kdlab.errors import UsageError

MOST_FILES = 500_000
_DEEPEST = 8
_ROLES = {
    "train": re.compile(r"^(train|training|trn)$"),
    "val": re.compile(r"^(val|valid|validation|dev)$"),
    "test": re.compile(r"^(test|testing)$"),
}

_KINDS = ("images", "jpegimages", "labels", "annotations", "xml", "json")


@dataclass
class Tree:
    """Regular files below a folder, as paths relative to it with slashes; hidden ones are left out.

    Args:
        root: the folder.
        files: by ending in small letters, each list sorted, but for files behind links, which are last.
        stems: of each folder, its images by stem: a mask can have that of its photograph.
    """

    root: Path
    files: dict[str, list[str]] = field(default_factory=dict)
    stems: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def told(self) -> str:
        """ "120 .jpg, 3 .json"."""
        counts = Counter({suffix or "no ending": len(names) for suffix, names in self.files.items()})
        return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(6)) or "nothing"


def tree(root: Path) -> Tree:
    """The files of a folder.

    Raises:
        UsageError: there are more than half a million.
    """
    found, count = Tree(root), 0
    for folder, names in _folders(root):
        place = folder.relative_to(root).as_posix()
        prefix = "" if place == "." else f"{place}/"
        for name in sorted(names):
            # a link to nothing has no content, and a pipe may never have any
            if name.startswith(".") or not is_file(f"{folder}/{name}"):
                continue
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path for each of so many takes seconds
            found.files.setdefault(suffix.lower(), []).append(prefix + name)
            if suffix.lower() in IMAGE_SUFFIXES:
                found.stems.setdefault(prefix, {}).setdefault(stem, []).append(name)
        count += len(names)
        if count > MOST_FILES:
            raise UsageError(
                f"there are more than {MOST_FILES:,} files below this folder",
                where=str(root),
                fix="name the folder of the dataset alone",
            )
    return found


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with the names in it, once however many links lead there, and those last."""
    own, seen, starts = root.resolve(), set[Path](), [root]
    while starts:
        for name, folders, names in os.walk(starts.pop(0)):
            folder = Path(name)
            real = folder.resolve()
            if real in seen or (real != own and own.is_relative_to(real)):
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if len(folder.relative_to(root).parts) > _DEEPEST:
                folders.clear()
            starts += [folder / name for name in folders if (folder / name).is_symlink()]
            yield folder, names


def is_file(path: Path | str) -> bool:
    """True for a regular file; no file can have a name of more than 255 characters, or with a NUL."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises where a name is too long


def role(path: str) -> str:
    """ "train", "val" or "test", as the file's name or the nearest folder above says; "" where none does."""
    *folders, name = path.split("/")
    for part in (name.rpartition(".")[0] or name, *reversed(folders)):
        words = re.split(r"[^a-z]+", part.lower())
        for kind, form in _ROLES.items():
            if any(map(form.match, words)):
                return kind
    return ""


def by_role(paths: Iterable[str]) -> dict[str, list[str]]:
    """Paths by their role."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(role(path), []).append(path)
    return found


def below(paths: Iterable[str], *names: str) -> list[str]:
    """Paths with a folder of one of these names, in any case; all of them where there is none."""
    known = list(paths)
    return [path for path in known if set(names) & set(path.lower().split("/"))] or known


def image_folders(labels: str, folders: Collection[str]) -> list[str]:
    """Folders of images that a labels file may mean; several where nothing decides between them.

    Args:
        labels: path of the labels file.
        folders: those that hold an image of its name, "" or "." for the root.
    """
    above = PurePosixPath(labels).parent
    if own := [folder for folder in folders if PurePosixPath(folder) == above]:
        return own
    inner = _inner(above)
    mirrored = [folder for folder in folders if inner and _inner(PurePosixPath(folder)) == inner]
    usual = below(mirrored or folders, "images", "jpegimages")
    return [folder for folder in usual if role(f"{folder}/-") == role(labels)] or usual


def _inner(folder: PurePosixPath) -> list[str]:
    """The parts of a path that do not only say what lies there: images/cam0 mirrors annotations/cam0."""
    return [part for part in folder.parts if part.lower() not in _KINDS]
