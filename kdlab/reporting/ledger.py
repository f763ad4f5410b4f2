"""What a tracking server has of each plan and job, in small files written after it accepted."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdlab.jobs.files import read_json, write_json
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.status import State, state_of
from kdlab.reporting.points import began_ms

STATUS: dict[State, str] = {
    State.QUEUED: "SCHEDULED",
    State.RUNNING: "RUNNING",
    State.INTERRUPTED: "KILLED",
    State.DONE: "FINISHED",
    State.FAILED: "FAILED",
    State.CANCELLED: "KILLED",
    State.SKIPPED: "KILLED",
    State.PRUNED: "KILLED",
}
"""What MLflow calls the states of a job."""


@dataclass
class Entry:
    """What the server has of a plan or a job.

    Args:
        store: digest of the server's address; what one server has says nothing of another.
        run_id: MLflow's id of the run, "" before there is one.
        plan: the plan that the run belongs to.
        began_ms: time of the log's first event: a job run afresh begins another log and gets another run.
        offset: byte of the log up to which all points were accepted.
        status: as last sent.
        seen: the state of the files that was sent, as JSON values.
    """

    store: str
    run_id: str = ""
    plan: str = ""
    began_ms: int = 0
    offset: int = 0
    status: str = ""
    seen: Any = None


class Ledger:
    """The entries of one server, a JSON file each in `tracking/` of `runs`.

    Args:
        runs: the folder of everything that was run.
        uri: address of the server or database, None for the SQLite file in `runs`.
    """

    def __init__(self, runs: Runs, uri: str | None) -> None:
        self._runs = runs
        folder = runs.folder.resolve()
        self.database = folder / "mlflow.db"
        self.artifacts = folder / "mlartifacts"
        self.local = uri in (None, f"sqlite:///{self.database}")
        self.uri = f"sqlite:///{self.database}" if uri is None else uri
        self._folder = folder / "tracking"
        self.store = hashlib.sha256(self.uri.encode()).hexdigest()[:16]

    def read(self, name: str) -> Entry:
        """The entry of a plan or job, blank where the server has nothing of it."""
        data = read_json(self._path(name))
        if data is None or data["store"] != self.store or (self.local and not self.database.exists()):
            return Entry(self.store)
        return Entry(**data)

    def behind(self, job: Job) -> bool:
        """Whether anything happened to a job since its entry was written; cheap, however long the log."""
        paths, entry = self._runs.job(job.id), self.read(job.id)
        began = began_ms(paths.events, entry.began_ms)
        return began is not None and (entry.began_ms != began or entry.seen != snapshot(job, paths))

    def write(self, name: str, entry: Entry) -> None:
        """Keep an entry."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(name), asdict(entry))

    def forget(self, name: str) -> None:
        """Drop an entry: the next sync looks for the run on the server."""
        self._path(name).unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Drop all entries."""
        for path in self._folder.glob("*.json"):
            path.unlink()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def snapshot(job: Job, paths: JobPaths) -> list[int | str]:
    """What changes with a job: the size of its log and how far it got."""
    return [paths.events.stat().st_size, state_of(job, paths)]


def plan_status(states: set[State]) -> str:
    """What MLflow calls the state of a plan: that of its worst job, once none is running."""
    if states == {State.DONE}:
        return "FINISHED"
    ended_badly = (State.FAILED, State.CANCELLED, State.INTERRUPTED, State.SKIPPED)
    worst = next((state for state in ended_badly if state in states), None)
    return "RUNNING" if worst is None or State.RUNNING in states else STATUS[worst]
