from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kdlab.cli.screen.places import place, ranges, without_jobs
from kdlab.devices import Gpu, Machine
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Resources
from kdlab.jobs.lease import Lease, LeaseInfo, Process
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.status import JobStatus
from tests.stubs.jobs import make

NUMBERS = {"GPU-aaaaaaaaaa": 0, "GPU-bbbbbbbbbb": 1, "GPU-cccccccccc": 2}
ME = Process.of(os.getpid())
FAR = Process("node3.cluster", 77, None)


@pytest.fixture
def paths(tmp_path: Path) -> JobPaths:
    return JobPaths(tmp_path)


def located(paths: JobPaths, gpus: int = 0) -> JobStatus:
    status = JobStatus(make("student-00000000", resources=Resources(gpus=gpus)))
    status.locate(paths)
    return status


def where(paths: JobPaths, gpus: int = 0) -> str | None:
    status = located(paths, gpus)
    return place(status, NUMBERS) if status.at_work else None


def aged(path: Path) -> None:
    os.utime(path, (0, 0))


@pytest.mark.parametrize(
    ("numbers", "told"),
    [([0], "gpu0"), ([3, 1, 0, 2], "gpu0-3"), ([0, 2], "gpu0,2"), ([0, 1, 5, 7, 8], "gpu0-1,5,7-8")],
)
def test_numbers_in_a_row_are_told_as_a_range(numbers: list[int], told: str) -> None:
    assert ranges("gpu", numbers) == told


def test_a_job_that_never_started_is_nowhere(paths: JobPaths) -> None:
    assert where(paths) is None


def test_a_process_here_is_where_its_devices_are(paths: JobPaths) -> None:
    Handle("local", ME, ("1", "0")).write(paths)
    assert where(paths) == "core0-1"
    Handle("local", ME, ("GPU-aaaaaaaaaa", "GPU-cccccccccc")).write(paths)
    assert where(paths, gpus=2) == "gpu0,2"
    assert located(paths, gpus=2).devices == ("GPU-aaaaaaaaaa", "GPU-cccccccccc")


def test_a_gpu_without_a_number_here_is_told_by_its_name(paths: JobPaths) -> None:
    Handle("local", ME, ("GPU-dddddddddd",)).write(paths)
    assert where(paths, gpus=1) == "gpu GPU-dddd"


def test_a_job_whose_process_died_is_nowhere(paths: JobPaths) -> None:
    Handle("local", Process(ME.host, 2**22 + 1, 1), ("0",)).write(paths)
    assert where(paths) is None


def test_a_job_in_this_very_process_has_a_place_without_devices(paths: JobPaths) -> None:
    with Lease.acquire(paths):
        assert where(paths) == ""


def test_a_job_on_another_host_names_it_while_its_heart_beats(paths: JobPaths) -> None:
    LeaseInfo(1, FAR, time.time()).write(paths)
    assert where(paths) == "node3"
    assert located(paths).away
    LeaseInfo(1, FAR, time.time() - 3600).write(paths)
    assert where(paths) is None


def test_a_cluster_s_job_waits_until_a_process_takes_its_lease(paths: JobPaths) -> None:
    Handle("slurm", ref="1234").write(paths)
    assert where(paths) == "slurm 1234"
    assert located(paths).in_queue
    LeaseInfo(1, FAR, time.time()).write(paths)
    assert where(paths) == "slurm node3"
    assert located(paths).away


def test_a_cluster_s_job_that_ended_is_nowhere_until_it_is_handed_in_again(paths: JobPaths) -> None:
    Handle("slurm", ref="1234").write(paths)
    aged(paths.handle)
    LeaseInfo(1, FAR, 0.0).write(paths)
    assert where(paths) is None
    Handle("slurm", ref="1235").write(paths)
    aged(paths.lease)
    assert where(paths) == "slurm 1235"


def test_a_cluster_s_job_that_was_stopped_in_its_queue_waits_no_more(paths: JobPaths) -> None:
    Handle("slurm", ref="1234").write(paths)
    paths.stop_request.touch()
    assert where(paths) is None


def test_gpus_without_a_job_of_ours_say_who_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    gpus = [Gpu(0, "GPU-a", 8.0), Gpu(1, "GPU-b", 8.0), Gpu(2, "GPU-c", 8.0, busy=True), Gpu(3, "GPU-d", 8.0)]
    with Machine((), (gpus[1],)).lease("gpu", 1) or pytest.fail("not leased"):
        said = without_jobs(gpus, {"GPU-d"})
    assert said == {"GPU-a": "idle", "GPU-b": "used by another kdlab run", "GPU-c": "used by others"}
    assert without_jobs(gpus[:2], ()) == {"GPU-a": "idle", "GPU-b": "idle"}
