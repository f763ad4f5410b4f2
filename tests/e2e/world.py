"""A folder with a recipe and its own runs, and commands there that are forks of one warm process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdlab.jobs.events import Event, JobProgress, read_from
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import Curves
from kdlab.running.executors.base import Handle

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0
COMMANDS = 5
"""How often at most a plan is started until it ends well."""


class Warm:
    """The process that forks commands; see `tests/stubs/warm.py`."""

    def __init__(self, database: Path) -> None:
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.database = database
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "stubs" / "warm.py"), str(database)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._answer() == "ready"

    def ask(self, do: str, **told: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **told}).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class World:
    """A folder with a recipe and its own runs, and the command that was started last."""

    argv: tuple[str, ...] = ("run", "tiny.yaml", "-y")

    def __init__(self, folder: Path, cache: Path, warm: Warm, recipe: str) -> None:
        self.folder, self.warm, self.runs = folder, warm, folder / "runs"
        self.cache, self.recipe = cache, recipe
        self.runs.mkdir(parents=True, exist_ok=True)
        (folder / "tiny.yaml").write_text(recipe)
        shutil.copy(warm.database, self.runs)
        self.out = folder / "out.txt"
        self.environment = own_environment(folder, cache)
        self.pid = 0

    def another(self, folder: Path) -> World:
        """One of the same recipe, at the start."""
        return type(self)(folder, self.cache, self.warm, self.recipe)

    def start(self, *words: str) -> None:
        self.pid = self.command(*self.argv, *words)

    def command(self, *argv: str, out: str = "out.txt") -> int:
        """The number of a new process."""
        told = {"cwd": str(self.folder), "env": dict(self.environment), "out": str(self.folder / out)}
        pid: int = self.warm.ask("start", argv=argv, **told)
        return pid

    def code_of(self, pid: int) -> int:
        wait_for(lambda: self.warm.ask("poll", pid=pid) is not None, self.out)
        code: int = self.warm.ask("poll", pid=pid)
        return code

    @property
    def code(self) -> int | None:
        code: int | None = self.warm.ask("poll", pid=self.pid)
        return code

    def wait(self) -> int:
        return self.code_of(self.pid)

    def run(self, *words: str) -> None:
        """Start the command, which has to end well."""
        self.start(*words)
        assert self.wait() == 0, self.out.read_text()

    def end(self) -> list[int]:
        """Start the command until it ends well; the codes on the way there."""
        codes = [self.wait()]
        while codes[-1] and len(codes) < COMMANDS:
            self.start()
            codes.append(self.wait())
        assert codes[-1] == 0, f"{codes}\n{self.out.read_text()}"
        return codes

    @property
    def jobs(self) -> list[JobPaths]:
        return [JobPaths(folder) for folder in sorted((self.runs / "jobs").glob("*-*"))]

    @property
    def running(self) -> list[tuple[JobPaths, int]]:
        """The jobs at work, each with its leader's number."""
        handles = [(job, Handle.read(job)) for job in self.jobs]
        found = [(job, handle.process) for job, handle in handles if handle and handle.process]
        return [(job, process.pid) for job, process in found if process.alive()]

    @property
    def said(self) -> int:
        """Bytes of events of all jobs: how far the plan is, however fast the machine."""
        return sum(job.events.stat().st_size for job in self.jobs if job.events.exists())

    def wait_for_student(self, iteration: int) -> JobPaths:
        """A student that has told of this iteration, or a later one."""
        far: list[JobPaths] = []

        def look() -> bool:
            far[:] = [job for job in self.jobs if is_student(job) and iteration <= told_of(job)]
            assert far or self.code is None, f"it ended too early\n{self.out.read_text()}"
            return bool(far)

        wait_for(look, self.out)
        return far[0]

    def results(self) -> dict[str, Any]:
        return results(self.jobs)


def own_environment(folder: Path, cache: Path) -> dict[str, str]:
    """Runs in `folder`, and leases of its own, so that nothing waits for other runs on this machine."""
    own = {"KDLAB_RUNS": str(folder / "runs"), "KDLAB_CACHE": str(cache), "KDLAB_LOCKS": str(folder)}
    return os.environ | own


def results(jobs: list[JobPaths]) -> dict[str, Any]:
    """What has to be the same however often the jobs were disturbed."""
    found = {}
    for job in jobs:
        result = json.loads(job.result.read_text())
        found[job.folder.name] = {name: result[name] for name in ("last", "best", "data")}
        found[job.folder.name]["curves"] = Curves.read(job)
        found[job.folder.name]["weights"] = result["model"]["weights_sha256"]
    return found


def is_student(job: JobPaths) -> bool:
    return job.folder.name.startswith("student")


def events_of(job: JobPaths) -> tuple[Event, ...]:
    return tuple(read_from(job.events).events)


def told_of(job: JobPaths) -> int:
    """The last iteration that a job's log tells of, -1 where none."""
    return max((event.iteration for event in events_of(job) if isinstance(event, JobProgress)), default=-1)


def wait_for(condition: Callable[[], bool], out: Path | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"it hangs\n{out.read_text() if out else ''}"
        time.sleep(0.02)
