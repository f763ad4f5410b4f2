"""Folders of plugins that people keep beside their recipes."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

VARIABLE = "KDLAB_PLUGINS"
LOCAL = "kdlab_plugins"
"""In the working folder."""


@cache
def folders() -> tuple[str, ...]:
    """Absolute: those of `$KDLAB_PLUGINS`, then `kdlab_plugins` of the working folder; looked for once."""
    named = [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    paths = [Path(part).absolute() for part in named] + [Path(LOCAL).absolute()]
    return tuple(dict.fromkeys(str(path) for path in paths if path.is_dir()))


def of(*room: str) -> list[str]:
    """The folders of one kind of plugin: ("methods",), ("running", "executors")."""
    places = [Path(folder, room[-1]) for folder in folders()]
    return [str(place) for place in places if place.is_dir()]


def version(path: Path) -> int:
    """A number that changes with the content of a plugin's file and of the parts ("_name.py") beside it."""
    digest = hashlib.sha256()
    for part in (path, *sorted(path.parent.glob("_*.py"))):
        digest.update(hashlib.sha256(part.read_bytes()).digest())
    return int(digest.hexdigest()[:12], 16)
