from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from kdlab.cli.screen import server
from kdlab.cli.screen.console import Screen
from kdlab.cli.verbs import ui
from kdlab.reporting import mlflow_store, tracking
from kdlab.reporting.tracking import SyncReport
from tests.cli.conftest import Lab, wait_for

HOST = "127.0.0.1"
RUNS = "runs?workflowType=machine_learning"
# answers once and ends; the port is its last argument
BRIEF = """
import sys, http.server as h
h.HTTPServer(('127.0.0.1', int(sys.argv[-1])), h.BaseHTTPRequestHandler).handle_request()
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tracking server of the person who runs the tests, and no browser."""
    for name in [name for name in os.environ if name.startswith("MLFLOW")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail(f"a browser for {url}"))


@pytest.fixture
def port() -> int:
    return server.free_port(HOST, 31000 + os.getpid() % 1000 * 10)


@pytest.fixture
def searched(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A database of searches, and a dashboard that is soon gone."""
    lab.runs.folder.mkdir()
    (lab.runs.folder / "optuna.db").touch()
    monkeypatch.setattr(ui, "find_spec", lambda name: name)
    monkeypatch.setattr(ui, "_DASHBOARD", BRIEF)
    return lab


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """MLflow takes nothing at first and all later; with how many seconds it was asked."""
    asked: list[float] = []

    def sync(*_: Any, deadline_s: float) -> SyncReport:
        asked.append(deadline_s)
        return SyncReport(0, 5, "slow") if len(asked) == 1 else SyncReport(5)

    monkeypatch.setattr(tracking, "sync", sync)
    return asked


def test_nothing_run_here_names_the_quickstart(lab: Lab) -> None:
    code, out, err = lab("ui")
    assert (code, out) == (2, "")
    assert "nothing was run here yet" in err
    assert err.splitlines()[-1] == "  fix    kdlab run digits/quickstart"


def test_nothing_searched_here_names_the_search(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "find_spec", lambda name: name)
    code, out, err = lab("ui optuna")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "  fix    kdlab tune digits/quickstart"
    assert not lab.runs.folder.exists()


@pytest.mark.parametrize("storage", ["sqlite:///gone.db", "gone.log"])
def test_a_database_that_is_not_there_is_not_made(storage: str, searched: Lab) -> None:
    code, _, err = searched(f"ui optuna --storage {storage}")
    assert code == 2
    assert "error: gone." in err
    assert not list(Path.cwd().glob("gone*"))


def test_a_missing_dashboard_is_told_with_its_extra(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "find_spec", lambda name: None)
    code, _, err = lab("ui optuna")
    assert code == 3
    assert err.splitlines()[-1] == "  fix    pip install 'kdlab[ui]'"


def test_mlflow_takes_no_storage(lab: Lab) -> None:
    assert lab("ui --storage sqlite:///optuna.db")[0] == 2


def test_a_tracking_server_is_named_and_not_started(
    lab: Lab, synced: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.save()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracker:5000/")
    monkeypatch.setattr(mlflow_store, "experiment_id", lambda name, _: {"kdlab/digits/quickstart": "7"}[name])
    code, out, err = lab("ui")
    assert (code, out) == (0, f"http://tracker:5000/#/experiments/7/{RUNS}\n")
    assert "MLflow lacks 5 points (slow)" in err
    told = json.loads(lab("ui --json")[1])
    assert told == {"schema": 1, "url": out.strip(), "pid": None}


def test_what_mlflow_lacks_is_sent_while_one_looks(
    lab: Lab, synced: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    lab.save()
    (lab.runs.folder / "mlflow.db").touch()
    site = ui._mlflow(Screen(), lab.runs)
    site.meanwhile()
    site.meanwhile()
    first, later, *_ = synced
    assert first <= 5.0
    assert later == float("inf")
    assert "MLflow has everything now" in capfd.readouterr().err


def test_a_database_that_could_not_be_made_starts_no_server(lab: Lab, synced: list[float]) -> None:
    lab.save()
    code, out, err = lab("ui")
    assert (code, out) == (3, "")
    assert "MLflow has no database" in err


def test_a_taken_port_is_told_and_stdout_is_the_address_alone(searched: Lab, port: int) -> None:
    with closing(socket.create_server((HOST, port))):
        code, out, err = searched(f"ui optuna --port {port}")
    address, _, path = out.strip().rpartition("/dashboard/")
    assert (int(address.rpartition(":")[2]) > port, path) == (True, "")
    assert err.startswith(f"port {port} is taken, ")
    assert "Ctrl-C ends it" in err
    assert (code, "ended with exit code 0" in err) == (3, True)


def test_json_is_one_object(searched: Lab, port: int) -> None:
    _, out, err = searched(f"ui optuna --json --port {port}")
    told = json.loads(out)
    assert told.keys() == {"schema", "url", "pid"}
    assert err.startswith("error: ")


@pytest.mark.parametrize(
    ("desktop", "terminal", "no_open", "opened"),
    [
        (True, True, False, True),
        (False, True, False, False),
        (True, False, False, False),
        (True, True, True, False),
    ],
)
def test_a_browser_opens_where_a_person_looks(
    desktop: bool, terminal: bool, no_open: bool, opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(webbrowser, "open", seen.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if desktop:
        monkeypatch.setenv("DISPLAY", ":0")
    ui._show(Screen(), "http://127.0.0.1:5000/", None, no_open)
    assert bool(seen) == opened


@contextmanager
def shown(folder: Path, *argv: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`kdlab ui` at work in a process of its own, and what it said to a program."""
    command = [sys.executable, "-m", "kdlab", "ui", *argv, "--json"]
    # a shell that started the tests in the background has Ctrl-C ignored
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stdout
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.terminate()


def nobody_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.e2e
@pytest.mark.skipif(find_spec("optuna_dashboard") is None, reason="needs kdlab[ui]")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_dashboard_shows_a_search_and_ends_with_the_command(
    number: signal.Signals, code: int, tmp_path: Path, port: int
) -> None:
    import optuna

    url = f"sqlite:///{tmp_path / 'own.db'}"
    optuna.create_study(study_name="digits/quickstart rm", storage=url)
    with shown(tmp_path, "optuna", "--storage", url, "--port", str(port)) as (process, told):
        assert told["url"] == f"http://127.0.0.1:{port}/dashboard/"
        with urlopen(f"http://127.0.0.1:{port}/api/studies") as answer:
            (study,) = json.load(answer)["study_summaries"]
        assert study["study_name"] == "digits/quickstart rm"
        process.send_signal(number)
        assert process.wait(20) == code
    wait_for(lambda: nobody_left(told["pid"]))


@pytest.mark.e2e
def test_mlflow_opens_on_the_newest_plan_and_ends_with_the_command(lab: Lab, port: int) -> None:
    lab.done("b0")
    lab.save()
    with shown(lab.runs.folder.parent, "--port", str(port)) as (process, told):
        address, _, page = told["url"].partition("#/experiments/")
        assert address == f"http://127.0.0.1:{port}/"
        number, _, view = page.partition("/")
        with urlopen(f"{address}api/2.0/mlflow/experiments/get?experiment_id={number}") as answer:
            found = json.load(answer)["experiment"]
        assert (found["name"], view) == ("kdlab/digits/quickstart", RUNS)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    wait_for(lambda: nobody_left(told["pid"]))
    assert {path.name for path in lab.runs.folder.parent.iterdir()} == {"runs"}
