"""What becomes of jobs on a real Ray cluster of two nodes on this machine when one of them is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# not importorskip: Ray reads the environment when it is imported, and our file is the one to set it
if find_spec("ray") is None:
    pytest.skip("needs kdlab[ray]", allow_module_level=True)

from kdlab.errors import MachineError, UsageError
from kdlab.jobs.events import Event, JobCancelled, JobFinished, JobRetried, JobStarted, read_from
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Resources
from kdlab.jobs.paths import Runs
from kdlab.running import scheduler
from kdlab.running.executors import _ray
from kdlab.running.executors.base import Node
from kdlab.running.executors.ray import Ray
from tests.stubs.stub_job import COMMAND, make_job, make_plan, prepared
from tests.stubs.stub_ray import free_port, ray_started, start_node


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without room for jobs and two nodes of one core; `spare` is one that a test may lose."""
    with pytest.MonkeyPatch.context() as patch, ray_started(cores=0) as address:
        patch.setenv("RAY_ADDRESS", address)
        nodes = [start_node(f"--address={address}", cores=1, folder=Path("/tmp")) for _ in range(2)]
        yield SimpleNamespace(address=address, spare=nodes[1])
        for node in nodes:
            node.lose()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.05)


def nobody() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{free_port()}"


def end_of(executor: Ray, handle: Handle | None) -> int | None:
    assert handle is not None
    ended: dict[str, int | None] = {}
    wait_for(lambda: ended.update(executor.poll({"it": handle})) or ended)
    return ended["it"]


def test_machine_is_all_nodes_and_a_job_needs_one(two_nodes: Any) -> None:
    executor = Ray()
    assert len(executor.machine.cores) == 2
    assert executor.machine.device == "cpu"
    assert executor.slots(make_job()) == 2
    assert executor.slots(make_job(resources=Resources(gpus=1))) == 0


def test_job_with_more_threads_than_any_node_has_cores_takes_a_whole_node(
    two_nodes: Any, tmp_path: Path
) -> None:
    executor, job = Ray(command=COMMAND), make_job(resources=Resources(threads=8))
    assert executor.slots(job) == 2
    assert end_of(executor, executor.start(job, prepared(Runs(tmp_path), job))) == 0


def test_jobs_that_share_a_gpu_have_a_slot_each(two_nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ray, "nodes", lambda: [Node("host", cores=4, gpus=1)])
    assert Ray().slots(make_job(resources=Resources(gpus=1, share=2))) == 2
    assert Ray().slots(make_job(resources=Resources(gpus=2))) == 0


def test_job_starts_in_the_folder_of_the_command(
    two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    executor, job = Ray(command=["/bin/sh", "-c", "pwd"]), make_job()
    paths = prepared(Runs(tmp_path), job)
    assert end_of(executor, executor.start(job, paths)) == 0
    assert paths.log.read_text().splitlines()[-1] == str(tmp_path)


def test_head_that_is_gone_is_told_and_nobody_waits_for_it(
    two_nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, handle = Ray(), Handle("ray", ref="student-a-1")
    monkeypatch.setattr(_ray, "HEADLESS", threading.Event())
    monkeypatch.setattr(_ray, "_HEAD_S", 0.1)
    monkeypatch.setattr(_ray.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=nobody()))
    with pytest.raises(MachineError, match="the head of the Ray cluster is gone"):
        _ = executor.machine
    executor.cancel(handle, grace_s=60)
    assert executor.poll({"student-a": handle}) == {"student-a": None}


def test_job_of_an_earlier_command_is_found_by_its_name_until_somebody_asked(
    two_nodes: Any, tmp_path: Path
) -> None:
    job = make_job(steps=5)
    handle = Ray(command=COMMAND).start(job, prepared(Runs(tmp_path), job))
    assert handle is not None
    later = Ray()
    while not (ended := later.poll({job.id: handle})):
        time.sleep(0.05)
    assert ended == {job.id: 0}
    assert later.poll({job.id: Handle("ray", ref=handle.ref)}) == {job.id: None}


def test_node_without_the_runs_folder_is_named_before_a_job_starts(
    two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sees = {"seen": False, "python": True, "versions": _ray._versions()}
    monkeypatch.setattr(_ray, "_answer", lambda answer: sees)
    job = make_job()
    with pytest.raises(MachineError, match="a node does not see the runs folder"):
        Ray(command=COMMAND).start(job, prepared(Runs(tmp_path), job))
    assert Handle.read(Runs(tmp_path).job(job.id)) is None


def test_gpus_cannot_be_chosen(two_nodes: Any) -> None:
    with pytest.raises(UsageError, match="Ray chooses the GPUs"):
        Ray(gpus=[0])


def test_address_where_nobody_listens_is_told_before_ray_tries_it_for_a_minute() -> None:
    script = (
        "import ray\nray.init = lambda *_, **__: print('Ray was asked')\n"
        "from kdlab.errors import MachineError\nfrom kdlab.running.executors.base import load\n"
        f"try: load('ray', None, {{'address': '{nobody()}'}})\n"
        "except MachineError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Ray was asked" not in done.stdout
    assert "there is no Ray cluster" in done.stdout
    assert "ray start --head" in done.stdout
    assert done.stderr == ""


def test_job_that_many_commands_followed_still_stops_at_a_checkpoint(two_nodes: Any, tmp_path: Path) -> None:
    job = make_job(steps=5000)
    paths = prepared(Runs(tmp_path), job)
    handle = Ray(command=COMMAND).start(job, paths)
    assert handle is not None
    wait_for(lambda: len(read_from(paths.events).events) > 2)
    for _ in range(12):
        assert Ray().poll({job.id: handle}) == {}
    last = Ray()
    last.cancel(handle, grace_s=60)
    assert end_of(last, handle) == 143
    assert isinstance(read_from(paths.events).events[-1], JobCancelled)


def test_job_that_waits_for_a_node_is_cancelled_without_having_run(two_nodes: Any, tmp_path: Path) -> None:
    executor, handles = Ray(command=COMMAND), []
    jobs = [make_job(name, steps=5000) for name in "abc"]
    for job in jobs:
        handles.append(executor.start(job, prepared(Runs(tmp_path), job)))
    events = [Runs(tmp_path).job(job.id).events for job in jobs]
    wait_for(lambda: sum(path.exists() for path in events) == 2)
    time.sleep(1)
    (waits,) = [number for number, path in enumerate(events) if not path.exists()]
    executor.cancel(handles[waits], grace_s=60)
    assert end_of(executor, handles.pop(waits)) == 143
    assert sum(path.exists() for path in events) == 2
    for handle in handles:
        executor.cancel(handle, grace_s=60)
        assert end_of(executor, handle) == 143


def test_job_that_a_node_cannot_start_is_told_with_the_reason(two_nodes: Any, tmp_path: Path) -> None:
    executor, job = Ray(command=COMMAND), make_job()
    paths = prepared(Runs(tmp_path), job)
    paths.log.mkdir()
    handle = executor.start(job, paths)
    with pytest.raises(MachineError, match=r"cannot start a job(.|\n)*IsADirectoryError"):
        end_of(executor, handle)


def test_python_that_a_node_lacks_is_named_before_a_job_starts(two_nodes: Any, tmp_path: Path) -> None:
    job = make_job()
    with pytest.raises(MachineError, match="does not have the Python"):
        Ray(command=["/no/such/python"]).start(job, prepared(Runs(tmp_path), job))


def test_actor_is_gone_once_the_end_was_told_and_others_hear_nothing_wrong(
    two_nodes: Any, tmp_path: Path
) -> None:
    first, second, job = Ray(command=COMMAND), Ray(), make_job(steps=50)
    handle = first.start(job, prepared(Runs(tmp_path), job))
    assert handle is not None
    assert second.poll({job.id: handle}) == {}
    assert end_of(second, handle) == 0
    wait_for(lambda: _ray.actor(handle.ref) is None)
    assert end_of(first, handle) is None


def test_jobs_of_a_lost_node_go_on_elsewhere_from_their_checkpoints(
    two_nodes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs, jobs = Runs(tmp_path), [make_job(name, steps=150, step_s=0.02) for name in "ab"]
    events: list[Event] = []
    for event in scheduler.run(make_plan(*jobs), Ray(command=COMMAND), runs, poll_s=0.05):
        events.append(event)
        steps = [len(read_from(runs.job(job.id).events).events) for job in jobs]
        if two_nodes.spare and min(steps) > 20:
            two_nodes.spare.lose()
            two_nodes.spare = None
    ends = [type(event) for event in events if isinstance(event, JobFinished | JobRetried)]
    assert ends.count(JobFinished) == 2
    assert ends.count(JobRetried) == 1
    (again,) = [event for event in events if isinstance(event, JobStarted) and event.iteration]
    assert 0 < again.iteration < 150
    assert len(Ray().machine.cores) == 1
    assert capfd.readouterr() == ("", "")
