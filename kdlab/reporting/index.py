"""What tables need of finished jobs, kept in one file, so that thousands of them are read in a moment."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.jobs.matches import Matches
from kdlab.jobs.paths import Runs
from kdlab.jobs.result import JobResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 1000
_VERSION = 1
"""Raise it in the commit that changes what is kept, or how AP is resampled."""
_TABLES = """
CREATE TABLE IF NOT EXISTS results (id TEXT PRIMARY KEY, stamp TEXT, result TEXT);
CREATE TABLE IF NOT EXISTS resampled (id TEXT PRIMARY KEY, stamp TEXT, images INTEGER, truth TEXT, ap BLOB);
"""
_IDS_A_QUERY = 500
_TOLD_EVERY_S = 1.0
_BYTES_FOR_ONE = 1_000_000
"""Up to how many bytes of matches one process resamples alone: some seconds of work."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Resampled:
    """AP of one model on resampled validation images.

    Args:
        ap: (R,) in points; equal places of different models are the same resample.
        images: how many images there are.
        truth: a hash of the images and their objects; models with different ones cannot be paired.
    """

    ap: NDArray[np.float64]
    images: int
    truth: str


class Index:
    """A cache beside the jobs: what is read once is found again until the job's own file changes.

    It may be deleted at any time. Where it cannot be written, everything is read again.

    Args:
        runs: where the jobs are.
        progress: told what takes time.
    """

    def __init__(self, runs: Runs, progress: Progress = lambda text: None) -> None:
        self._runs, self._progress, self._told = runs, progress, -_TOLD_EVERY_S

    def results(self, jobs: Iterable[str]) -> dict[str, JobResult]:
        """Results of those of the jobs that have finished, without history and losses."""
        stamps = _stamps({job: self._runs.job(job).result for job in jobs})
        with closing(self._open()) as store:
            rows = _rows(store, "SELECT id, stamp, result FROM results", stamps)
            found = {job: JobResult(**json.loads(text)) for job, text in rows}
            new = dict(self._read(stamps.keys() - found.keys()))
            kept = [(job, stamps[job], json.dumps(vars(result))) for job, result in new.items()]
            _keep(store, "INSERT OR REPLACE INTO results VALUES (?, ?, ?)", kept)
        return found | new

    def resampled(self, jobs: Iterable[str]) -> dict[str, Resampled]:
        """AP on resampled images of those of the jobs that left what their detections met."""
        import numpy as np

        stamps = _stamps({job: self._runs.job(job).matches for job in jobs})
        with closing(self._open()) as store:
            rows = _rows(store, "SELECT id, stamp, images, truth, ap FROM resampled", stamps)
            found = {job: Resampled(np.frombuffer(ap), images, truth) for job, images, truth, ap in rows}
            for job, one in self._resample(sorted(stamps.keys() - found.keys())):
                found[job] = one
                row = (job, stamps[job], one.images, one.truth, one.ap.tobytes())
                _keep(store, "INSERT OR REPLACE INTO resampled VALUES (?, ?, ?, ?, ?)", [row])
        return found

    def _open(self) -> sqlite3.Connection:
        try:
            store = sqlite3.connect(self._runs.folder / f"index-{_VERSION}.db", timeout=5)
            store.executescript(_TABLES)
        except sqlite3.Error:
            store = sqlite3.connect(":memory:")
            store.executescript(_TABLES)
        return store

    def _read(self, jobs: Iterable[str]) -> Iterator[tuple[str, JobResult]]:
        wanted = sorted(jobs)
        for place, job in enumerate(wanted, start=1):
            self._tell(f"reading results, once: {place} of {len(wanted)}")
            result = JobResult.read(self._runs.job(job))
            if result is not None:
                yield job, replace(result, history=[], losses=[])

    def _resample(self, jobs: list[str]) -> Iterator[tuple[str, Resampled]]:
        """Resample jobs, several at once where that is much work."""
        paths = [self._runs.job(job).matches for job in jobs]
        much = sum(path.stat().st_size for path in paths) > _BYTES_FOR_ONE
        with _mapping(len(paths) if much else 1) as mapped:
            for place, (job, found) in enumerate(zip(jobs, mapped(resample, paths), strict=True), start=1):
                self._tell(f"resampling the validation images, once: {place} of {len(jobs)} models")
                if found is not None:
                    yield job, found

    def _tell(self, text: str) -> None:
        """Say how far it is, once a second at most."""
        if time.monotonic() - self._told > _TOLD_EVERY_S:
            self._progress(text)
            self._told = time.monotonic()


def resample(path: Path) -> Resampled | None:
    """AP of a job's detections on resampled images; None where there is no whole file."""
    import numpy as np

    from kdlab.reporting.resampling import average_precision, draw

    matches = Matches.read(path)
    if matches is None:
        return None
    images = len(matches.images)
    truth = hashlib.sha256(matches.images.tobytes() + matches.objects.astype(np.int64).tobytes())
    return Resampled(average_precision(matches, draw(images, RESAMPLES)), images, truth.hexdigest()[:16])


@contextmanager
def _mapping(tasks: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`, over as many processes as there are tasks and cores."""
    processes = min(tasks, os.cpu_count() or 1)
    if processes < 2:
        yield map
        return
    # Ctrl-C is for this process, which then gives up what has not begun
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _stamps(paths: Mapping[str, Path]) -> dict[str, str]:
    """By job, what changes when its file does; jobs without the file are left out."""
    found = {}
    for job, path in paths.items():
        with suppress(OSError):
            about = path.stat()
            found[job] = f"{about.st_mtime_ns}-{about.st_size}"
    return found


def _rows(store: sqlite3.Connection, query: str, stamps: Mapping[str, str]) -> list[tuple[Any, ...]]:
    """The rows of these jobs as they are now, without their stamps; none of a broken file.

    Args:
        store: where to ask.
        query: without its condition; selects id and stamp first.
        stamps: of the jobs.
    """
    ids, rows = list(stamps), []
    try:
        for start in range(0, len(ids), _IDS_A_QUERY):
            part = ids[start : start + _IDS_A_QUERY]
            rows += store.execute(f"{query} WHERE id IN ({','.join('?' * len(part))})", part).fetchall()
    except sqlite3.Error:
        return []
    return [(job, *others) for job, stamp, *others in rows if stamps[job] == stamp]


def _keep(store: sqlite3.Connection, command: str, rows: list[tuple[Any, ...]]) -> None:
    """Write rows; a full or read-only disk only means that they are read again."""
    with suppress(sqlite3.Error), store:
        store.executemany(command, rows)
