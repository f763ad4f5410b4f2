"""Detections as rows of COCO's format, as a table and as pages of pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from kdlab.reporting.plots import write_detections
from kdlab.reporting.plots.detections import pages
from kdlab.reporting.predictions import Predictions, Seen

CAT, DOG = [1.0, 2.0, 10.0, 6.0, 0], [4.0, 4.0, 8.0, 8.0, 1]
MODELS = ("teacher", "baseline seed 0", "rm seed 0")


def seen(number: int, group: str = "", objects: Any = (CAT, DOG), **changes: Any) -> Seen:
    """An image in which the baseline finds the cat and rm both."""
    found = {
        "teacher": [],
        "baseline seed 0": [[*CAT[:4], 0.7, 0]],
        "rm seed 0": [[*CAT[:4], 0.9, 0], [*DOG[:4], 0.2, 1]],
    }
    ap = dict(zip(MODELS, (0.0, 50.0, 100.0) if objects else (None,) * 3, strict=True))
    made = Seen(number, f"a/{number}.png", f"/d/a/{number}.png", 32, 64, group, objects, ap, found)
    return replace(made, **changes)


def predictions(*images: Seen, **changes: Any) -> Predictions:
    made = Predictions("Pair", 0.3, MODELS, "baseline seed 0", ("cat", "dog"), (7, 90), images)
    return replace(made, **changes)


def black(image: Seen) -> Any:
    return np.zeros((image.height, image.width, 3), np.uint8)


def test_rows_are_cocos_results_of_all_detections_and_say_whose_they_are() -> None:
    found = predictions(seen(3))
    rows = json.loads(found.to_json())
    assert rows == found.rows()
    assert len(rows) == 3
    assert rows[2] == {
        "image_id": 3, "category_id": 90, "bbox": [4.0, 4.0, 8.0, 8.0], "score": 0.2,
        "category": "dog", "model": "rm seed 0", "file_name": "a/3.png",
    }  # fmt: skip
    truth = COCO()
    truth.dataset = {"images": [{"id": 3}], "categories": [{"id": 7}, {"id": 90}], "annotations": []}
    truth.createIndex()
    loaded = truth.loadRes([row for row in rows if row["model"] == "rm seed 0"])
    assert [box["area"] for box in loaded.dataset["annotations"]] == [60.0, 64.0]


def test_the_table_has_ap_of_each_image_and_what_it_is_drawn_for() -> None:
    table = predictions(seen(1, "best"), seen(2, "worst")).table()
    assert [column.key for column in table.columns] == ["image", "group", "objects", *MODELS]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["a/1.png", "gains", "2", "0.0", "50.0", "100.0"],
        ["a/2.png", "loses", "2", "0.0", "50.0", "100.0"],
    ]
    assert table.footnotes[0] == "boxes: with a score of 0.3 or more"


def test_a_long_name_of_an_image_is_cut_in_its_middle_where_it_stays_its_own() -> None:
    long, twin, other = "b/64_jpg.rf.e92dc56b8e578eac17.jpg", "c/64_jpg.rf.e92dc5_______eac17.jpg", "a/1.png"
    alone = predictions(seen(1, name=long), seen(2, name=other)).table()
    assert [row[0].text for row in alone.rows] == ["64_jpg.rf.e92...ac17.jpg", "a/1.png"]
    both = predictions(seen(1, name=long), seen(2, name=twin)).table()
    assert [row[0].text for row in both.rows] == [long, twin]


def test_without_labels_the_table_counts_the_boxes_that_are_drawn() -> None:
    table = predictions(seen(1, objects=None)).table()
    assert [cell.text for cell in table.rows[0]] == ["a/1.png", "0", "1", "1"]
    assert [cell.value for cell in predictions(seen(1, objects=None), threshold=0.1).table().rows[0]][1:] == [
        0.0,
        1.0,
        2.0,
    ]
    # one image of the validation set among others
    mixed = predictions(seen(1), seen(2, objects=None)).table()
    assert [[cell.text for cell in row[1:]] for row in mixed.rows] == [
        ["2", "0.0", "50.0", "100.0"],
        ["-", "0 boxes", "1 box", "1 box"],
    ]


def test_gains_and_losses_have_pages_of_their_own_with_a_row_an_image_and_a_column_a_model() -> None:
    images = [*(seen(number, "best") for number in range(5)), seen(5, "worst")]
    made = list(pages(predictions(*images), black))
    assert [len(plot.figure.axes) for plot in made] == [16, 4, 4]
    assert [plot.title.partition(":")[0] for plot in made] == [
        *["Images in which the arms gain most over the baseline"] * 2,
        "Images in which the arms lose most against the baseline",
    ]
    labels, teacher, baseline, arm = (axes.get_title(loc="left") for axes in made[0].figure.axes[:4])
    assert labels == "labels\n2 objects"
    assert teacher == "teacher\nAP 0.0 (−50.0), 0 boxes"
    assert baseline == "baseline seed 0\nAP 50.0, 1 box"
    assert arm == "rm seed 0\nAP 100.0 (+50.0), 1 box"
    assert "score of 0.3 or more" in made[0].caption
    assert made[0].figure.axes[0].get_ylabel() == "a/0.png"


def test_of_long_names_the_end_is_shown() -> None:
    arm = f"rm[{'rank=both,' * 5}] seed 1"
    image = seen(1, name=f"{'folder/' * 9}1.png", ap={arm: None}, found={arm: []}, objects=None)
    (plot,) = pages(predictions(image, models=(arm,) * 3, baseline=None), black)
    (axes, *_) = plot.figure.axes
    assert axes.get_ylabel().startswith("...")
    assert axes.get_ylabel().endswith("/folder/1.png")
    name, told = axes.get_title(loc="left").splitlines()
    assert (name[:3], name[-7:], told) == ("...", " seed 1", "0 boxes")
    assert "AP" not in plot.caption


def test_boxes_lie_where_they_were_found_in_the_colour_of_their_class() -> None:
    (plot,) = pages(predictions(seen(1), threshold=0.1), black)
    labels, _, _, arm = plot.figure.axes
    # pixel centres are whole numbers
    edges = [patch.get_bbox().bounds for patch in arm.patches]
    assert edges == [(0.5, 1.5, 10.0, 6.0), (3.5, 3.5, 8.0, 8.0)]
    colours = [[patch.get_edgecolor() for patch in axes.patches] for axes in (labels, arm)]
    assert colours[0] == colours[1]
    assert colours[0][0] != colours[0][1]
    assert [text.get_text() for text in arm.texts] == ["cat 0.90", "dog 0.20"]
    assert [text.get_text() for text in labels.texts] == ["cat", "dog"]


@pytest.mark.parametrize("count", [1, 9])
def test_one_model_alone_is_drawn_larger(count: int) -> None:
    images = [seen(number, objects=None) for number in range(count)]
    made = list(pages(predictions(*images, models=MODELS[1:2], baseline=None), black))
    assert [len(plot.figure.axes) for plot in made] == ([1] if count == 1 else [4, 4, 1])
    (many,) = pages(predictions(seen(1)), black)
    alone, beside = (plot.figure.axes[0].get_window_extent().width for plot in (made[-1], many))
    assert alone > 1.5 * beside


def test_files_are_one_picture_a_page_and_none_of_an_earlier_call_stays(tmp_path: Path) -> None:
    images = [seen(number) for number in range(5)]
    files, pictures = write_detections(predictions(*images), black, tmp_path / "predict")
    assert [path.name for path in files] == ["page-1.png", "page-2.png"]
    assert len(pictures) == 2
    for path, plot in zip(files, pages(predictions(*images), black), strict=True):
        width, height = plot.figure.get_size_inches() * 200
        assert cv2.imread(str(path)).shape[:2] == (pytest.approx(height, abs=1), round(width))
    (tmp_path / "predict" / "page-notes.png").touch()
    write_detections(predictions(images[0]), black, tmp_path / "predict")
    assert {path.name for path in (tmp_path / "predict").iterdir()} == {"page-1.png", "page-notes.png"}
