"""A job of two processes, stopped and killed on purpose: the same files, the same numbers."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdlab.datasets import digits
from kdlab.jobs.events import JobCancelled, JobFailed, JobStarted
from kdlab.jobs.files import read_json, write_json
from kdlab.jobs.job import Resources
from kdlab.jobs.paths import Runs
from tests.e2e.world import Warm, World, events_of, is_student, own_environment, wait_for
from tests.stubs.jobs import make
from tests.stubs.stub_job import prepared

pytestmark = pytest.mark.e2e

# mgd has masks of its own, which a resume has to go on with on both processes
RECIPE = """\
# A teacher, and a student of two processes.
dataset: {name: digits, image_px: 64, train_images: 24, val_images: 10, flip: 0.5}
teacher:
  {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, head_convs: 1, strides: [8, 16, 32],
   schedule: {epochs: 1, gpus: 1}}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, head_convs: 1, strides: [8, 16, 32]}
schedule:
  {preset: custom, epochs: 5, batch_size: 4, lr: 1e-3, optimizer: adamw, decay: cosine, warmup_iters: 2,
   warmup_factor: 0.1, clip_grad: 35, eval_every: 2, gpus: 2}
arms:
  rm+mgd: {rm: {weight: 4}, mgd: {weight: 1e-3}}
seeds: [0]
resources: {checkpoint_minutes: 0.002}
"""


def test_a_stop_and_a_kill_of_two_processes_change_no_number(tmp_path: Path, warm: Warm) -> None:
    undisturbed = World(tmp_path / "undisturbed", tmp_path / "cache", warm, RECIPE)
    undisturbed.run()
    (student,) = filter(is_student, undisturbed.jobs)
    assert json.loads(student.job.read_text())["resources"]["ranks"] == 2

    world = undisturbed.another(tmp_path / "disturbed")
    world.start()
    job = world.wait_for_student(8)
    os.kill(world.pid, signal.SIGTERM)
    assert world.wait() == 128 + signal.SIGTERM
    assert isinstance(events_of(job)[-1], JobCancelled)

    world.start()
    world.wait_for_student(16)
    os.kill(json.loads(job.lease.read_text())["process"]["pid"], signal.SIGKILL)
    assert world.wait() == 0, world.out.read_text()
    assert not job.failure.exists()
    starts = [event.iteration for event in events_of(job) if isinstance(event, JobStarted)]
    assert len(starts) == 3
    assert starts == sorted(set(starts))
    assert json.loads(job.result.read_text())["attempts"] == 3
    assert world.results() == undisturbed.results()


def test_an_error_of_the_second_process_is_the_jobs_and_told_once(tmp_path: Path, warm: Warm) -> None:
    files = digits.prepare(image_px=64, train_images=24, val_images=10, cache=str(tmp_path / "cache"))
    labels = json.loads(files.train.labels.read_text())
    # the second image of the first batch, which the second process reads
    number = int(np.random.default_rng([0, 0]).permutation(len(labels["images"]))[1])
    labels["images"][number]["file_name"] = "gone.png"
    write_json(tmp_path / "labels.json", labels)
    broken = replace(files, train=replace(files.train, labels=tmp_path / "labels.json"))
    two = Resources(ranks=2)
    job = make("teacher-1", "teacher", resources=two, inputs={"dataset": broken}, schedule={"gpus": 2})
    paths = prepared(Runs(tmp_path / "runs"), job)
    environment = own_environment(tmp_path, tmp_path / "cache")
    pid = warm.ask("launch", folder=str(paths.folder), env=environment, out=str(paths.log))
    wait_for(lambda: warm.ask("poll", pid=pid) is not None, paths.log)
    assert warm.ask("poll", pid=pid) == 1
    failure = read_json(paths.failure)
    assert failure is not None
    assert failure["where"].endswith("gone.png")
    told = [event for event in events_of(paths) if isinstance(event, JobFailed)]
    assert [event.what for event in told] == ["an image cannot be read"]
