"""Checkpoints of others: what is in them, and how much of a model."""

from __future__ import annotations

import argparse
import datetime
import pickle
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from addict import Dict as Addict
from mmengine.config import ConfigDict
from safetensors.torch import save_file
from torch import Tensor, nn

from kdlab.errors import JobError
from kdlab.training import checkpoints
from kdlab.training.weights import Checkpoint, class_fault, inherit, load, read

Build = Callable[..., Any]


@pytest.fixture
def model(build: Build) -> Any:
    return build("gfl", seed=1)


def saved(folder: Path, content: Any, name: str = "a.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def under(prefix: str, model: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in model.state_dict().items()}


def equal(one: nn.Module, two: nn.Module) -> bool:
    mine, theirs = one.state_dict(), two.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: {"state_dict": m.state_dict(), "meta": {"epoch": 12}, "optimizer": {"state": {}}},
        lambda m: {"distiller": {**under("student.", m), "terms.rm.x": torch.zeros(1)}, "optimiser": {}},
        lambda m: {"state_dict": {**under("architecture.", m), "teacher.conv1.weight": torch.ones(1)}},
        lambda m: under("module.", m),
        lambda m: {"model": under("module.model.", m)},
        lambda m: m.state_dict(),
    ],
    ids=["mmdet", "kdlab-state", "mmrazor", "ddp", "nested", "plain"],
)  # fmt: skip
def test_every_layout_loads_whole(wrap: Any, model: Any, build: Build, tmp_path: Path) -> None:
    other = build("gfl", seed=2)
    report = load(other, read(saved(tmp_path, wrap(model))))
    assert report.whole
    assert equal(other, model)


def test_safetensors_load_whole(model: Any, build: Build, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    other = build("gfl", seed=2)
    load(other, read(tmp_path / "a.safetensors"))
    assert equal(other, model)


def test_two_models_of_one_kind_are_refused(model: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, under("architecture.", model) | under("teacher.", model))
    with pytest.raises(JobError, match=r"more than once[\s\S]*architecture\., teacher\."):
        load(model, read(path))


def test_student_is_told_from_a_deeper_teacher_beside_it(build: Build, tmp_path: Path) -> None:
    student, deeper = build("gfl", seed=1), build("gfl", seed=2, backbone="resnet34")
    path = saved(tmp_path, under("architecture.", student) | under("teacher.", deeper))
    other = build("gfl", seed=3)
    assert load(other, read(path)).prefix == "architecture."
    assert equal(other, student)


def test_renamed_keys_are_refused_and_named(model: Any, tmp_path: Path) -> None:
    names = list(model.state_dict())
    renamed = {f"bbox_{name}" if name in names[::10] else name: v for name, v in model.state_dict().items()}
    with pytest.raises(JobError, match="does not load whole") as raised:
        load(model, read(saved(tmp_path, renamed)))
    assert "missing in backbone: backbone.conv1.weight" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"classes": 5}, "another number of classes"),
        ({"backbone": "resnet34"}, "another depth"),
        ({"detector": "retinanet"}, "another family"),
        ({"neck_channels": 24}, "neck_channels"),
    ],
)
def test_report_names_the_usual_cause(
    change: dict[str, Any], hint: str, model: Any, build: Build, tmp_path: Path
) -> None:
    other = build(**{"detector": "gfl", **change})
    with pytest.raises(JobError, match=f"likely: .*{hint}"):
        load(model, read(saved(tmp_path, other.state_dict())))


def test_deeper_backbone_is_refused_though_nothing_is_missing(
    model: Any, build: Build, tmp_path: Path
) -> None:
    path = saved(tmp_path, build("gfl", backbone="resnet34").state_dict())
    report = load(model, read(path), partial=True)
    assert not report.missing
    assert not report.whole


def test_partial_loads_what_fits_and_reports_the_rest(model: Any, build: Build, tmp_path: Path) -> None:
    other = build("gfl", seed=2, classes=5)
    before = model.bbox_head.gfl_cls.weight.clone()
    report = load(model, read(saved(tmp_path, other.state_dict())), partial=True)
    assert [wrong.name for wrong in report.misshaped] == [
        "bbox_head.gfl_cls.weight",
        "bbox_head.gfl_cls.bias",
    ]
    assert torch.equal(model.backbone.conv1.weight, other.backbone.conv1.weight)
    assert torch.equal(model.bbox_head.gfl_cls.weight, before)


def test_report_is_plain_data(model: Any, tmp_path: Path) -> None:
    report = load(model, read(saved(tmp_path, {**model.state_dict(), "fc.weight": torch.zeros(2)}))).to_dict()
    assert report["whole"]
    assert set(report["loaded"]) == {"backbone", "neck", "head"}
    assert report["beside"] == {"fc": 1}


class Code:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "clause"),
    [
        ({"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}, "the state of an optimiser"),
        ({"optimizer": {"state": {}}, "epoch": 3}, "the state of an optimiser"),
        ({}, "holds no weights"),
        ([1, 2], "a list"),
        (Code(), "cannot be read"),
    ],
    ids=["optimiser", "optimiser-beside-epoch", "nothing", "list", "code"],
)
def test_files_without_weights_say_what_they_are(
    content: Any, clause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JobError, match=clause):
        read(saved(tmp_path, content))
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "clause"),
    [(b"", "empty file"), (b"<html>404</html>", "cannot be read"), (pickle.dumps(Code()), "cannot be read")],
    ids=["empty", "web-page", "pickle-with-code"],
)
def test_files_that_are_no_checkpoints_are_refused(content: bytes, clause: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(JobError, match=clause):
        read(tmp_path / "a.pth")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_of_a_diverged_training_are_refused(model: Any, tmp_path: Path, value: str) -> None:
    state = {**model.state_dict(), "bbox_head.gfl_cls.bias": torch.tensor([0.0, float(value)])}
    with pytest.raises(JobError, match=r"NaN or infinity in 1 of \d+ tensors: bbox_head.gfl_cls.bias"):
        read(saved(tmp_path, state))


def test_truncated_file_is_refused(model: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, model.state_dict())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(JobError, match="cannot be read"):
        read(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path, clause in ((tmp_path / "no.pth", "no such checkpoint"), (tmp_path, "is a folder")):
        with pytest.raises(JobError, match=clause):
            read(path)


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ("a", "b")},
        {"dataset_meta": {"classes": ["a", "b"]}},
        {"dataset_meta": {"CLASSES": ("a", "b")}},
    ],
)
def test_class_list_is_found(meta: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": {"w": torch.ones(1)}, "meta": meta})
    assert read(path).classes == ("a", "b")


@pytest.mark.parametrize(
    ("theirs", "clause"),
    [
        (("a", "b"), None),
        (None, None),
        (("b", "a"), "another order"),
        (("a", "c"), "label 1 is 'c' in the checkpoint and 'b' in the dataset"),
        (("a", "b", "c"), "another number of classes"),
    ],
)
def test_class_lists_are_compared_with_their_order(theirs: Any, clause: str | None) -> None:
    fault = class_fault(Checkpoint(Path("x.pth"), {}, theirs), ("a", "b"))
    assert (fault is None) if clause is None else (clause in str(fault))


def test_a_student_inherits_what_agrees_and_keeps_its_backbone(build: Build) -> None:
    student, teacher = build("gfl", seed=1, head_convs=3), build("gfl", seed=2, width=16)
    backbone = student.backbone.conv1.weight.clone()
    lateral_weights, third_convs = 3, 2 * 3
    total = len(student.neck.state_dict()) + len(student.bbox_head.state_dict())
    assert inherit(student, teacher) == {"tensors": total - lateral_weights - third_convs, "of": total}
    assert torch.equal(student.bbox_head.gfl_cls.weight, teacher.bbox_head.gfl_cls.weight)
    assert torch.equal(student.backbone.conv1.weight, backbone)


# --- averaged weights ---


@pytest.mark.parametrize(
    ("key", "wrap"),
    [
        ("ema", lambda state: {"module": state, "updates": 9}),
        ("model_ema", lambda state: state),
        ("state_dict_ema", lambda state: {f"module.{name}": value for name, value in state.items()}),
        ("ema", lambda state: {"state_dict": state}),
    ],
)
def test_averaged_weights_are_named_and_taken_on_request(
    key: str, wrap: Any, model: Any, build: Build, tmp_path: Path
) -> None:
    average, other = build("gfl", seed=2), build("gfl", seed=3)
    path = saved(tmp_path, {"model": model.state_dict(), key: wrap(average.state_dict())})
    assert read(path).also == key
    load(other, read(path))
    assert equal(other, model)
    load(other, read(path, ema=True))
    assert equal(other, average)


def test_a_file_of_averaged_weights_alone_is_read(model: Any, build: Build, tmp_path: Path) -> None:
    other = build("gfl", seed=3)
    load(other, read(saved(tmp_path, {"ema": model.state_dict()})))
    assert equal(other, model)


def test_averaged_weights_that_are_not_there_are_told(model: Any, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no averaged weights \(EMA\)"):
        read(saved(tmp_path, {"state_dict": model.state_dict()}), ema=True)


def test_what_mmengine_keeps_beside_its_average_is_none(model: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": model.state_dict(), "ema_state_dict": model.state_dict()})
    assert read(path).also == ""


# --- tensors that are no weights ---


@pytest.mark.parametrize(
    ("tensor", "clause"),
    [
        (torch.ones(2).to(torch.float8_e4m3fn), "tensors of float8_e4m3fn"),
        (torch.ones(2).to(torch.int8), "tensors of int8"),
        (torch.eye(3).to_sparse(), r"sparse tensors \(sparse_coo\)"),
        (torch.ones(2, dtype=torch.complex64), "tensors of complex64"),
        (torch.ones(1).expand(2**20, 2**20), "expanded tensors"),
        (torch.empty(2, device="meta"), "tensors without values"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_that_are_no_plain_numbers_are_named(tensor: Tensor, clause: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=rf"holds {clause}[\s\S]*1 of 2 tensors: odd"):
        read(saved(tmp_path, {"odd": tensor, "w": torch.ones(1)}))


# --- settings in a checkpoint's meta ---


def dated() -> dict[str, Any]:
    moment = datetime.datetime(2024, 1, 2, 3, 4, tzinfo=datetime.UTC)
    return {"time": moment, "date": moment.date(), "took": datetime.timedelta(hours=2)}


@pytest.mark.parametrize(
    "meta",
    [
        {"classes": [np.str_("a"), np.str_("b")]},
        {"classes": np.array(["a", "b"])},
        {"classes": ["a", "b"], "work_dir": Path("/x/y"), "data": PurePosixPath("z")},
        {"dataset_meta": ConfigDict(classes=("a", "b"), palette=ConfigDict(a=[1]))},
        {"classes": ["a", "b"], "args": argparse.Namespace(lr=0.1, out=Path("x"))},
        {"classes": ["a", "b"], "args": SimpleNamespace(lr=0.1)},
        {"classes": ["a", "b"], **dated()},
    ],
    ids=["numpy-text", "numpy-array", "path", "ConfigDict", "Namespace", "SimpleNamespace", "datetime"],
)
def test_settings_beside_the_weights_are_no_hindrance(meta: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": {"w": torch.ones(1)}, "meta": meta})
    assert read(path).classes == ("a", "b")


@pytest.mark.parametrize(
    "settings",
    [
        argparse.Namespace(get=5, inner=argparse.Namespace(lr=0.1)),
        SimpleNamespace(get=5, inner=[SimpleNamespace(keys=1, update=2)]),
        ConfigDict(get=5, inner=ConfigDict(lr=0.1)),
        Addict(get=5, inner=Addict(lr=0.1)),
    ],
    ids=["Namespace", "SimpleNamespace", "ConfigDict", "addict"],
)
def test_settings_of_any_class_come_as_items(settings: Any, tmp_path: Path) -> None:
    found = checkpoints.load(
        saved(tmp_path, {"meta": settings, "tensors": torch.nn.Linear(1, 1).state_dict()})
    )
    inner = found["meta"]["inner"]
    assert found["meta"].get("get") == 5
    assert inner in ({"lr": 0.1}, [{"keys": 1, "update": 2}])
    assert vars(found["meta"]) == {}
    assert vars(found["tensors"]).keys() == {"_metadata"}


def test_classes_are_found_in_settings_with_names_of_methods(tmp_path: Path) -> None:
    meta = argparse.Namespace(classes=["a", "b"], get=5, keys=6)
    assert read(saved(tmp_path, {"state_dict": {"w": torch.ones(1)}, "meta": meta})).classes == ("a", "b")


def test_a_description_of_the_data_in_words_names_no_classes(tmp_path: Path) -> None:
    meta = {"dataset_meta": "coco"}
    assert read(saved(tmp_path, {"state_dict": {"w": torch.ones(1)}, "meta": meta})).classes is None


class Own:
    pass


def test_an_object_of_another_class_is_named_with_the_way_to_save_weights_alone(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        read(saved(tmp_path, {"state_dict": {"w": torch.ones(1)}, "meta": {"hook": Own()}}))
    (fault,) = caught.value.faults
    assert fault.got == f"an object of {Own.__module__}.Own, whose class could run code"
    assert "torch.save(model.state_dict()" in fault.fix
