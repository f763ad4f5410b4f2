"""`kdlab init`: from a folder to a recipe that plans, and nothing written into the folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlab.cli import app
from kdlab.cli.verbs import init as verb
from kdlab.drafting.choices import Cost
from kdlab.errors import MachineError
from kdlab.recipe import loader


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take what a test says; one test measures them."""
    monkeypatch.setattr(verb, "_measured", lambda *_: Cost(0.1, 0.2, 0.3))


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty photographs with one COCO file, and a working folder of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder = tmp_path / "photos of cats"
    folder.mkdir()
    images, boxes = [], []
    for number in range(1, 31):
        cells = np.random.default_rng(number).integers(0, 255, (9, 16, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((320, 180), Image.Resampling.NEAREST).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 320, "height": 180})
        place = {"id": number, "image_id": number, "category_id": number % 2 + 1, "iscrowd": 0}
        boxes.append(place | {"bbox": [10, 20, 60, 50], "area": 3000})
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    labels = {"images": images, "annotations": boxes, "categories": names}
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def kdlab(line: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = app.main(shlex.split(line))
    return code, *capfd.readouterr()


def below(folder: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("relative", [False, True])
def test_a_folder_becomes_a_recipe_that_loads(
    photographs: Path, relative: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    before = below(photographs)
    folder = f"../{photographs.name}" if relative else photographs
    code, out, err = kdlab(f"init '{folder}' --init none --minutes 30", capfd)
    assert code == 0, err
    assert below(photographs) == before
    assert "next: kdlab run photos-of-cats.yaml" in err
    assert "COCO JSON, 2 classes: cat, dog" in out
    assert "15 to learn from, 15 to measure on" in " ".join(out.split())
    recipe = loader.load("photos-of-cats.yaml")
    assert recipe.seeds == (0, 1, 2)
    assert list(recipe.arms) == ["baseline", "rm", "pfi", "rm+pfi"]
    assert {path.name for path in Path("photos-of-cats-split").iterdir()} == {"train.json", "val.json"}


def test_json_says_what_was_chosen_and_why(photographs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = kdlab(f"init '{photographs}' --init none --minutes 30 -o my.yaml --json", capfd)
    assert code == 0
    told = json.loads(out)
    assert (told["recipe"], told["format"], told["usable"]) == ("my.yaml", "COCO JSON", True)
    assert told["scale"] == [320, 180]
    assert "30 minutes" in told["why"]["epochs"]
    assert told["minutes"] <= 30


def test_a_recipe_that_is_there_stays(photographs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text("mine")
    code, _, err = kdlab(f"init '{photographs}' --init none -o my.yaml", capfd)
    assert code == 2
    assert "there is a recipe of this name" in err
    assert Path("my.yaml").read_text() == "mine"
    assert kdlab(f"init '{photographs}' --init none -o my.yaml --force", capfd)[0] == 0
    assert "dataset:" in Path("my.yaml").read_text()


def test_nothing_is_written_into_a_folder_that_is_called_as_its_recipe(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`kdlab init photographs` beside the folder, as the documentation has it."""
    monkeypatch.chdir(photographs.parent)
    photographs.rename("photographs")
    before = below(Path("photographs"))
    assert kdlab("init photographs --init none", capfd)[0] == 0
    assert below(Path("photographs")) == before
    assert (
        loader.load("photographs.yaml").dataset.options["train_labels"] == "../photographs-split/train.json"
    )
    monkeypatch.chdir("photographs")
    code, _, err = kdlab("init . --init none", capfd)
    assert code == 2
    assert "would lie among the data" in err
    assert below(Path()) == before
    code, _, err = kdlab("init . --init none -o ../other.yaml", capfd)
    assert code == 2
    assert "kdlab init photographs" in err


def test_a_link_to_a_folder_is_as_good_as_the_folder(
    photographs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photographs.parent / "deeper" / "still").mkdir(parents=True)
    photographs.rename(photographs.parent / "deeper" / "still" / "photographs")
    Path("linked").symlink_to("../deeper/still/photographs")
    code, _, err = kdlab("init linked --init none -o linked.yaml", capfd)
    assert code == 0, err
    assert Path("linked", loader.load("linked.yaml").dataset.options["train_labels"]).is_file()


def test_a_measurement_that_fails_leaves_the_recipe_that_was_there(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any) -> Cost:
        raise MachineError("no torch here")

    monkeypatch.setattr(verb, "_measured", failing)
    Path("my.yaml").write_text("mine")
    assert kdlab(f"init '{photographs}' --init none -o my.yaml --force", capfd)[0] == 3
    assert Path("my.yaml").read_text() == "mine"
    assert [path.name for path in Path().glob("*.yaml")] == ["my.yaml"]
    assert [path.name for path in Path().glob(".*")] == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("init nowhere", "there is no such folder"),
        ("init empty --init nowhere.pth", "there is no such file of weights"),
        ("init empty --init none", "there are no images below this folder"),
        ("init empty --minutes 0", "greater than or equal to 1"),
    ],
)
def test_mistakes_are_told(
    photographs: Path, line: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    code, _, err = kdlab(line, capfd)
    assert code == 2
    assert told in err
    assert not list(Path().glob("*.yaml"))


def test_a_file_that_a_job_would_stop_at_is_told_at_once(
    photographs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photographs / "7.png").write_bytes(b"")
    code, _, err = kdlab(f"init '{photographs}' --init none", capfd)
    assert code == 0
    assert "stops a job: image files of 0 bytes" in err
    assert "kdlab doctor --data photos-of-cats.yaml" in err


def test_time_that_allows_too_little_makes_images_smaller(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def slow(draft: Path) -> Cost:
        seen.append(loader.load(str(draft)).dataset.scale)
        return Cost(1, 2, 3)

    monkeypatch.setattr(verb, "_measured", slow)
    assert kdlab(f"init '{photographs}' --init none --minutes 5", capfd)[0] == 0
    assert [max(scale) for scale in seen] == [320, 224, 160]
    assert loader.load("photos-of-cats.yaml").dataset.scale == (160, 90)


def test_faults_of_labels_name_the_file_and_leave_no_split_behind(
    photographs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = photographs / "labels.json"
    labels.write_text(labels.read_text().replace("60, 50", '"60", 50'))
    code, _, err = kdlab(f"init '{photographs}' --init none", capfd)
    assert code == 2
    assert "labels.json" in err
    assert not list(Path().iterdir())


def test_what_was_left_aside_is_told(photographs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (photographs / "notes.json").write_text("{}")
    code, out, _ = kdlab(f"init '{photographs}' --init none --json", capfd)
    assert code == 0
    assert "notes.json" in json.loads(out)["notes"][0]


def test_a_split_is_never_written_among_the_data(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = photographs.rename(photographs.with_name("cells-split"))
    monkeypatch.chdir(folder.parent)
    before = below(folder)
    code, _, err = kdlab("init cells-split -o cells.yaml --init none", capfd)
    assert code == 2
    assert "the split would lie among the data" in err
    assert below(folder) == before


def test_the_split_of_another_recipe_is_written_over_with_force_alone(
    photographs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert kdlab(f"init '{photographs}' --init none -o a.yaml", capfd)[0] == 0
    before = below(Path("a-split"))
    Path("a.yaml").rename("b.yaml")
    for name in ("a.yaml", "a.yml"):
        code, _, err = kdlab(f"init '{photographs}' --init none --seed 7 -o {name}", capfd)
        assert (code, below(Path("a-split"))) == (2, before)
        assert "a split of this name, which another recipe may need" in err
    assert kdlab(f"init '{photographs}' --init none --seed 7 -o a.yml --force", capfd)[0] == 0
    assert Path("a.yml").read_text().splitlines()[1].startswith("# kdlab run a.yml")


def test_what_fails_leaves_no_split_and_no_draft_and_no_file_of_anybody_else(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path(".a.yaml").write_text("mine")

    def fails(*_: Any) -> Cost:
        raise MachineError("no room")

    monkeypatch.setattr(verb, "_measured", fails)
    assert kdlab(f"init '{photographs}' --init none -o a.yaml", capfd)[0] != 0
    assert {path.name: path.read_text() for path in Path().iterdir()} == {".a.yaml": "mine"}


@pytest.mark.parametrize(
    "name", ["1e5", "null", "True", "on", "0x1f", "2026-12-02", "nan", "new\nline", "a: b #c"]
)
def test_a_folder_of_any_name_becomes_a_recipe_that_loads(
    name: str, photographs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = photographs.rename(Path.cwd() / name)
    code, _, err = kdlab(f"init {shlex.quote(name)} --init none -o 'my own.yaml'", capfd)
    assert code == 0, err
    assert loader.load("my own.yaml").dataset.options["root"] == folder.name
    assert Path("my own.yaml").read_text().splitlines()[1].startswith("# kdlab run 'my own.yaml'")
