"""Methods on a GPU that is not there: where their tensors lie, what they compute, how often they wait.

Each method and each detector once, all pairs of them with `-m slow`.
"""

from __future__ import annotations

from collections import Counter

import pytest

from kdlab.detectors import family
from tests.gpu.conftest import Step, served
from tests.stubs.pairs import quick_once

MOST = {("retinanet", "gid"): 60, "gid": 40}
"""Waits that a method may add to a step of mmdet's own, others 10. RetinaNet's assigner waits once a box."""


@pytest.mark.parametrize(("detector", "method"), quick_once(served()))
def test_a_method_computes_the_same_on_the_gpu_and_waits_little_for_it(
    step: Step, detector: str, method: str
) -> None:
    found, waits = step(detector, method, "pretended")
    assert found == pytest.approx(step(detector, method, "cpu")[0], rel=1e-4, abs=1e-6)
    added = waits - step(detector, "", "pretended")[1]
    if "queries" in family(detector).provides:
        # mmdet's passes and losses, which such a method runs again, wait within mmdet and mmcv
        added = Counter({what: count for what, count in added.items() if " at kdlab/" in what})
    most = MOST.get((detector, method)) or MOST.get(method, 10)
    assert added.total() <= most, "\n".join(f"{n} {what}" for what, n in added.most_common())
