"""kdlab ui: look at what was run in MLflow, or at a search in optuna-dashboard."""

from __future__ import annotations

import math
import os
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdlab.cli.screen import server
from kdlab.cli.screen.console import Screen
from kdlab.cli.verbs.report import send_all
from kdlab.errors import MachineError, UsageError

if TYPE_CHECKING:
    from kdlab.jobs.paths import Runs

START_S = 60.0
"""Seconds in which a server is expected to answer; MLflow imports a lot."""
# without it MLflow opens its pages for language models
_RUNS = "runs?workflowType=machine_learning"
# seven processes that judge language models, of which some outlive the server
_NO_JOBS = (("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),)
_SQLITE = "sqlite:///"
# the console script itself need not lie on the path
_DASHBOARD = (
    "import sys; from importlib.metadata import entry_points; "
    "sys.exit(entry_points(group='console_scripts')['optuna-dashboard'].load()())"
)


class Page(StrEnum):
    """What there is to look at."""

    mlflow = "mlflow"
    optuna = "optuna"


PORTS = {Page.mlflow: 5000, Page.optuna: 8080}


@dataclass(frozen=True)
class _Site:
    """What is shown, and by whom.

    Args:
        name: what people call the server.
        page: the path of what to look at; asked once the server starts, for it may take seconds.
        command: starts the server; host and port are added.
        environment: what the server's environment has beside ours.
        at: the address of a server that is there already.
        meanwhile: what else is to be done once the page is shown.
    """

    name: str
    page: Callable[[], str]
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    at: str = ""
    meanwhile: Callable[[], None] = lambda: None


def ui(
    screen: Screen,
    page: Annotated[Page, typer.Argument(help="MLflow on what was run, or optuna-dashboard on a search.")] = (
        Page.mlflow
    ),
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=65535, help="Default: 5000, of optuna 8080, or the next free."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="NAME", help="Where to listen; 0.0.0.0 lets other machines look too.")
    ] = "127.0.0.1",
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Of optuna: another database than optuna.db in runs/.")
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
) -> None:
    """Look at what was run in MLflow, or at a search in optuna-dashboard, until Ctrl-C.

    MLflow opens on the newest plan's recipe, after what it lacks was sent. Where MLFLOW_TRACKING_URI is a
    server, nothing is started.

    \b
    Examples:
      $ kdlab ui
      http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning
      $ kdlab ui optuna --port 9000
      http://127.0.0.1:9000/dashboard/
    """
    from kdlab.jobs.paths import Runs

    if storage and page is not Page.optuna:
        fix = "kdlab ui optuna --storage URL; MLflow's own is MLFLOW_TRACKING_URI"
        raise UsageError("--storage is an option of optuna alone", got=storage, fix=fix)
    runs = Runs.here()
    site = _optuna(runs, storage) if page is Page.optuna else _mlflow(screen, runs)
    if site.at:
        _show(screen, site.at + site.page(), None, no_open)
        screen.next("kdlab report --table")
        return
    _serve(screen, site, host, port or PORTS[page], no_open)


def _serve(screen: Screen, site: _Site, host: str, wanted: int, no_open: bool) -> None:
    """Start the server, show its page, and stay until one of us is ended."""
    port = server.free_port(host, wanted)
    if port != wanted:
        screen.say(f"port {wanted} is taken, {port} is free")
    command = (*site.command, "--host", host, "--port", str(port))
    environment = dict(site.environment)
    with server.running(
        site.name, command, host, port, environment=environment, chatty=screen.verbose
    ) as started:
        with screen.working(f"starting {site.name}"):
            page = site.page()
            started.wait_until_up(START_S)
        _show(screen, started.url + page, started.pid, no_open)
        screen.say("Ctrl-C ends it")
        site.meanwhile()
        started.wait()


def _show(screen: Screen, url: str, pid: int | None, no_open: bool) -> None:
    """Print where to look, and open a browser where a person has a desktop for one."""
    if screen.json:
        screen.emit(url=url, pid=pid)
        return
    screen.data(url)
    # elsewhere the browser would be one of text, in this terminal
    desktop = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if desktop and sys.stdout.isatty() and not no_open:
        webbrowser.open(url)


def _mlflow(screen: Screen, runs: Runs) -> _Site:
    """MLflow on the experiment of the newest plan.

    Raises:
        UsageError: nothing was run here.
        MachineError: there is no database.
    """
    from kdlab.jobs import store
    from kdlab.reporting import mlflow_store
    from kdlab.reporting.ledger import Ledger

    recipe = store.newest_plan(runs).recipe["name"]
    with screen.working("sending to MLflow what it lacks"):
        complete = send_all(screen, runs)
    ledger = Ledger(runs, os.environ.get("MLFLOW_TRACKING_URI") or None)

    def page() -> str:
        found = mlflow_store.experiment_id(f"kdlab/{recipe}", ledger)
        return f"#/experiments/{found}/{_RUNS}" if found else "#/experiments"

    if ledger.uri.startswith(("http://", "https://")):
        return _Site("MLflow", page, at=f"{mlflow_store.without_password(ledger.uri).rstrip('/')}/")
    if ledger.local and not ledger.database.exists():
        what, fix = "MLflow has no database: none could be made", "kdlab ui, once more; else: kdlab doctor"
        raise MachineError(what, where=str(ledger.database), fix=fix)
    # one person looks: one process serves
    command = (sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", ledger.uri)

    def meanwhile() -> None:
        if not complete and send_all(screen, runs, math.inf):
            screen.say("MLflow has everything now")

    return _Site("MLflow", page, command, _NO_JOBS, meanwhile=meanwhile)


def _optuna(runs: Runs, storage: str | None) -> _Site:
    """optuna-dashboard on all searches of a database.

    Raises:
        UsageError: there is no database.
        MachineError: optuna-dashboard is not installed.
    """
    if find_spec("optuna_dashboard") is None:
        raise MachineError("optuna-dashboard is not installed", fix="pip install 'kdlab[ui]'")
    url = storage or f"{_SQLITE}{runs.folder.resolve() / 'optuna.db'}"
    path = Path(url.removeprefix(_SQLITE))
    # the dashboard would make an empty one
    if (url.startswith(_SQLITE) or "://" not in url) and not path.exists():
        fix = "kdlab tune digits/quickstart"
        raise UsageError("nothing was searched here yet: there is no database", where=str(path), fix=fix)
    command = (sys.executable, "-c", _DASHBOARD, url, "--server", "wsgiref")
    return _Site("optuna-dashboard", lambda: "dashboard/", command)
