"""The detection that finds an object, and the prior behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdlab.detectors import adapt
from kdlab.training.kept import kept, priors_behind

BOX = [10.0, 10.0, 30.0, 30.0]
NEAR, FAR = [12.0, 10.0, 32.0, 30.0], [20.0, 10.0, 40.0, 30.0]
"""IoU 0.82 and 0.33 with it."""


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.9, 0.4, 0.8], [1, 1, 1], 2),
        ([0.9, 0.4, 0.8], [1, 1, 0], 1),
        ([0.9, 0.4, 0.8], [1, 0, 0], -1),
    ],
)
def test_the_highest_of_its_class_that_lies_on_it_is_kept(
    scores: list[float], labels: list[int], expected: int
) -> None:
    found = torch.tensor([FAR, BOX, NEAR]), torch.tensor(scores), torch.tensor(labels)
    assert kept(*found, torch.tensor([BOX]), torch.tensor([1])).tolist() == [expected]


def test_without_detections_or_objects_nothing_is_kept() -> None:
    none, one = torch.empty(0, 4), torch.tensor([BOX])
    scores, labels = torch.empty(0), torch.empty(0, dtype=torch.long)
    assert kept(none, scores, labels, one, torch.tensor([0])).tolist() == [-1]
    assert kept(one, torch.ones(1), torch.tensor([0]), none, labels).tolist() == []


@pytest.mark.parametrize("detector", ["retinanet", "fcos", "atss", "gfl", "rtmdet", "yolox"])
def test_every_detection_has_the_prior_that_made_it(detector: str, build: Any, raw_batch: Any) -> None:
    model = build(detector).eval()
    adapter = adapt(model)
    data = model.data_preprocessor(raw_batch(), False)
    with torch.no_grad(), adapter.recording() as caught:
        samples = model.predict(data["inputs"], data["data_samples"])
    outputs = adapter.outputs(caught)
    for image, sample in enumerate(samples):
        found = sample.pred_instances
        assert len(found)
        numbers = found.bboxes, found.scores, found.labels
        priors = priors_behind(*numbers, outputs, image, sample.img_shape)
        assert (priors >= 0).all()
        made = outputs.boxes[image, priors]
        height, width = sample.img_shape
        edges = torch.tensor([width, height, width, height])
        made = torch.minimum(made.clamp(min=0), edges) if adapter.clips else made
        torch.testing.assert_close(made, found.bboxes, atol=0.02, rtol=0)
        scores = outputs.cls_logits[image, priors].sigmoid().gather(1, found.labels[:, None]).squeeze(1)
        if outputs.quality_maps is not None:
            places = torch.full_like(priors, image)
            scores = scores * outputs.gather_quality(places, priors).sigmoid()
        torch.testing.assert_close(scores, found.scores, atol=1e-4, rtol=0)
    moved = priors_behind(found.bboxes + 1000, found.scores, found.labels, outputs, image, (64, 64))
    assert (moved == -1).all()
