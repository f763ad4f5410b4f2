"""The real data sets beside the repository: every defect that their SOURCE.md lists is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdlab.datasets import coco, voc
from kdlab.inspection.examine import Inspection, examine
from kdlab.inspection.findings import Defect
from kdlab.recipe import loader as recipes

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not here")


def inspected(tmp_path_factory: pytest.TempPathFactory, recipe: str) -> Inspection:
    """The set that a recipe names."""
    root = f"dataset.root={DATA / recipe.partition('/')[0]}"
    options = recipes.load(recipe, [root]).dataset.options
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        module: Any = voc if recipe.startswith("bccd") else coco
        return examine(module.prepare(**options))


@pytest.fixture(scope="module")
def bccd(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    return inspected(tmp_path_factory, "bccd/gfl_mbv2")


@pytest.fixture(scope="module")
def foosball(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    return inspected(tmp_path_factory, "foosball/gfl_mbv2")


@pytest.fixture(scope="module")
def coco_mini() -> Inspection:
    labels = {f"{split}_labels": f"annotations/instances_{split}.json" for split in ("train", "val")}
    images = {f"{split}_images": f"images/{split}" for split in ("train", "val")}
    return examine(coco.prepare(root=str(DATA / "coco-mini-cc"), **images, **labels))


def one(found: Inspection, kind: str) -> Defect:
    (defect,) = [defect for defect in found.defects if defect.kind == kind]
    return defect


def objects(defect: Defect) -> set[tuple[str, str, tuple[int, ...]]]:
    """Split, number of the image and numbers of the objects of each place."""
    return {(place.split, Path(place.file).stem[-5:], place.objects) for place in defect.places}


def sizes(found: Inspection) -> list[int]:
    return [*found.summaries[-1].sizes.values()]


class TestBccd:
    def test_its_splits_and_classes_are_counted(self, bccd: Inspection) -> None:
        assert {s.name: (s.images, s.objects) for s in bccd.summaries} == {
            "train": (205, 2805), "val": (87, 1138), "other": (72, 945), "all": (364, 4888),
        }  # fmt: skip
        last = bccd.summaries[-1]
        assert last.classes == {"RBC": 4155, "WBC": 372, "Platelets": 361}
        assert (last.formats, last.image_sizes) == ({"JPEG RGB": 364}, {"640x480": 364})
        assert (last.per_image[0], last.per_image[2], last.crowds) == (1, 30, 0)
        assert sizes(bccd) == [41, 1524, 3323]

    def test_nothing_but_its_listed_defects_is_told(self, bccd: Inspection) -> None:
        assert {defect.kind: defect.count for defect in bccd.defects} == {
            "zero-area": 2, "near-duplicate": 8, "few-boxes": 10, "number-gaps": 47, "xml-path": 364,
            "xml-folder": 3, "xml-one-based": 545, "xml-difficult": 4888, "xml-truncated": 1131,
        }  # fmt: skip
        assert bccd.usable

    def test_boxes_without_area_are_named(self, bccd: Inspection) -> None:
        defect = one(bccd, "zero-area")
        assert objects(defect) == {("val", "00338", (12,)), ("train", "00343", (3,))}
        assert {place.detail for place in defect.places} == {"RBC 503 336 0 0", "RBC 180 328 0 0"}

    def test_near_duplicates_are_named(self, bccd: Inspection) -> None:
        assert {(number, pair) for _, number, pair in objects(one(bccd, "near-duplicate"))} == {
            ("00013", (6, 14)), ("00020", (13, 14)), ("00100", (1, 2)), ("00104", (12, 13)),
            ("00251", (6, 7)), ("00284", (0, 1)), ("00331", (1, 2)), ("00403", (2, 3)),
        }  # fmt: skip

    def test_every_image_with_one_or_two_boxes_is_named(self, bccd: Inspection) -> None:
        files = (DATA / "bccd" / "annotations").glob("*.xml")
        few = {file.stem for file in files if file.read_text().count("<object>") <= 2}
        assert {Path(place.file).stem for place in one(bccd, "few-boxes").places} == few

    def test_foreign_paths_and_folders_are_told(self, bccd: Inspection) -> None:
        assert [(place.detail, place.count) for place in one(bccd, "xml-path").places] == [
            ("361 of /home/pi/...", 361), ("3 of /Users/cosmic/...", 3),
        ]  # fmt: skip
        folders = {(Path(place.file).stem[-5:], place.detail) for place in one(bccd, "xml-folder").places}
        assert folders == {(number, "RBC, most JPEGImages") for number in ("00171", "00178", "00228")}

    def test_the_range_of_its_numbers_is_told(self, bccd: Inspection) -> None:
        assert one(bccd, "number-gaps").places[0].detail.startswith("00000..00410 without 25, 27, 51, ")


class TestFoosball:
    def test_its_splits_and_classes_are_counted(self, foosball: Inspection) -> None:
        assert {s.name: (s.images, s.objects) for s in foosball.summaries} == {
            "train": (106, 2554), "val": (21, 541), "test": (14, 261), "all": (141, 3356),
        }  # fmt: skip
        last = foosball.summaries[-1]
        assert last.classes == {"figure": 2726, "hand": 502, "ball": 128}
        assert (last.formats, last.image_sizes) == ({"JPEG RGB": 141}, {"398x224": 138, "298x224": 3})
        assert (last.per_image[2], last.narrowest_px, last.lowest_px) == (39, 4, 2)
        assert sizes(foosball) == [2922, 432, 2]

    def test_nothing_but_its_listed_traps_is_told(self, foosball: Inspection) -> None:
        assert {defect.kind: defect.count for defect in foosball.defects} == {
            "few-images": 21, "imbalance": 1, "small-objects": 2922,
            "annotation-id-0": 3, "id-over-splits": 837,
            "category-0": 3, "licence-missing": 141, "year-text": 3, "segmentation-empty": 3356,
            "whole-numbers": 3356, "export-hash": 141,
        }  # fmt: skip
        assert foosball.usable

    @pytest.mark.parametrize("kind", ["annotation-id-0", "category-0", "year-text"])
    def test_what_each_split_has_once_is_told_of_each(self, kind: str, foosball: Inspection) -> None:
        assert one(foosball, kind).splits == {"train": 1, "val": 1, "test": 1}

    def test_ids_of_train_come_again_in_the_others(
        self, foosball: Inspection, told: Callable[[Inspection, str], list[str]]
    ) -> None:
        assert told(foosball, "id-over-splits") == [
            "val: 21 image ids of train", "test: 14 image ids of train",
            "val: 541 annotation ids of train", "test: 261 annotation ids of train",
        ]  # fmt: skip

    def test_the_rare_class_and_the_small_objects_are_told(
        self, foosball: Inspection, told: Callable[[Inspection, str], list[str]]
    ) -> None:
        assert told(foosball, "imbalance") == [": ball 3.8 %"]
        assert told(foosball, "small-objects") == [": 87 %, narrowest 4 px, lowest 2 px"]

    def test_the_licence_that_is_not_defined_is_told(self, foosball: Inspection) -> None:
        assert {place.detail for place in one(foosball, "licence-missing").places} == {"1"}


class TestCocoMini:
    def test_its_splits_are_counted(self, coco_mini: Inspection) -> None:
        assert {s.name: (s.images, s.objects, s.crowds, s.without_objects) for s in coco_mini.summaries} == {
            "train": (59, 583, 6, 0), "val": (66, 560, 8, 2), "all": (125, 1143, 14, 2),
        }  # fmt: skip
        assert sizes(coco_mini) == [441, 372, 330]
        assert coco_mini.summaries[-1].formats == {"JPEG RGB": 125}
        assert [sum(map(bool, s.classes.values())) for s in coco_mini.summaries[:2]] == [61, 62]

    def test_nothing_but_its_listed_traps_is_told(self, coco_mini: Inspection) -> None:
        assert {defect.kind: defect.count for defect in coco_mini.defects} == {
            "never-trained": 12, "few-objects": 95, "imbalance": 70,
            "no-objects": 2, "class-absent": 37, "never-measured": 11,
            "category-gaps": 20, "crowd-rle": 14, "area-mask": 1141, "mixed-numbers": 14,
        }  # fmt: skip
        assert coco_mini.usable

    def test_the_ten_gaps_of_the_category_ids_are_told(self, coco_mini: Inspection) -> None:
        gaps = "ids 1..90 without 12, 26, 29, 30, 45, 66, 68, 69, 71, 83"
        assert [(p.split, p.detail, p.count) for p in one(coco_mini, "category-gaps").places] == [
            ("train", gaps, 10), ("val", gaps, 10),
        ]  # fmt: skip

    def test_crowds_are_told_of_each_split(self, coco_mini: Inspection) -> None:
        assert one(coco_mini, "crowd-rle").splits == {"train": 6, "val": 8}

    def test_images_without_objects_are_named(self, coco_mini: Inspection) -> None:
        assert [(place.split, place.file) for place in one(coco_mini, "no-objects").places] == [
            ("val", "000000058636.jpg"), ("val", "000000226111.jpg"),
        ]  # fmt: skip

    def test_absent_classes_are_told_of_each_split(self, coco_mini: Inspection) -> None:
        assert one(coco_mini, "class-absent").splits == {"train": 19, "val": 18}
