"""Priors are made once for each size of the inputs, and are those that mmdet makes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdlab.detectors import adapt

SIZES = ((8, 6), (4, 3), (2, 2), (1, 1), (1, 1))


@pytest.mark.parametrize("detector", ["gfl", "fcos", "retinanet", "rtmdet", "yolox", "faster_rcnn"])
def test_kept_priors_are_mmdets(build: Callable[..., Any], detector: str) -> None:
    model = build(detector)
    head = model.rpn_head if detector == "faster_rcnn" else model.bbox_head
    fresh = copy.deepcopy(head.prior_generator)
    adapt(model)
    kept, sizes = head.prior_generator, list(SIZES[: fresh.num_levels])
    for _ in range(2):
        for kwargs in ({"device": "cpu"}, {"dtype": torch.float64, "device": "cpu"}):
            found, expected = kept.grid_priors(sizes, **kwargs), fresh.grid_priors(sizes, **kwargs)
            assert all(map(torch.equal, found, expected))
            assert found[0].dtype == expected[0].dtype
        shape = (8 * fresh.strides[0][0] - 3, 40)
        found, expected = (one.valid_flags(sizes, shape, device="cpu") for one in (kept, fresh))
        assert all(map(torch.equal, found, expected))
    first = kept.grid_priors(sizes, device="cpu")
    again = kept.grid_priors(sizes, device="cpu")
    assert first[0] is again[0]
    first.clear()
    assert len(kept.grid_priors(sizes, device="cpu")) == fresh.num_levels


def test_priors_of_inference_do_not_reach_a_training(build: Callable[..., Any]) -> None:
    model = build("retinanet")
    adapt(model)
    generator = model.bbox_head.prior_generator
    sizes = list(SIZES[: generator.num_levels])
    with torch.inference_mode():
        assert generator.grid_priors(sizes, device="cpu")[0].is_inference()
    assert not generator.grid_priors(sizes, device="cpu")[0].is_inference()
