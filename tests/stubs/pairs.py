"""Which methods serve which detectors, and where another detector shows a method nothing new."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

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


def quick_once(pairs: Iterable[tuple[str, str]]) -> list[Any]:
    """The pairs as parameters; one of which earlier pairs had both parts comes with `-m slow` alone."""
    seen: set[str] = set()
    params = []
    for pair in pairs:
        params.append(pytest.param(*pair, marks=pytest.mark.slow if seen.issuperset(pair) else ()))
        seen |= {*pair}
    return params
