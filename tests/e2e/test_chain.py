"""A chain of teachers, really trained: large to middle by one recipe, middle to small by another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdlab.jobs.events import JobStarted
from kdlab.jobs.job import read_job
from tests.e2e.world import Warm, World, events_of

pytestmark = pytest.mark.e2e

LARGE = """\
# Large to middle.
dataset: {name: digits, image_px: 32, train_images: 16, val_images: 8, flip: 0}
teacher: {detector: gfl, backbone: resnet18, width: 12, neck_channels: 16, head_convs: 1, strides: [8, 16]}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 24, head_convs: 1, strides: [8, 16]}
schedule:
  {preset: custom, epochs: 1, batch_size: 4, lr: 1e-3, optimizer: adamw, decay: cosine, warmup_iters: 2,
   ema: 0.1}
arms: {baseline: {}, pfi: {pfi: {}}}
"""
SMALL = """\
# Middle to small.
dataset: {name: digits, image_px: 32, train_images: 16, val_images: 8, flip: 0}
teacher: {recipe: large.yaml, arm: pfi}
student: {detector: gfl, backbone: resnet18, width: 6, neck_channels: 16, head_convs: 1, strides: [8, 16]}
schedule: {preset: custom, epochs: 1, batch_size: 4, lr: 1e-3, optimizer: adamw, warmup_iters: 2}
arms: {baseline: {}, rm: {rm: {}}, maskd: {maskd: {prepare_iters: 2}}}
"""


def test_either_recipe_reuses_what_the_other_trained(tmp_path: Path, warm: Warm) -> None:
    world = World(tmp_path / "chain", tmp_path / "cache", warm, SMALL)
    (world.folder / "large.yaml").write_text(LARGE)
    world.run()
    jobs = {read_job(paths).label: paths for paths in world.jobs}
    own = {"prepare maskd prepare_iters 2", "baseline seed 0", "rm seed 0", "maskd seed 0"}
    assert jobs.keys() == {"teacher of teacher", "teacher", *own}
    assert world.code_of(world.command("run", "large.yaml", "-y")) == 0, world.out.read_text()
    assert len(world.jobs) == len(jobs) + 1
    for paths in world.jobs:
        assert sum(isinstance(event, JobStarted) for event in events_of(paths)) == 1

    rows = [line.split(",")[0] for line in (world.folder / "results" / "tiny.csv").read_text().splitlines()]
    assert [row for row in rows if row in ("teacher", "baseline", "rm", "maskd", "pfi")] == [
        *("teacher", "baseline", "rm", "maskd"),
    ]
    table = (world.folder / "results" / "tiny.md").read_text()
    assert "teacher: pfi seed 0 of large" in table
    result = json.loads(jobs["teacher"].result.read_text())
    assert f"| teacher | {result['last']['metrics']['AP']:.1f} |" in table
    assert (world.folder / "results" / "large.md").exists()
