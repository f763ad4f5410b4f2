"""Any labels are described, or refused with a message, by the doctor, and by plans as by it.

`KDLAB_FUZZ_EXAMPLES` is how many are made.
"""

from __future__ import annotations

import json
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from kdlab.cli import app
from kdlab.datasets import coco
from kdlab.datasets.base import Split
from kdlab.errors import KdlabError
from kdlab.training.data import mmdet_dataset
from tests.recipe.test_fuzz import EXAMPLES, LIMIT_S, changed

GOOD: dict[str, Any] = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in (1, 2)],
    "annotations": [
        {"id": 10 * image + n, "image_id": image, "category_id": 1 + n, "bbox": [4 * n, 6, 20, 16],
         "area": 320, "iscrowd": 0}
        for image in (1, 2) for n in (0, 1)
    ],
    "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "bar"}],
}  # fmt: skip

OPTIONS = {
    "root": ".", "train_images": "train", "val_images": "val", "train_labels": "train.json",
    "val_labels": "val.json",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_: Any) -> Path:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for number in (1, 2):
            Image.new("RGB", (64, 48), (number, 99, 3)).save(tmp_path / part / f"{number}.png")
        (tmp_path / f"{part}.json").write_text(json.dumps(GOOD))
    where = ", ".join(f"{key}: {value}" for key, value in OPTIONS.items())
    (tmp_path / "r.yaml").write_text(
        f"dataset: {{name: coco, {where}}}\n"
        "student: {detector: gfl, backbone: resnet18}\n"
        "schedule: {preset: custom, epochs: 1, batch_size: 2, lr: 1e-3, optimizer: sgd, decay: cosine}\n"
        "arms: {baseline: {}}\n"
    )
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def doctor() -> tuple[int, str]:
    """Exit code and all that is said of the data."""
    told = StringIO()
    with redirect_stdout(told), redirect_stderr(told):
        code = app.main(["doctor", "--data", "r.yaml"])
    return code, told.getvalue()


def refused(folder: Path) -> list[str]:
    """What the plan, or else a job that reads these labels, has to say against them."""
    try:
        files = coco.prepare(**OPTIONS)
        mmdet_dataset(files, Split(folder / "train", folder / "train.json"), None, 0.0)
    except KdlabError as error:
        return [fault.what for fault in error.faults]
    return []


def test_the_good_labels_are_sound(folder: Path) -> None:
    assert refused(folder) == []
    code, said = doctor()
    assert code == 0, said


@settings(
    max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(labels=changed(GOOD))
def test_any_labels_are_told_of_alike_by_plan_job_and_doctor(folder: Path, labels: dict[str, Any]) -> None:
    text = json.dumps(labels, default=str, skipkeys=True)
    (folder / "train.json").write_text(text)
    began = time.process_time()
    against = refused(folder)
    code, said = doctor()
    assert code in (0, 2, 3), f"{text}\n{said}"
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert time.process_time() - began < LIMIT_S, text
    assert not against or code, f"{text}\n{against}\n{said}"
