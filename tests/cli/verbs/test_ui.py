from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import typer

from kdlab import session
from kdlab.cli.verbs import ui
from kdlab.tracking.base import Lacking
from kdlab.tracking.mlflow import Mlflow
from tests.cli.conftest import Lab, wait_for

HOST = "127.0.0.1"
RUNS = "runs?workflowType=machine_learning"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tracking server of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("MLFLOW")]:
        monkeypatch.delenv(name)


@pytest.fixture
def port() -> int:
    return ui.free_port(HOST, 31000 + os.getpid() % 1000 * 10)


@pytest.fixture
def searched(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A database of searches."""
    lab.runs.folder.mkdir()
    (lab.runs.folder / "optuna.db").touch()
    monkeypatch.setattr(ui, "find_spec", lambda name: name)
    return lab


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the command would have gone on as."""
    seen: list[list[str]] = []

    def instead(_path: str, argv: list[str]) -> NoReturn:
        seen.append(argv)
        raise typer.Exit

    monkeypatch.setattr(os, "execv", instead)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    return seen


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is slow to take what it lacks."""
    monkeypatch.setattr(session, "catch_up", lambda *_: (Lacking("mlflow", 5, "slow"),))


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
    lab: Lab, lacking: None, became: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.save()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracker:5000/")
    monkeypatch.setattr(
        Mlflow, "experiment_id", lambda self, plan: {"digits/quickstart": "7"}[plan.recipe["name"]]
    )
    code, out, err = lab("ui")
    assert (code, out) == (0, f"http://tracker:5000/#/experiments/7/{RUNS}\n")
    assert "mlflow lacks news of 5 jobs (slow)" in err
    told = json.loads(lab("ui --json")[1])
    assert told == {"schema": 1, "url": out.strip(), "pid": None}
    assert became == []


def test_a_server_that_cannot_be_asked_is_told_without_its_password(
    lab: Lab, lacking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.save()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    code, out, err = lab("ui")
    assert (code, out) == (3, "")
    assert "error: http://***@127.0.0.1:9  MLflow cannot be asked" in err
    assert "secret" not in err


def test_a_database_that_could_not_be_made_starts_no_server(lab: Lab, lacking: None) -> None:
    lab.save()
    code, out, err = lab("ui")
    assert (code, out) == (3, "")
    assert "MLflow has no database" in err


def test_a_taken_port_is_told_and_stdout_is_the_address_alone(
    searched: Lab, became: list[list[str]], port: int
) -> None:
    with closing(socket.create_server((HOST, port))):
        _, out, err = searched(f"ui optuna --port {port}")
    address, _, path = out.strip().rpartition("/dashboard/")
    free = address.rpartition(":")[2]
    assert (int(free) > port, path) == (True, "")
    assert err.startswith(f"port {port} is taken, {free} is free")
    assert "Ctrl-C ends it" in err
    assert became[0][-4:] == ["--host", HOST, "--port", free]


def test_a_host_that_is_not_this_machine_is_refused(searched: Lab, became: list[list[str]]) -> None:
    code, _, err = searched("ui optuna --host 192.0.2.1")
    assert (code, became) == (2, [])
    assert "one cannot listen at port 8080 of 192.0.2.1" in err


def test_json_is_one_object(searched: Lab, became: list[list[str]], port: int) -> None:
    _, out, err = searched(f"ui optuna --json --port {port}")
    assert json.loads(out) == {"schema": 1, "url": f"http://{HOST}:{port}/dashboard/", "pid": os.getpid()}
    assert err == ""


@pytest.mark.parametrize(
    ("desktop", "terminal", "option", "opened"),
    [
        (True, True, "", True),
        (False, True, "", False),
        (True, False, "", False),
        (True, True, " --no-open", False),
    ],
)
def test_a_browser_opens_where_a_person_looks(
    desktop: bool,
    terminal: bool,
    option: str,
    opened: bool,
    searched: Lab,
    became: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(subprocess, "Popen", seen.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if desktop:
        monkeypatch.setenv("DISPLAY", ":0")
    searched("ui optuna" + option)
    assert bool(seen) == opened


@contextmanager
def shown(folder: Path, *argv: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`kdlab ui` at work in a process of its own, and what it said to a program."""
    command = [sys.executable, "-m", "kdlab", "ui", *argv, "--json"]
    # a shell that started the tests in the background has Ctrl-C ignored
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    start: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=folder, preexec_fn=heed, **start) as process:
        assert process.stdout
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def nobody_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def answer(url: str) -> Any:
    """What a server says as soon as it answers."""
    for _ in range(600):
        with suppress(URLError), urlopen(url) as found:
            return json.load(found)
        time.sleep(0.1)
    pytest.fail(f"{url} does not answer")


@pytest.mark.e2e
@pytest.mark.skipif(find_spec("optuna_dashboard") is None, reason="needs kdlab[ui]")
def test_the_dashboard_shows_a_search_and_ends_at_ctrl_c(tmp_path: Path, port: int) -> None:
    import optuna

    url = f"sqlite:///{tmp_path / 'own.db'}"
    optuna.create_study(study_name="digits/quickstart rm", storage=url)
    with shown(tmp_path, "optuna", "--storage", url, "--port", str(port)) as (process, told):
        assert told["url"] == f"http://127.0.0.1:{port}/dashboard/"
        assert told["pid"] == process.pid
        (study,) = answer(f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
        assert study["study_name"] == "digits/quickstart rm"
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)
        wait_for(lambda: nobody_left(process.pid))


@pytest.mark.e2e
def test_mlflow_opens_on_the_newest_plan_and_ends_at_ctrl_c(lab: Lab, port: int) -> None:
    lab.done("b0")
    lab.save()
    with shown(lab.runs.folder.parent, "--port", str(port)) as (process, told):
        address, _, page = told["url"].partition("#/experiments/")
        assert address == f"http://127.0.0.1:{port}/"
        number, _, view = page.partition("/")
        found = answer(f"{address}api/2.0/mlflow/experiments/get?experiment_id={number}")["experiment"]
        assert (found["name"], view) == ("kdlab/digits/quickstart", RUNS)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)
        wait_for(lambda: nobody_left(process.pid))
    assert {path.name for path in lab.runs.folder.parent.iterdir()} == {"runs"}
