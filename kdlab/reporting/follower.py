"""Sends to MLflow while a plan runs, from a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.reporting.tracking import SyncReport, left, sync

TURN_S = 2.0
"""Longest time of one sync, so that closing never waits long."""
REST, LONGEST_REST_S = 40, 30.0
"""After a sync comes so many times the CPU time that it took, so that many jobs cost no more of a core than
few; MLflow shows nothing later than that, for its import takes seconds."""


class Follower:
    """Syncs every few seconds from a thread of its own, while the plan runs.

    Args:
        plan: which; may be replaced by one that has grown.
        runs: where the jobs are.
        store: as for `sync`.
        every_s: seconds between two syncs, at least.
    """

    def __init__(self, plan: Plan, runs: Runs, *, store: str | None = None, every_s: float = 5.0) -> None:
        self.report = SyncReport()
        self.plan = plan
        self._runs, self._store, self._every_s = runs, store, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="kdlab-tracking", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._closing.is_set():
            began = time.thread_time()
            self.report = sync(self.plan, self._runs, store=self._store, deadline_s=TURN_S)
            rest_s = min(LONGEST_REST_S, REST * (time.thread_time() - began))
            self._closing.wait(max(self._every_s, rest_s))

    def close(self, deadline_s: float = 5.0, files: Sequence[Path] = ()) -> SyncReport:
        """Sync a last time and say what is left after `deadline_s`; a later sync sends it."""
        until = time.monotonic() + deadline_s
        self._closing.set()
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            return SyncReport(0, left(self.plan, self._runs, self._store), "MLflow is slow to answer")
        left_s = max(0.0, until - time.monotonic())
        return sync(self.plan, self._runs, store=self._store, deadline_s=left_s, files=files)
