"""Numbers move on purpose or not at all: some steps of every detector and method against a file.

The first steps of every method and all steps of every detector are seen by default, the rest with `-m slow`.
`KDLAB_WRITE_GOLDEN=1 python -m pytest tests/training/test_numerics.py` writes the file anew, and refuses
where a number moved and no `VERSION` of what made it was raised.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab import catalog
from kdlab.jobs.spec import VERSIONS
from kdlab.training.distiller import Distiller
from kdlab.training.optimising import build_optimiser
from tests.stubs.jobs import schedule
from tests.stubs.pairs import DETECTORS, METHODS, kinds

FILE = Path(__file__).parent / "golden_losses.json"
CASES = [
    f"{detector} {method}"
    for detector, method in product(DETECTORS, ["baseline", *METHODS])
    if method == "baseline" or detector in kinds(method, {})
]
WRITE = "KDLAB_WRITE_GOLDEN"
# other processors round differently; a step of SGD at a small rate does not blow that up
TOLERANCE = {"rel": 1e-4, "abs": 1e-6}
SCHEDULE = schedule(optimizer="sgd", weight_decay=1e-4)
BATCHES = ([0, 1], [2, 0]) * 2
# the second step is the first after an update; momentum shows in the third, whatever the method
FIRST = 2
QUICK = {case: len(BATCHES) if case.endswith(" baseline") else FIRST for case in CASES}


def versions() -> dict[str, int]:
    """Of the training loop and of all plugins that make numbers."""
    plugins = {"detectors": catalog.detectors(), "methods": catalog.methods()}
    return {"loop": VERSIONS["loop"]} | {
        f"{room}/{key}": info.version for room, known in plugins.items() for key, info in known.items()
    }


def raised(case: str, known: dict[str, int]) -> bool:
    """Whether something that a case uses has another version than the file was written with."""
    detector, method = case.split()
    used = ("loop", f"detectors/{detector}", f"methods/{method}")
    return any(versions().get(name) != known.get(name) for name in used)


def moved(case: str, found: Any, known: Any) -> bool:
    # which regions gid looks at is a choice that the rounding of another processor can change
    near = {"rel": 2e-3} if case.endswith(" gid") else TOLERANCE
    if found.keys() != known.keys():
        return True
    return any(found[name] != pytest.approx(known[name], **near) for name in found)


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Any]]:
    """The file's content: read, or written at the end with what was measured."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {"versions": {}, "losses": {}}
    if not os.environ.get(WRITE):
        yield known
        return
    measured: dict[str, Any] = {"versions": versions(), "losses": {}}
    yield measured
    for case in measured["losses"].keys() & known["losses"].keys():
        found = measured["losses"][case]
        if moved(case, found, known["losses"][case]) and not raised(case, known["versions"]):
            pytest.fail(f"the numbers of {case} moved: raise a VERSION, of the loop or a plugin, then write")
    FILE.write_text(json.dumps(measured, indent=1) + "\n")


@pytest.fixture
def some_steps(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> Callable[[str, int], dict[str, list[float]]]:
    """Total and raw losses of the first `count` steps."""

    def some_steps(case: str, count: int) -> dict[str, list[float]]:
        torch.manual_seed(0)  # of a DETR's dropout and denoising
        detector, method = case.split()
        methods = {} if method == "baseline" else {method: term(method)}
        info = catalog.methods().get(method)
        as_wide = {"neck_channels": 8} if info and {"head", "channels"} & {*info.needs_for({})[1]} else {}
        student = build(detector, 0, neck_channels=8)
        distiller = Distiller(student, methods, build(detector, 1, **as_wide))
        optim = build_optimiser(distiller.train(), SCHEDULE)
        losses: dict[str, list[float]] = {}
        for iteration, images in enumerate(BATCHES[:count]):
            distiller.iteration, distiller.max_iterations = iteration, len(BATCHES)
            total = distiller.train_step(raw_batch(images), optim)["loss"]
            for name, value in {"loss": total, **distiller.raw_terms}.items():
                losses.setdefault(name, []).append(float(f"{value.item():.7g}"))
        return losses

    return some_steps


def check(golden: dict[str, Any], case: str, found: dict[str, list[float]], count: int) -> None:
    known = golden["losses"][case]
    first = {name: values[:count] for name, values in known.items()}
    if moved(case, found, first):
        pytest.fail(
            f"the losses of {case} moved\n  before {first}\n  now    {found}\n"
            f"on purpose? raise VERSION in the plugin's file, or VERSIONS in kdlab/jobs/spec.py, "
            f"then {WRITE}=1 python -m pytest tests/training/{Path(__file__).name}"
        )


@pytest.mark.parametrize(("case", "count"), QUICK.items(), ids=CASES)
def test_steps_cost_what_they_cost_before(
    golden: dict[str, Any], some_steps: Callable[[str, int], Any], case: str, count: int
) -> None:
    assert torch.get_num_threads() == 1
    if os.environ.get(WRITE):
        golden["losses"][case] = some_steps(case, len(BATCHES))
    elif case not in golden["losses"]:
        pytest.fail(f"{case} has no numbers yet: {WRITE}=1 python -m pytest {Path(__file__).name}")
    else:
        check(golden, case, some_steps(case, count), count)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if QUICK[case] < len(BATCHES)])
def test_all_steps_cost_what_they_cost_before(
    golden: dict[str, Any], some_steps: Callable[[str, int], Any], case: str
) -> None:
    check(golden, case, some_steps(case, len(BATCHES)), len(BATCHES))


def test_the_file_belongs_to_these_versions_and_to_these_plugins(golden: dict[str, Any]) -> None:
    assert golden["versions"] == versions(), f"a version was raised: write {FILE.name} anew with {WRITE}=1"
    assert list(golden["losses"]) == CASES, f"plugins came or went: write {FILE.name} anew with {WRITE}=1"


def test_a_method_adds_its_weighted_loss_to_the_same_first_step(golden: dict[str, Any]) -> None:
    losses = golden["losses"]
    for case, arm in losses.items():
        terms = sum(values[0] for name, values in arm.items() if name != "loss")
        alone = losses[f"{case.split()[0]} baseline"]["loss"][0]
        assert arm["loss"][0] == pytest.approx(alone + terms, rel=1e-5), case
