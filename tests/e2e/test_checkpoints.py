"""A teacher from a file, in real processes: refused when broken, measured when whole, judged by its AP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.e2e.world import Warm, World

pytestmark = pytest.mark.e2e

RECIPE = """\
# A teacher and a student, both tiny.
dataset: {name: digits, image_px: 64, train_images: 48, val_images: 8, flip: 0}
teacher: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, head_convs: 1, strides: [8, 16, 32]}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 24, head_convs: 1, strides: [8, 16, 32]}
schedule:
  {preset: custom, epochs: 1, batch_size: 4, lr: 3e-3, optimizer: adamw, decay: cosine, warmup_iters: 5}
arms:
  baseline: {}
  rm: {rm: {}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> World:
    """Where a teacher was trained; its weights lie there whole and with a tenth of its keys renamed."""
    folder: Path = tmp_path_factory.mktemp("trained")
    world = World(folder / "world", folder / "cache", warm, RECIPE)
    world.run("--set", "arms={rm: {rm: {}}}")
    (weights,) = world.runs.glob("jobs/teacher-*/ckpt/weights.pth")
    whole = torch.load(weights)
    moved = {f"x.{name}" if at % 10 == 0 else name: value
             for at, (name, value) in enumerate(whole["state_dict"].items())}  # fmt: skip
    torch.save({**whole, "state_dict": moved}, folder / "renamed.pth")
    (folder / "whole.pth").write_bytes(weights.read_bytes())
    return world


def test_a_tenth_of_the_keys_renamed_stops_before_any_job(tmp_path: Path, trained: World) -> None:
    world = trained.another(tmp_path / "world")
    world.start("--set", f"teacher.checkpoint={trained.cache.parent / 'renamed.pth'}")
    assert world.wait() == 2
    said = world.out.read_text()
    assert "does not load whole" in said
    assert "missing in backbone: backbone.conv1.weight" in said
    assert [path.name for path in world.runs.iterdir()] == [world.warm.database.name]


def test_a_whole_checkpoint_teaches_and_is_measured_once(tmp_path: Path, trained: World) -> None:
    world = trained.another(tmp_path / "world")
    whole, moved = trained.cache.parent / "whole.pth", tmp_path / "moved.pth"
    world.run("--set", f"teacher.checkpoint={whole}", "--set", "teacher.expect_ap=0")
    assert "teacher: measured from whole.pth, sha256 " in world.out.read_text()
    (measured,) = world.runs.glob("jobs/evaluate-*/result.json")
    (result,) = trained.runs.glob("jobs/teacher-*/result.json")
    metrics = [json.loads(path.read_text())["last"]["metrics"] for path in (measured, result)]
    assert metrics[0] == metrics[1]

    moved.write_bytes(whole.read_bytes())
    overrides = (f"teacher.checkpoint={moved}", "teacher.expect_ap=99", "seeds=[7]")
    world.start(*(word for override in overrides for word in ("--set", override)))
    assert world.wait() == 1
    assert "teacher.expect_ap is 99.0" in world.out.read_text()
    assert len(world.jobs) == 3 + 2
    assert sum(job.result.exists() for job in world.jobs) == 3
