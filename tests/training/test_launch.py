"""Several processes that begin and end as one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdlab.jobs.files import read_json, write_json
from kdlab.jobs.job import Resources
from kdlab.jobs.lease import try_lock
from tests.stubs.jobs import make

ROOT = Path(__file__).parents[2]
CODE = """\
import sys
from kdlab.training import launch
launch._GRACE_S = 0.3
launch.leave(launch.main(sys.argv[1], "tests.stubs.rank_stub"))
"""


def begin(folder: Path, *ends: str, files: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    job = make("student-1", resources=Resources(ranks=len(ends)), stub={"ends": list(ends)})
    write_json(folder / "job.json", job.to_dict())
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        pass_fds=files,
    )  # fmt: skip


def said(folder: Path, rank: int) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while (found := read_json(folder / f"{rank}.json")) is None:
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.02)
    return dict(found)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_all_learn_who_they_are_and_where_to_meet(tmp_path: Path) -> None:
    launcher = begin(tmp_path, "finish", "finish", "finish")
    out, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 0
    told = [said(tmp_path, rank) for rank in range(3)]
    assert [one["LOCAL_RANK"] for one in told] == ["0", "1", "2"]
    assert {one["WORLD_SIZE"] for one in told} == {"3"}
    assert len({one["KDLAB_RENDEZVOUS"] for one in told}) == 1
    assert out == "rank 0\n"


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (("kill", "deaf"), -signal.SIGKILL),
        (("deaf", "kill"), -signal.SIGKILL),
        (("deaf", "fail"), 1),
    ],
)
def test_one_that_ends_early_ends_all_and_gives_the_exit_code(
    tmp_path: Path, ends: tuple[str, str], code: int
) -> None:
    launcher = begin(tmp_path, *ends)
    launcher.communicate(timeout=30)
    assert launcher.returncode == code
    assert not any(alive(said(tmp_path, rank)["pid"]) for rank in range(2))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_stops_all(tmp_path: Path, number: signal.Signals) -> None:
    launcher = begin(tmp_path, "wait", "wait")
    for rank in range(2):
        said(tmp_path, rank)
    launcher.send_signal(number)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 143


def test_a_second_signal_kills_what_does_not_listen(tmp_path: Path) -> None:
    launcher = begin(tmp_path, "deaf", "deaf")
    for rank in range(2):
        said(tmp_path, rank)
    launcher.terminate()
    time.sleep(0.3)
    assert launcher.poll() is None
    launcher.terminate()
    launcher.communicate(timeout=30)
    assert launcher.returncode == -signal.SIGKILL


def test_leased_devices_stay_taken_while_a_process_lives(tmp_path: Path) -> None:
    device = tmp_path / "gpu-0"
    with device.open("w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        launcher = begin(tmp_path, "wait", "wait", files=(mine.fileno(),))
        pids = [said(tmp_path, rank)["pid"] for rank in range(2)]
    launcher.kill()
    launcher.wait()
    with device.open("w") as other:
        assert not try_lock(other.fileno(), fcntl.LOCK_EX)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not try_lock(other.fileno(), fcntl.LOCK_EX):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    launcher.communicate(timeout=30)


def test_all_are_in_the_launchers_process_group_so_that_a_kill_of_it_ends_them(tmp_path: Path) -> None:
    launcher = begin(tmp_path, "wait", "wait")
    groups = {said(tmp_path, rank)["pgid"] for rank in range(2)}
    launcher.terminate()
    launcher.communicate(timeout=30)
    assert groups == {os.getpgid(0)}
