"""Real training on a Ray cluster of two nodes on this machine, one of them lost and the command killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.stubs.stub_ray import Node, ray_started, start_node

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs kdlab[ray]"),
]

RECIPE = """\
# A teacher and two students.
dataset: {name: digits, image_px: 64, train_images: 24, val_images: 8, flip: 0.5}
teacher:
  {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, head_convs: 1, strides: [8, 16],
   schedule: {epochs: 1}}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 24, head_convs: 1, strides: [8, 16]}
schedule:
  {preset: custom, epochs: 24, batch_size: 4, lr: 1e-3, optimizer: adamw, decay: cosine, warmup_iters: 5,
   eval_every: 12}
arms:
  rm+pfi: {rm: {}, pfi: {weight: 30}}
seeds: [0, 1]
resources: {checkpoint_minutes: 0.005, workers: 1}
"""


class World:
    """A folder with a recipe and its own runs."""

    def __init__(self, folder: Path, **environment: str) -> None:
        folder.mkdir()
        self.folder = folder
        (folder / "tiny.yaml").write_text(RECIPE)
        own = {"KDLAB_RUNS": str(folder / "runs"), "KDLAB_CACHE": str(folder.parent / "cache")}
        self.environment = os.environ | own | {"KDLAB_LOCKS": str(folder)} | environment

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "kdlab", "run", "tiny.yaml", "-y", *words]
        with (self.folder / "out.txt").open("ab") as out, (self.folder / "err.txt").open("ab") as err:
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=err)

    def told(self) -> str:
        return (self.folder / "out.txt").read_text() + (self.folder / "err.txt").read_text()

    def students_beyond(self, iteration: int) -> dict[Path, Any]:
        """The leases of the students at work, once each has got that far."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            jobs = sorted((self.folder / "runs" / "jobs").glob("student-*"))
            far = [job for job in jobs if f'"iteration": {iteration},' in _read(job / "events.jsonl")]
            if len(far) == 2:
                return {job: json.loads((job / "lease.json").read_text()) for job in far}
            time.sleep(0.05)
        raise AssertionError(self.told())

    def results(self) -> dict[str, Any]:
        found = {}
        for path in sorted((self.folder / "runs" / "jobs").glob("*/result.json")):
            result = json.loads(path.read_text())
            curves = json.loads(path.with_name("curves.json").read_text())
            found[path.parent.name] = {"last": result["last"], "evaluations": curves["evaluations"]}
            found[path.parent.name]["weights"] = result["model"]["weights_sha256"]
        return found


def wait_for(condition: Callable[[], bool], world: World) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, world.told()
        time.sleep(0.05)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[Node]]]:
    """The address of a head without room for jobs, and two nodes of one core."""
    with ray_started(cores=0) as address:
        nodes: list[Node] = []
        try:
            for _ in range(2):
                nodes.append(start_node(f"--address={address}", cores=1, folder=Path("/tmp")))
            yield address, nodes
        finally:
            for node in nodes:
                node.lose()


def test_lost_node_and_killed_command_change_no_number(
    tmp_path: Path, cluster: tuple[str, list[Node]]
) -> None:
    local = World(tmp_path / "local")
    assert local.start().wait(timeout=600) == 0, local.told()
    world = World(tmp_path / "disturbed", RAY_ADDRESS=cluster[0])

    command = world.start("--executor", "ray")
    before = world.students_beyond(iteration=10)
    command.kill()
    command.wait()
    time.sleep(1)
    assert all(Path(f"/proc/{lease['process']['pid']}").exists() for lease in before.values())

    said = len(world.told())
    command = world.start("--executor", "ray")
    wait_for(lambda: world.told()[said:].count("started on cpu") >= 2, world)
    world.students_beyond(iteration=24)
    cluster[1][1].lose()
    assert command.wait(timeout=600) == 0, world.told()

    assert world.results() == local.results()
    attempts = [json.loads((job / "result.json").read_text())["attempts"] for job in before]
    assert sorted(attempts) == [1, 2], "the command's death cost an attempt, or the node was lost too late"
    assert not [word for word in ("raylet", ".cc:", "Traceback") if word in world.told()]
