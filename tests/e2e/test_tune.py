"""A real search, undisturbed and killed on purpose: the trials that were asked for, each to its end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kdlab.jobs.events import JobEvaluated, JobStarted, read_from
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.study import Trial
from kdlab.running.driver import Driver
from kdlab.tuning.study import stored_trials
from tests.e2e.world import Warm, World, wait_for

pytestmark = pytest.mark.e2e

TRIALS = 4
RECIPE = f"""\
# A teacher and a student, seconds each.
dataset: {{name: digits, image_px: 32, train_images: 24, val_images: 8, flip: 0.5}}
teacher:
  {{detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, head_convs: 1, strides: [8, 16],
   schedule: {{epochs: 1}}}}
student: {{detector: gfl, backbone: resnet18, width: 8, neck_channels: 24, head_convs: 1, strides: [8, 16]}}
schedule:
  {{preset: custom, epochs: 4, batch_size: 2, lr: 1e-3, optimizer: adamw, decay: cosine, warmup_iters: 5}}
arms:
  rm+pfi: {{rm: {{}}, pfi: {{weight: 30}}}}
resources: {{checkpoint_minutes: 0.003}}
tune: {{trials: {TRIALS}}}
"""


class Search(World):
    """A folder with a recipe, and `kdlab tune` of it."""

    argv = ("tune", "tiny.yaml", "-y")

    @property
    def drives(self) -> bool:
        """Whether the command that was started last is at the search."""
        plans = (self.runs / "plans").glob("*.json")
        drivers = [Driver.of(path.stem, Runs(self.runs)) for path in plans]
        return any(driver and driver.process.pid == self.pid for driver in drivers)

    @property
    def trials(self) -> list[Trial]:
        """As the study has them."""
        (plan,) = [json.loads(path.read_text()) for path in (self.runs / "plans").glob("*.json")]
        url = f"sqlite:///{self.runs / 'optuna.db'}"
        return stored_trials(plan["recipe"]["study"], url)

    def saved_trial(self, but: Sequence[JobPaths] = ()) -> tuple[JobPaths, int]:
        """A running trial with a checkpoint and a good part before it, and its process."""
        others = {job.folder for job in but}
        found: list[tuple[JobPaths, int]] = []

        def look() -> bool:
            assert self.code is None, f"it ended too early\n{self.out.read_text()}"
            new = [(job, pid) for job, pid in self.running if job.folder not in others]
            found[:] = [(job, pid) for job, pid in new if _is_saved_trial(job)]
            return bool(found)

        wait_for(look)
        return found[0]


def _is_saved_trial(job: JobPaths) -> bool:
    if not job.folder.name.startswith("student") or not any(job.checkpoints.glob("[0-9]*-*.pth")):
        return False
    epochs = [event.epoch for event in read_from(job.events).events if isinstance(event, JobEvaluated)]
    return max(epochs, default=0) <= 1


def first_steps(job: JobPaths) -> list[int]:
    """The step from which each attempt at a job went on."""
    return [event.iteration for event in read_from(job.events).events if isinstance(event, JobStarted)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Search:
    folder = tmp_path_factory.mktemp("undisturbed")
    world = Search(folder / "world", folder / "cache", warm, RECIPE)
    world.run()
    return world


def test_search_ends_with_a_table_of_its_trials(undisturbed: Search) -> None:
    assert [trial.state for trial in undisturbed.trials] == ["finished"] * TRIALS
    assert f"{TRIALS} trials by AP" in undisturbed.out.read_text()
    written = {path.suffix for path in (undisturbed.folder / "results" / "tune").iterdir()}
    assert written == {".md", ".csv", ".png", ".pdf"}


def test_trial_learns_from_and_is_measured_on_training_images(undisturbed: Search) -> None:
    inputs = {
        job.folder.name: json.loads(job.job.read_text())["inputs"]["dataset"] for job in undisturbed.jobs
    }
    (teacher,) = [told for name, told in inputs.items() if name.startswith("teacher")]
    others = [told for name, told in inputs.items() if not name.startswith("teacher")]
    assert len(others) == 1 + TRIALS
    for told in others:
        assert told["val"]["images"] == told["train"]["images"] == teacher["train"]["images"]
        assert told["val"]["labels"] not in (teacher["val"]["labels"], told["train"]["labels"])


def test_finished_search_trains_nothing_when_it_is_run_again(undisturbed: Search) -> None:
    before = {job.folder.name: job.result.stat().st_mtime_ns for job in undisturbed.jobs}
    assert undisturbed.code_of(undisturbed.command("tune", "tiny.yaml", "-y")) == 0
    assert {job.folder.name: job.result.stat().st_mtime_ns for job in undisturbed.jobs} == before


def test_killed_and_stopped_search_goes_on_with_the_right_number_of_trials(
    tmp_path: Path, undisturbed: Search
) -> None:
    world = Search(tmp_path / "world", undisturbed.cache, undisturbed.warm, RECIPE)
    world.start()
    killed, pid = world.saved_trial()
    os.kill(world.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    assert world.wait() == -signal.SIGKILL
    assert not killed.result.exists(), "killed too late to test anything"

    before = world.jobs
    world.start()
    wait_for(lambda: world.drives)
    # so that it is not done before the other one has planned
    os.kill(world.pid, signal.SIGSTOP)
    refused = world.command("tune", "tiny.yaml", "-y", out="second.txt")
    assert world.code_of(refused) == 2
    assert "another command is at this search already" in (world.folder / "second.txt").read_text()
    os.kill(world.pid, signal.SIGCONT)
    stopped, _ = world.saved_trial(but=before)
    os.kill(world.pid, signal.SIGTERM)
    assert world.wait() == 128 + signal.SIGTERM
    assert world.running == []
    assert not stopped.result.exists(), "stopped too late to test anything"

    world.start()
    assert world.wait() == 0, world.out.read_text()
    assert [trial.state for trial in world.trials] == ["finished"] * TRIALS
    assert [first_steps(job)[0] for job in (killed, stopped)] == [0, 0]
    assert all(min(first_steps(job)[1:]) > 0 for job in (killed, stopped))
    assert world.warm.ask("left") == []
    assert common(world, undisturbed) == common(undisturbed, world)


def common(world: Search, other: Search) -> dict[str, Any]:
    """The results of the trials that another world has trained too; the sampler's own differ."""
    shared = {job.folder.name for job in world.jobs} & {job.folder.name for job in other.jobs}
    assert len(shared) >= 5, "teacher, scale and three references"
    return {
        name: result for name, result in world.results().items() if name in shared and "scale" not in name
    }
