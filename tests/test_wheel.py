"""The wheel: what people get who have no clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
Run = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture
def kdlab(wheel: Path, tmp_path: Path) -> Run:
    """`kdlab("ls", "recipes")`: what the command of the installed wheel says, from an empty folder."""
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    options = ["--no-deps", "--no-index", "-q", "--target", installed]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KDLAB_")}
    environment |= {"PYTHONPATH": str(installed), "KDLAB_LOCKS": str(tmp_path)}
    environment |= {"KDLAB_CACHE": str(tmp_path / "cache"), "COLUMNS": "300"}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = [sys.executable, "-c", "import kdlab; print(kdlab.__file__)"]
    where = subprocess.run(found, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    assert Path(where.stdout).is_relative_to(installed)
    return lambda *words: run("kdlab", *words)


def test_the_wheel_holds_recipes_weights_and_published_numbers(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    recipes = [path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".yaml", ".pth")]
    numbers = list((ROOT / "results" / "reference").glob("*.csv"))
    assert any(path.suffix == ".pth" for path in recipes)
    assert numbers
    assert {f"kdlab/recipes/{path.relative_to(ROOT / 'recipes').as_posix()}" for path in recipes} <= names
    assert {f"kdlab/reference/{path.name}" for path in numbers} <= names
    assert not {name for name in names if name.startswith(("tests/", "docs/", "results/"))}


def test_recipes_of_the_wheel_are_listed_without_a_clone(kdlab: Run) -> None:
    listed = kdlab("ls", "recipes")
    assert all(name in listed for name in ("digits/quickstart", "coco/li2022_table6", "voc/li2022"))


@pytest.mark.slow
def test_the_wheel_plans_the_quickstart_with_its_own_weights(kdlab: Run) -> None:
    plan = kdlab("run", "digits/quickstart", "--dry-run")
    assert "teacher" in plan
    assert "rm+pfi" in plan


@pytest.mark.slow
def test_the_wheel_writes_a_recipe_for_a_folder(kdlab: Run, tmp_path: Path) -> None:
    data = tmp_path / "photographs"
    for split, count in (("train", 12), ("val", 4)):
        for kind in ("images", "labels"):
            (data / kind / split).mkdir(parents=True)
        for number in range(count):
            Image.effect_noise((96, 96), 40).save(data / "images" / split / f"{split}{number:02d}.png")
            lines = f"0 0.4 0.{number + 30} 0.4 0.4\n1 0.6 0.5 0.4 0.4\n"
            (data / "labels" / split / f"{split}{number:02d}.txt").write_text(lines)
    (data / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    kdlab("init", str(data), "--init", "none")
    assert "name: yolo" in (tmp_path / "empty" / "photographs.yaml").read_text()
    assert "rm+pfi" in kdlab("plan", "photographs.yaml")
