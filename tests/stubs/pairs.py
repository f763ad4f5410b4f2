"""Which methods serve which detectors, and where another detector shows a method nothing new."""

from __future__ import annotations

from typing import Any

from kdlab import catalog
from kdlab.detectors import family

DETECTORS = [name for name in catalog.detectors() if not family(name).masks]
METHODS = catalog.methods()
OTHER_NECKS = ("gfl", "faster_rcnn")
"""For a method on neck maps alone, which sees no more of a detector than whether proposals come next."""


def serves(method: str, options: dict[str, Any], detector: str) -> bool:
    """Whether the plan lets a method teach this detector by another one of its family."""
    needs, _ = METHODS[method].needs_for(options)
    return set(needs) <= set(family(detector).provides)


def kinds(method: str, options: dict[str, Any]) -> list[str]:
    """The detectors that make a difference to a method, of those that it serves."""
    wanted = OTHER_NECKS if METHODS[method].needs_for(options) == (("feats",), ()) else DETECTORS
    return [name for name in wanted if serves(method, options, name)]
