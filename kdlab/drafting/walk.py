"""What lies below a folder, by kind of file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kdlab.datasets.base import IMAGE_SUFFIXES
from kdlab.errors import UsageError

MOST_FILES = 500_000
_ROLES = {
    "train": re.compile(r"^(train|training|trn)$"),
    "val": re.compile(r"^(val|valid|validation|dev)$"),
    "test": re.compile(r"^(test|testing)$"),
}


@dataclass
class Tree:
    """Files below a folder, as paths relative to it with slashes; hidden ones are left out.

    Args:
        root: the folder.
        files: by ending in small letters, each list sorted.
        stems: of each folder, its images by stem.
    """

    root: Path
    files: dict[str, list[str]] = field(default_factory=dict)
    stems: dict[str, dict[str, str]] = field(default_factory=dict)

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
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if len(Path(folder).relative_to(root).parts) > 8:
            folders.clear()
        place = Path(folder).relative_to(root).as_posix()
        prefix = "" if place == "." else f"{place}/"
        for name in sorted(names):
            if name.startswith("."):
                continue
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path for each of so many takes seconds
            found.files.setdefault(suffix.lower(), []).append(prefix + name)
            if suffix.lower() in IMAGE_SUFFIXES:
                found.stems.setdefault(prefix, {})[stem] = name
        count += len(names)
        if count > MOST_FILES:
            raise UsageError(
                f"there are more than {MOST_FILES:,} files below this folder",
                where=str(root),
                fix="name the folder of the dataset alone",
            )
    return found


def role(path: str) -> str:
    """ "train", "val" or "test", as the file's name or the nearest folder above says; "" where none does."""
    *folders, name = path.split("/")
    for part in (name.rpartition(".")[0] or name, *reversed(folders)):
        words = re.split(r"[^a-z]+", part.lower())
        for kind, form in _ROLES.items():
            if any(map(form.match, words)):
                return kind
    return ""


def one_each(paths: Iterable[str]) -> dict[str, str]:
    """The first path of each role, a name with "instances" before others."""
    ordered = sorted(paths, key=lambda path: ("instances" not in path, path.count("/"), path))
    found: dict[str, str] = {}
    for path in ordered:
        found.setdefault(role(path), path)
    return found
