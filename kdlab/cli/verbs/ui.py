"""kdlab ui: look at what was run in MLflow, or at a search in optuna-dashboard."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kdlab import children
from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.results import send_all
from kdlab.errors import MachineError, UsageError
from kdlab.redaction import MASK, masked

if TYPE_CHECKING:
    from kdlab.jobs.paths import Runs

SENDING_S = 300.0
"""Seconds that MLflow has to take what it lacks, before a person looks at what it has."""
_SQLITE = "sqlite:///"
_STORAGE = "KDLAB_UI_STORAGE"
# the console script need not lie on the path, and anybody here can read a process's command line
_DASHBOARD = (
    "import os, sys; from importlib.metadata import entry_points; "
    f"sys.argv.insert(1, os.environ.pop('{_STORAGE}')); "
    "sys.exit(entry_points(group='console_scripts')['optuna-dashboard'].load()())"
)
# a page that is asked for before there is a server stays empty
_OPENER = """
import socket, sys, time, webbrowser
for _ in range(600):
    try:
        socket.create_connection((sys.argv[2], int(sys.argv[3]))).close()
    except OSError:
        time.sleep(0.1)
    else:
        sys.exit(not webbrowser.open(sys.argv[1]))
"""


class Page(StrEnum):
    """What there is to look at."""

    mlflow = "mlflow"
    optuna = "optuna"


PORTS = {Page.mlflow: 5000, Page.optuna: 8080}


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

    runs = Runs.here()
    if page is Page.optuna:
        _become(screen, _dashboard(runs, storage), "dashboard/", host, port or PORTS[page], no_open)
    if storage:
        fix = "kdlab ui optuna --storage URL; MLflow's own is MLFLOW_TRACKING_URI"
        raise UsageError("--storage is an option of optuna alone", got=storage, fix=fix)
    at, view = _mlflow(screen, runs)
    if at.startswith(("http://", "https://")):
        # to be opened, so without the trace of what was masked
        address = masked(at).replace(f"{MASK}@", "")
        _show(screen, f"{address.rstrip('/')}/{view}", None)
        screen.next("kdlab report --table")
        return
    # one person looks: one process serves, and none judges language models
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_BACKEND_STORE_URI"] = at
    command = children.python("-m", "mlflow", "server", "--workers", "1")
    _become(screen, command, view, host, port or PORTS[page], no_open)


def _become(screen: Screen, command: list[str], page: str, host: str, wanted: int, no_open: bool) -> NoReturn:
    """Show where to look, and go on as the server, whose output all goes to stderr."""
    port = free_port(host, wanted)
    if port != wanted:
        screen.say(f"port {wanted} is taken, {port} is free")
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}/{page}"
    _show(screen, url, os.getpid())
    screen.say("Ctrl-C ends it")
    # elsewhere the browser would be one of text, in this terminal
    desktop = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if desktop and sys.stdout.isatty() and not (no_open or screen.json):
        subprocess.Popen(children.python("-c", _OPENER, url, name, str(port)))
    # uvicorn would put the working folder first again
    os.environ |= children.environment() | {"UVICORN_APP_DIR": sys.prefix}
    os.dup2(2, 1)
    os.execv(command[0], [*command, "--host", host, "--port", str(port)])


def free_port(host: str, wanted: int) -> int:
    """The first port from `wanted` on that nobody listens at.

    Raises:
        UsageError: one cannot listen there at all.
        MachineError: a hundred ports in a row are taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports = range(wanted, min(wanted + 100, 1 << 16))
    for port in ports:
        try:
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                what = f"one cannot listen at port {port} of {host}"
                fix = "another --port or --host; 127.0.0.1 is this machine"
                raise UsageError(what, got=str(error.strerror), fix=fix) from error
        else:
            return port
    raise MachineError(f"the ports {ports[0]} to {ports[-1]} of {host} are all taken", fix="another --port")


def _show(screen: Screen, url: str, pid: int | None) -> None:
    screen.emit(url=url, pid=pid) if screen.json else screen.data(url)


def _mlflow(screen: Screen, runs: Runs) -> tuple[str, str]:
    """Where MLflow's records are, and the page of the newest plan's recipe.

    Raises:
        UsageError: nothing was run here.
        MachineError: there is no database, or MLflow cannot be asked.
    """
    from kdlab.jobs import store
    from kdlab.tracking.base import answer, one_line
    from kdlab.tracking.mlflow import Mlflow

    newest = store.newest_plan(runs)
    with screen.working("sending to MLflow what it lacks"):
        send_all(screen, runs, SENDING_S)
    mlflow = Mlflow(runs)
    if mlflow.local and not mlflow.database.exists():
        fix = "name mlflow in resources.trackers of a recipe; else: kdlab doctor"
        raise MachineError("MLflow has no database", where=str(mlflow.database), fix=fix)
    try:
        number = answer(lambda: mlflow.experiment_id(newest))
    except Exception as error:
        where, fix = masked(mlflow.uri), "kdlab doctor, or another MLFLOW_TRACKING_URI"
        raise MachineError("MLflow cannot be asked", where=where, got=one_line(error), fix=fix) from error
    # without the type MLflow opens its pages for language models
    page = f"#/experiments/{number}/runs?workflowType=machine_learning" if number else "#/experiments"
    return mlflow.uri, page


def _dashboard(runs: Runs, storage: str | None) -> list[str]:
    """What starts optuna-dashboard on all searches of a database, whose address it finds in the environment.

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
    os.environ[_STORAGE] = url
    return children.python("-c", _DASHBOARD, "--server", "wsgiref")
