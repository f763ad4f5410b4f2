"""MLflow's server or database: the only file that imports mlflow, and only once it is called.

The import takes seconds.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from kdlab.errors import MachineError
from kdlab.reporting.ledger import Ledger
from kdlab.reporting.points import Point

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that is away must not hold up the end of a plan; the next sync tries again.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
_POINTS_A_BATCH, _PARAMS_A_BATCH, _RUNS_A_PAGE = 1000, 100, 1000
_T = TypeVar("_T")


@contextmanager
def no_mlruns_here() -> Iterator[None]:
    """Remove the empty folder that mlflow makes in the working directory, for an experiment of its own."""
    folder = Path("mlruns")
    before = folder.exists()
    try:
        yield
    finally:
        if not before:
            with suppress(OSError):
                folder.rmdir()


def client(ledger: Ledger) -> Any:
    """A client that prints nothing and soon gives up; makes the database in `runs` where it is used first."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"mlflow\b")
    from mlflow import MlflowClient

    if ledger.local and not ledger.database.exists():
        ledger.forget_all()
        # Under another name until it is whole: a process that dies in a migration leaves no broken database.
        draft = ledger.database.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
        draft.rename(ledger.database)
    return MlflowClient(ledger.uri)


def experiment(client: Any, name: str, ledger: Ledger) -> str:
    """Id of the experiment called `name`, made where there is none."""
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    return str(client.create_experiment(name, ledger.artifacts.as_uri() if ledger.local else None))


def experiment_id(name: str, ledger: Ledger) -> str | None:
    """Id of the experiment called `name`, None where there is none.

    Raises:
        MachineError: MLflow cannot be asked.
    """
    try:
        with no_mlruns_here():
            known = client(ledger).get_experiment_by_name(name)
    except Exception as error:
        where, fix = without_password(ledger.uri), "kdlab doctor, or another MLFLOW_TRACKING_URI"
        raise MachineError("MLflow cannot be asked", where=where, got=one_line(error), fix=fix) from error
    return None if known is None else str(known.experiment_id)


def one_line(error: Exception) -> str:
    """What went wrong in one line, without a password that an address may hold."""
    lines = str(error).splitlines() or [type(error).__name__]
    line, _, _ = lines[0].partition(" with exception ")
    return without_password(line)[:200]


def without_password(text: str) -> str:
    """`text` without the name and password that an address in it may hold."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def runs_of(client: Any, wanted: str) -> Iterator[Any]:
    """The runs in kdlab's experiments that MLflow's filter lets through."""
    experiments = client.search_experiments(filter_string="name LIKE 'kdlab/%'")
    ids, token = [one.experiment_id for one in experiments], None
    while ids:
        page = client.search_runs(ids, wanted, max_results=_RUNS_A_PAGE, page_token=token)
        yield from page
        if not (token := page.token):
            return


def log_params(client: Any, run_id: str, params: Mapping[str, str]) -> None:
    """Send parameters that the run does not have yet."""
    from mlflow.entities import Param

    for batch in _batches([Param(name, text) for name, text in params.items()], _PARAMS_A_BATCH):
        client.log_batch(run_id, params=batch)


def log_points(client: Any, run_id: str, points: Sequence[Point]) -> Iterator[int]:
    """Send points, and tell after each batch how many; the server knows one that it has already."""
    from mlflow.entities import Metric

    for batch in _batches(points, _POINTS_A_BATCH):
        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in batch]
        client.log_batch(run_id, metrics=metrics)
        yield len(batch)


def _batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
