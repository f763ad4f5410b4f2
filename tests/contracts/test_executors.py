"""What every executor promises, over all that the catalog finds, with a stub for the training."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from kdlab import catalog
from kdlab.devices import detect
from kdlab.errors import UsageError
from kdlab.jobs.events import JobStarted, read_from
from kdlab.jobs.files import read_json
from kdlab.jobs.handle import PREEMPTED, Handle
from kdlab.jobs.job import Job, Resources
from kdlab.jobs.lease import holder
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.result import JobResult
from kdlab.running.executors import local
from kdlab.running.executors.base import Executor, command, load
from kdlab.running.executors.inline import Inline
from kdlab.running.executors.local import Local
from kdlab.running.executors.slurm import Slurm
from tests.stubs import stub_slurm
from tests.stubs.stub_job import COMMAND, make_job, prepared
from tests.stubs.stub_ray import ray_started

WITH_STUB: dict[str, Callable[[], Executor]] = {
    "inline": lambda: Inline(module="tests.stubs.stub_job"),
    "local": lambda: Local(command=COMMAND),
    "slurm": lambda: Slurm(command=COMMAND, look_every_s=0.2),
    "ray": lambda: importlib.import_module("kdlab.running.executors.ray").Ray(command=COMMAND),
}
NO_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="needs kdlab[ray]")
EVERY = [pytest.param(key, marks=[NO_RAY] if key == "ray" else []) for key in sorted(catalog.executors())]
OUTLIVING = [param for param in EVERY if param.values != ("inline",)]
LEASING = ["local"]
STOPPED = {143, PREEMPTED}
"""A cluster ends jobs with the signal that a person uses; only who asked, or the files, can tell."""


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))


@pytest.fixture(autouse=True)
def ray_cluster(request: pytest.FixtureRequest) -> None:
    """A Ray cluster of one node for the tests that need it, one for all of them."""
    if "ray" in str(request.node.callspec.params.get("key") if hasattr(request.node, "callspec") else ""):
        request.getfixturevalue("ray_node")


@pytest.fixture(scope="module")
def ray_node() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, ray_started(cores=4) as address:
        patch.setenv("RAY_ADDRESS", address)
        yield


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Slurm; with `KDLAB_TEST_SLURM=1` the one that is here."""
    if not os.environ.get("KDLAB_TEST_SLURM"):
        for name, value in stub_slurm.install(tmp_path / "slurm").items():
            monkeypatch.setenv(name, value)


def install_two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for nvidia-smi."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\ncase $1 in --query-gpu*) printf '0, GPU-aa, 8192\\n1, GPU-bb, 8192\\n';; esac\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def start(executor: Executor, tmp_path: Path, job: Job) -> tuple[Handle, JobPaths]:
    paths = prepared(Runs(tmp_path), job)
    handle = executor.start(job, paths)
    assert handle is not None
    return handle, paths


def end_of(executor: Executor, handle: Handle) -> int | None:
    """The exit code of the job "student-a", once it has ended."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if ended := executor.poll({"student-a": handle}):
            return ended["student-a"]
        time.sleep(0.02)
    pytest.fail("the job did not end")


def kill(executor: Executor, handle: Handle) -> None:
    executor.cancel(handle, grace_s=0)
    end_of(executor, handle)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


def begun(paths: JobPaths) -> bool:
    return any(isinstance(event, JobStarted) for event in read_from(paths.events).events)


@pytest.mark.parametrize("key", EVERY)
def test_success_leaves_a_result(key: str, tmp_path: Path) -> None:
    executor = WITH_STUB[key]()
    handle, paths = start(executor, tmp_path, make_job())
    assert end_of(executor, handle) == 0
    assert JobResult.read(paths) is not None


@pytest.mark.parametrize("key", EVERY)
def test_failure_leaves_its_reason(key: str, tmp_path: Path) -> None:
    executor = WITH_STUB[key]()
    handle, paths = start(executor, tmp_path, make_job(end="fail"))
    assert end_of(executor, handle) == 1
    failure = read_json(paths.failure)
    assert failure is not None
    assert failure["what"] == "the loss is not finite"
    assert failure["fix"] == "lower schedule.lr"
    assert failure["after_s"] > 0
    assert failure["traceback"]


@pytest.mark.parametrize("key", EVERY)
def test_interrupted_job_goes_on_from_its_checkpoint(key: str, tmp_path: Path) -> None:
    executor = WITH_STUB[key]()
    handle, paths = start(executor, tmp_path, make_job(end="fail"))
    end_of(executor, handle)
    handle, paths = start(executor, tmp_path, make_job())
    assert end_of(executor, handle) == 0
    starts = [event for event in read_from(paths.events).events if isinstance(event, JobStarted)]
    assert [(event.attempt, event.iteration) for event in starts] == [(1, 0), (2, 1)]


@pytest.mark.parametrize("key", EVERY)
def test_stop_request_ends_the_job(key: str, tmp_path: Path) -> None:
    executor, job = WITH_STUB[key](), make_job()
    prepared(Runs(tmp_path), job).stop_request.touch()
    handle, paths = start(executor, tmp_path, job)
    assert end_of(executor, handle) in STOPPED
    assert JobResult.read(paths) is None


@pytest.mark.parametrize("key", EVERY)
def test_any_machine_has_a_slot_for_a_job_of_one_thread(key: str) -> None:
    assert WITH_STUB[key]().slots(make_job()) >= 1


@pytest.mark.parametrize("key", EVERY)
def test_executor_is_found_by_its_key(key: str) -> None:
    assert type(load(key)) is type(WITH_STUB[key]())


def test_unknown_executor_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean local"):
        load("lokal")


@pytest.mark.parametrize("key", OUTLIVING)
def test_cancelled_job_stops_at_a_checkpoint(key: str, tmp_path: Path) -> None:
    executor = WITH_STUB[key]()
    handle, paths = start(executor, tmp_path, make_job(steps=1000))
    wait_for(lambda: begun(paths))
    executor.cancel(handle, grace_s=60)
    assert end_of(executor, handle) == 143
    assert holder(paths) is None


@pytest.mark.parametrize("key", OUTLIVING)
def test_cancelled_job_that_does_not_listen_is_killed_after_its_grace(key: str, tmp_path: Path) -> None:
    executor = WITH_STUB[key]()
    handle, paths = start(executor, tmp_path, make_job(steps=1000, end="deaf"))
    wait_for(lambda: begun(paths))
    executor.cancel(handle, grace_s=1)
    assert executor.poll({"student-a": handle}) == {}
    assert end_of(executor, handle) == -signal.SIGKILL


@pytest.mark.parametrize("key", OUTLIVING)
def test_second_cancel_without_grace_kills_at_once(key: str, tmp_path: Path) -> None:
    executor = WITH_STUB[key]()
    handle, paths = start(executor, tmp_path, make_job(steps=1000, end="deaf"))
    wait_for(lambda: begun(paths))
    executor.cancel(handle, grace_s=60)
    executor.cancel(handle, grace_s=0)
    assert end_of(executor, handle) == -signal.SIGKILL


@pytest.mark.parametrize("key", OUTLIVING)
def test_kill_is_told_and_ends_the_processes_that_the_job_started(key: str, tmp_path: Path) -> None:
    executor = WITH_STUB[key]()
    handle, paths = start(executor, tmp_path, make_job(end="orphan"))
    assert end_of(executor, handle) == -signal.SIGKILL
    wait_for(lambda: holder(paths) is None)


@pytest.mark.parametrize("key", EVERY)
def test_job_of_a_dead_scheduler_can_be_polled_and_cancelled(key: str, tmp_path: Path) -> None:
    first = Local(command=COMMAND) if key == "inline" else WITH_STUB[key]()
    handle, paths = start(first, tmp_path, make_job(steps=1000))
    wait_for(lambda: begun(paths))
    adopted, second = Handle.read(paths), WITH_STUB[key]()
    assert adopted == handle
    assert second.poll({"student-a": adopted}) == {}
    second.cancel(adopted, grace_s=60)
    assert end_of(second, adopted) in (None, 143)
    # the actor of Ray goes with the end that the second was told, and may answer once more before
    assert end_of(first, handle) in (STOPPED if key != "ray" else {None, 143})


@pytest.mark.parametrize("key", LEASING)
def test_job_waits_while_its_devices_are_taken(key: str, tmp_path: Path) -> None:
    executor, job, machine = WITH_STUB[key](), make_job(), detect()
    paths = prepared(Runs(tmp_path), job)
    with machine.lease("core", len(machine.cores)) or pytest.fail("not leased"):
        assert executor.start(job, paths) is None
    handle, _ = start(executor, tmp_path, job)
    assert end_of(executor, handle) == 0


@pytest.mark.parametrize("key", OUTLIVING)
def test_job_that_wants_more_gpus_than_there_are_has_no_slot(key: str) -> None:
    assert WITH_STUB[key]().slots(make_job(resources=Resources(gpus=999))) == 0


def test_local_job_is_told_its_threads_and_sees_no_gpu(tmp_path: Path) -> None:
    script = 'echo "$OMP_NUM_THREADS $MKL_NUM_THREADS [$CUDA_VISIBLE_DEVICES] $PYTHONUNBUFFERED"'
    executor = Local(command=["sh", "-c", script])
    handle, paths = start(executor, tmp_path, make_job(resources=Resources(threads=3)))
    assert end_of(executor, handle) == 0
    assert paths.log.read_text().splitlines()[-1] == "3 3 [] 1"


def test_local_job_sees_the_gpus_that_it_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_two_gpus(tmp_path, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    executor = Local(command=["sh", "-c", 'echo "[$CUDA_VISIBLE_DEVICES]"'])
    job = make_job(resources=Resources(gpus=2))
    assert executor.slots(job) == 1
    handle, paths = start(executor, tmp_path, job)
    assert handle.devices == ("GPU-aa", "GPU-bb")
    assert end_of(executor, handle) == 0
    assert paths.log.read_text().splitlines()[-1] == "[GPU-aa,GPU-bb]"


@pytest.mark.parametrize("only", [None, [0]])
def test_local_keeps_its_gpus_where_nvidia_smi_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: list[int] | None
) -> None:
    install_two_gpus(tmp_path, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    executor = Local(only, command=["sh", "-c", "true"])
    assert executor.machine.gpus
    monkeypatch.setattr(local, "_LOOK_AGAIN_S", 0.0)
    for answer in ("exit 1", "true"):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
        handle, _ = start(executor, tmp_path, make_job(resources=Resources(gpus=1)))
        assert handle.devices == ("GPU-aa",)
        assert end_of(executor, handle) == 0


def test_local_job_of_two_processes_leases_the_cores_of_both(tmp_path: Path) -> None:
    executor = Local(command=["sh", "-c", "true"])
    if len(detect().cores) < 2:
        pytest.skip("there is one core")
    handle, _ = start(executor, tmp_path, make_job(resources=Resources(ranks=2)))
    assert len(handle.devices) == 2
    assert end_of(executor, handle) == 0


@pytest.mark.parametrize(("ranks", "module"), [(1, "kdlab.training.job"), (2, "kdlab.training.launch")])
def test_command_starts_one_process_or_what_starts_several(ranks: int, module: str, tmp_path: Path) -> None:
    job = make_job(resources=Resources(ranks=ranks))
    assert command(job, JobPaths(tmp_path))[1:] == ["-P", "-m", module, str(tmp_path)]


def test_small_jobs_share_a_gpu_and_leave_it_to_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_two_gpus(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    executor, small = Local(command=["sh", "-c", "exec sleep 60"]), Resources(gpus=1, share=2)
    jobs = [make_job(name, resources=small) for name in "abc"]
    assert executor.slots(jobs[0]) == 2
    first, second = (start(executor, tmp_path, job)[0] for job in jobs[:2])
    assert first.devices == second.devices == ("GPU-bb",)
    assert executor.start(jobs[2], prepared(Runs(tmp_path), jobs[2])) is None
    alone = make_job("d", resources=Resources(gpus=1))
    assert executor.start(alone, prepared(Runs(tmp_path), alone)) is None
    for handle in (first, second):
        kill(executor, handle)
    last, _ = start(executor, tmp_path, alone)
    assert last.devices == ("GPU-bb",)
    kill(executor, last)


def test_local_log_keeps_what_earlier_attempts_said(tmp_path: Path) -> None:
    executor = Local(command=["sh", "-c", "echo here"])
    for _ in range(2):
        handle, paths = start(executor, tmp_path, make_job())
        end_of(executor, handle)
    assert paths.log.read_text().splitlines().count("here") == 2


def test_inline_job_that_cannot_be_imported_fails_with_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    executor = Inline(module="no_such_module")
    handle, _ = start(executor, tmp_path, make_job())
    assert end_of(executor, handle) == 1
    assert "No module named 'no_such_module'" in capsys.readouterr().err
