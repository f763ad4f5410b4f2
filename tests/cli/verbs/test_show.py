"""`kdlab show`: a recipe with all its values, how it differs from another, and images as models see them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import cv2
import pytest

from kdlab.cli import app
from kdlab.recipe.values import DEFAULT, differences, values_of

RECIPE = """# A pair
dataset: {name: digits, image_px: 64, train_images: 12, val_images: 4}
teacher: {detector: gfl, backbone: resnet18, width: 16, neck_channels: 16, strides: [8, 16]}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, strides: [8, 16]}
schedule: {preset: custom, epochs: 2, batch_size: 4, lr: 1e-3, optimizer: adamw}
methods:
  pfi: {weight: 7}
arms:
  baseline: {}
  rm: {rm: {temperature: 2}}
  pfi: {pfi: {}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(RECIPE)
    return "my.yaml"


def kdlab(line: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = app.main(shlex.split(line))
    return code, *capfd.readouterr()


def test_every_value_says_where_it_was_written(recipe: str) -> None:
    found = {one.key: (one.value, one.place) for one in values_of(recipe, ["schedule.epochs=3"])}
    assert found["dataset.image_px"] == (64, "my.yaml:2")
    assert found["dataset.flip"] == (0.5, DEFAULT)
    assert found["student.strides"] == ([8, 16], "my.yaml:4")
    assert found["schedule.epochs"] == (3, "--set schedule.epochs=3")
    assert found["teacher.schedule.epochs"] == (3, "--set schedule.epochs=3")
    assert found["schedule.weight_decay"] == (0.05, DEFAULT)
    assert found["arms.baseline"] == ({}, "my.yaml:9")
    # from the arm, from `methods:`, and the default of the student's family
    assert found["arms.rm.rm.temperature"] == (2.0, "my.yaml:10")
    assert found["arms.pfi.pfi.weight"] == (7.0, "my.yaml:7")
    assert found["arms.rm.rm.score"] == ("logit", DEFAULT)
    assert not any("options" in key or key.endswith(".method") for key in found)


def test_only_what_differs_is_a_difference(recipe: str) -> None:
    one, other = values_of(recipe, ["schedule.lr=2e-3", "arms.more={pfi: {weight: 1}}"]), values_of(recipe)
    found = {key: (mine, theirs) for key, mine, theirs in differences(one, other)}
    assert found["schedule.lr"] == found["teacher.schedule.lr"] == (0.002, 0.001)
    assert found["arms.more.pfi.weight"] == (1.0, None)
    assert all(key.startswith(("schedule.lr", "teacher.schedule.lr", "arms.more")) for key in found)
    assert differences(other, other) == []


def test_the_screen_and_json_say_the_same(recipe: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = kdlab(f"show {recipe}", capfd)
    assert code == 0
    assert "next: kdlab plan my.yaml" in err
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["arms.pfi.pfi.weight"] == ["7.0", "my.yaml:7"]
    assert rows["teacher.checkpoint"] == ["-", "default"]
    _, out, _ = kdlab(f"show {recipe} --json", capfd)
    told = json.loads(out)["values"]
    assert [one["key"] for one in told] == list(rows)
    assert {"key": "seeds", "value": [0], "place": "default"} in told
    _, out, err = kdlab(f"show {recipe} --set schedule.lr=2e-3 --diff {recipe}", capfd)
    assert out.split() == ["teacher.schedule.lr", "0.002", "0.001", "schedule.lr", "0.002", "0.001"]
    assert "next: kdlab plan my.yaml --set schedule.lr=2e-3" in err
    _, out, err = kdlab(f"show {recipe} --diff {recipe}", capfd)
    assert (out, "the two are equal" in err) == ("", True)


def test_secrets_of_an_address_are_masked_also_where_it_was_written(
    recipe: str, capfd: pytest.CaptureFixture[str]
) -> None:
    address = "teacher.checkpoint=https://user:secretpw@host/x.pth?token=abcdef"
    for flag in ("", "--json"):
        code, out, err = kdlab(f"show {recipe} --set '{address}' {flag}", capfd)
        assert code == 0
        assert "host/x.pth" in out
        assert "secretpw" not in out + err
        assert "abcdef" not in out + err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--images 2 --diff my.yaml", "--diff has no effect beside --images"),
        ("--epoch 2", "--epoch has no effect without --images"),
        ("--images 2 --epoch 3", "the schedule has no such epoch"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    recipe: str, flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("KDLAB_RUNS", str(tmp_path / "runs"))
    code, _, err = kdlab(f"show {recipe} {flags}", capfd)
    assert code == 2
    assert message in err


@pytest.mark.e2e
def test_images_are_drawn_as_they_are_given_to_a_model(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KDLAB_RUNS", str(tmp_path / "runs"))
    scale, augment = "--set dataset.scale=[48,32]", "--set dataset.augment=[mosaic,hsv]"
    code, out, err = kdlab(f"show {recipe} --images 6 --epoch 2 {scale} {augment} --json", capfd)
    assert code == 0, err
    told = json.loads(out)
    assert len(told["images"]) == 6
    assert all(one["width"] <= 48 and one["height"] <= 32 and one["boxes"] for one in told["images"])
    (file,) = told["files"]
    height, width, _ = cv2.imread(file).shape
    assert width >= 320 <= height
    before = Path(file).read_bytes()
    kdlab(f"show {recipe} --images 6 --epoch 1 {scale} {augment} -q", capfd)
    assert Path(file).read_bytes() != before
