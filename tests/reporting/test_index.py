"""The index says what the files of the jobs say, whatever becomes of it."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from kdlab.jobs.matches import Matches
from kdlab.jobs.result import JobResult
from kdlab.reporting import index as module
from kdlab.reporting.index import RESAMPLES, Index
from kdlab.reporting.resampling import average_precision, draw


def matches(seed: int = 0) -> Matches:
    rng = np.random.default_rng(seed)
    label = np.sort(rng.integers(0, 2, 40)).astype(np.int16)
    score = rng.random(40).astype(np.float32)
    order = np.lexsort((-score, label))
    return Matches(
        images=np.arange(10),
        image=rng.integers(0, 10, 40).astype(np.int32),
        label=label[order],
        score=score[order],
        right=rng.choice([0, 3, 1023], 40).astype(np.uint16),
        ignored=np.zeros(40, np.uint16),
        objects=np.full((10, 2), 4, np.uint16),
    )


def test_results_come_without_their_course_and_else_as_written(bench) -> None:
    result = bench.finish(bench.job("rm"), losses=[{"iteration": 2.0, "loss": 1.0}])
    for _ in range(2):
        found = Index(bench.runs).results([result.id])
        assert found == {result.id: replace(result, losses=[], history=[])}


def test_what_is_known_is_not_read_again(bench, monkeypatch) -> None:
    result = bench.finish(bench.job("rm"))
    Index(bench.runs).results([result.id])
    monkeypatch.setattr(JobResult, "read", lambda paths: pytest.fail("read again"))
    assert Index(bench.runs).results([result.id]).keys() == {result.id}


def test_a_result_that_was_replaced_is_read_again(bench) -> None:
    result = bench.finish(bench.job("rm"), ap=30.0)
    Index(bench.runs).results([result.id])
    bench.finish(bench.job("rm"), ap=31.5)
    assert Index(bench.runs).results([result.id])[result.id].metrics["AP"] == 31.5


def test_jobs_without_a_result_are_absent(bench) -> None:
    assert Index(bench.runs).results(["student-none"]) == {}
    assert Index(bench.runs).resampled(["student-none"]) == {}


@pytest.mark.parametrize("content", [b"", b"this is no database", bytes(5000)])
def test_a_broken_index_costs_time_alone(bench, content: bytes) -> None:
    result = bench.finish(bench.job("rm"))
    (bench.runs.folder / "index-1.db").write_bytes(content)
    assert Index(bench.runs).results([result.id]).keys() == {result.id}


def test_an_index_that_is_broken_inside_costs_time_alone(bench) -> None:
    results = [bench.finish(bench.job("rm", seed), losses=[{"a": 0.5}] * 50) for seed in range(40)]
    Index(bench.runs).results(one.id for one in results)
    path = bench.runs.folder / "index-1.db"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    assert Index(bench.runs).results(one.id for one in results).keys() == {one.id for one in results}


def test_a_folder_that_cannot_be_written_costs_time_alone(bench, monkeypatch) -> None:
    result = bench.finish(bench.job("rm"))
    monkeypatch.setattr(module.sqlite3, "connect", _only_in_memory(module.sqlite3.connect))
    assert Index(bench.runs).results([result.id]).keys() == {result.id}


def _only_in_memory(connect):
    def refusing(path, **options):
        if path != ":memory:":
            raise module.sqlite3.OperationalError("unable to open database file")
        return connect(path, **options)

    return refusing


def test_more_jobs_than_a_query_takes(bench, monkeypatch) -> None:
    monkeypatch.setattr(module, "_IDS_A_QUERY", 2)
    results = [bench.finish(bench.job("rm", seed)) for seed in range(5)]
    for _ in range(2):
        assert Index(bench.runs).results(one.id for one in results).keys() == {one.id for one in results}


def test_resampled_ap_is_made_once_and_found_again(bench, monkeypatch) -> None:
    job = bench.job("rm")
    bench.finish(job)
    matches().write(bench.runs.job(job.id).matches)
    told: list[str] = []
    made = Index(bench.runs, told.append).resampled([job.id])[job.id]
    assert told == ["resampling the validation images, once: 1 of 1 models"]
    assert (made.ap == average_precision(matches(), draw(10, RESAMPLES))).all()
    monkeypatch.setattr(module, "resample", lambda path: pytest.fail("made again"))
    again = Index(bench.runs).resampled([job.id])[job.id]
    assert (again.ap == made.ap).all()
    assert (again.images, again.truth) == (10, made.truth)


def test_other_objects_are_another_truth(bench) -> None:
    jobs = [bench.job("rm", seed) for seed in range(3)]
    for job, objects in zip(jobs, (4, 4, 5), strict=True):
        bench.finish(job)
        one = replace(matches(job.seed), objects=np.full((10, 2), objects, np.uint16))
        one.write(bench.runs.job(job.id).matches)
    first, second, third = (one.truth for one in Index(bench.runs).resampled(job.id for job in jobs).values())
    assert first == second != third


def test_matches_that_are_broken_are_passed_over(bench) -> None:
    job = bench.job("rm")
    bench.finish(job)
    bench.runs.job(job.id).matches.write_bytes(b"torn")
    assert Index(bench.runs).resampled([job.id]) == {}


def test_several_processes_find_what_one_finds(bench, monkeypatch) -> None:
    jobs = [bench.job("rm", seed) for seed in range(2)]
    for job in jobs:
        bench.finish(job)
        matches(job.seed).write(bench.runs.job(job.id).matches)
    alone = Index(bench.runs).resampled(job.id for job in jobs)
    (bench.runs.folder / "index-1.db").unlink()
    monkeypatch.setattr(module, "_BYTES_FOR_ONE", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    together = Index(bench.runs).resampled(job.id for job in jobs)
    assert all((together[job].ap == alone[job].ap).all() for job in alone)
