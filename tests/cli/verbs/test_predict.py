"""What kdlab predict asks for, writes and refuses, on jobs that finished by hand."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from kdlab import children
from kdlab.cli import app
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from tests.stubs.jobs import make
from tests.stubs.stub_job import make_result

NAME = "digits/quickstart"
ARMS: dict[str, Any] = {"baseline": {}, "rm": {"rm": {}}, "pfi": {"pfi": {}}, "rm[rank=cls,loc]": {"rm": {}}}
Verb = Callable[[str], tuple[int, str, str]]


class World:
    """A plan of the quickstart whose jobs finish when they are told to."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.jobs: dict[str, Job] = {"teacher": make("teacher-aa00", "teacher")}
        for number, arm in enumerate(ARMS):
            for seed in (0, 1):
                self.jobs[f"{arm} seed {seed}"] = make(f"student-{number}{seed}", arm, seed)
        self.plan("7f3a0001")

    def plan(self, plan_id: str, **recipe: Any) -> None:
        told = {"name": NAME, "title": "A pair", "arms": ARMS, **recipe}
        planned = tuple(PlannedJob(job, False, "new") for job in self.jobs.values())
        Plan(plan_id, told, planned, "cpu", {}).save(self.runs)

    def finish(self, *labels: str, ap: float = 30.0) -> None:
        for label in labels:
            job = self.jobs[label]
            paths = self.runs.job(job.id)
            paths.folder.mkdir(parents=True, exist_ok=True)
            write_json(paths.job, job.to_dict())
            result = make_result(job)
            result.last.metrics.update(AP=ap)
            result.write(paths)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDLAB_RUNS", str(tmp_path / "runs"))
    Path("photos/more").mkdir(parents=True)
    for name in ("photos/b.jpg", "photos/a.PNG", "photos/more/c.png"):
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(name)
    # an image of another ending is one where it is named
    Path("photos/scan.dat").write_bytes(Path("photos/a.PNG").read_bytes())
    return World(Runs(tmp_path / "runs"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the process with torch was asked; it answers with one detection an image and model."""
    requests: list[dict[str, Any]] = []

    def told(_module: str, request: dict[str, Any], _cut_off: str) -> dict[str, Any]:
        requests.append(request)
        names = [model["name"] for model in request["models"]]
        images = [
            {
                "id": number, "name": path, "path": path, "height": 20, "width": 30, "group": "",
                "objects": None, "ap": dict.fromkeys(names),
                "found": {name: [[2.0, 2.0, 9.0, 9.0, 0.8, 3]] for name in names},
            }
            for number, path in enumerate(request["images"] or ["photos/b.jpg"], start=1)
        ]  # fmt: skip
        return {
            "classes": list("0123456789"),
            "categories": list(range(10)),
            "left_out": [],
            "images": images,
        }

    monkeypatch.setattr(children, "told", told)
    return requests


@pytest.fixture
def kdlab(capfd: pytest.CaptureFixture[str]) -> Verb:
    def run(line: str) -> tuple[int, str, str]:
        code = app.main(shlex.split(line))
        return code, *capfd.readouterr()

    return run


def names(request: dict[str, Any]) -> list[str]:
    return [model["name"] for model in request["models"]]


def test_of_a_recipe_teacher_baseline_and_arms_are_drawn_by_their_first_finished_seed(
    world: World, asked: list[dict[str, Any]], kdlab: Verb
) -> None:
    world.finish("teacher", "baseline seed 0", "baseline seed 1", "pfi seed 1")
    code, out, err = kdlab(f"predict {NAME}")
    assert code == 0
    assert names(asked[0]) == ["teacher", "baseline seed 0", "pfi seed 1"]
    assert [model["compared"] for model in asked[0]["models"]] == [False, True, True]
    assert asked[0]["models"][1]["job"] == str(world.runs.job("student-00").folder)
    assert (asked[0]["images"], asked[0]["count"]) == ([], 8)
    assert "not finished, so left out: rm, rm[rank=cls,loc]" in err
    assert out.startswith("Detections: A pair\n")
    assert err.splitlines()[-1] == f"next: kdlab diagnose {NAME}"


def test_a_seed_and_arms_are_chosen_by_name(world: World, asked: list[dict[str, Any]], kdlab: Verb) -> None:
    world.finish(*world.jobs)
    kdlab(f"predict {NAME} --seed 1 --arms 'rm[rank=cls,loc], pfi' --images 3")
    assert names(asked[0]) == ["teacher", "baseline seed 1", "pfi seed 1", "rm[rank=cls,loc] seed 1"]
    assert asked[0]["count"] == 3


def test_of_many_arms_those_of_the_highest_ap_are_drawn(
    world: World, asked: list[dict[str, Any]], kdlab: Verb
) -> None:
    aps = {"a": 20.0, "b": 50.0, "c": 40.0, "d": 10.0, "e": 30.0}
    world.jobs = {f"{arm} seed 0": make(f"student-{arm}", arm) for arm in ("baseline", *aps)}
    world.plan("8f3a0001", arms={"baseline": {}, **{arm: {"rm": {}} for arm in aps}})
    world.finish("baseline seed 0")
    for arm, ap in aps.items():
        world.finish(f"{arm} seed 0", ap=ap)
    _, _, err = kdlab(f"predict {NAME}")
    assert names(asked[0]) == ["baseline seed 0", "a seed 0", "b seed 0", "c seed 0", "e seed 0"]
    assert "the 4 arms of the highest AP, of 5; --arms names others" in err


def test_without_a_baseline_nothing_is_compared(
    world: World, asked: list[dict[str, Any]], kdlab: Verb
) -> None:
    world.finish("rm seed 0", "pfi seed 0")
    _, _, err = kdlab(f"predict {NAME}")
    assert not any(model["compared"] for model in asked[0]["models"])
    assert "left out: teacher, baseline, rm[rank=cls,loc]" in err


def test_an_older_plan_is_meant_by_its_id(world: World, asked: list[dict[str, Any]], kdlab: Verb) -> None:
    world.finish("baseline seed 0")
    world.plan("8f3a0001", title="A newer one")
    assert kdlab("predict 7f3a")[1].startswith("Detections: A pair\n")


def test_a_job_is_drawn_on_images_and_folders(world: World, asked: list[dict[str, Any]], kdlab: Verb) -> None:
    world.finish("rm seed 0")
    code, _, err = kdlab("predict rm photos photos/b.jpg photos/scan.dat")
    assert code == 0
    assert names(asked[0]) == ["rm seed 0"]
    inside = ["photos/a.PNG", "photos/b.jpg", "photos/more/c.png"]
    assert asked[0]["images"] == [*inside, "photos/scan.dat"]
    assert err.splitlines()[-1] == "next: kdlab export student-10"


def test_pictures_a_page_and_coco_results_are_written(
    world: World, asked: list[dict[str, Any]], kdlab: Verb
) -> None:
    world.finish("rm seed 0")
    code, out, err = kdlab("predict student-10 photos --json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    folder = Path("results/predict/student-10")
    assert told["files"] == [str(folder / name) for name in ("page-1.png", "index.html", "predictions.json")]
    assert told["models"] == [{"name": "rm seed 0", "job": str(world.runs.job("student-10").folder)}]
    assert told["threshold"] == 0.3
    assert [row["rm seed 0"]["value"] for row in told["table"]["rows"]] == [1.0, 1.0, 1.0]
    page = (folder / "index.html").read_text()
    assert page.count("data:image/svg+xml") == 1
    assert "src=" + '"http' not in page
    rows = json.loads((folder / "predictions.json").read_text())
    assert {row["file_name"] for row in rows} == {"photos/a.PNG", "photos/b.jpg", "photos/more/c.png"}
    assert rows[0]["bbox"] == [2.0, 2.0, 9.0, 9.0]


def test_the_threshold_is_said_and_decides_what_is_drawn_alone(
    world: World, asked: list[dict[str, Any]], kdlab: Verb
) -> None:
    world.finish("rm seed 0")
    _, out, _ = kdlab("predict rm photos/b.jpg --threshold 0.9")
    assert "boxes: with a score of 0.9 or more" in out
    assert out.splitlines()[-2].split() == ["photos/b.jpg", "0"]
    assert len(json.loads(Path("results/predict/student-10/predictions.json").read_text())) == 1


def test_an_exported_file_is_drawn(world: World, asked: list[dict[str, Any]], kdlab: Verb) -> None:
    Path("exports/student-10").mkdir(parents=True)
    Path("exports/student-10/student.pth").touch()
    code, _, _ = kdlab("predict exports/student-10/student.pth photos/b.jpg")
    assert code == 0
    assert asked[0]["models"] == [
        {"name": "student.pth", "file": "exports/student-10/student.pth", "compared": False}
    ]
    assert Path("results/predict/student-10/student.pth/page-1.png").is_file()


def test_an_onnx_file_without_its_package_says_what_to_install(
    world: World, asked: list[dict[str, Any]], kdlab: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("student.onnx").touch()
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    code, _, err = kdlab("predict student.onnx photos/b.jpg")
    assert code == 3
    assert "needs onnxruntime" in err
    assert "fix    pip install 'kdlab[onnx]'" in err
    assert not asked


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("rm", ["one model alone is drawn on images that you name", "fix    kdlab predict rm IMAGE"]),
        ("rm photos/d.jpg", ["there is no such image or folder", "did you mean b.jpg?"]),
        ("rm none.png empty", ["there is no such image or folder", "there are no images in this folder"]),
        ("rm photos --threshold 1.5", ["a score is from 0 to 1", "got    --threshold 1.5"]),
        ("rm photos --threshold nan", ["a score is from 0 to 1"]),
        ("rm photos --images 3", ["--images has no effect beside named images"]),
        ("rm photos --arms pfi", ["--arms chooses among those of a recipe"]),
        ("pfi photos", ["pfi seed 0 is queued, so there are no weights to draw with", f"kdlab run {NAME}"]),
        (f"{NAME} --seed 7", [f"no student of {NAME} with seed 7 has finished", f"fix    kdlab run {NAME}"]),
        (f"{NAME} --arms rn", ["there is no arm 'rn'", "did you mean rm?"]),
        ("digits/gfl", ["no plan in", "fix    kdlab run digits/gfl"]),
        ("digits/quickstarts", ["no recipe that was run here, no job and no file", f"did you mean {NAME}?"]),
        ("zzzz photos", ["there is no job 'zzzz'", "known  teacher-aa00 (teacher)"]),
        ("exports/gone.pth photos", ["there is no such model file"]),
        ("x.pth photos --seed 1", ["--seed has no effect beside a file"]),
    ],
)
def test_what_cannot_be_drawn_is_told_with_a_fix(
    line: str, told: list[str], world: World, asked: list[dict[str, Any]], kdlab: Verb
) -> None:
    world.finish("rm seed 0")
    Path("empty").mkdir()
    code, _, err = kdlab(f"predict {line}")
    assert code == 2
    assert all(words in err for words in told), err
    assert not asked


def test_a_recipe_of_which_nothing_has_finished_names_the_command_that_trains(
    world: World, asked: list[dict[str, Any]], kdlab: Verb
) -> None:
    world.finish("teacher")
    code, _, err = kdlab(f"predict {NAME}")
    assert code == 2
    assert f"no student of {NAME} has finished" in err
    assert f"fix    kdlab run {NAME}" in err


def test_more_images_than_a_page_holds_are_refused(
    world: World, asked: list[dict[str, Any]], kdlab: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdlab.cli.verbs import predict

    world.finish("rm seed 0")
    monkeypatch.setattr(predict, "MOST_IMAGES", 2)
    code, _, err = kdlab("predict rm photos")
    assert code == 2
    assert "got    3 images" in err


@pytest.mark.e2e
def test_a_finished_job_is_drawn_by_the_process_with_torch(
    world: World, kdlab: Verb, digits: Any, build: Callable[..., Any], model_settings: Callable[..., Any]
) -> None:
    from kdlab.training import checkpoints

    strides = [8, 16, 32]
    model = model_settings("gfl", strides=strides).model_dump(mode="json")
    for label, seed in (("baseline seed 0", 0), ("rm seed 0", 1)):
        old = world.jobs[label]
        world.jobs[label] = make(old.id, old.arm, inputs={"dataset": digits}, model=model)
        world.finish(label)
        paths = world.runs.job(old.id)
        paths.checkpoints.mkdir()
        trained = build("gfl", seed, classes=len(digits.classes), strides=strides)
        result = make_result(world.jobs[label])
        result.model["weights_sha256"] = checkpoints.save_model(paths.weights, trained, digits.classes)
        result.write(paths)
    world.plan("9f3a0001")
    path = sorted(digits.val.images.iterdir())[0]
    code, out, err = kdlab(f"predict {NAME} {path} photos/b.jpg --json")
    assert code == 0, err
    told = json.loads(out)
    known, foreign = told["table"]["rows"]
    assert known["objects"]["value"] >= 1
    assert 0 <= known["rm seed 0"]["value"] <= 100
    assert foreign["rm seed 0"]["text"].endswith("boxes")
    assert foreign["rm seed 0"]["value"] is None
    page, index, results = map(Path, told["files"])
    # three columns of 2.5 inches: labels, baseline, rm
    assert cv2.imread(str(page)).shape[1] == round(200 * (0.3 + 7.5))
    assert path.name in index.read_text()
    rows = json.loads(results.read_text())
    assert {row["model"] for row in rows} == {"baseline seed 0", "rm seed 0"}
    assert all(0 < row["score"] <= 1 and row["category_id"] in range(1, 11) for row in rows)
