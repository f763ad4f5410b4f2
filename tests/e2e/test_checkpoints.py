"""A teacher from a file, in real processes: refused when broken, measured when whole, judged by its AP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

RECIPE = """\
# A teacher and a student, both tiny.
dataset: {name: digits, image_px: 64, train_images: 48, val_images: 8, flip: 0}
teacher: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, head_convs: 1, strides: [8, 16]}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 24, head_convs: 1, strides: [8, 16]}
schedule:
  {preset: custom, epochs: 1, batch_size: 4, lr: 3e-3, optimizer: adamw, decay: cosine, warmup_iters: 5}
arms:
  baseline: {}
  rm: {rm: {}}
"""
RENAME = """
import sys, torch
whole = torch.load(sys.argv[1])
names = list(whole["state_dict"])
moved = {f"x.{n}" if n in names[::10] else n: whole["state_dict"][n] for n in names}
torch.save({**whole, "state_dict": moved}, sys.argv[2])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a teacher was trained; its weights lie there whole and with a tenth of its keys renamed."""
    folder: Path = tmp_path_factory.mktemp("world")
    (folder / "tiny.yaml").write_text(RECIPE)
    done = kdlab(folder, "arms={rm: {rm: {}}}", runs="first")
    assert done.returncode == 0, done.stderr
    (weights,) = (folder / "first").glob("jobs/teacher-*/ckpt/weights.pth")
    (folder / "whole.pth").write_bytes(weights.read_bytes())
    subprocess.run([sys.executable, "-c", RENAME, "whole.pth", "renamed.pth"], cwd=folder, check=True)
    return folder


def kdlab(folder: Path, *overrides: str, runs: str) -> subprocess.CompletedProcess[str]:
    sets = [word for override in overrides for word in ("--set", override)]
    environment = os.environ | {
        "KDLAB_RUNS": str(folder / runs),
        "KDLAB_CACHE": str(folder / "cache"),
        # leases of its own, so that it does not wait for other runs on this machine
        "XDG_RUNTIME_DIR": str(folder),
    }
    return subprocess.run(
        [sys.executable, "-m", "kdlab", "run", "tiny.yaml", "-y", *sets],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_a_tenth_of_the_keys_renamed_stops_before_any_job(folder: Path) -> None:
    done = kdlab(folder, "teacher.checkpoint=renamed.pth", runs="refused")
    assert done.returncode == 2
    assert "does not load whole" in done.stderr
    assert "missing in backbone: backbone.conv1.weight" in done.stderr
    assert not (folder / "refused").exists()


def test_a_whole_checkpoint_teaches_and_is_measured_once(folder: Path) -> None:
    first = kdlab(folder, "teacher.checkpoint=whole.pth", "teacher.expect_ap=0", runs="used")
    assert first.returncode == 0, first.stderr
    assert "teacher: measured from whole.pth, sha256 " in first.stdout
    (measured,) = (folder / "used").glob("jobs/evaluate-*/result.json")
    (trained,) = (folder / "first").glob("jobs/teacher-*/result.json")
    assert json.loads(measured.read_text())["metrics"] == json.loads(trained.read_text())["metrics"]

    (folder / "whole.pth").rename(folder / "moved.pth")
    again = kdlab(folder, "teacher.checkpoint=moved.pth", "teacher.expect_ap=99", "seeds=[7]", runs="used")
    (folder / "moved.pth").rename(folder / "whole.pth")
    assert again.returncode == 1
    assert "teacher.expect_ap is 99.0" in again.stderr
    assert len(list((folder / "used").glob("jobs/*"))) == 3 + 2
    assert len(list((folder / "used").glob("jobs/*/result.json"))) == 3
