"""A student beside its teacher: rankings, kept boxes and differences of real jobs on tiny models."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from kdlab.datasets.coco import load_labels
from kdlab.detectors.outputs import Facts
from kdlab.jobs.diagnosis import RANKINGS, Diagnosis
from kdlab.jobs.events import JobCancelled, JobEvaluated, JobFinished, JobProgress, JobStarted, read_from
from kdlab.jobs.files import write_json
from kdlab.jobs.job import read_job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import JobResult
from kdlab.methods.rm import box_scores
from kdlab.training import checkpoints
from kdlab.training.attempt import Attempt
from kdlab.training.data import evaluation_loader, mmdet_dataset
from kdlab.training.diagnosing import Diagnoser, lacking
from kdlab.training.distiller import make_batch
from kdlab.training.evaluation import CocoMetric, evaluate
from kdlab.training.job import run_job
from tests.stubs.jobs import make
from tests.stubs.stub_job import make_result


@pytest.fixture(scope="module")
def learned(build: Any, digits: Any) -> Any:
    """`learned(seed)`: a GFL model that has seen the validation images often enough to find some objects."""

    @cache
    def learned(seed: int) -> Any:
        model = build("gfl", seed, len(digits.classes))
        batch = next(iter(evaluation_loader(mmdet_dataset(digits, digits.val, None, None), 8, 0)))
        batch.pop("broken")
        data = model.train().data_preprocessor(batch, True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        for _ in range(60):
            losses = model.loss(data["inputs"], data["data_samples"])
            optimizer.zero_grad()
            sum(sum(loss) if isinstance(loss, list) else loss for loss in losses.values()).backward()
            optimizer.step()
        return model

    return learned


@pytest.fixture(scope="module")
def laid(
    tmp_path_factory: pytest.TempPathFactory, model_settings: Any, build: Any, learned: Any, digits: Any
) -> Any:
    """`laid("gfl", student="fcos", seeds=(1, 2))`: the folder of a job and its finished parents beside it."""

    def laid(
        teacher: str, student: str | None = None, *, seeds: Any = (1, 2), learns: bool = False, **changes: Any
    ) -> JobPaths:
        folder = tmp_path_factory.mktemp("jobs")
        given = (teacher, student or teacher)
        for role, detector, seed in zip(("teacher", "student"), given, seeds, strict=True):
            paths = JobPaths(folder / f"{role}-1")
            paths.checkpoints.mkdir(parents=True)
            model = learned(seed) if learns else build(detector, seed, len(digits.classes))
            digest = checkpoints.save_model(paths.weights, model, digits.classes)
            replace(make_result(make(f"{role}-1")), model={"weights_sha256": digest}).write(paths)
        job = make(
            "diagnose-1",
            "diagnose a seed 0",
            parents=("teacher-1", "student-1"),
            inputs={"dataset": digits},
            model=model_settings(given[1]).model_dump(mode="json"),
            teacher=model_settings(teacher).model_dump(mode="json"),
            batch_size=3,
            **changes,
        )
        paths = JobPaths(folder / job.id)
        paths.folder.mkdir()
        write_json(paths.job, job.to_dict())
        return paths

    return laid


def ran(paths: JobPaths) -> tuple[JobPaths, JobResult, Diagnosis]:
    result = run_job(paths)
    found = Diagnosis.read(paths.diagnosis)
    assert result is not None
    assert found is not None
    return paths, result, found


@pytest.fixture(scope="module")
def pair(laid: Any) -> tuple[JobPaths, JobResult, Diagnosis]:
    """Two unlike GFL models."""
    return ran(laid("gfl", learns=True))


@pytest.fixture(scope="module")
def twins(laid: Any) -> tuple[JobPaths, JobResult, Diagnosis]:
    """A student with its teacher's weights."""
    return ran(laid("gfl", seeds=(1, 1), learns=True))


def test_a_student_that_is_its_teacher_agrees_in_everything(twins: Any) -> None:
    _, result, found = twins
    told = result.diagnosis
    assert set(told["tau"].values()) == set(told["top"].values()) == {1.0}
    assert told["other_prior"] == 0.0
    assert result.metrics["AP"] == told["teacher_AP"]
    np.testing.assert_array_equal(found.student.met, found.teacher.met)
    np.testing.assert_array_equal(found.student.prior, found.teacher.prior)
    for level in told["levels"].values():
        assert level["prediction"] == 0
        assert level["feature"] < 1e-5
        assert "correlation" not in level


def test_rankings_are_those_of_the_students_own_positives(pair: Any) -> None:
    paths, _, found = pair
    work = Diagnoser(Attempt(read_job(paths), paths))
    data = next(iter(work.reading.validation()))
    data.pop("broken")
    with torch.no_grad():
        mine, theirs = (observer.view(data) for observer in work.models)
        batch = make_batch(mine.samples, mine.inputs, 0, 1)
        with work.models[0].adapter.recording() as caught, work.models[0].adapter.capturing(caught):
            work.models[0].model.loss(mine.inputs, mine.samples)
    assignment = work.models[0].adapter.assignment(caught, mine.outputs, mine.samples)
    image, prior, group = assignment.positives(batch)
    assert (
        found.positives[: len(batch.gt_labels)].tolist()
        == group.bincount(minlength=len(batch.gt_labels)).tolist()
    )
    compared = 0
    for number in range(len(batch.gt_labels)):
        own = group == number
        scores = []
        for view in (mine, theirs):
            places = image[own], prior[own]
            score = view.outputs.gather_logits(*places)[:, batch.gt_labels[number]].sigmoid()
            iou = box_scores(view.outputs, batch, *places, group[own])
            scores.append((score, iou, score * iou))
        for place in range(len(RANKINGS)):
            one, other = (values[place].double().numpy() for values in scores)
            expected = kendalltau(one, other).statistic if own.sum() > 1 else np.nan
            assert found.tau[number, place] == pytest.approx(expected, abs=1e-6, nan_ok=True)
            compared += int(own.sum() > 1)
    assert compared > 3


def test_the_summary_is_the_mean_of_the_rows(pair: Any) -> None:
    _, result, found = pair
    told = result.diagnosis
    assert told["objects"] == len(found.image) == len(found.tau)
    assert told["tau"]["score"] == pytest.approx(np.nanmean(found.tau[:, 0]), abs=1e-6)
    assert -1 < told["tau"]["iou"] < 1
    both = (found.student.prior >= 0) & (found.teacher.prior >= 0)
    differ = found.student.prior[both] != found.teacher.prior[both]
    assert told["other_prior"] == pytest.approx(differ.mean(), abs=1e-6)
    assert told["found_by_both"] == both.sum() > 0


def test_it_measures_what_the_students_job_measured(pair: Any, learned: Any, digits: Any) -> None:
    _, result, found = pair
    for seed, ap in ((2, result.metrics["AP"]), (1, result.diagnosis["teacher_AP"])):
        loader = evaluation_loader(mmdet_dataset(digits, digits.val, None, None), 3, 0)
        metric = CocoMetric(digits.val.labels, digits.classes)
        assert evaluate(learned(seed), loader, metric).metrics["AP"] == ap
        role = found.student if seed == 2 else found.teacher
        met = [one for own in metric.met().values() for one in own]
        assert role.met.sum() == sum(one.times for one in met) > 0
        assert role.precision.sum() == pytest.approx(sum(one.precision for one in met), rel=1e-5)


def test_rows_are_the_objects_of_the_labels(pair: Any, digits: Any) -> None:
    found, labels = pair[2], load_labels(digits.val.labels)
    names = {image["id"]: image["file_name"] for image in labels["images"]}
    wanted = sorted((names[one["image_id"]], *one["bbox"][:2]) for one in labels["annotations"])
    boxes = zip(found.image, found.box, strict=True)
    assert sorted((str(found.files[image]), *box[:2].tolist()) for image, box in boxes) == wanted
    assert ((found.overlap >= 0) & (found.overlap < 1)).all()
    for image in range(len(found.files)):
        own = found.box[found.image == image]
        apart = all(
            (one[:2] >= other[2:]).any() or (other[:2] >= one[2:]).any()
            for place, one in enumerate(own)
            for other in own[:place]
        )
        assert apart == (found.overlap[found.image == image] == 0).all()


def test_maps_belong_to_their_images(pair: Any) -> None:
    _, result, found = pair
    told = result.diagnosis["levels"]
    levels = {int(stride): ([], []) for stride in told}
    for image in range(len(found.files)):
        maps = found.maps.of(image)
        assert [(stride, values.shape) for stride, _, values in maps] == [
            (8, (8, 8)), (16, (4, 4)), (32, (2, 2))
        ]  # fmt: skip
        for stride, prediction, feature in maps:
            levels[stride][0].append(prediction.ravel())
            levels[stride][1].append(feature.ravel())
    for stride, parts in levels.items():
        prediction, feature = (np.concatenate(part).astype(float) for part in parts)
        expected = told[str(stride)]
        assert expected["correlation"] == pytest.approx(np.corrcoef(prediction, feature)[0, 1], abs=1e-4)
        assert expected["prediction"] == pytest.approx(prediction.mean(), rel=1e-4)
        assert expected["feature"] == pytest.approx(feature.mean(), rel=1e-4)
    assert found.maps.of(len(found.files)) == []


def test_only_some_maps_are_kept_of_too_many(laid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # 84 cells of 8 bytes an image, 8 images
    monkeypatch.setattr("kdlab.training.differences._MAP_BYTES", 84 * 8 * 3)
    found = ran(laid("gfl"))[2]
    assert found.maps.image.tolist() == [0, 3, 6]
    assert found.maps.of(1) == []
    assert len(found.maps.of(3)) == 3


@pytest.mark.parametrize("detector", ["retinanet", "fcos", "atss"])
def test_boxes_and_priors_are_in_pixels_of_the_image(detector: str, laid: Any) -> None:
    _, result, found = ran(laid(detector, dataset={"scale": [160, 160]}))
    assert result.diagnosis["lacks"] == {}
    for finds in (found.student, found.teacher):
        seen = np.isfinite(finds.score)
        assert seen.any()
        # every kept box has its prior, however much the image was resized
        assert (finds.prior[seen] >= 0).all()
        assert (finds.prior[~seen] == -1).all()
        assert finds.box[seen].max() <= 64.01
        centres = (finds.prior_box[seen][:, :2] + finds.prior_box[seen][:, 2:]) / 2
        assert ((centres >= 0) & (centres <= 64 * 192 / 160)).all()
        assert (detector == "fcos") == (finds.prior_box[seen][:, :2] == finds.prior_box[seen][:, 2:]).all()


@pytest.mark.parametrize("teacher", ["faster_rcnn", "retinanet"])
def test_what_a_pair_cannot_tell_is_left_out_with_the_reason(teacher: str, laid: Any) -> None:
    _, result, found = ran(laid(teacher, "gfl"))
    told = result.diagnosis
    assert told["lacks"].keys() == {"ranking", "predictions"}
    assert told["tau"] == told["top"] == {}
    assert told["other_prior"] is None
    assert (found.student.prior == -1).all()
    assert (found.positives == 0).all()
    # those of the first stage's strides that both have
    assert told["levels"]
    for level in told["levels"].values():
        assert level.keys() == {"feature"}
    assert all(prediction is None for _, prediction, _ in found.maps.of(0))


def facts(**changes: Any) -> Facts:
    given = {"provides": ("feats", "cls_maps", "boxes"), "strides": (8, 16), "priors": "a", "anchors": 1}
    return Facts("gfl", num_classes=3, channels=4, head="", **{**given, **changes})


def test_reasons_name_what_differs() -> None:
    assert lacking(facts(), facts()) == {}
    assert lacking(facts(), facts(priors="b")) == {"ranking": "student and teacher have other priors"}
    assert lacking(facts(anchors=9, priors="b"), facts())["predictions"].endswith("9 and 1 priors a cell")
    assert "priors: teacher gfl" in lacking(facts(), facts(provides=("feats",)))["ranking"]
    assert "[8, 16] and [32]" in lacking(facts(), facts(strides=(32,)))["levels"]


def test_events_tell_of_images_over_both_passes(pair: Any) -> None:
    events = read_from(pair[0].events).events
    kinds = [type(event) for event in events if not isinstance(event, JobProgress)]
    assert kinds == [JobStarted, JobEvaluated, JobFinished]
    told = [event.iteration for event in events if isinstance(event, JobProgress)]
    assert told == [1, 3, 4, 5, 7, 8]
    assert pair[1] == JobResult.read(pair[0])


def test_a_request_to_stop_leaves_no_result(laid: Any) -> None:
    paths = laid("gfl")
    paths.stop_request.touch()
    assert run_job(paths) is None
    assert isinstance(read_from(paths.events).events[-1], JobCancelled)
    assert not paths.result.exists()
    assert not paths.diagnosis.exists()


def test_a_file_that_is_cut_counts_as_none(pair: Any, tmp_path: Path) -> None:
    path = tmp_path / "diagnosis.npz"
    content = pair[0].diagnosis.read_bytes()
    for part in (b"", content[:100], content[: len(content) // 2]):
        path.write_bytes(part)
        assert Diagnosis.read(path) is None
    assert Diagnosis.read(tmp_path / "absent.npz") is None
