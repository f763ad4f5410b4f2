"""Learning rates and weight decay by part of the student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdlab.training.optimising import build_optimiser
from tests.stubs.jobs import schedule


@pytest.fixture
def distiller(build: Callable[..., Any], term: Callable[..., Any]) -> Any:
    from kdlab.training.distiller import Distiller

    models = build("gfl", neck_channels=8), build("gfl", seed=1)
    return Distiller(models[0], {"pkd": term("pkd")}, models[1])


def rates(distiller: Any, **changes: Any) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    names = {id(parameter): name for name, parameter in distiller.named_parameters()}
    optim = build_optimiser(distiller, schedule(lr=1.0, weight_decay=0.5, **changes)).optimizer
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optim.param_groups
        for p in group["params"]
    }


def test_without_a_word_all_parameters_are_in_one_group_in_their_order(distiller: Any) -> None:
    (group,) = build_optimiser(distiller, schedule()).param_groups
    assert all(one is other for one, other in zip(group["params"], distiller.parameters(), strict=True))


def test_parts_have_their_factor_and_parts_of_parts_their_own(distiller: Any) -> None:
    found = rates(distiller, lr_factors={"backbone.layer4": 0.0, "backbone": 0.1})
    expected = {"student.backbone.layer4": 0.0, "student.backbone": 0.1, "": 1.0}
    for name, (lr, _) in found.items():
        assert lr == next(rate for part, rate in expected.items() if name.startswith(part)), name
    assert {lr for lr, _ in found.values()} == {0.0, 0.1, 1.0}


# of 2 + 2 + 6 + 2 blocks
LAYERS = {
    "patch_embed": 13,
    "stages.0.blocks.0": 12,
    "stages.0.blocks.1": 11,
    "stages.0.downsample": 11,
    "stages.1.blocks.0": 10,
    "stages.1.blocks.1": 9,
    "stages.1.downsample": 9,
    **{f"stages.2.blocks.{block}": 8 - block for block in range(6)},
    "stages.2.downsample": 3,
    "stages.3.blocks.0": 2,
    "stages.3.blocks.1": 1,
}


def test_each_layer_of_swin_t_has_a_factor_of_the_one_behind_it(build: Callable[..., Any]) -> None:
    swin = build("gfl", backbone="swin_t", width=32, neck_channels=8, head_convs=1, strides=(8, 16, 32))
    found = rates(swin, layer_decay=0.5, lr_factors={"backbone.stages.3": 0.1})
    seen = set()
    for name, (lr, _) in found.items():
        layer = next((layer for layer in LAYERS if name.startswith(f"backbone.{layer}.")), "")
        expected = 0.5 ** LAYERS.get(layer, 0) * (0.1 if "stages.3" in layer else 1)
        assert lr == pytest.approx(expected), name
        seen.add(layer)
    assert seen == {"", *LAYERS}


def test_normalisers_and_biases_decay_as_the_rest_unless_told_otherwise(distiller: Any) -> None:
    assert {decay for _, decay in rates(distiller).values()} == {0.5}
    for name, (_, decay) in rates(distiller, decay_norms=False).items():
        module = distiller.get_submodule(name.rpartition(".")[0])
        plain = name.endswith("bias") or isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm)
        assert decay == (0.0 if plain else 0.5), name


def test_the_reported_rate_is_the_schedule_s(distiller: Any) -> None:
    optim = build_optimiser(distiller, schedule(lr=1.0, lr_factors={"backbone": 0.1}))
    assert optim.get_lr()["lr"][0] == 1.0
