"""Plugins of a person's own folder: found, told apart, imported by jobs, hashed by content."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdlab import children

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "plugins.md").read_text(), re.DOTALL)
RECIPE = """# A pair
dataset: {name: digits, image_px: 64, train_images: 8, val_images: 4}
teacher: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, strides: [8, 16]}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, strides: [8, 16]}
schedule: {preset: custom, epochs: 1, batch_size: 4, lr: 1e-3, optimizer: adamw}
arms:
  baseline: {}
  topk: {topk: {share: 0.1}}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the method of the documentation, its test, and a recipe."""
    methods = tmp_path / "kdlab_plugins" / "methods"
    methods.mkdir(parents=True)
    (methods / "topk.py").write_text(BLOCKS[0])
    (tmp_path / "test_topk.py").write_text(BLOCKS[1])
    (tmp_path / "my.yaml").write_text(RECIPE)
    return tmp_path


def run(words: list[str], here: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    told = os.environ | children.environment() | {"KDLAB_RUNS": str(here / "runs")} | environment
    return subprocess.run(
        [sys.executable, *words], cwd=here, env=told, capture_output=True, text=True, check=False
    )


def kdlab(line: str, here: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(["-m", "kdlab", *line.split()], here, **environment)


def plan(here: Path) -> dict[str, str]:
    done = kdlab("plan my.yaml --json", here)
    assert done.returncode == 0, done.stderr
    jobs = [planned["job"] for planned in json.loads(done.stdout)["jobs"]]
    return {f"{job['arm']} {job['spec'].get('seed', 0)}": job["id"] for job in jobs}


def test_the_documentation_s_method_trains_and_its_own_test_passes(here: Path) -> None:
    assert run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_topk.py"], here).returncode == 0
    done = kdlab("run my.yaml --executor inline", here)
    assert done.returncode == 0, done.stderr
    assert "topk" in done.stdout


def test_it_is_listed_with_its_file_and_explained(here: Path) -> None:
    entries = {one["name"]: one for one in json.loads(kdlab("ls methods --json", here).stdout)["methods"]}
    assert str(here / "kdlab_plugins/methods/topk.py") in entries["topk"]["about"]
    assert "kdlab_plugins" not in entries["rm"]["about"]
    assert "share" in kdlab("ls methods topk", here).stdout


def test_a_folder_elsewhere_is_named_by_a_variable(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert kdlab("ls methods topk", elsewhere).returncode == 2
    named = {"KDLAB_PLUGINS": str(here / "kdlab_plugins")}
    assert kdlab("ls methods topk", elsewhere, **named).returncode == 0


def test_the_content_of_a_plugin_is_part_of_the_ids_of_its_jobs_alone(here: Path) -> None:
    before = plan(here)
    file = here / "kdlab_plugins" / "methods" / "topk.py"
    file.write_text(file.read_text().replace("** 2", "** 4"))
    changed = {label for label, number in plan(here).items() if number != before[label]}
    assert changed == {"topk 0"}
    between = plan(here)
    (file.parent / "_part.py").write_text('"""A part."""\n')
    assert plan(here)["topk 0"] != between["topk 0"]


def test_a_name_that_comes_with_kdlab_is_refused(here: Path) -> None:
    (here / "kdlab_plugins" / "methods" / "rm.py").write_text(BLOCKS[0])
    done = kdlab("ls methods", here)
    assert done.returncode != 0
    assert "there is a method called rm already" in done.stderr
