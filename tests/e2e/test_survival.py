"""Real processes, killed on purpose: the same command ends in the same weights and metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdlab.jobs.paths import JobPaths, Runs
from tests.e2e.world import Warm, World, own_environment, results

pytestmark = pytest.mark.e2e

RECIPE = """\
# Two small jobs: a teacher and a student.
dataset: {name: digits, image_px: 64, train_images: 24, val_images: 8, flip: 0.5}
teacher:
  {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, head_convs: 1, strides: [8, 16, 32],
   schedule: {epochs: 1}}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 24, head_convs: 1, strides: [8, 16, 32]}
schedule:
  {preset: custom, epochs: 6, batch_size: 4, lr: 1e-3, optimizer: adamw, decay: cosine, warmup_iters: 5,
   eval_every: 3}
arms:
  rm+pfi: {rm: {}, pfi: {weight: 30}}
seeds: [0]
resources: {checkpoint_minutes: 0.005, workers: 1}
"""


# two methods held to their shares, images mixed of several, an average of the weights
MIXING = (
    "dataset.scale=[64, 64]",
    "dataset.augment=[mosaic, {random_affine: {scaling: [1, 2]}}, mixup, hsv]",
    "dataset.augment_stop=1",
    "teacher.schedule.epochs=2",
    "schedule.ema=0.02",
    "methods={rm: {gradient_share: {target: 40}}, pfi: {gradient_share: {target: 40}}}",
)

AGAIN = """
import sys
from kdlab.cli import app
print(app.main(["run", "tiny.yaml", "-y", "-q"]), sorted({"torch", "mlflow"} & sys.modules.keys()))
"""


class Cold:
    """A folder with a recipe where all processes are started as a person starts them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder / "undisturbed", folder / "cache"
        self.folder.mkdir()
        (self.folder / "tiny.yaml").write_text(RECIPE)

    def run(self, *words: str) -> str:
        """What a Python says; by default of `kdlab run`."""
        command = [
            sys.executable,
            "-W",
            "ignore",
            *(words or ["-m", "kdlab", "run", "tiny.yaml", "-y", "-q"]),
        ]
        environment = own_environment(self.folder, self.cache)
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def jobs(self) -> list[JobPaths]:
        runs = Runs(self.folder / "runs")
        return [runs.job(path.name) for path in sorted((runs.folder / "jobs").iterdir())]


def _kill(job: JobPaths) -> None:
    os.kill(json.loads(job.lease.read_text())["process"]["pid"], signal.SIGKILL)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cold, str]:
    """The first run, and what it printed."""
    world = Cold(tmp_path_factory.mktemp("worlds"))
    return world, world.run()


@pytest.fixture
def undisturbed(first: tuple[Cold, str]) -> Cold:
    return first[0]


@pytest.fixture(params=["plain", "mixing"])
def whole(
    request: pytest.FixtureRequest, tmp_path: Path, warm: Warm
) -> tuple[list[JobPaths], Path, tuple[str, ...]]:
    """Jobs that nothing happened to, their cache, and how to run the same with other loader processes."""
    if request.param == "plain":
        undisturbed: Cold = request.getfixturevalue("undisturbed")
        return undisturbed.jobs, undisturbed.cache, ()
    words = tuple(word for override in MIXING for word in ("--set", override))
    world = World(tmp_path / "whole", tmp_path / "cache", warm, RECIPE)
    world.run(*words, "--set", "resources.workers=0")
    return world.jobs, world.cache, (*words, "--set", "resources.workers=2")


def test_kills_and_preemption_change_no_number(
    tmp_path: Path, whole: tuple[list[JobPaths], Path, tuple[str, ...]], warm: Warm
) -> None:
    jobs, cache, words = whole
    world = World(tmp_path / "disturbed", cache, warm, RECIPE)
    world.start(*words)
    job = world.wait_for_student(iteration=10)
    os.kill(world.pid, signal.SIGKILL)
    _kill(job)
    assert world.wait() == -signal.SIGKILL
    assert not job.result.exists(), "killed too late to test anything"

    world.start(*words)
    world.wait_for_student(iteration=22)
    os.kill(world.pid, signal.SIGTERM)
    assert world.wait() == 128 + signal.SIGTERM
    assert not job.result.exists(), "stopped too late to test anything"

    world.run(*words)
    assert json.loads(job.result.read_text())["attempts"] == 3
    assert world.results() == results(jobs)


def test_second_run_trains_nothing_and_needs_neither_torch_nor_mlflow(first: tuple[Cold, str]) -> None:
    world, table = first

    def left() -> dict[str, Any]:
        return {
            job.folder.name: (job.result.stat().st_mtime_ns, job.events.read_text()) for job in world.jobs
        }

    before = left()
    *again, told = world.run("-c", AGAIN).splitlines()
    assert left() == before
    assert again == table.splitlines()
    assert told == "0 []"
