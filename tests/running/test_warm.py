"""Jobs out of a warm process: started, ended and killed as those of `Popen` are."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdlab import children
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job, Resources
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.running import warm as warm_process
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
        return warm.start(str(folder), env, [file.fileno()]), log


FORKED = """
import os
from kdlab.training import warm
warm.import_all()
import torch
from mmcv.ops import multi_scale_deform_attn as attention
from mmengine.device import get_device
if os.fork() == 0:
    warm._see_gpus(True)
    print(torch.cuda._is_in_bad_fork(), attention.IS_CUDA_AVAILABLE, get_device(), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_fork_may_use_cuda_and_libraries_see_its_gpus() -> None:
    """torch knows without a GPU, too, whether CUDA was asked before the fork."""
    env = os.environ | children.environment() | warm_process._SET
    done = subprocess.run(children.python("-c", FORKED), env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True", "cuda"], done.stderr


def test_a_job_that_ended_has_said_why_and_has_its_code(warm: WarmProcess, tmp_path: Path) -> None:
    job, log = start(warm, tmp_path)
    assert job.wait() == 1
    assert "job.json" in log.read_text()
    assert job.poll() == 1


def test_a_job_is_as_if_started_by_itself(warm: WarmProcess, tmp_path: Path) -> None:
    """What lies in the pipe of its `job.json` keeps it at its start."""
    os.mkfifo(tmp_path / "job.json")
    lease = (tmp_path / "lease").open("wb")
    log = (tmp_path / "log.txt").open("wb")
    env = {"CUDA_VISIBLE_DEVICES": "GPU-7", "OMP_NUM_THREADS": "3", "OWN": "yes"}
    job = warm.start(str(tmp_path), env, [log.fileno(), lease.fileno()])
    log.close(), lease.close()
    process = Path(f"/proc/{job.pid}")
    until(lambda: (process / "comm").read_text().strip() == tmp_path.name[:15])
    assert os.getsid(job.pid) == os.getpgid(job.pid) == job.pid
    assert (process / "cwd").readlink() == Path.cwd()
    files = {os.path.realpath(file) for file in (process / "fd").iterdir()}
    assert {str(tmp_path / "lease"), str(tmp_path / "log.txt")} <= files
    assert not [file for file in files if "socket" in file]
    assert job.poll() is None
    job.kill()
    assert job.wait() == -signal.SIGKILL


def test_jobs_that_end_together_keep_their_codes(warm: WarmProcess, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        os.mkfifo(folder / "job.json")
    jobs = [start(warm, folder)[0] for folder in folders]
    jobs[0].kill()
    jobs[1].kill()
    until(lambda: jobs[0].poll() is not None)
    assert jobs[2].poll() is None
    assert jobs[1].wait() == -signal.SIGKILL
    jobs[2].kill()
    assert jobs[2].wait() == -signal.SIGKILL
    # its code was told once, and its number may be another's
    assert warm.code(jobs[2].pid) is None


def test_what_does_not_fit_into_a_message_is_told(tmp_path: Path) -> None:
    process = WarmProcess()
    until(process.ready)
    with pytest.raises(Lost, match="too long"):
        start(process, tmp_path, LONG="x" * (1 << 20))


def test_a_process_that_never_is_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdlab.running.warm.IMPORTS_S", 0.0)
    process = WarmProcess()
    time.sleep(0.01)
    with pytest.raises(Lost, match="not ready after 0 s"):
        process.ready()


def test_why_it_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdlab.running.warm.children.python", lambda *_: ["sh", "-c", "echo no torch >&2"])
    process = WarmProcess()
    with pytest.raises(Lost, match="it has ended: no torch"):
        until(process.ready)


def test_a_lost_warm_process_is_told_and_jobs_are_started_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    local, job = Local(), make_job()

    def begun() -> tuple[Handle, JobPaths] | None:
        paths = prepared(Runs(tmp_path), job)
        handle = local.start(job, paths)
        return (handle, paths) if handle else None

    assert begun() is None, "it has its imports before they can be done"
    assert local._warm is not None
    assert not local.waits_for(job)
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
