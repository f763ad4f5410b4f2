"""Jobs out of a warm process: started, ended and killed as those of `Popen` are."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job, Resources
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.running.executors.local import Local
from kdlab.running.warm import Lost, WarmJob, WarmProcess
from tests.stubs.stub_job import make_job, prepared


def until(seen: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmProcess]:
    process = WarmProcess()
    until(process.ready)
    yield process
    process.close()


def start(warm: WarmProcess, folder: Path, **env: str) -> tuple[WarmJob, Path]:
    """A job that fails at once, for its folder is empty."""
    log = folder / "log.txt"
    with log.open("wb") as file:
        return warm.start(str(folder), {**os.environ, **env}, [file.fileno()]), log


def test_a_job_leads_its_own_session_and_its_words_and_code_are_its_own(
    warm: WarmProcess, tmp_path: Path
) -> None:
    job, log = start(warm, tmp_path)
    until(lambda: job.poll() is not None)
    assert job.returncode == 1
    assert "job.json" in log.read_text()
    assert job.poll() == 1


def test_jobs_that_end_together_keep_their_codes(warm: WarmProcess, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    jobs = [start(warm, folder)[0] for folder in folders]
    jobs[0].kill()
    until(lambda: all(job.poll() is not None for job in jobs))
    assert jobs[0].returncode in (1, -signal.SIGKILL)
    assert [job.returncode for job in jobs[1:]] == [1, 1]


def test_a_lost_warm_process_is_told_and_jobs_are_started_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    local, job = Local(), make_job()

    def begun() -> tuple[Handle, JobPaths] | None:
        paths = prepared(Runs(tmp_path), job)
        handle = local.start(job, paths)
        return (handle, paths) if handle else None

    assert begun() is None, "it has its imports before they can be done"
    assert local._warm is not None
    os.kill(local._warm.pid, signal.SIGKILL)
    found: list[tuple[Handle, JobPaths]] = []
    until(lambda: found.extend(filter(None, [begun()])) or found)
    handle, paths = found[0]
    until(lambda: local.poll({job.id: handle}))
    assert "started cold" in paths.log.read_text()


def test_a_job_outlives_the_warm_process_and_nobody_knows_its_code(tmp_path: Path) -> None:
    process = WarmProcess()
    until(process.ready)
    job, _ = start(process, tmp_path)
    process.close()
    with pytest.raises(Lost):
        job.poll()


def test_jobs_of_several_processes_do_not_wait_for_it(tmp_path: Path) -> None:
    local = Local()
    job: Job = make_job(resources=Resources(ranks=2))
    assert local._is_ready(job)
    assert local._warm is None
