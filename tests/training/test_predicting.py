"""What trained models find on images: which ones are drawn, and that each form of a model finds the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlab.errors import JobError, UsageError
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from tests.stubs.jobs import make
from tests.stubs.stub_job import make_result

STRIDES = [8, 16, 32]


@pytest.fixture
def finished(
    tmp_path: Path, digits: Any, build: Callable[..., Any], model_settings: Callable[..., Any]
) -> Callable[..., Job]:
    """`finished("student-a")`: a job of a tiny detector under `tmp_path` that is done."""
    from kdlab.training import checkpoints

    def finished(job_id: str, arm: str = "rm", seed: int = 0) -> Job:
        model = model_settings("gfl", strides=STRIDES).model_dump(mode="json")
        job = make(job_id, arm, inputs={"dataset": digits}, model=model, dataset={"scale": [96, 96]})
        paths = JobPaths(tmp_path / job.id)
        paths.checkpoints.mkdir(parents=True)
        write_json(paths.job, job.to_dict())
        trained = build("gfl", seed, classes=len(digits.classes), strides=STRIDES)
        result = make_result(job)
        result.model["weights_sha256"] = checkpoints.save_model(paths.weights, trained, digits.classes)
        result.write(paths)
        return job

    return finished


def asked(folder: Path, *, compared: bool = False, **fields: Any) -> dict[str, Any]:
    """A model of a request."""
    return {"name": folder.name, "job": str(folder), "compared": compared, **fields}


def of_file(path: Path) -> dict[str, Any]:
    return {"name": path.name, "file": str(path), "compared": False}


def validation(digits: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(digits.val.labels.read_text())
    return found


def test_images_with_the_largest_gains_and_losses_are_chosen() -> None:
    from kdlab.training.predicting import most_changed

    baseline = {1: 50.0, 2: 50.0, 3: 50.0, 4: 50.0, 5: 50.0, 6: 50.0}
    one = {1: 60.0, 2: 20.0, 3: 50.0, 4: 90.0, 5: 40.0, 6: 51.0}
    other = {1: 70.0, 2: 30.0, 3: 50.0, 4: 30.0, 5: 50.0, 6: 50.0}
    # means of the changes: 1 +15, 4 +10, 6 +0.5, 3 none, 5 -5, 2 -25
    assert list(most_changed([baseline, one, other], 3).items()) == [(1, "best"), (4, "best"), (2, "worst")]
    assert list(most_changed([baseline, one, other], 6)) == [1, 4, 6, 2, 5]
    assert most_changed([baseline, baseline], 6) == {}


class Scripted:
    """A detector that finds the objects of some images, known by their pixels, and nothing in others."""

    def __init__(self, digits: Any, ids: Mapping[int, bool], torch_: Any) -> None:
        from kdlab.training.predicting import Validation

        self.classes, self.torch_ = digits.classes, torch_
        seen = Validation(digits)
        self.known = {
            one.pixels().tobytes(): np.array(seen.objects(one)) for one in seen.pictures if ids.get(one.id)
        }

    def __call__(self, pixels: Any) -> dict[str, Any]:
        rows = self.known.get(pixels.tobytes(), np.zeros((0, 5)))
        boxes = np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]])
        return {
            "bboxes": self.torch_.tensor(boxes),
            "scores": self.torch_.full((len(rows),), 0.9),
            "labels": self.torch_.tensor(rows[:, 4]).long(),
        }


def test_validation_images_are_drawn_in_which_the_arm_changes_the_baseline(
    tmp_path: Path, digits: Any, finished: Callable[..., Job], torch_: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdlab.training import detecting, predicting

    first, second, third, *_ = (image["id"] for image in validation(digits)["images"])
    finds = {
        "student-base": {first: True, third: True},
        "student-rm": {second: True, third: True},
        "student-teacher": {first: True, second: True, third: True},
    }
    for name in finds:
        finished(name)
    scripted = {name: Scripted(digits, ids, torch_) for name, ids in finds.items()}
    monkeypatch.setattr(detecting, "of_job", lambda folder: scripted[folder.name])
    models = [
        asked(tmp_path / name, compared=name != "student-teacher")
        for name in ("student-teacher", "student-base", "student-rm")
    ]
    told = predicting.predicted(models, [], 4)
    drawn = [(image["id"], image["group"], image["ap"]) for image in told["images"]]
    assert drawn == [
        (second, "best", {"student-base": 0.0, "student-rm": 100.0, "student-teacher": 100.0}),
        (first, "worst", {"student-base": 100.0, "student-rm": 0.0, "student-teacher": 100.0}),
    ]
    best = told["images"][0]
    assert [row[:4] for row in best["found"]["student-rm"]] == [row[:4] for row in best["objects"]]
    assert best["found"]["student-base"] == []
    # the first images where no two models are compared
    alone = predicting.predicted(models[:1], [], 2)
    assert [(image["id"], image["group"]) for image in alone["images"]] == [(first, ""), (second, "")]


def test_a_validation_image_that_is_gone_is_left_out(
    tmp_path: Path, digits: Any, finished: Callable[..., Job]
) -> None:
    from kdlab.training.predicting import predicted

    job = finished("student-a")
    labels = validation(digits)
    labels["images"][0]["file_name"] = "gone.png"
    (tmp_path / "val.json").write_text(json.dumps(labels))
    content = job.to_dict()
    content["inputs"]["dataset"]["val"]["labels"] = str(tmp_path / "val.json")
    write_json(JobPaths(tmp_path / job.id).job, content)
    told = predicted([asked(tmp_path / job.id)], [], 20)
    assert told["left_out"] == [str(digits.val.images / "gone.png")]
    assert len(told["images"]) == len(labels["images"]) - 1


def test_named_images_have_labels_only_where_they_are_of_the_validation_set(
    tmp_path: Path, digits: Any, finished: Callable[..., Job], build: Callable[..., Any], torch_: Any
) -> None:
    from mmengine.dataset import pseudo_collate

    from kdlab.training.data import mmdet_dataset
    from kdlab.training.predicting import predicted

    job = finished("student-a")
    dataset = mmdet_dataset(digits, digits.val, [96, 96], None)
    sample = dataset[0]
    path, labels = sample["data_samples"].img_path, validation(digits)
    grey = tmp_path / "grey.png"
    Image.open(path).convert("L").resize((50, 40)).save(grey)
    told = predicted([asked(tmp_path / job.id)], [str(grey), path], 8)
    foreign, known = told["images"]
    assert (foreign["name"], foreign["objects"], foreign["ap"]) == (str(grey), None, {job.id: None})
    assert (foreign["width"], foreign["height"]) == (50, 40)
    assert foreign["id"] > max(image["id"] for image in labels["images"])
    boxes = [one for one in labels["annotations"] if one["image_id"] == known["id"]]
    assert [row[:4] for row in known["objects"]] == [one["bbox"] for one in boxes]
    assert [told["categories"][row[4]] for row in known["objects"]] == [one["category_id"] for one in boxes]
    assert 0 <= known["ap"][job.id] <= 100
    model = build("gfl", classes=len(digits.classes), strides=STRIDES).train(False)
    with torch_.no_grad():
        own = model.val_step(pseudo_collate([sample]))[0].pred_instances
    corners = np.array(known["found"][job.id])[:, :4]
    corners[:, 2:] += corners[:, :2]
    assert corners == pytest.approx(own.bboxes.numpy(), abs=2e-3)
    assert [row[4] for row in known["found"][job.id]] == pytest.approx(own.scores.tolist(), abs=1e-5)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "I;16"])
def test_images_of_any_usual_mode_are_read(
    mode: str, tmp_path: Path, digits: Any, finished: Callable[..., Job]
) -> None:
    from kdlab.training.predicting import predicted

    job, path = finished("student-a"), tmp_path / "odd.png"
    deep = Image.fromarray(np.linspace(0, 65535, 48 * 64, dtype=np.uint16).reshape(48, 64))
    (deep if mode == "I;16" else deep.convert("L").convert(mode)).save(path)
    (image,) = predicted([asked(tmp_path / job.id)], [str(path)], 8)["images"]
    assert (image["width"], image["height"]) == (64, 48)


def test_all_named_images_that_cannot_be_read_are_told_at_once(
    tmp_path: Path, finished: Callable[..., Job]
) -> None:
    from kdlab.training.predicting import predicted

    job = finished("student-a")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "floats.tif")
    with pytest.raises(UsageError) as caught:
        predicted(
            [asked(tmp_path / job.id)], [str(tmp_path / name) for name in ("empty.png", "floats.tif")], 8
        )
    got = [(Path(fault.where).name, fault.got) for fault in caught.value.faults]
    assert got[0] == ("empty.png", "the file is empty")
    assert got[1][0] == "floats.tif"
    assert "floats" in got[1][1]


def test_without_its_labels_a_job_needs_images(tmp_path: Path, finished: Callable[..., Job]) -> None:
    from kdlab.training.predicting import predicted

    job = finished("student-a")
    content = job.to_dict()
    content["inputs"]["dataset"]["val"]["labels"] = str(tmp_path / "gone.json")
    write_json(JobPaths(tmp_path / job.id).job, content)
    with pytest.raises(UsageError, match="labels are not there any more"):
        predicted([asked(tmp_path / job.id)], [], 8)
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(path)
    told = predicted([asked(tmp_path / job.id)], [str(path)], 8)
    assert told["categories"] == list(range(1, 11))


@pytest.fixture
def photograph(tmp_path: Path, digits: Any) -> str:
    """A scene that is no square, so that it is resized and padded."""
    path = tmp_path / "wide.png"
    Image.open(next(iter(sorted(digits.val.images.iterdir())))).crop((0, 0, 60, 44)).save(path)
    return str(path)


def rows(model: dict[str, Any], photograph: str) -> np.ndarray:
    from kdlab.training.predicting import predicted

    (image,) = predicted([model], [photograph], 8)["images"]
    return np.array(image["found"][model["name"]])


def test_exported_weights_find_what_their_job_does(
    tmp_path: Path, finished: Callable[..., Job], photograph: str
) -> None:
    from kdlab.training.export import export
    from kdlab.training.predicting import predicted

    job = finished("student-a")
    export(tmp_path / job.id, tmp_path / "out")
    expected = rows(asked(tmp_path / job.id), photograph)
    assert len(expected)
    for name in ("student.pth", "student.safetensors"):
        assert (rows(of_file(tmp_path / "out" / name), photograph) == expected).all()
    told = predicted([of_file(tmp_path / "out" / "student.pth")], [photograph], 8)
    assert (told["classes"], told["categories"]) == (job.inputs.dataset.classes, list(range(1, 11)))


@pytest.mark.parametrize("nms", [True, False])
@pytest.mark.parametrize("size", [None, [96, 96]])
def test_an_onnx_file_finds_what_its_job_does(
    tmp_path: Path, finished: Callable[..., Job], photograph: str, size: list[int] | None, nms: bool
) -> None:
    pytest.importorskip("onnxruntime")
    from kdlab.training.export import export

    job = finished("student-a")
    export(tmp_path / job.id, tmp_path / "out", wish={"size": size, "nms": nms})
    if nms:
        # NMS in the file does not know where the image ends: one that fills the input is seen alike
        Image.open(photograph).crop((0, 0, 44, 44)).save(photograph)
    expected = rows(asked(tmp_path / job.id), photograph)
    found = rows(of_file(tmp_path / "out" / "student.onnx"), photograph)
    # without NMS in the file nobody stops at the thousand best scores of a level, as test_cfg has it here
    assert len(found) == len(expected) if nms else len(found) > len(expected)
    assert len(expected) > 20
    assert found[: len(expected)] == pytest.approx(expected, abs=2e-2)


def test_an_image_that_a_fixed_input_does_not_hold_is_made_smaller(
    tmp_path: Path, finished: Callable[..., Job], photograph: str
) -> None:
    pytest.importorskip("onnxruntime")
    from kdlab.training.export import export

    job = finished("student-a")
    export(tmp_path / job.id, tmp_path / "out", wish={"size": [64, 64], "nms": False})
    found = rows(of_file(tmp_path / "out" / "student.onnx"), photograph)
    far = (found[:, :2] + found[:, 2:4]).max(0)
    # the whole image of 60x44 is seen, and nothing beyond it
    assert far == pytest.approx([60, 44], abs=1.5)
    assert (far <= [60.01, 44.01]).all()


def test_a_file_that_kdlab_did_not_export_is_told(
    tmp_path: Path, finished: Callable[..., Job], photograph: str
) -> None:
    job = finished("student-a")
    weights = JobPaths(tmp_path / job.id).weights
    with pytest.raises(UsageError, match="no mmdet config next to the weights"):
        rows(of_file(weights), photograph)
    weights.with_suffix(".py").write_text("model = dict(type='Nothing')\ntest_pipeline = []\nclasses = []")
    with pytest.raises(UsageError, match="no config as kdlab export writes it"):
        rows(of_file(weights), photograph)


def test_weights_of_another_model_are_told(
    tmp_path: Path, finished: Callable[..., Job], photograph: str, torch_: Any
) -> None:
    from kdlab.training.export import export

    job = finished("student-a")
    export(tmp_path / job.id, tmp_path / "out")
    torch_.save({"state_dict": {"backbone.weight": torch_.zeros(2)}}, tmp_path / "out" / "student.pth")
    with pytest.raises(JobError, match="do not fit the config next to them"):
        rows(of_file(tmp_path / "out" / "student.pth"), photograph)


def test_an_onnx_file_must_say_how_it_is_fed(tmp_path: Path, photograph: str) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "other.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(UsageError, match="ONNX Runtime cannot load this file"):
        rows(of_file(path), photograph)
    tensors = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8])
        for name in ("images", "boxes")
    ]
    node = onnx.helper.make_node("Identity", ["images"], ["boxes"])
    graph = onnx.helper.make_graph([node], "g", tensors[:1], tensors[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    with pytest.raises(UsageError, match=r"(?s)does not say how to feed it.*no metadata classes, mean"):
        rows(of_file(path), photograph)
