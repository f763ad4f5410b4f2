"""What becomes of jobs on a real Ray cluster of two nodes on this machine when one of them is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs kdlab[ray]")

from kdlab.errors import MachineError, UsageError
from kdlab.jobs.events import Event, JobFinished, JobRetried, JobStarted, read_from
from kdlab.jobs.job import Resources, Runs
from kdlab.orchestration import scheduler
from kdlab.orchestration.executors import _ray
from kdlab.orchestration.executors.base import Handle
from kdlab.orchestration.executors.ray import Ray
from tests.stubs.stub_job import COMMAND, make_job, make_plan, prepared
from tests.stubs.stub_ray import lose, ray_started, start_node


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without room for jobs and two nodes of one core; `spare` is one that a test may lose."""
    with pytest.MonkeyPatch.context() as patch, ray_started(cores=0) as address:
        patch.setenv("RAY_ADDRESS", address)
        nodes = [start_node(f"--address={address}", cores=1, folder=Path("/tmp")) for _ in range(2)]
        yield SimpleNamespace(address=address, spare=nodes[1])


def test_machine_is_all_nodes_and_a_job_needs_one(two_nodes: Any) -> None:
    executor = Ray()
    assert len(executor.machine.cores) == 2
    assert executor.machine.device == "cpu"
    assert executor.slots(make_job()) == 2
    assert executor.slots(make_job(resources=Resources(threads=2))) == 0
    assert executor.slots(make_job(resources=Resources(gpus=1))) == 0


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
    monkeypatch.setattr(_ray, "_answer", lambda answer: {"seen": False, "versions": _ray._versions()})
    job = make_job()
    with pytest.raises(MachineError, match="a node does not see the runs folder"):
        Ray(command=COMMAND).start(job, prepared(Runs(tmp_path), job))
    assert Handle.read(Runs(tmp_path).job(job.id)) is None


def test_gpus_cannot_be_chosen(two_nodes: Any) -> None:
    with pytest.raises(UsageError, match="Ray chooses the GPUs"):
        Ray(gpus=[0])


def test_jobs_of_a_lost_node_go_on_elsewhere_from_their_checkpoints(two_nodes: Any, tmp_path: Path) -> None:
    runs, jobs = Runs(tmp_path), [make_job(name, steps=150, step_s=0.02) for name in "ab"]
    events: list[Event] = []
    for event in scheduler.run(make_plan(*jobs), Ray(command=COMMAND), runs, poll_s=0.05):
        events.append(event)
        steps = [len(read_from(runs.job(job.id).events).events) for job in jobs]
        if two_nodes.spare and min(steps) > 20:
            lose(two_nodes.spare)
            two_nodes.spare = []
    ends = [type(event) for event in events if isinstance(event, JobFinished | JobRetried)]
    assert ends.count(JobFinished) == 2
    assert ends.count(JobRetried) == 1
    (again,) = [event for event in events if isinstance(event, JobStarted) and event.iteration]
    assert 0 < again.iteration < 150
    assert len(Ray().machine.cores) == 1
