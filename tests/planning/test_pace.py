"""What jobs cost that nothing finished tells of: counted by hand from the seconds of a batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdlab import children
from kdlab.datasets.base import DatasetFiles, Split
from kdlab.devices import Gpu, Machine
from kdlab.errors import MachineError
from kdlab.jobs.job import Job
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.planning import pace
from tests.stubs.jobs import MODEL, make, method

STEPS = {"student": 1.0, "distilled": 4.0, "forward": 0.5, "teacher": 3.0}
HERE = Machine((0, 1))
IMAGES, MEASURED = 10, 7


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetFiles:
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    splits = []
    for name, count in (("train", IMAGES), ("val", MEASURED)):
        path = tmp_path / f"{name}.json"
        images = [{"id": n, "file_name": f"{n}.png", "width": 96, "height": 64} for n in range(count)]
        path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
        splits.append(Split(tmp_path, path))
    return DatasetFiles("coco", ("a", "b"), *splits, "f" * 16)


def job(files: DatasetFiles, kind: str, **settings: Any) -> Job:
    return make(f"{kind}-1", kind=kind, inputs={"dataset": files}, **settings)


def priced(*jobs: Job, cost: float | None = None) -> list[tuple[float | None, str]]:
    planned = tuple(PlannedJob(one, False, "new", cost) for one in jobs)
    made = pace.priced(Plan("7f3a0001", {"name": "a"}, planned, "cpu", {}), HERE)
    return [(one.cost_s, one.cost_source) for one in made.jobs]


@pytest.mark.parametrize(
    ("kind", "settings", "seconds"),
    [
        # of 10 images in batches of 4 there are 3 an epoch
        ("student", {}, 2 * 3 * 1.0),
        ("student", {"schedule": {"epochs": None, "iterations": 50}}, 50 * 1.0),
        ("student", {"methods": {"rm": method("rm")}, "teacher": MODEL}, 2 * 3 * 4.0),
        # the neck and head of a teacher, and none of its methods
        ("student", {"teacher": MODEL, "inherit": True}, 2 * 3 * 1.0),
        ("teacher", {}, 2 * 3 * 3.0),
        # of 7 images in batches of 4 there are 2
        ("evaluate", {"checkpoint": "0" * 64, "pad_divisor": 32, "batch_size": 4}, 2 * 0.5),
        ("prepare", {"method": "maskd", "iterations": 20, "pad_divisor": 32}, 20 * 0.5),
    ],
)
def test_cost_is_that_of_all_batches(
    kind: str, settings: Any, seconds: float, files: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "measured", lambda *_: STEPS)
    settings = dict(settings)
    if kind != "evaluate":
        settings["schedule"] = {"epochs": 2, "batch_size": 4, **settings.get("schedule", {})}
    student = job(files, "student", schedule={"epochs": 2})
    (cost, source), _ = priced(job(files, kind, **settings), student)
    assert cost == pytest.approx(pace.BESIDES * seconds)
    assert source == "by a few steps"


def test_what_earlier_jobs_tell_stands(files: DatasetFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "measured", lambda *_: pytest.fail("nothing is unknown"))
    assert priced(job(files, "student"), cost=60.0) == [(60.0, "unknown")]


def test_cost_stays_unknown_where_models_cannot_be_stepped(
    files: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> Any:
        raise MachineError("no memory")

    monkeypatch.setattr(children, "told", refuses)
    assert priced(job(files, "student")) == [(None, "unknown")]


def test_cost_stays_unknown_where_labels_went_away(
    files: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "told", lambda *_: STEPS)
    files.train.labels.unlink()
    assert priced(job(files, "student")) == [(None, "unknown")]


def test_steps_are_measured_once_and_of_the_arm_that_asks_most(
    files: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(children, "told", lambda _, request, __: asked.append(request) or STEPS)
    one = job(files, "student", methods={"rm": method("rm")}, teacher=MODEL)
    two = job(files, "student", methods={"rm": method("rm"), "pfi": method("pfi")}, teacher=MODEL, threads=2)
    prepared = {"methods": {"a": method("rm"), "b": method("pfi"), "c": method("maskd")}, "teacher": MODEL}
    three = job(files, "student", prepared={"c": "prepare-1"}, **prepared)
    for _ in range(2):
        assert pace.measured([job(files, "teacher"), one, two, three], HERE) == STEPS
    (request,) = asked
    assert [*request["methods"]] == ["rm", "pfi"]
    assert (request["classes"], request["size"], request["batch"]) == (2, [96, 64], 4)
    pace.measured([one], replace(HERE, cores=(0,)))
    assert len(asked) == 2


def test_steps_are_measured_on_a_gpu_that_nobody_has_and_not_where_all_are_taken(
    files: DatasetFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(children, "told", lambda *_, **env: seen.append(env) or STEPS)
    two = Machine((0,), tuple(Gpu(number, f"GPU-{number}", 80.0) for number in range(2)))
    with two.lease("gpu", 1) as others:
        with two.lease("gpu", 1), pytest.raises(MachineError, match="no GPU is free"):
            pace.measured([job(files, "student")], two)
        pace.measured([job(files, "student")], two)
        assert [env["CUDA_VISIBLE_DEVICES"] for env in seen] == [*{"GPU-0", "GPU-1"} - {*others.ids}]


def test_each_stage_of_a_chain_of_teachers_is_measured_by_its_own_pair(
    files: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(jobs: list[Job], *_: Any) -> dict[str, float]:
        (width,) = {one.spec.model.width for one in jobs if one.spec.kind == "student"}
        return {"student": width, "teacher": 100.0}

    monkeypatch.setattr(pace, "measured", measured)
    settings: dict[str, Any] = {"schedule": {"epochs": 2}}
    chain = [
        replace(job(files, "teacher", **settings), arm="teacher of teacher"),
        replace(job(files, "student", model={"width": 16}, **settings), arm="teacher"),
        job(files, "student", **settings),
    ]
    steps = pace.BESIDES * 2 * 3
    assert [cost for cost, _ in priced(*chain)] == [100 * steps, 16 * steps, 8 * steps]
