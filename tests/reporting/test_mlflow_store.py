from __future__ import annotations

from types import SimpleNamespace

import pytest

from kdlab.errors import MachineError
from kdlab.reporting import mlflow_store
from kdlab.reporting.ledger import Ledger


@pytest.mark.parametrize(("name", "found"), [("kdlab/known", "7"), ("kdlab/new", None)])
def test_an_experiment_is_found_by_its_name(name, found, bench, monkeypatch):
    known = {"kdlab/known": SimpleNamespace(experiment_id=7)}
    client = SimpleNamespace(get_experiment_by_name=known.get)
    monkeypatch.setattr(mlflow_store, "client", lambda ledger: client)
    assert mlflow_store.experiment_id(name, Ledger(bench.runs, None)) == found


def test_a_server_that_cannot_be_asked_is_told_without_its_password(bench, monkeypatch):
    uri = "http://me:secret@127.0.0.1:9"

    def client(ledger):
        raise OSError(f"no answer from {ledger.uri}/api")

    monkeypatch.setattr(mlflow_store, "client", client)
    with pytest.raises(MachineError) as caught:
        mlflow_store.experiment_id("kdlab/known", Ledger(bench.runs, uri))
    assert "http://127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)
