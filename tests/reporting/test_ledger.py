from __future__ import annotations

import pytest

from kdlab.reporting.ledger import Entry, Ledger, plan_status


@pytest.fixture
def ledger(bench):
    bench.runs.folder.mkdir()
    (bench.runs.folder / "mlflow.db").touch()
    return Ledger(bench.runs, None)


def test_entry_is_read_as_written(ledger):
    entry = Entry(ledger.store, "run", "7f3a0001", 1000, 512, "RUNNING", [512, 0, 0])
    ledger.write("student-0", entry)
    assert ledger.read("student-0") == entry


def test_entry_of_another_server_says_nothing(bench, ledger):
    ledger.write("student-0", Entry(ledger.store, "run"))
    other = Ledger(bench.runs, "http://127.0.0.1:9")
    assert other.read("student-0") == Entry(other.store)


def test_entry_says_nothing_once_the_database_is_deleted(ledger):
    ledger.write("student-0", Entry(ledger.store, "run"))
    ledger.database.unlink()
    assert ledger.read("student-0") == Entry(ledger.store)


def test_address_of_the_database_of_the_runs_is_the_default(bench, ledger):
    assert Ledger(bench.runs, ledger.uri).local
    assert not Ledger(bench.runs, "sqlite:////elsewhere/mlflow.db").local


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ({"done"}, "FINISHED"),
        ({"done", "queued"}, "RUNNING"),
        ({"done", "failed", "running"}, "RUNNING"),
        ({"done", "failed", "cancelled", "skipped"}, "FAILED"),
        ({"done", "cancelled", "queued"}, "KILLED"),
        ({"done", "interrupted"}, "KILLED"),
    ],
)
def test_plan_has_the_status_of_its_worst_job_once_none_runs(states, status):
    assert plan_status(states) == status
