"""Filters go to MLflow as they are, and what it answers becomes jobs of this folder."""

from __future__ import annotations

import pytest

from kdlab import session
from kdlab.errors import UsageError
from kdlab.jobs.files import write_json
from kdlab.reporting.queries import plans
from tests.stubs.jobs import method

SETTINGS = {
    "model": {"detector": "gfl", "backbone": "resnet18"},
    "dataset": {"name": "digits", "fingerprint": "01"},
    "schedule": {"epochs": 6},
    "methods": {},
    "teacher": None,
}


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def recorded(bench):
    """Two seeds of a baseline and one of rm, all in MLflow."""
    jobs = [bench.job("baseline", seed, settings=SETTINGS) for seed in range(2)]
    jobs.append(bench.job("rm", settings=SETTINGS | {"methods": {"rm": method("rm", weight=4.0)}}))
    for job in jobs:
        bench.train(job, ap=30.0 + job.seed)
        write_json(bench.runs.job(job.id).job, job.to_dict())
    assert session.catch_up([bench.plan(jobs)], bench.runs) == ()
    return bench


def arms(made) -> list[list[str]]:
    return [sorted(f"{one.job.arm} {one.job.seed}" for one in plan.jobs) for plan in made]


def test_filter_picks_jobs_by_metrics_tags_and_settings_and_is_refused_where_it_is_none(recorded) -> None:
    """One test, for a database takes seconds to make."""
    assert arms(plans("metrics.`val/AP` > 30.5", recorded.runs)) == [["baseline 1"]]
    assert arms(plans("tags.`kdlab.arm` = 'rm'", recorded.runs)) == [["rm 0"]]
    every = ["baseline 0", "baseline 1", "rm 0"]
    assert arms(plans("params.`schedule.epochs` = '6'", recorded.runs)) == [every]
    with pytest.raises(UsageError, match="does not take this filter"):
        plans("=== what", recorded.runs)
    with pytest.raises(UsageError, match="no finished student fits"):
        plans("tags.`kdlab.arm` = 'none'", recorded.runs)


def test_without_a_record_nothing_is_asked(bench) -> None:
    with pytest.raises(UsageError, match="nothing was recorded"):
        plans("", bench.runs)
