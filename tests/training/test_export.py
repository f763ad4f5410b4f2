from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdlab import catalog
from kdlab.errors import JobError, MachineError, UsageError
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from tests.stubs.jobs import make
from tests.stubs.stub_job import make_result

NAMES = {"student.safetensors", "student.pth", "student.py"}

LOADING = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import kdlab.mmcv_ops
from mmdet.apis import inference_detector, init_detector
folders, images = json.loads(sys.argv[1])
answer = {"found": {}}
for detector, folder in folders.items():
    model = init_detector(f"{folder}/student.py", f"{folder}/student.pth", device="cpu")
    found = [inference_detector(model, image).pred_instances for image in images]
    answer["found"][detector] = [
        {key: getattr(one, key).tolist() for key in ("bboxes", "scores", "labels")} for one in found
    ]
    answer["classes"] = list(model.dataset_meta["classes"])
answer["kdlab"] = sorted(name for name in sys.modules if name.partition(".")[0] == "kdlab")
print("\\n" + json.dumps(answer))
"""
STRIDES = [8, 16, 32]


@pytest.fixture
def make_job(
    tmp_path: Path, digits: Any, build: Callable[..., Any], model_settings: Callable[..., Any]
) -> Callable[[str], Job]:
    """Makes a finished job of a tiny detector, under `tmp_path`."""
    from kdlab.training import checkpoints

    def make_job(detector: str) -> Job:
        model = model_settings(detector, strides=STRIDES).model_dump(mode="json")
        reading, inputs = {"scale": [96, 96]}, {"dataset": digits}
        job = make(f"student-{detector}", "rm", inputs=inputs, model=model, dataset=reading)
        paths = JobPaths(tmp_path / job.id)
        paths.checkpoints.mkdir(parents=True)
        write_json(paths.job, job.to_dict())
        trained = build(detector, classes=len(digits.classes), strides=STRIDES)
        digest = checkpoints.save_model(paths.weights, trained, digits.classes)
        result = make_result(job)
        result.model["weights_sha256"] = digest
        result.write(paths)
        return job

    return make_job


@pytest.fixture
def job(make_job: Callable[[str], Job]) -> Job:
    return make_job("gfl")


def exported(tmp_path: Path, detector: str = "gfl", **options: Any) -> Path:
    from kdlab.training.export import export

    export(tmp_path / f"student-{detector}", tmp_path / f"out-{detector}", **options)
    return tmp_path / f"out-{detector}"


def test_mmdet_alone_predicts_what_each_detectors_job_does(
    tmp_path: Path, make_job: Callable[[str], Job], digits: Any, torch_: Any, build: Callable[..., Any]
) -> None:
    from mmengine.dataset import pseudo_collate

    from kdlab.training.data import mmdet_dataset

    jobs = {detector: make_job(detector) for detector in catalog.detectors()}
    folders = {detector: str(exported(tmp_path, detector)) for detector in jobs}
    dataset = mmdet_dataset(digits, digits.val, [96, 96], None)
    samples = [dataset[place] for place in range(3)]
    images = [sample["data_samples"].img_path for sample in samples]
    command = [sys.executable, "-c", LOADING, json.dumps([folders, images])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert set(answer["kdlab"]) <= {"kdlab", "kdlab.mmcv_ops", "kdlab.mmcv_ops.operators", "kdlab.errors"}
    assert answer["classes"] == list(digits.classes)
    for detector in jobs:
        model = build(detector, classes=len(digits.classes), strides=STRIDES).eval()
        for sample, found in zip(samples, answer["found"][detector], strict=True):
            with torch_.no_grad():
                own = model.val_step(pseudo_collate([sample]))[0].pred_instances
            assert len(own), detector
            assert found == {key: getattr(own, key).tolist() for key in ("bboxes", "scores", "labels")}


def test_pth_holds_weights_and_origin_as_plain_data(tmp_path: Path, job: Job, torch_: Any) -> None:
    content = torch_.load(exported(tmp_path) / "student.pth", weights_only=True)
    assert content["meta"]["kdlab"]["job"] == job.id
    assert content["meta"]["dataset_meta"] == {"classes": list(job.inputs.dataset.classes)}


def test_safetensors_holds_the_same_weights_and_origin(tmp_path: Path, job: Job, torch_: Any) -> None:
    from safetensors import safe_open

    folder = exported(tmp_path)
    state = torch_.load(folder / "student.pth", weights_only=True)["state_dict"]
    with safe_open(folder / "student.safetensors", "pt") as file:
        assert file.metadata()["kdlab.job"] == job.id
        assert set(file.keys()) == set(state)
        assert all(torch_.equal(file.get_tensor(name), state[name]) for name in state)


def test_a_card_says_how_to_feed_the_file_and_what_is_in_it(job: Job) -> None:
    from mmengine.config import ConfigDict

    from kdlab.training.export import card

    result = make_result(job)
    words = card(job, result, ConfigDict(score_thr=0.05))
    told = {key: json.loads(value) for key, value in words.items()}
    assert told["image_scale"] == (list(job.spec.dataset.scale) if job.spec.dataset.scale else None)
    assert (told["interpolation"], told["keep_ratio"], told["score_threshold"]) == ("bilinear", True, 0.05)
    assert told["card"]["metrics"] == result.metrics
    assert told["card"]["data"] == job.inputs.dataset.name
    two_stage = card(job, result, ConfigDict(rcnn={"score_thr": 0.1}))
    assert json.loads(two_stage["score_threshold"]) == 0.1
    assert json.loads(card(job, result, ConfigDict(nms_pre=9))["score_threshold"]) == 0


def test_config_names_no_other_file_and_fetches_nothing(tmp_path: Path, job: Job) -> None:
    text = (exported(tmp_path) / "student.py").read_text()
    assert "_base_ =" not in text
    assert "Pretrained" not in text
    assert "kdlab." not in text


def test_an_export_is_replaced_only_with_force(tmp_path: Path, job: Job) -> None:
    folder = exported(tmp_path)
    with pytest.raises(UsageError, match="there is an export already"):
        exported(tmp_path)
    (folder / "student.onnx").touch()
    (folder / "notes.txt").touch()
    exported(tmp_path, force=True)
    assert {path.name for path in folder.iterdir()} == NAMES | {"notes.txt"}, (
        "an older ONNX file would mislead"
    )


def test_full_disk_leaves_nothing(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdlab.training import export

    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        exported(tmp_path)
    assert not (tmp_path / "out-gfl").exists()


def test_weights_that_changed_are_refused(tmp_path: Path, job: Job) -> None:
    with JobPaths(tmp_path / job.id).weights.open("ab") as file:
        file.write(b"more")
    with pytest.raises(JobError, match="not the ones that the job's result names"):
        exported(tmp_path)


def test_onnx_file_is_written_beside_them(tmp_path: Path, job: Job) -> None:
    pytest.importorskip("onnxruntime")
    folder = exported(tmp_path, wish={"size": [64, 96], "nms": False})
    assert {path.name for path in folder.iterdir()} == NAMES | {"student.onnx"}


def test_a_measured_teacher_is_called_a_teacher(tmp_path: Path, job: Job) -> None:
    model = job.spec.model.model_dump(mode="json")
    measured = make(job.id, "teacher", kind="evaluate", inputs=vars(job.inputs), model=model)
    write_json(JobPaths(tmp_path / job.id).job, measured.to_dict())
    assert {path.name for path in exported(tmp_path).iterdir()} == {
        "teacher.safetensors",
        "teacher.pth",
        "teacher.py",
    }


def test_a_config_that_brings_its_own_modules_names_them(job: Job) -> None:
    from mmengine.config import Config

    from kdlab.detectors import config
    from kdlab.training.export import config_text

    found = config(job.spec.model, 10).model.to_dict()
    model = job.spec.model.model_copy(update={"config": found, "imports": ("json",)})
    text = config_text(replace(job, spec=job.spec.model_copy(update={"model": model})))
    assert Config.fromstring(text, ".py").custom_imports == {"imports": ["json"]}
