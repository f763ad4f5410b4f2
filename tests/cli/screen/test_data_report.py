from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from kdlab.cli import app
from kdlab.cli.screen import data_report
from kdlab.cli.screen.console import Screen
from kdlab.datasets.base import DatasetFiles, Split
from kdlab.inspection import across
from kdlab.inspection.examine import Inspection
from kdlab.inspection.findings import Defect, Place
from kdlab.inspection.summary import Summary

RECIPE = "foosball/gfl_mbv2"


def labels(images: dict[str, int], first: int) -> dict[str, Any]:
    """COCO labels of images 64 px wide, given with the number of objects of each."""
    found: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for number, (name, count) in enumerate(images.items(), start=first):
        found["images"].append({"id": number, "file_name": name, "width": 64, "height": 64})
        found["annotations"] += [
            {"id": 100 * number + place, "image_id": number, "category_id": 1, "bbox": [0.5, place, 40.5, 40]}
            for place in range(count)
        ]
    return found


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of two images a split that holds no defect above a note."""
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(across, "FEW_IMAGES", 2)
    monkeypatch.setattr(across, "FEW_OBJECTS", 2)
    # pytest's workers have it, and then a line is cut there
    monkeypatch.delenv("COLUMNS", raising=False)
    base = tmp_path / "set"
    for split, names, first in (("train", "ab", 1), ("valid", "cd", 3)):
        folder = base / "images" / split
        folder.mkdir(parents=True)
        for place, name in enumerate(names, start=first):
            Image.new("RGB", (64, 64), (place, 0, 0)).save(folder / f"{name}.png")
        file = base / "annotations" / f"{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(labels({f"{name}.png": 1 for name in names}, first)))
    return base


Doctor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def doctor(root: Path, capfd: pytest.CaptureFixture[str]) -> Doctor:
    """`doctor("--json")`: exit code, stdout and stderr of a look at the set."""

    def run(*argv: str, **settings: str) -> tuple[int, str, str]:
        changes = {"root": str(root), **settings}
        sets = [word for key, value in changes.items() for word in ("--set", f"dataset.{key}={value}")]
        code = app.main(["doctor", "--data", RECIPE, *argv, *sets])
        return code, *capfd.readouterr()

    return run


def rows(out: str) -> list[str]:
    """The lines without their columns."""
    return [" ".join(line.split()) for line in out.splitlines()]


def test_what_needs_no_action_gives_0_and_is_counted(doctor: Doctor, root: Path) -> None:
    code, out, err = doctor()
    assert code == 0
    assert out.endswith(
        "\n1 more kind of finding that needs no action: -v\n"
        "\n0 errors, 0 warnings, 0 notes: training can use this data\n"
    )
    assert "box values mix" not in out
    assert err.endswith(f"next: kdlab plan {RECIPE} --set dataset.root={root}\n")


def test_what_needs_no_action_stands_there_when_asked(doctor: Doctor) -> None:
    _, out, _ = doctor("-v")
    assert any(row.startswith("info 4 box values mix whole numbers and fractions") for row in rows(out))
    assert "needs no action" not in out


def test_few_images_to_measure_on_are_worth_a_warning(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(across, "FEW_IMAGES", 3)
    monkeypatch.setattr(across, "FEW_OBJECTS", 3)
    _, out, _ = doctor()
    assert "warn 2 validation images, few: each moves AP by points val 2" in rows(out)
    assert "warn 2 classes with fewer than 10 objects in a split train: cat 2; val: cat 2" in rows(out)


def test_sizes_are_told_at_the_scale_of_the_recipe_too(doctor: Doctor) -> None:
    _, out, _ = doctor(scale="[256, 256]")
    assert "medium 2 2 4 100.0 %" in rows(out)
    assert "large at scale 256x256 2 2 4 100.0 %" in rows(out)


def test_the_range_in_which_pixels_arrive_is_told(doctor: Doctor) -> None:
    assert "pixel values, of 0..255 0..2 0..4 0..4" in rows(doctor()[1])


def test_off_a_terminal_it_says_what_is_counted_without_colour(doctor: Doctor) -> None:
    _, out, err = doctor()
    assert err.startswith("checking 2 label files\nchecking 4 images\n")
    assert "\x1b" not in out + err


def test_a_warning_gives_0(doctor: Doctor, root: Path) -> None:
    content = (root / "images/train/a.png").read_bytes()
    (root / "images/valid/c.png").write_bytes(content)
    code, out, _ = doctor()
    assert code == 0
    assert "warn  1  images with the same content in two splits" in out
    assert "0 errors, 1 warning, 0 notes: training can use this data" in out


def test_a_broken_image_gives_3_where_jobs_stop_at_one(doctor: Doctor, root: Path) -> None:
    (root / "images/train/a.png").write_bytes(b"")
    code, out, err = doctor()
    assert code == 3
    assert "\nerror  1  image files of 0 bytes " in out
    assert "1 error, 0 warnings, 0 notes; training cannot use this data: mend the errors" in out
    assert f"next: kdlab doctor --data {RECIPE} --set" in err


def test_broken_images_give_0_where_jobs_skip_them(doctor: Doctor, root: Path) -> None:
    (root / "images/train/a.png").write_bytes(b"")
    (root / "images/valid/c.png").unlink()
    code, out, _ = doctor(broken_images="skip")
    assert code == 0
    assert "warn  1  labelled images without a file" in out
    assert "0 errors, 2 warnings, 0 notes: training can use this data, leaving out 2 broken images\n" in out


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_split_of_broken_images_alone_gives_3_all_the_same(split: str, doctor: Doctor, root: Path) -> None:
    for file in (root / "images" / split).iterdir():
        file.write_bytes(b"")
    assert doctor(broken_images="skip")[0] == 3


def test_json_holds_every_place(doctor: Doctor, root: Path) -> None:
    names = [f"{letter}.png" for letter in "abefghijkl"]
    (root / "annotations/train.json").write_text(json.dumps(labels(dict.fromkeys(names, 1), 11)))
    code, out, err = doctor("--json")
    found = json.loads(out)
    assert (code, found["schema"], found["recipe"], found["usable"], err) == (3, 1, RECIPE, False, "")
    (missing,) = [defect for defect in found["defects"] if defect["kind"] == "image-missing"]
    assert [place["file"] for place in missing["places"]] == names[2:]
    assert (missing["severity"], missing["count"], missing["splits"]) == ("error", 8, {"train": 8})
    assert [split["name"] for split in found["splits"]] == ["train", "val", "all"]


def test_a_set_that_is_not_there_gives_3(doctor: Doctor, tmp_path: Path) -> None:
    code, out, err = doctor(root=str(tmp_path / "nowhere"))
    assert (code, out) == (3, "")
    assert "dataset.root is not a folder" in err


def test_a_change_of_a_recipe_without_one_gives_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main(["doctor", "--set", "dataset.root=x"]) == 2
    assert "kdlab doctor --data RECIPE --set ..." in capfd.readouterr().err


def test_nothing_of_torch_is_imported(root: Path) -> None:
    script = (
        "import sys\n"
        "from kdlab.cli.app import main\n"
        "code = main(sys.argv[1:])\n"
        "print({'torch', 'mmdet', 'mmcv', 'mmengine', 'torchvision', 'mlflow'} & {*sys.modules})\n"
        "sys.exit(code)"
    )
    argv = ["doctor", "--data", RECIPE, "--set", f"dataset.root={root}"]
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_all_classes_stand_there_when_asked(doctor: Doctor, root: Path) -> None:
    for split in ("train", "valid"):
        file = root / "annotations" / f"{split}.json"
        data = json.loads(file.read_text())
        data["categories"] += [{"id": number, "name": f"class-{number}"} for number in range(2, 21)]
        file.write_text(json.dumps(data))
    short, full = doctor()[1], doctor("-v")[1]
    assert "  8 other classes (-v) " in short
    assert "class-20" not in short.split("\n\n")[1]
    assert "  class-20 " in full.split("\n\n")[1]


def printed(width: int, found: Inspection, files: Any) -> list[str]:
    """The report's lines on a terminal so wide."""
    screen = Screen()
    file = io.StringIO()
    screen.__dict__["out"] = Console(file=file, width=width, force_terminal=True, color_system=None)
    data_report.report(screen, files, found)
    return file.getvalue().splitlines()


@pytest.fixture
def found() -> Inspection:
    """One split, and a defect of which little fits beside its name."""
    numbers = Summary("train", 1, 0, 2, 0, (2, 2.0, 2), {"cat": 2}, {"small": 0, "medium": 2, "large": 0},
                      40.0, 40.0, {"PNG RGB": 1}, {"64x64": 1})  # fmt: skip
    places = tuple(Place("train", f"{'long' * 20}{number}.png", (number,)) for number in range(1234))
    defect = Defect("box-twice", "warn", "pairs of equal boxes of one class", places)
    whole = Defect(
        "xml-difficult", "note", "objects of which none is marked difficult", (Place("", count=2),)
    )
    return Inspection("coco", "0" * 16, (numbers,), (defect, whole))


@pytest.fixture
def data_files() -> DatasetFiles:
    """Files whose paths are longer than any line."""
    split = Split(Path("images"), Path("/") / ("folder" * 40) / "train.json")
    return DatasetFiles("coco", ("cat",), split, split, "0" * 16)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_on_a_terminal_no_line_wraps_and_what_is_cut_says_so(
    width: int, found: Inspection, data_files: Any
) -> None:
    lines = printed(width, found, data_files)
    assert max(map(len, lines)) == width
    (path,) = {line.removeprefix("  train  ") for line in lines if line.startswith("  train  ")}
    assert path.startswith("…")
    assert path.endswith("/train.json")
    place = next(index for index, line in enumerate(lines) if line.startswith("warn"))
    assert lines[place].startswith("warn  1,234  pairs of equal boxes of one class")
    cut = lines[place] if width == 200 else lines[place + 1]
    assert cut.endswith("…")
    assert "note      2  objects of which none is marked difficult" in lines


def test_of_more_splits_than_fit_those_that_jobs_read_are_shown(found: Inspection, data_files: Any) -> None:
    names = ("train", "val", "test", "further", "other", "all")
    splits = tuple(replace(found.summaries[0], name=name, objects=10**6) for name in names)
    many = replace(found, summaries=splits)
    lines = printed(80, many, data_files)
    assert lines[4].split() == ["train", "val", "all", "share"]
    (told,) = [line for line in lines if line.startswith("no room here for test, further, other: ")]
    enough = int(told.split()[-2])
    assert printed(enough, many, data_files)[4].split() == [*names, "share"]
    assert printed(enough - 1, many, data_files)[4].split() == lines[4].split()
    assert [line for line in lines[4:] if "…" in line and "long" not in line] == []


def test_examples_are_of_each_split_before_two_are_of_one() -> None:
    places = [Place("train", f"{name}.png") for name in "abcd"] + [Place("val", "e.png")]
    told = data_report._examples(Defect("grey", "note", "grey", tuple(places)))
    assert told == "train: a.png; train: b.png; val: e.png; 2 more"


def test_the_bar_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    file = io.StringIO()
    screen.__dict__["err"] = Console(file=file, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(Screen, "live", True)
    with data_report.counting(screen) as told:
        told("images", 0, 8)
        told("images", 8, 8)
    assert "checking images" in file.getvalue()
    assert "8/8" in file.getvalue()
