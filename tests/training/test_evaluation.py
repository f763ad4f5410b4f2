"""COCO's metrics equal those of pycocotools, and hold where pycocotools stumbles."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval as Comparison

from kdlab.datasets.base import DatasetFiles
from kdlab.errors import JobError, UsageError
from kdlab.jobs.result import Evaluation
from kdlab.training.data import evaluation_loader, mmdet_dataset
from kdlab.training.evaluation import NAMES, CocoMetric, evaluate
from kdlab.training.matching import Met
from kdlab.training.resampling import average_precision

# ids with gaps and out of order; labels count in the order of the ids
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 90, "name": "eel"}]
CLASSES = ("dog", "cat", "eel")
IDS = (2, 7, 90)
EMPTY_IMAGE = 40


def scene(seed: int, first_id: int = 1) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Labels of six images, one without objects, and detections scattered around and beside them."""
    rng = np.random.default_rng(seed)
    images = [{"id": 10 * n, "width": 400, "height": 300, "file_name": f"{n}.png"} for n in range(1, 7)]
    annotations, samples = [], []
    for image in images:
        count = 0 if image["id"] == EMPTY_IMAGE else int(rng.integers(1, 7))
        # sides from 10 to 150 px: small, medium and large
        corners, sides = rng.uniform(0, 200, (count, 2)), 10 ** rng.uniform(1, 2.2, (count, 2))
        labels = rng.integers(0, 3, count)
        for corner, side, label in zip(corners, sides, labels, strict=True):
            annotations.append({"image_id": image["id"], "category_id": IDS[label], "area": side.prod(),
                                "bbox": [*corner, *side], "iscrowd": int(rng.random() < 0.15)})  # fmt: skip
        moved = np.repeat(corners, 3, 0) + rng.normal(0, 4, (3 * count, 2))
        grown = np.repeat(sides, 3, 0) * rng.uniform(0.8, 1.25, (3 * count, 2))
        boxes = np.concatenate([np.hstack([moved, moved + grown]), rng.uniform(0, 100, (5, 4)).cumsum(1)])
        found = np.concatenate([np.repeat(labels, 3), rng.integers(0, 3, 5)])
        samples.append(sample(image["id"], boxes, rng.random(len(boxes)), found))
    for number, annotation in enumerate(annotations, start=first_id):
        annotation["id"] = number
    return {"images": images, "categories": CATEGORIES, "annotations": annotations}, samples


def sample(image: int, boxes: Any, scores: Any, labels: Any) -> dict[str, Any]:
    found = {
        "bboxes": torch.as_tensor(boxes, dtype=torch.float32).view(-1, 4),
        "scores": torch.as_tensor(scores, dtype=torch.float32),
        "labels": torch.as_tensor(labels, dtype=torch.long),
    }
    return {"img_id": image, "pred_instances": found}


def measured(folder: Path, labels: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, float]:
    path = folder / "labels.json"
    path.write_text(json.dumps(labels))
    metric = CocoMetric(path, CLASSES)
    metric.process(samples)
    return flat(metric.of_all([metric.results]))


def flat(found: Evaluation) -> dict[str, float]:
    """All numbers of an evaluation by one name each."""
    return found.metrics | {f"class/{name}": ap for name, ap in found.per_class.items()}


def expected(labels: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, float]:
    """The same by pycocotools; what has no objects is left out."""
    truth = COCO()
    truth.dataset = copy.deepcopy(labels)
    truth.createIndex()
    rows = []
    for one in samples:
        found = {name: value.double().numpy() for name, value in one["pred_instances"].items()}
        for box, score, label in zip(found["bboxes"], found["scores"], found["labels"], strict=True):
            rows.append({"image_id": one["img_id"], "category_id": IDS[int(label)], "score": score,
                         "bbox": [*box[:2], *(box[2:] - box[:2])]})  # fmt: skip
    evaluation = Comparison(truth, truth.loadRes(rows), "bbox")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    metrics = dict(zip(NAMES, evaluation.stats, strict=False))
    for place, category in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, place, 0, -1]
        name = CLASSES[IDS.index(category)]
        metrics[f"class/{name}"] = precision[precision > -1].mean() if (precision > -1).any() else -1
    return {name: 100 * value for name, value in metrics.items() if value > -1}


@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_those_of_pycocotools(tmp_path: Path, seed: int) -> None:
    labels, samples = scene(seed)
    found, reference = measured(tmp_path, labels, samples), expected(labels, samples)
    assert found == pytest.approx(reference, abs=1e-6)
    assert 5 < found["AP"] < 95


@pytest.mark.parametrize("first", [2**53, 2**63, 2**70, -(2**63), -2])
def test_category_ids_of_any_size_give_the_numbers_of_small_ones(tmp_path: Path, first: int) -> None:
    labels, samples = scene(0)
    small = measured(tmp_path, labels, samples)
    numbers = {number: first + place for place, number in enumerate(IDS)}
    labels = copy.deepcopy(labels)
    for entry in labels["categories"]:
        entry["id"] = numbers[entry["id"]]
    for entry in labels["annotations"]:
        entry["category_id"] = numbers[entry["category_id"]]
    assert measured(tmp_path, labels, samples) == small


def test_equal_scores_are_ordered_as_pycocotools_orders_them(tmp_path: Path) -> None:
    labels, samples = scene(0)
    for one in samples:
        one["pred_instances"]["scores"] = one["pred_instances"]["scores"].mul(4).round() / 4
    assert measured(tmp_path, labels, samples) == pytest.approx(expected(labels, samples), abs=1e-6)


def test_more_detections_than_count_are_cut_as_pycocotools_cuts_them(tmp_path: Path) -> None:
    labels, samples = scene(1)
    found = samples[0]["pred_instances"]
    many = {name: torch.cat([value] * 20) for name, value in found.items()}
    many["scores"] = many["scores"] * torch.linspace(0.5, 1, len(many["scores"]))
    samples[0]["pred_instances"] = many
    assert len(many["scores"]) > 100
    assert measured(tmp_path, labels, samples) == pytest.approx(expected(labels, samples), abs=1e-6)


def test_an_annotation_of_id_0_counts_as_any_other(tmp_path: Path) -> None:
    # pycocotools takes a detection that matches it for unmatched, so it is asked with ids from 1
    from_one, samples = scene(2)
    from_zero, _ = scene(2, first_id=0)
    assert measured(tmp_path, from_zero, samples) == pytest.approx(expected(from_one, samples), abs=1e-6)


def test_a_box_without_area_counts_as_an_object_as_in_pycocotools(tmp_path: Path) -> None:
    labels, samples = scene(2)
    before = measured(tmp_path, labels, samples)
    where = [50.0, 60.0]
    labels["annotations"].append(
        {"id": 999, "image_id": 10, "category_id": 2, "bbox": [*where, 0, 0], "area": 0, "iscrowd": 0}
    )
    found = measured(tmp_path, labels, samples)
    assert found == pytest.approx(expected(labels, samples), abs=1e-6)
    assert found["class/dog"] < before["class/dog"]


def test_ids_of_any_size_and_order_change_nothing(tmp_path: Path) -> None:
    labels, samples = scene(2)
    expectation = measured(tmp_path, labels, samples)
    for entry in labels["images"]:
        entry["id"] += 2**60
    for number, entry in enumerate(labels["annotations"]):
        entry["image_id"], entry["id"] = entry["image_id"] + 2**60, 2**60 - number
    moved = [{**one, "img_id": one["img_id"] + 2**60} for one in samples]
    assert measured(tmp_path, labels, moved) == expectation


def test_labels_without_area_and_iscrowd_are_measured_by_their_boxes(tmp_path: Path) -> None:
    labels, samples = scene(2)
    for entry in labels["annotations"]:
        entry["iscrowd"] = 0
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    expectation = measured(tmp_path, labels, samples)
    for entry in labels["annotations"]:
        del entry["area"], entry["iscrowd"]
    assert measured(tmp_path, labels, samples) == expectation


def test_what_exporters_write_beside_the_boxes_does_no_harm(tmp_path: Path) -> None:
    labels, samples = scene(2)
    expectation = measured(tmp_path, labels, samples)
    labels |= {"info": {"year": "2022", "version": 3}, "licenses": None}
    for entry in labels["annotations"]:
        entry["segmentation"] = [] if entry["id"] % 2 else {"counts": "no outline", "size": None}
    assert measured(tmp_path, labels, samples) == expectation


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_of_the_matching_is_worth_the_same_ap(tmp_path: Path, seed: int) -> None:
    labels, samples = scene(seed)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    metric = CocoMetric(path, CLASSES)
    metric.process(samples)
    ap = metric.of_all([metric.results]).metrics["AP"]
    matches = metric.matches()
    assert average_precision(matches, np.ones((1, 6), np.int32))[0] == pytest.approx(ap, abs=1e-6)
    assert matches.objects.sum() == sum(not one["iscrowd"] for one in labels["annotations"])
    assert (np.diff(matches.label) >= 0).all()


def test_an_image_that_was_not_shown_does_not_count(tmp_path: Path) -> None:
    labels, samples = scene(2)
    left = {**labels, "annotations": [a for a in labels["annotations"] if a["image_id"] != 10]}
    left["images"] = [image for image in labels["images"] if image["id"] != 10]
    assert measured(tmp_path, labels, samples[1:]) == pytest.approx(expected(left, samples[1:]), abs=1e-6)


def test_images_without_an_object_alone_cannot_be_measured(tmp_path: Path) -> None:
    labels, samples = scene(2)
    empty = [one for one in samples if one["img_id"] == EMPTY_IMAGE]
    with pytest.raises(JobError, match="an image that can be read"):
        measured(tmp_path, labels, empty)


def test_voc_is_measured_where_it_is_asked_for(tmp_path: Path) -> None:
    labels, samples = scene(2)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    metric = CocoMetric(path, CLASSES, ("coco", "voc"))
    metric.process(samples)
    found = flat(metric.of_all([metric.results]))
    alone = measured(tmp_path, labels, samples)
    assert {name: found[name] for name in alone} == alone
    # both are areas under the curve at IoU 0.5: COCO reads it at 101 recalls, VOC counts a pixel more
    assert found["VOC12"] == pytest.approx(alone["AP50"], abs=5)
    assert found.keys() - alone.keys() == {"VOC07", "VOC12"}


@pytest.mark.parametrize("first_id", [0, 1])
def test_finding_all_objects_scores_100(tmp_path: Path, first_id: int) -> None:
    labels, _ = scene(3, first_id)
    samples = []
    for image in labels["images"]:
        mine = [a for a in labels["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        boxes = np.array([[*a["bbox"][:2], *np.add(a["bbox"][:2], a["bbox"][2:])] for a in mine])
        found = [IDS.index(a["category_id"]) for a in mine]
        samples.append(sample(image["id"], boxes.reshape(-1, 4), np.ones(len(mine)), found))
    assert all(value == pytest.approx(100) for value in measured(tmp_path, labels, samples).values())


def test_finding_nothing_scores_0(tmp_path: Path) -> None:
    labels, samples = scene(3)
    nothing = [sample(one["img_id"], [], [], []) for one in samples]
    found = measured(tmp_path, labels, nothing)
    assert found.keys() >= {*NAMES, "class/dog", "class/cat", "class/eel"}
    assert set(found.values()) == {0.0}


def test_finding_in_one_image_only_still_counts_all(tmp_path: Path) -> None:
    labels, samples = scene(4)
    one = [
        entry if place == 0 else sample(entry["img_id"], [], [], []) for place, entry in enumerate(samples)
    ]
    assert measured(tmp_path, labels, one) == pytest.approx(expected(labels, one), abs=1e-6)


def test_sizes_and_classes_without_objects_are_absent(tmp_path: Path) -> None:
    labels, samples = scene(5)
    labels["annotations"] = [
        a for a in labels["annotations"] if a["area"] < 96**2 and a["category_id"] != 90 and not a["iscrowd"]
    ]
    found = measured(tmp_path, labels, samples)
    assert "APl" not in found
    assert "class/eel" not in found
    assert found == pytest.approx(expected(labels, samples), abs=1e-6)


def test_the_same_detections_give_the_same_metrics_again(tmp_path: Path) -> None:
    labels, samples = scene(0)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    metric = CocoMetric(path, CLASSES)
    metric.process(samples)
    assert metric.of_all([metric.results]) == metric.of_all([metric.results])


def test_evaluating_a_model_puts_its_mode_back_and_leaves_its_weights(
    build: Any, digits: DatasetFiles
) -> None:
    model = build("gfl", classes=10).train()
    model.bbox_head.test_cfg.score_thr = 0.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loader = evaluation_loader(mmdet_dataset(digits, digits.val, None, None), 3, 0)
    metric = CocoMetric(digits.val.labels, digits.classes)
    found = evaluate(model, loader, metric)
    assert 0 <= found.metrics["AP"] < 50
    assert not metric.results
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_shares_of_several_processes_are_worth_what_one_finds(build: Any, digits: DatasetFiles) -> None:
    model = build("gfl", classes=10).eval()
    model.bbox_head.test_cfg.score_thr = 0.0
    dataset = mmdet_dataset(digits, digits.val, None, None)
    shares = []
    for rank in (0, 1):
        metric = CocoMetric(digits.val.labels, digits.classes, ("coco", "voc"))
        with torch.no_grad():
            for data in evaluation_loader(dataset, 3, 0, rank, ranks=2):
                metric.process(sample.to_dict() for sample in model.val_step(data))
        shares.append(metric.results)
    assert [len(share) for share in shares] == [5, 3]
    whole = CocoMetric(digits.val.labels, digits.classes, ("coco", "voc"))
    assert whole.of_all(shares) == evaluate(model, evaluation_loader(dataset, 3, 0), whole)


def test_a_few_images_at_once_are_worth_what_a_batch_finds(build: Any, digits: DatasetFiles) -> None:
    model = build("gfl", classes=10).eval()
    model.bbox_head.test_cfg.score_thr = 0.0
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _m, args, kw: seen.append(len(kw["inputs"])), with_kwargs=True)
    loader = evaluation_loader(mmdet_dataset(digits, digits.val, None, None), 3, 0)
    found = [
        evaluate(model, loader, CocoMetric(digits.val.labels, digits.classes), micro_batch)
        for micro_batch in (None, 2)
    ]
    assert seen == [3, 3, 2, 2, 1, 2, 1, 2]
    assert found[1].metrics == pytest.approx(found[0].metrics, abs=1e-6)


def test_images_that_a_gpu_does_not_hold_are_halved(
    build: Any, digits: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("gfl", classes=10).eval()
    model.bbox_head.test_cfg.score_thr = 0.0
    seen: list[int] = []
    held = 1

    def forward(_model: Any, _args: Any, given: Any) -> None:
        seen.append(len(given["inputs"]))
        if seen[-1] > held:
            raise torch.OutOfMemoryError

    loader = evaluation_loader(mmdet_dataset(digits, digits.val, None, None), 5, 0)
    expected = evaluate(model, loader, CocoMetric(digits.val.labels, digits.classes))
    model.register_forward_pre_hook(forward, with_kwargs=True)
    found = evaluate(model, loader, CocoMetric(digits.val.labels, digits.classes))
    assert seen == [5, 2, *[1] * 8]
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-6)
    held = 0
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(model, loader, CocoMetric(digits.val.labels, digits.classes))


def test_evaluation_is_in_the_coordinates_of_the_unresized_image(build: Any, digits: DatasetFiles) -> None:
    class Oracle(torch.nn.Module):
        """Finds each object where it is in the image that it is shown."""

        def val_step(self, data: Any) -> Any:
            for shown in data["data_samples"]:
                truth = shown.gt_instances
                truth.bboxes = truth.bboxes.tensor
                truth.scores = torch.ones(len(truth))
                shown.pred_instances = build("gfl").bbox_head._bbox_post_process(
                    results=truth, cfg={}, rescale=True, with_nms=False, img_meta=shown.metainfo
                )
            return data["data_samples"]

    dataset = mmdet_dataset(digits, digits.val, [128, 128], None)
    found = evaluate(
        Oracle(), evaluation_loader(dataset, 4, 0), CocoMetric(digits.val.labels, digits.classes)
    )
    assert found.metrics["AP"] == pytest.approx(100)


def test_labels_without_objects_are_refused(tmp_path: Path) -> None:
    labels = tmp_path / "val.json"
    image = {"id": 1, "file_name": "a.png", "width": 9, "height": 9}
    empty = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    labels.write_text(json.dumps(empty))
    with pytest.raises(UsageError, match="no object is left"):
        CocoMetric(labels, ["a"])


def test_each_annotation_is_met_as_often_as_detections_are_right(tmp_path: Path) -> None:
    labels, samples = scene(3)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    metric = CocoMetric(path, CLASSES)
    metric.process(samples[1:])
    metric.of_all([metric.results])
    met, matches = metric.met(), metric.matches()
    assert sorted(met) == sorted(one["img_id"] for one in samples[1:])
    right = sum(int(bits).bit_count() for bits in matches.right)
    assert sum(one.times for own in met.values() for one in own) == right > 0
    for image, times in met.items():
        own = [one for one in labels["annotations"] if one["image_id"] == image]
        assert len(times) == len(own)
        assert all(times[place] == Met() for place, one in enumerate(own) if one["iscrowd"])
        assert metric.objects(image) == {
            place: {**one, "iscrowd": 0} for place, one in enumerate(own) if not one["iscrowd"]
        }


def test_an_object_on_which_a_detection_lies_is_met_at_every_threshold(tmp_path: Path) -> None:
    labels, _ = scene(3)
    path = tmp_path / "labels.json"
    labels["annotations"] = [
        {**one, "iscrowd": 0, "image_id": 10, "bbox": [60.0 * place, 0, 50, 50], "category_id": 2}
        for place, one in enumerate(labels["annotations"][:3])
    ]
    path.write_text(json.dumps(labels))
    metric = CocoMetric(path, CLASSES)
    # the first exactly, the second at IoU 0.64, the third by another class
    boxes = [[0, 0, 50, 50], [60, 0, 110, 32], [120, 0, 170, 50]]
    metric.process([sample(10, boxes, [0.9, 0.8, 0.7], [0, 0, 1])])
    metric.of_all([metric.results])
    assert [one.times for one in metric.met()[10]] == [10, 3, 0]
    # of the one class: at the three low thresholds both are right, above them the first alone
    assert [one.precision for one in metric.met()[10]] == pytest.approx([1.0, 0.3, 0.0])


def test_precision_of_its_objects_averages_to_the_ap_of_a_class(tmp_path: Path) -> None:
    labels, samples = scene(5)
    for one in labels["annotations"]:
        one["iscrowd"] = 0
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    metric = CocoMetric(path, CLASSES)
    metric.process(samples)
    found = metric.of_all([metric.results])
    met = metric.met()
    for name, category in zip(CLASSES, IDS, strict=True):
        own = [
            met[image["id"]][place].precision
            for image in labels["images"]
            for place, one in enumerate(o for o in labels["annotations"] if o["image_id"] == image["id"])
            if one["category_id"] == category
        ]
        # COCO reads the curve at 101 recalls, which is coarse for so few objects
        assert 100 * np.mean(own) == pytest.approx(found.per_class[name], abs=1.5)


def test_detections_are_kept_as_the_model_gave_them(tmp_path: Path) -> None:
    labels, samples = scene(3)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    metric = CocoMetric(path, CLASSES)
    # one image was not shown, and the others not in their order
    metric.process([samples[4], samples[0], samples[2], samples[3]])
    metric.of_all([metric.results])
    found = metric.detections()
    assert found.images.tolist() == [1, 3, 4, 5]
    shown = [samples[place]["pred_instances"] for place in (0, 2, 3, 4)]
    for name, values in (("bboxes", found.box), ("scores", found.score), ("labels", found.label)):
        np.testing.assert_array_equal(values, np.concatenate([one[name].numpy() for one in shown]))
    assert np.bincount(found.image).tolist() == [len(one["scores"]) for one in shown]
    boxes = [box for box in labels["annotations"] if box["image_id"] in (10, 30, 40, 50)]
    assert [CLASSES[label] for label in found.object_label] == [
        next(one["name"] for one in CATEGORIES if one["id"] == box["category_id"]) for box in boxes
    ]
    assert found.ignored.tolist() == [bool(box["iscrowd"]) for box in boxes]
    corner_sizes = np.hstack([found.object_box[:, :2], found.object_box[:, 2:] - found.object_box[:, :2]])
    np.testing.assert_allclose(corner_sizes, [box["bbox"] for box in boxes])


def test_detections_before_an_evaluation_are_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(scene(0)[0]))
    with pytest.raises(RuntimeError, match="before of_all"):
        CocoMetric(path, CLASSES).detections()
