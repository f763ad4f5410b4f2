"""Real processes, killed on purpose: the same command ends in the same weights and metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

RECIPE = """\
# Two small jobs: a teacher and a student.
dataset: {name: digits, image_px: 64, train_images: 24, val_images: 8, flip: 0.5}
teacher:
  {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, head_convs: 1, strides: [8, 16],
   schedule: {epochs: 1}}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 24, head_convs: 1, strides: [8, 16]}
schedule:
  {preset: custom, epochs: 6, batch_size: 4, lr: 1e-3, optimizer: adamw, decay: cosine, warmup_iters: 5,
   eval_every: 3}
arms:
  rm+pfi: {rm: {}, pfi: {weight: 30}}
seeds: [0]
resources: {checkpoint_minutes: 0.005, workers: 1}
"""


class World:
    """A folder with a recipe and its own runs."""

    def __init__(self, folder: Path, cache: Path) -> None:
        folder.mkdir()
        self.folder, self.cache = folder, cache
        (folder / "tiny.yaml").write_text(RECIPE)
        self.environment = os.environ | {
            "KDLAB_RUNS": str(folder / "runs"),
            "KDLAB_CACHE": str(cache),
            # leases of its own, so that it does not wait for other runs on this machine
            "XDG_RUNTIME_DIR": str(folder),
        }

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "kdlab", "run", "tiny.yaml", "-y"]
        with (self.folder / "out.txt").open("ab") as out:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=out, stderr=subprocess.STDOUT
            )

    def run(self) -> str:
        assert self.start().wait(timeout=300) == 0, (self.folder / "out.txt").read_text()
        return (self.folder / "out.txt").read_text()

    @property
    def jobs(self) -> list[Path]:
        return sorted((self.folder / "runs" / "jobs").glob("*"))

    def wait_for_student(self, iteration: int) -> Path:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for job in self.jobs:
                if job.name.startswith("student") and f'"iteration": {iteration},' in _read(
                    job / "events.jsonl"
                ):
                    return job
            time.sleep(0.02)
        raise AssertionError((self.folder / "out.txt").read_text())

    def results(self) -> dict[str, Any]:
        found = {}
        for job in self.jobs:
            result = json.loads((job / "result.json").read_text())
            found[job.name] = {key: result[key] for key in ("metrics", "history", "losses", "per_class")}
            found[job.name]["weights"] = result["model"]["weights_sha256"]
        return found


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _kill(job: Path) -> None:
    os.kill(json.loads((job / "lease.json").read_text())["process"]["pid"], signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("worlds")
    world = World(folder / "undisturbed", folder / "cache")
    world.run()
    return world


def test_kills_and_preemption_change_no_number(tmp_path: Path, undisturbed: World) -> None:
    world = World(tmp_path / "disturbed", undisturbed.cache)
    scheduler = world.start()
    job = world.wait_for_student(iteration=10)
    scheduler.kill()
    _kill(job)
    scheduler.wait()
    assert not (job / "result.json").exists(), "killed too late to test anything"

    scheduler = world.start()
    world.wait_for_student(iteration=22)
    scheduler.terminate()
    assert scheduler.wait(timeout=60) == 143
    assert not (job / "result.json").exists(), "stopped too late to test anything"

    world.run()
    assert json.loads((job / "result.json").read_text())["attempts"] == 3
    assert world.results() == undisturbed.results()


def test_second_run_trains_nothing(undisturbed: World) -> None:
    when = {job.name: (job / "result.json").stat().st_mtime_ns for job in undisturbed.jobs}
    before = time.monotonic()
    undisturbed.run()
    assert time.monotonic() - before < 10
    assert {job.name: (job / "result.json").stat().st_mtime_ns for job in undisturbed.jobs} == when
