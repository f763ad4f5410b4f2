"""A method's weight over a training, and its share of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdlab.errors import UsageError
from kdlab.jobs.spec import MethodSettings
from kdlab.recipe import loader as recipes
from kdlab.training.weighting import LOOK_EVERY, Weight, correction, gradient_shares


def weight(**changes: Any) -> Weight:
    return Weight(MethodSettings.model_validate({"method": "rm", "weight": 8.0, **changes}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [8, 8, 8, 8, 8]),
        ({"stop": 0.5}, [8, 8, None, None, None]),
        ({"stop": 0.93}, [8, 8, 8, 8, None]),
        ({"decay": "linear"}, [8, 6, 4, 2, 0.08]),
        ({"decay": "linear", "stop": 0.5}, [8, 4, None, None, None]),
        ({"decay": "cosine"}, [8, 6.828427, 4, 1.171573, 0.001974]),
        ({"decay": "linear", "warmup_iters": 99}, [0.08, 26 * 0.06, 51 * 0.04, 76 * 0.02, 0.08]),
    ],
)
def test_a_weight_rises_falls_and_stops(changes: dict[str, Any], expected: list[float | None]) -> None:
    found = [weight(**changes).at(iteration, 100) for iteration in (0, 25, 50, 75, 99)]
    assert found == [one if one is None else pytest.approx(one, rel=1e-3) for one in expected]


@pytest.mark.parametrize(
    ("found", "factor"),
    [
        (0.11, 1.0),
        (0.10, 1.0),
        (0.12, 1.0),
        (0.0, 1.0),
        # to the near edge: odds of 10 % over odds of 5 %
        (0.05, (0.1 / 0.9) / (0.05 / 0.95)),
        (0.20, (0.12 / 0.88) / (0.2 / 0.8)),
        (0.001, 10.0),
        (0.95, 0.1),
        (1.0, 0.1),
    ],
)
def test_a_weight_follows_its_share_to_the_near_edge_of_the_band(found: float, factor: float) -> None:
    assert correction(found, 0.11, 0.01) == pytest.approx(factor)


def test_a_share_that_is_held_changes_the_weight_at_the_end_of_an_epoch_and_is_in_the_state() -> None:
    held = weight(gradient_share={"target": 11, "band": 1})
    for percent in (4.0, 0.0, 6.0):  # of nothing nothing follows
        held.saw(torch.tensor(percent))
    assert float(held.at(0, 100)) == 8.0
    again = weight(gradient_share={"target": 11, "band": 1})
    again.load_state_dict(held.state_dict())
    for one in (held, again):
        one.end_epoch()
        assert float(one.at(0, 100)) == pytest.approx(8 * (0.1 / 0.9) / (0.05 / 0.95))
        one.end_epoch()
        assert float(one.at(0, 100)) == pytest.approx(8 * (0.1 / 0.9) / (0.05 / 0.95))
    assert not weight().state_dict()


def test_shares_are_those_of_the_gradient_s_l1_norm() -> None:
    one, other = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    parts = {"": (6 * one).sum(), "rm": (one - other[:2]).sum(), "none": torch.zeros(())}
    assert gradient_shares(parts, [one, other]) == {
        "rm": pytest.approx(100 * 4 / 16),
        "none": pytest.approx(0),
    }
    assert gradient_shares(parts, [one.detach()]) == {}


@pytest.mark.parametrize(("detector", "method"), [("gfl", "rm"), ("fcos", "crosskd"), ("faster_rcnn", "pkd")])
def test_a_step_looks_at_shares_now_and_then_and_its_losses_are_those_of_one_that_does_not(
    distil: Callable[..., Any],
    term: Callable[..., Any],
    raw_batch: Callable[..., Any],
    detector: str,
    method: str,
) -> None:
    losses = []
    for iteration in (LOOK_EVERY, LOOK_EVERY + 1):
        distiller = distil(detector, {method: term(method)}).train()
        distiller.iteration, distiller.max_iterations = iteration, 1000
        total, _ = distiller.parse_losses(
            distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
        )
        total.backward()
        losses.append((total.item(), distiller.student.backbone.conv1.weight.grad.clone()))
        looked = {name: 0 < float(share) < 100 for name, share in distiller.shares.items()}
        assert looked == ({method: True} if iteration == LOOK_EVERY else {})
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])


def test_where_all_methods_have_stopped_no_teacher_runs(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    distiller = distil("gfl", {"rm": term("rm", stop=0.5), "pfi": term("pfi", stop=0.8)}).train()
    calls: list[int] = []
    original = distiller.teacher_outputs
    monkeypatch.setattr(distiller, "teacher_outputs", lambda *args: calls.append(1) or original(*args))
    data = distiller.data_preprocessor(raw_batch(), True)
    distiller.max_iterations = 10
    found = []
    for distiller.iteration in (4, 5, 8):
        found.append({name for name in distiller(**data, mode="loss") if name in ("loss_rm", "loss_pfi")})
    assert found == [{"loss_rm", "loss_pfi"}, {"loss_pfi"}, set()]
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("methods.rm.stop=1.5", "must be less than 1"),
        ("methods.rm.gradient_share={target: 0}", "greater than 0"),
        ("methods.rm.gradient_share={target: 5, band: 5}", "band 5 around 5 reaches 0 or 100 percent"),
        ("methods.rm.gradient_share=5", "must hold keys and values"),
        ("methods.rm.decay=fast", "must be none, linear or cosine"),
    ],
)
def test_a_wrong_word_about_weights_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipes.load("digits/quickstart", [setting])
    assert message in str(caught.value).replace("\n", " ")
