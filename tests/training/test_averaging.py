"""The moving average of a detector's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kdlab.training.averaging import Average


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def stepped(model: nn.Module, step: int) -> None:
    """Weights and statistics move, as in a training step."""
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step)))
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))


def test_it_is_mmdet_s_average_of_parameters_and_statistics() -> None:
    from mmdet.models.layers import ExpMomentumEMA

    model = small()
    theirs = ExpMomentumEMA(model, momentum=0.002, gamma=2000, update_buffers=True)
    # mmdet's copies the weights of its first step instead
    theirs.steps.fill_(1)
    own = Average(model, 0.002, 100_000)
    for step in range(1, 6):
        stepped(model, step)
        theirs.update_parameters(model)
        own.follow(model, step)
    found, expected = own.model.state_dict(), theirs.module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, msg=name)


def test_counts_are_copied_and_a_short_training_forgets_its_first_weights() -> None:
    model, first = small(), small()
    average = Average(model, 0.01, 100)
    assert average.ramp == 10
    for step in range(100):
        stepped(model, step)
        average.follow(model, step)
    assert average.model[1].num_batches_tracked == 100
    left = 1.0
    for step in range(100):
        left *= 1 - (0.01 + 0.99 * torch.exp(torch.tensor(-(1 + step) / 10.0)).item())
    assert left < 1e-3
    assert not torch.allclose(average.model[0].weight, first[0].weight, atol=0.5)


def test_a_model_may_have_nothing_to_count() -> None:
    model = torch.nn.Conv2d(1, 1, 1)
    average = Average(model, 0.5, 100)
    with torch.no_grad():
        model.weight.fill_(3.0)
    average.follow(model, 1000)
    assert average.model.weight.item() != 3.0
    average.follow(model, 0)
    assert average.model.weight.item() == pytest.approx(3.0, rel=0.2)


def test_it_stays_in_evaluation_mode_and_trains_nothing() -> None:
    average = Average(small(), 0.01, 100).train()
    assert not any(module.training for module in average.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters())


@pytest.mark.parametrize("detector", ["gfl", "faster_rcnn"])
def test_what_is_predicted_and_kept_is_the_average_and_what_is_trained_is_the_student(
    build: Callable[..., Any], raw_batch: Callable[..., Any], detector: str
) -> None:
    from kdlab.training.distiller import Distiller

    distiller = Distiller(build(detector)).train()
    plain = distiller.eval().val_step(raw_batch())
    distiller.average = Average(distiller.student, 0.5, 100)
    with torch.no_grad():
        for parameter in distiller.student.parameters():
            parameter.zero_()
    for before, now in zip(plain, distiller.val_step(raw_batch()), strict=True):
        assert torch.equal(before.pred_instances.scores, now.pred_instances.scores)
    assert distiller.kept is distiller.average.model
    assert all(name.startswith("average.model.") for name in distiller.state_dict() if "average" in name)
