"""Small sets as people have them: labels that mean the same train the same, others are refused with a reason.

Each folder of `../shared/cases` is named here; they are kept beside the repository, and where they are not,
nothing here runs. The same kinds are made anew in tests/datasets, tests/inspection and tests/training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kdlab.cli import app
from kdlab.datasets import coco, voc
from kdlab.datasets.base import DatasetFiles, Split
from kdlab.devices import Machine
from kdlab.errors import KdlabError
from kdlab.planning import facts
from kdlab.recipe import loader as recipes

SHARED = Path(__file__).parents[2] / ".." / "shared" / "cases"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the cases are not here")

ELSEWHERE = {"control", "cwd_shadow", "recipes", "small_shm", "voc"}
"""Folders that are no COCO set of their own; tests/e2e, tests/recipe and tests/training have their kinds."""


@dataclass(frozen=True)
class Refused:
    """What plan, doctor and job say of a case.

    Args:
        what: the fault of the training part.
        got: how its values begin.
        fix: a part of the fix.
        more: faults besides it.
    """

    what: str
    got: str
    fix: str
    more: int = 1


QUOTES = "write the number without quotation marks"
LABELS = {
    "area_zero": Refused(
        "no object is left to learn from or to measure on", "area is not above 0: 72", "leave area out"
    ),
    "iscrowd_text_train": Refused(
        "annotations whose iscrowd is neither 0 nor 1: 72", "annotation 1: iscrowd is text: '0'", "0 or 1", 0
    ),
    "bbox_normalised": Refused(
        "annotations whose bbox is a fraction of the image, not in pixels: 72",
        "annotation 1: [0.34375, 0.7625,", "multiply x and width by the width",
    ),
    "bbox_text": Refused(
        "annotations whose bbox is not [x, y, width, height]: 72",
        "annotation 1: bbox is ['33', '61', '18', '18']", QUOTES,
    ),
    "bbox_xyxy": Refused(
        "annotations whose bbox is likely [x, y, x2, y2], two corners: 72",
        "annotation 1: [33, 61, 51, 79]", "write [x, y, x2 - x, y2 - y]",
    ),
    "negative_size": Refused(
        "annotations whose bbox has a negative width or height: 36",
        "annotation 1: [51, 79, -18, -18]", "swapped corners?",
    ),
    "category_ids_text": Refused(
        "categories without a whole number as id: 3", "id is text: '1'", QUOTES, 3
    ),
    "image_id_text": Refused(
        "annotations whose image_id is no whole number: 72", "annotation 1: image_id is text: '1'", QUOTES
    ),
    "ids_float": Refused(
        "images without a whole number as id: 24", "number 0 (from 0): id is 1.0", "decimal point", 3
    ),
    "size_float": Refused(
        "images without a whole width and height: 24", "image 1: width is 96.0 and height is 80.0", "decimal"
    ),
    "size_text": Refused(
        "images without a whole width and height: 24", "image 1: width is text: '96'", QUOTES
    ),
    "size_missing": Refused(
        "images without a whole width and height: 24", "image 1, image 2", "write the size of the image file"
    ),
    "root_same_name": Refused(
        "categories with the name of another: 1", "disc: ids 0, 2", "remove the category that no annotation"
    ),
}  # fmt: skip
IMAGES = {
    "tiff_float": ("its pixels are 32-bit floats", "32 files that are no readable image"),
    "windows_paths": ("there is 'train000.jpg' (a backslash", "32 labelled images without a file"),
    "names_nfd": (r"there is 'Mu\u0308train000.jpg' (another Unicode", "32 labelled images without a file"),
}
"""What plan and job say of the first image, and the doctor of all."""
SAME_PIXELS = ("control", "category_ids_2_53", "category_ids_negative", "difficult_text", "class_names_odd")
RIGHT = (
    *SAME_PIXELS,
    "png_16_bit_full",
    "tiff_pages",
    "webp_animated",
    "jpeg_cmyk",
    "avif_named_jpg",
    "png_transparent",
)
VOC_REFUSED = {
    "difficult_00": "objects whose <difficult> is neither 0 nor 1: 27",
    "difficult_true": "objects whose <difficult> is neither 0 nor 1: 27",
    "difficult_unspecified": "objects whose <difficult> is neither 0 nor 1: 27",
    "swapped_corners": "objects whose xmin is above xmax, or ymin above ymax: swapped corners?: 27",
    "gb2312": "XML files that do not parse: 9",
    "namespaced": "XML files with a namespace, whose tags no reader of VOC knows: 9",
    "list_jpg": "stems without an XML file: 6",
    "list_path": "stems without an XML file: 6",
    "uppercase_ext": "stems without an XML file: 6",
}
VOC_RIGHT = ("bom", "control", "no_size", "spaces_class", "twins")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KDLAB_RUNS", str(tmp_path / "runs"))


def arguments(name: str) -> list[str]:
    """The recipe of a case, and its root wherever this is run."""
    recipe = SHARED / ("control" if name == "control" else name) / "r.yaml"
    root = SHARED / name / ("" if name == "control" else "data")
    return [str(recipe if recipe.is_file() else SHARED / "small_shm" / "r.yaml"), f"dataset.root={root}"]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], facts.Facts]:
    """`plan(name)`: what planning finds of a case's data, without looking at models."""
    monkeypatch.setattr(facts, "_probe", lambda requests, _: [{} for _ in requests])

    def planned(name: str) -> facts.Facts:
        recipe, root = arguments(name)
        return facts.gather(recipes.load(recipe, [root]), Machine((0,)))

    return planned


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str]]:
    """`doctor(name)`: the exit code and all that is said of a case's data."""

    def looked(name: str) -> tuple[int, str]:
        recipe, root = arguments(name)
        code = app.main(["doctor", "--data", recipe, "--set", root])
        return code, "\n".join(" ".join(line.split()) for line in "".join(capfd.readouterr()).splitlines())

    return looked


def files_of(name: str) -> DatasetFiles:
    """The files as a job is handed them, which is not asked whether they are right."""
    data = SHARED / name / ("" if name == "control" else "data")
    train, val = (
        Split(data / "images" / part, data / f"annotations/{part}.json") for part in ("train", "val")
    )
    classes = [entry["name"] for entry in json.loads(train.labels.read_text())["categories"]]
    return DatasetFiles("coco", tuple(classes), train, val, "0" * 16)


@cache
def reading(name: str) -> Any:
    """A job's view of the training images."""
    import kdlab.detectors  # noqa: F401 - registers mmdet's transforms
    from kdlab.training.data import mmdet_dataset

    files = files_of(name)
    return mmdet_dataset(files, files.train, None, 0.0)


def told(error: KdlabError) -> list[tuple[str, str, str]]:
    return [(fault.what, fault.got, fault.fix) for fault in error.faults]


def test_every_folder_is_named_here() -> None:
    folders = {path.name for path in SHARED.iterdir() if path.is_dir()}
    assert folders == {*LABELS, *IMAGES, *RIGHT, *ELSEWHERE, "image_182_megapixels"}
    assert {path.name for path in (SHARED / "voc").iterdir()} == {*VOC_REFUSED, *VOC_RIGHT}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_cannot_be_meant_are_refused_alike_in_plan_doctor_and_job(
    name: str, plan: Any, doctor: Any
) -> None:
    wanted = LABELS[name]
    with pytest.raises(KdlabError) as planned:
        plan(name)
    with pytest.raises(KdlabError) as trained:
        reading(name)
    code, said = doctor(name)
    first, *more = told(planned.value)
    assert first[0] == wanted.what
    assert first[1].startswith(wanted.got)
    assert wanted.fix in first[2]
    assert len(more) == wanted.more
    assert first in told(trained.value)
    assert code == 3
    assert f"{SHARED / name / 'data/annotations/train.json'} {wanted.what}\n" in said


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_cannot_be_read_get_one_verdict(name: str, plan: Any, doctor: Any) -> None:
    from kdlab.training.data import batches_of, training_loader

    why, counted = IMAGES[name]
    with pytest.raises(KdlabError, match="an image cannot be read") as planned:
        plan(name)
    with pytest.raises(KdlabError, match="an image cannot be read") as trained:
        next(batches_of(training_loader(reading(name), 24, 0, workers=0)))
    code, said = doctor(name)
    assert why in planned.value.faults[0].got
    assert why.partition("'")[0] in trained.value.faults[0].got
    assert code == 3
    assert f"error {counted}" in said


@cache
def images_and_objects(name: str) -> tuple[Any, Any]:
    from kdlab.training.data import reading_report

    images = reading(name)
    report = reading_report(images)
    return report, [images.get_data_info(place)["instances"] for place in range(len(images))]


@pytest.mark.parametrize("name", RIGHT)
def test_labels_that_mean_the_same_are_read_the_same(name: str, plan: Any, doctor: Any) -> None:
    few = "to measure on"  # each case is small, and the plan says so
    assert [few in note for note in plan(name).notes] == [True, True]
    assert images_and_objects(name) == images_and_objects("control")
    code, said = doctor(name)
    assert code == 0
    assert "\ncrowd or difficult 0 0 0\n" in said
    assert not [line for line in said.splitlines() if line.startswith("error")]


@pytest.mark.parametrize("name", RIGHT)
def test_images_of_other_forms_arrive_as_those_of_the_control(name: str) -> None:
    mine, same = (reading(one)[0]["inputs"].float() for one in (name, "control"))
    assert (mine - same).abs().mean() < 4


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME_PIXELS)
def test_labels_that_mean_the_same_end_in_the_same_ap(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, root = (word.replace(str(SHARED), str(SHARED.resolve())) for word in arguments(name))
    monkeypatch.chdir(tmp_path)  # tables are written there
    assert app.main(["run", "-y", "--json", recipe, "--set", root]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    (metrics,) = [event["metrics"] for event in events if event.get("event") == "JobFinished"]
    assert [round(metrics[key], 1) for key in ("AP", "AP50", "AP75")] == [12.5, 32.6, 9.4]


@pytest.mark.slow
def test_an_image_above_the_limit_of_pillow_is_read(plan: Any, doctor: Any) -> None:
    plan("image_182_megapixels")
    code, said = doctor("image_182_megapixels")
    assert (code, "no readable image" in said) == (0, False)
    assert "14000x13000 1 1 2 100.0 %" in said


@pytest.mark.parametrize("name", VOC_REFUSED)
def test_xml_that_cannot_be_meant_is_refused_with_one_line_a_kind(name: str) -> None:
    with pytest.raises(KdlabError) as caught:
        voc.prepare(root=str(SHARED / "voc" / name))
    assert [fault.what for fault in caught.value.faults].count(VOC_REFUSED[name]) == 1
    assert len(caught.value.faults) <= 4
    assert all(fault.fix for fault in caught.value.faults)


def boxes(files: DatasetFiles) -> Iterator[Any]:
    for part in (files.train, files.val):
        content = coco.load_labels(part.labels)
        yield [(box["bbox"], box["iscrowd"]) for box in content["annotations"]]
        yield [(image["width"], image["height"], image["file_name"]) for image in content["images"]]


@pytest.mark.parametrize("name", VOC_RIGHT)
def test_xml_that_means_the_same_is_read_the_same(name: str) -> None:
    mine, same = (voc.prepare(root=str(SHARED / "voc" / one)) for one in (name, "control"))
    assert list(boxes(mine)) == list(boxes(same))
    assert len(mine.classes) == (5 if name == "spaces_class" else 3)
