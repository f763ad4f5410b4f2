"""MLflow's points are counted after all is killed at once: the server, a job, one of two commands."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from kdlab.cli.verbs.ui import free_port
from kdlab.jobs.lease import LeaseInfo
from kdlab.jobs.paths import Runs
from kdlab.tracking.base import settled_events
from kdlab.tracking.csv import _rows
from kdlab.tracking.mlflow import points
from tests.stubs.stub_job import make_job, make_plan

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("a", "b")
DRIVE = """
import json, sys
from pathlib import Path
from kdlab import session
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.running.executors.local import Local
from kdlab.tracking import base
from tests.stubs.stub_job import COMMAND
base.REST, base.Follower.__init__.__defaults__, session.TRACKING_S = 0, (0.3,), 60.0
runs = Runs(Path(sys.argv[1]))
plan = Plan.from_dict(json.loads((runs.plans / "00000000.json").read_text()))
outcome = session.drive(plan, Local(command=COMMAND), runs)
print(outcome.complete, *outcome.lacking)
"""


@contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """MLflow's server on a database of SQLite, killed with all its children in the end."""
    database = f"sqlite:///{folder / 'server.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.txt").open("ab") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def rows_of(database: Path, job: str) -> list[tuple[str, float, int, int]]:
    query = (
        "select m.key, m.value, m.timestamp, m.step from metrics m join tags t using (run_uuid) "
        "where t.key = 'kdlab.job' and t.value = ?"
    )
    with (
        suppress(sqlite3.OperationalError),
        closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as found,
    ):
        return list(found.execute(query, (job,)))
    return []


def until(condition: Callable[[], object], patience_s: float = 120.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.1)


@pytest.mark.parametrize("remote", [False, True], ids=["database", "server"])
def test_no_point_is_lost_or_doubled_whatever_is_killed(remote: bool, tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    steps = 600 if remote else 250
    jobs = [make_job(name, steps=steps, step_s=0.1, save_every=4) for name in NAMES]
    recipe = {"name": "stub", "resources": {"trackers": ["mlflow", "csv"]}}
    replace(make_plan(*jobs), recipe=recipe).save(runs)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    environment |= {"KDLAB_LOCKS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    port = free_port("127.0.0.1", 41000 + os.getpid() % 1000 * 10)
    if remote:
        environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
    database = tmp_path / "server.db" if remote else runs.folder / "mlflow.db"

    def drive() -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "ignore", "-c", DRIVE, str(runs.folder)]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    with serving(tmp_path, port) if remote else nullcontext():
        until(lambda: not remote or free_port("127.0.0.1", port) != port)
        first, second = drive(), drive()
        until(lambda: rows_of(database, jobs[0].id))
    info = LeaseInfo.read(runs.job(jobs[0].id))
    assert info is not None
    os.kill(info.process.pid, signal.SIGKILL)
    seen = len(rows_of(database, jobs[1].id))
    first.kill()
    time.sleep(2.0)
    with serving(tmp_path, port) if remote else nullcontext():
        until(lambda: len(rows_of(database, jobs[1].id)) > seen or second.poll() is not None)
        out, _ = second.communicate(timeout=200)
        assert out.startswith("True")
        again, _ = drive().communicate(timeout=100)
        assert again == "True\n"
    first.communicate()
    for job in jobs:
        paths = runs.job(job.id)
        _, events, _ = settled_events(paths.events, 0, finished=True)
        told = Counter(rows_of(database, job.id))
        assert set(told.values()) == {1}
        assert told.keys() == set(points(events))
        assert Counter((key, step) for key, _, _, step in told).most_common(1)[0][1] == 1
        lines = _rows(runs.folder / "csv" / "00000000" / job.id / "training.csv")
        assert [int(line["iteration"]) for line in lines] == list(range(1, steps + 1))
    assert len({run for job in jobs for run in runs_of(database, job.id)}) == len(jobs)
    assert LeaseInfo.read(runs.job(jobs[0].id)).attempt == 2  # type: ignore[union-attr]


def runs_of(database: Path, job: str) -> list[str]:
    with closing(sqlite3.connect(database)) as found:
        return [run for (run,) in found.execute("select run_uuid from tags where value = ?", (job,))]
