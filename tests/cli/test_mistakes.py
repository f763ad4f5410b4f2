"""Mistakes that people make in the first hour, and what they are told: what, where, and one thing to do."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from kdlab.cli import app

RECIPE = """\
dataset: {name: digits, image_px: 64, train_images: 40, val_images: 20}
teacher: {detector: gfl, backbone: resnet18, width: 16, neck_channels: 32, strides: [8, 16, 32]}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 32, strides: [8, 16, 32]}
schedule: {preset: custom, epochs: 1, batch_size: 4, lr: 1e-3, optimizer: adamw}
arms:
  baseline: {}
  rm: {rm: {}}
seeds: [0]
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDLAB_RUNS", raising=False)
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    return tmp_path


def told(line: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What a command that is refused says on stderr; it has written nothing else."""
    code = app.main(shlex.split(line))
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    return err[err.index("error: ") :]


@pytest.mark.parametrize(
    ("line", "what", "fix"),
    [
        ("rn mine.yaml", "rn is not a verb of kdlab", "did you mean run?"),
        ("run digits/quikstart", "digits/quikstart is not a recipe", "did you mean digits/quickstart?"),
        ("run missing.yaml", "there is no file missing.yaml", "kdlab init FOLDER"),
        ("run mine.yml", "there is no file mine.yml", "did you mean mine?"),
        ("run mine.yaml --executor slrum", "there is no such executor", "did you mean slurm?"),
        ("plan mine.yaml --gpus first", "--gpus takes numbers as nvidia-smi counts them", "--gpus 0,2"),
        ("plan mine.yaml --set schedule.epochs", "is not of the form a.b=value", "--set schedule.lr=0.01"),
        ("run mine.yaml --jobs 0", "invalid value for '-j' / '--jobs'", "kdlab run --help"),
        ("report", "nothing to compare was run here yet", "kdlab run digits/quickstart"),
        ("report mine.yaml", "no plan in", "kdlab run mine.yaml"),
        ("ablate --loss rm,pfii mine.yaml", "pfii is not a method", "did you mean pfi?"),
        ("predict photo.jpg", "first comes what detects", "kdlab predict RECIPE photo.jpg"),
        ("export rm", "there is no job 'rm'", "kdlab run digits/quickstart"),
        ("ls method", "there is no list of method", "did you mean methods?"),
        ("tune mine.yaml --trials 0", "invalid value for '--trials'", "kdlab tune --help"),
        ("init nowhere", "there is no such folder", "name the folder of images and labels"),
        ("init empty", "there are no images below this folder", "the images and their labels"),
    ],
)
def test_a_command(line: str, what: str, fix: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "mine.yaml").write_text(RECIPE)
    (place / "empty").mkdir()
    err = told(line, capfd)
    assert what in err
    assert fix in " ".join(err.partition("  fix    ")[2].split())


@pytest.mark.parametrize(
    ("right", "wrong", "where", "what", "hint"),
    [
        ("arms:\n", "arms:\n\t", "6", "cannot be read as YAML", "indent with spaces"),
        ("t: {det", "t: det", "3", "cannot be read as YAML", ""),
        ("width: 8", "widht: 8", "3", "student.widht is not a key of student", "did you mean width?"),
        ("epochs: 1", "epochs: many", "4", "schedule.epochs must be a whole number", '"many"'),
        ("lr: 1e-3", "lr: 0,001", "4", "schedule.001 is not a key of schedule", "with a point: 0.001"),
        ("{rm: {}}", "{rank_mimic: {}}", "7", "arms.rm.rank_mimic is not a method", "did you mean rm?"),
        ("{rm: {}}", "{rm: {wieght: 2}}", "7", "arms.rm.rm.wieght is not an option", "did you mean weight?"),
        ("t: {detector: gfl", "t: {detector: gfll", "3", "student.detector names no", "did you mean gfl?"),
        ("resnet18, width: 8", "resnet19, width: 8", "3", "names no backbone", "did you mean resnet18?"),
        ("[8, 16, 32]}\nsched", "[8, 12]}\nsched", "3", "must start with 4 or 8 and double", "[8, 12]"),
        ("seeds: [0]", "seeds: 0", "8", "seeds must be a list", "0"),
        ("name: digits", "name: digit", "1", "dataset.name names no dataset", "did you mean digits?"),
        ("width: 16", "checkpoint: t.pth, width: 16", "2", "there is no such file of weights", "t.pth"),
    ],
)
def test_a_recipe(
    right: str, wrong: str, where: str, what: str, hint: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert right in RECIPE
    (place / "mine.yaml").write_text(RECIPE.replace(right, wrong, 1))
    err = told("plan mine.yaml", capfd)
    assert f"mine.yaml:{where}  " in err
    assert what in err
    assert hint in err


@pytest.mark.parametrize(
    ("line", "what", "fix"),
    [
        ("0 .5 .5 .4", "neither a box (class cx cy w h) nor a polygon", "the number of the class"),
        ("3 .5 .5 .4 .4", "whose class is not among the names", "the last is 0"),
        ("0 48 48 20 20", "whose numbers look like pixels", "divide x and width by the width"),
        ("cat .5 .5 .4 .4", "", ""),
    ],
)
def test_a_label_names_its_file_and_line(
    line: str, what: str, fix: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (place / "photos" / kind / part).mkdir(parents=True)
        for number in range(3):
            Image.effect_noise((96, 96), 40).save(place / f"photos/images/{part}/{number}.png")
            (place / f"photos/labels/{part}/{number}.txt").write_text("0 .5 .5 .4 .4\n")
    (place / "photos/labels/train/1.txt").write_text(f"0 .5 .5 .4 .4\n{line}\n")
    (place / "photos/data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    err = told("init photos --init none", capfd)
    assert f"labels/train/1.txt:2: {line}" in err
    assert what in err
    assert fix in err


def test_a_dataset_that_is_not_where_the_recipe_says(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, *rest = RECIPE.splitlines(keepends=True)
    files = "train_images: t, val_images: v, train_labels: t.json, val_labels: v.json"
    (place / "mine.yaml").write_text(f"dataset: {{name: coco, root: nowhere, {files}}}\n{''.join(rest)}")
    err = told("plan mine.yaml", capfd)
    assert "dataset.root is not a folder" in err
    assert "set dataset.root to the folder that holds the images" in err
