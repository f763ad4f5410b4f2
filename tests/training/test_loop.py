"""Training is a pure function of its settings: a stop and a resume leave no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kdlab.datasets.base import DatasetFiles
from kdlab.errors import JobError
from kdlab.jobs.events import JobCheckpointed, JobEvaluated, JobProgress
from kdlab.jobs.job import Resources
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import Evaluation
from kdlab.jobs.spec import TrainingSpec
from kdlab.methods import method_class
from kdlab.methods.base import Connector, Method
from kdlab.training.attempt import Attempt
from kdlab.training.checkpoints import load
from kdlab.training.data import mmdet_dataset, training_loader
from kdlab.training.distiller import Distiller
from kdlab.training.loop import Stopped, TrainingLoop
from kdlab.training.optimising import build_optimiser, build_schedulers
from tests.stubs.jobs import make, schedule

SCHEDULE: dict[str, Any] = {"epochs": 2, "warmup_iters": 3}


class Noise(Method):
    """Draws a mask in every step."""

    connector = Connector(always=True)

    def forward(self, batch: Any, student: Any, teacher: Any, assignment: Any) -> Tensor:
        feat = student.feats[0]
        return (feat * torch.rand(feat.shape, generator=batch.generator)).square().mean()


class NanAtFive(Method):
    """Not finite in the step after five."""

    def forward(self, batch: Any, student: Any, teacher: Any, assignment: Any) -> Tensor:
        return student.feats[0].mean() * (math.nan if batch.iteration == 5 else 0.0)


@pytest.fixture(scope="module")
def dataset(digits: DatasetFiles, torch_: Any) -> Any:
    return mmdet_dataset(digits, digits.train, None, 0.5).get_subset(12)


@pytest.fixture
def make_loop(
    build: Callable[..., Any], term: Callable[..., Any], dataset: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., TrainingLoop]:  # fmt: skip
    """A loop as a new process would build it: 12 images, 4 batches an epoch, 2 epochs."""
    own = {"noise": Noise, "nan": NanAtFive}
    monkeypatch.setattr(
        "kdlab.training.distiller.method_class", lambda key: own.get(key) or method_class(key)
    )

    def make_loop(
        folder: str = "job", methods: tuple[str, ...] = ("rm", "pfi", "noise"), stop_at: int = 0,
        changes: Any = (), minutes: float = 10.0, told: Any = (), **options: Any,
    ) -> TrainingLoop:  # fmt: skip
        models = [build("gfl", seed, classes=10, neck_channels=8, head_convs=1) for seed in (0, 1)]
        distiller = Distiller(models[0], {name: term(name, **dict(told)) for name in methods}, models[1])
        resources = Resources(checkpoint_minutes=minutes)
        attempt = Attempt(
            make("teacher-1", schedule=SCHEDULE | dict(changes), resources=resources),
            JobPaths(tmp_path / folder),
            emit=lambda kind, **fields: loop.events.append((kind, fields)),
            should_stop=lambda: loop.progress.iteration == stop_at,
            **options,
        )
        loop = TrainingLoop(
            distiller,
            training_loader(dataset, 3, 0, 0),
            attempt,
            lambda: Evaluation({"AP": fingerprint(distiller)}, {"0": 1.0}),
        )
        loop.events = []
        return loop

    return make_loop


def fingerprint(distiller: Distiller) -> float:
    return sum(parameter.double().sum().item() for parameter in distiller.parameters())


def events(loop: TrainingLoop, kind: type) -> list[dict[str, Any]]:
    return [fields for seen, fields in loop.events if seen is kind]


# --- stop and resume ---


@pytest.fixture
def whole(make_loop: Callable[..., TrainingLoop]) -> TrainingLoop:
    loop = make_loop("whole")
    loop.run()
    return loop


@pytest.mark.parametrize(
    ("stop_at", "changes"),
    [
        *((place, {"decay": "cosine"}) for place in (2, 4, 7, 8)),
        (5, {"decay": "step", "milestones": (0.5, 0.75)}),
        (3, {"ema": 0.1, "lr_factors": {"backbone": 0.5}, "decay_norms": False, "accumulate": 2}),
        *((place, {"epochs": None, "iterations": 6}) for place in (5, 6)),
    ],
)
def test_a_stop_and_a_resume_change_no_bit(
    make_loop: Callable[..., TrainingLoop], stop_at: int, changes: dict[str, Any]
) -> None:
    whole = make_loop("whole", changes=changes)
    whole.run()
    with pytest.raises(Stopped):
        make_loop(stop_at=stop_at, changes=changes).run()
    resumed = make_loop(changes=changes)
    torch.manual_seed(123)
    assert resumed.resume() == []
    assert resumed.progress.iteration == stop_at
    progress = resumed.run()
    expected = whole.distiller.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.distiller.state_dict().items())
    assert progress.losses == whole.progress.losses
    assert progress.history == whole.progress.history
    assert len(progress.losses) == (changes.get("iterations") or 8)


@pytest.mark.parametrize(("stop_at", "finished"), [(0, [4]), (6, [4, 6])])
def test_a_family_s_last_epochs_begin_where_images_are_no_longer_mixed(
    make_loop: Callable[..., TrainingLoop], monkeypatch: pytest.MonkeyPatch, stop_at: int, finished: list[int]
) -> None:
    monkeypatch.setattr(TrainingSpec, "mixed_epochs", 1)
    seen: list[int] = []

    def watched(**options: Any) -> TrainingLoop:
        loop = make_loop(**options)
        loop.resume()
        loop.distiller.adapter.finish = lambda: seen.append(loop.progress.iteration)  # type: ignore[method-assign]
        return loop

    if stop_at:
        with pytest.raises(Stopped):
            watched(stop_at=stop_at).run()
    watched().run()
    assert seen == finished


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_weight_that_follows_its_share_goes_on_from_where_it_was(
    make_loop: Callable[..., TrainingLoop], stop_at: int
) -> None:
    own: dict[str, Any] = {"methods": ("rm", "pfi"), "told": {"gradient_share": {"target": 30, "band": 1}}}
    whole = make_loop("whole", **own)
    whole.run()
    with pytest.raises(Stopped):
        make_loop(stop_at=stop_at, **own).run()
    resumed = make_loop(**own)
    resumed.resume()
    assert resumed.run().losses == whole.progress.losses
    expected = whole.distiller.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.distiller.state_dict().items())
    assert expected["terms.rm.weight.factor"] != 1


def test_a_state_of_before_there_were_several_processes_is_gone_on_with(
    make_loop: Callable[..., TrainingLoop], whole: TrainingLoop
) -> None:
    stopped = make_loop(stop_at=3)
    with pytest.raises(Stopped):
        stopped.run()
    state, _ = stopped.checkpoints.newest()
    assert state is not None
    (own,) = state.pop("ranks")
    resumed = make_loop("old")
    resumed.checkpoints.save(3, state | {name: own[name] for name in ("random", "generators")})
    resumed.resume()
    assert resumed.run().losses == whole.progress.losses


def test_a_kill_goes_on_from_the_last_epoch(
    make_loop: Callable[..., TrainingLoop], whole: TrainingLoop
) -> None:
    loop = make_loop()

    def kill() -> bool:
        if loop.progress.iteration == 6:
            raise KeyboardInterrupt
        return False

    loop.should_stop = kill
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    resumed = make_loop()
    resumed.resume()
    assert resumed.progress.iteration == 4
    assert resumed.run().losses == whole.progress.losses


def test_a_broken_checkpoint_costs_the_time_since_the_one_before(
    make_loop: Callable[..., TrainingLoop], whole: TrainingLoop, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        make_loop(stop_at=6).run()
    newest = sorted((tmp_path / "job" / "ckpt").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = make_loop()
    assert resumed.resume() == [newest.name]
    assert resumed.progress.iteration == 4
    assert resumed.run().losses == whole.progress.losses


def test_a_run_to_the_end_resumes_to_nothing_left(
    make_loop: Callable[..., TrainingLoop], whole: TrainingLoop
) -> None:
    again = make_loop("whole")
    again.resume()
    assert again.run().history == whole.progress.history
    assert again.seconds == []


def test_resuming_without_a_checkpoint_starts_from_scratch(make_loop: Callable[..., TrainingLoop]) -> None:
    loop = make_loop()
    assert loop.resume() == []
    assert loop.progress.iteration == 0


# --- what goes wrong ---


def test_a_loss_that_is_not_finite_ends_training_and_is_named(
    make_loop: Callable[..., TrainingLoop],
) -> None:
    loop = make_loop(methods=("rm", "nan"))
    with pytest.raises(JobError, match="loss_nan, raw_nan is not finite") as raised:
        loop.run()
    assert "iteration 6" in str(raised.value)
    assert "loss_rm" not in str(raised.value)
    state, _ = loop.checkpoints.newest()
    assert state is not None
    assert all(torch.isfinite(value).all() for value in state["distiller"].values())
    resumed = make_loop(methods=("rm", "nan"))
    resumed.resume()
    assert resumed.progress.iteration == 4


def test_outputs_that_no_matcher_can_match_end_training_with_its_words(
    make_loop: Callable[..., TrainingLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop()

    def step(_data: Any) -> Any:
        return linear_sum_assignment([[float("nan")]])

    monkeypatch.setattr(loop, "step", step)
    with pytest.raises(JobError, match="no query can be matched") as raised:
        loop.resume_and_run("cpu")
    assert "iteration 1" in str(raised.value)


def test_a_process_that_lost_its_job_writes_nothing(make_loop: Callable[..., TrainingLoop]) -> None:
    def may_write() -> None:
        raise JobError("taken over")

    loop = make_loop(may_write=may_write, changes={"keep_best": True})
    with pytest.raises(JobError, match="taken over"):
        loop.run()
    assert list(loop.checkpoints.folder.iterdir()) == []


# --- reports, evaluations, checkpoints ---


def test_every_report_is_the_mean_of_its_window(make_loop: Callable[..., TrainingLoop]) -> None:
    single, paired = make_loop("one"), make_loop("two")
    paired.interval = 2
    single.run(), paired.run()
    each, means = ([fields["losses"] for fields in events(loop, JobProgress)] for loop in (single, paired))
    assert len(each) == 8
    assert len(means) == 4
    assert {"loss", "loss_rm", "raw_rm", "loss_cls"} <= each[0].keys()
    # of a share of the gradient that of the one step that looked
    shares = {name for name in each[0] if name.startswith("share_")}
    assert shares == {"share_rm", "share_pfi", "share_noise"} <= means[0].keys()
    assert all(means[0][name] == each[0][name] for name in shares)
    for name in each[0].keys() - shares:
        expected = [(a[name] + b[name]) / 2 for a, b in zip(each[::2], each[1::2], strict=True)]
        assert [mean[name] for mean in means] == pytest.approx(expected)


def test_progress_counts_iterations_and_guesses_the_rest(make_loop: Callable[..., TrainingLoop]) -> None:
    loop = make_loop(methods=())
    loop.run()
    reports = events(loop, JobProgress)
    assert [report["iteration"] for report in reports] == list(range(1, 9))
    assert {report["iterations"] for report in reports} == {8}
    assert reports[-1]["eta_s"] == 0
    assert reports[0]["eta_s"] == pytest.approx(7 * reports[0]["step_s"])
    assert 0 < reports[0]["data_s"] < reports[0]["step_s"]


@pytest.mark.parametrize(("every", "epochs"), [(0, [2]), (1, [1, 2]), (2, [2])])
def test_evaluation_comes_when_due_and_after_the_last_epoch(
    make_loop: Callable[..., TrainingLoop], every: int, epochs: list[int]
) -> None:
    loop = make_loop(methods=(), changes={"eval_every": every})
    history = loop.run().history
    assert [one.epoch for one in history] == epochs
    assert history[-1] == Evaluation({"AP": fingerprint(loop.distiller)}, {"0": 1.0}, epoch=2, iteration=8)
    assert all(fields["metrics"].keys() == {"AP"} for fields in events(loop, JobEvaluated))


@pytest.mark.parametrize(("iterations", "evaluated"), [(3, [(1, 3)]), (4, [(1, 4)]), (6, [(1, 4), (2, 6)])])
def test_a_training_of_so_many_iterations_ends_with_them_and_is_measured_there(
    make_loop: Callable[..., TrainingLoop], iterations: int, evaluated: list[tuple[int, int]]
) -> None:
    loop = make_loop(methods=(), changes={"epochs": None, "iterations": iterations, "warmup_iters": 0})
    progress = loop.run()
    assert [(one.epoch, one.iteration) for one in progress.history] == evaluated
    # the cosine is over all of them
    assert [one["iteration"] for one in progress.losses] == list(range(1, iterations + 1))
    assert [one["lr"] < 1e-12 for one in progress.losses] == [False] * (iterations - 1) + [True]


@pytest.mark.parametrize("course", [[3.0, 2.0, 3.0], [1.0, 3.0, 2.0]], ids=["first", "second"])
def test_best_weights_are_those_of_the_first_evaluation_that_none_exceeds(
    make_loop: Callable[..., TrainingLoop], course: list[float]
) -> None:
    loop = make_loop(methods=(), changes={"epochs": 3, "keep_best": True})
    evaluated: list[dict[str, Tensor]] = []

    def evaluate() -> Evaluation:
        evaluated.append({name: value.clone() for name, value in loop.distiller.student.state_dict().items()})
        return Evaluation({"AP": course[len(evaluated) - 1]})

    loop.evaluate = evaluate
    loop.run()
    kept, expected = load(loop.checkpoints.folder / "best.pth")["state_dict"], evaluated[course.index(3.0)]
    assert all(torch.equal(kept[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("minutes", "expected"), [(10.0, [4, 4, 8, 8]), (0.0, [1, 2, 3, 4, 4, 5, 6, 7, 8, 8])]
)
def test_checkpoints_come_at_epoch_ends_and_when_time_is_up(
    make_loop: Callable[..., TrainingLoop], minutes: float, expected: list[int]
) -> None:
    loop = make_loop(methods=(), minutes=minutes)
    loop.run()
    assert [fields["iteration"] for fields in events(loop, JobCheckpointed)] == expected


def test_wall_time_adds_up_over_attempts(make_loop: Callable[..., TrainingLoop]) -> None:
    loop = make_loop(stop_at=5)
    with pytest.raises(Stopped):
        loop.run()
    before = loop.progress.wall_s
    resumed = make_loop()
    resumed.resume()
    assert resumed.progress.wall_s == before > 0
    assert resumed.run().wall_s > before


# --- learning rates ---


def learning_rates(iterations: int, **changes: Any) -> list[float]:
    steps = schedule(**SCHEDULE | {"optimizer": "sgd", "lr": 1.0} | changes)
    model = torch.nn.Linear(1, 1)
    optim = build_optimiser(model, steps)
    schedulers = build_schedulers(optim, steps, iterations)
    rates = []
    with optim.optim_context(model):
        for _ in range(iterations):
            rates.append(optim.get_lr()["lr"][0])
            optim.update_params(model(torch.ones(1)).sum())
            for scheduler in schedulers:
                scheduler.step()
    return rates


def test_warm_up_rises_linearly_to_the_peak() -> None:
    rates = learning_rates(20, warmup_iters=4, warmup_factor=0.1, decay="step", milestones=())
    assert rates == pytest.approx([0.1, 0.4, 0.7] + [1.0] * 17)


def test_steps_divide_by_ten_at_fractions_of_the_schedule() -> None:
    rates = learning_rates(20, warmup_iters=0, decay="step", milestones=[0.5, 0.75])
    assert rates == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)


def test_cosine_falls_from_the_peak_after_the_warm_up_towards_zero() -> None:
    rates = learning_rates(20, warmup_iters=4, warmup_factor=0.1)
    falling = [(1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)]
    assert rates == pytest.approx([0.1, 0.4, 0.7, 1.0, *falling])


def test_flat_cosine_falls_in_the_second_half_to_a_twentieth() -> None:
    rates = learning_rates(20, warmup_iters=4, warmup_factor=0.1, decay="flat_cosine")
    falling = [0.05 + 0.95 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert rates == pytest.approx([0.1, 0.4, 0.7] + [1.0] * 7 + falling)


@pytest.mark.parametrize("decay", ["cosine", "flat_cosine", "step"])
@pytest.mark.parametrize(("iterations", "warmup"), [(20, 1), (2, 50), (1, 50)])
def test_a_warm_up_of_one_step_still_reaches_the_peak(iterations: int, warmup: int, decay: str) -> None:
    assert max(learning_rates(iterations, warmup_iters=warmup, decay=decay)) == pytest.approx(1.0)


# --- optimiser ---


@pytest.mark.parametrize(("optimizer", "expected"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimiser_is_the_one_of_the_schedule(optimizer: str, expected: type) -> None:
    optim = build_optimiser(torch.nn.Linear(1, 1), schedule(optimizer=optimizer))
    (group,) = optim.param_groups
    assert type(optim.optimizer) is expected
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.05)
    assert group.get("momentum", 0.9) == 0.9


@pytest.mark.parametrize(("clip", "norm"), [(None, 100.0), (1.0, 1.0)])
def test_gradients_are_clipped_to_the_norm(clip: float | None, norm: float) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    optim = build_optimiser(model, schedule(optimizer="sgd", lr=1.0, weight_decay=0.0, clip_grad=clip))
    before = model.weight.item()
    optim.update_params(model(torch.full((1,), 100.0)).sum())
    assert before - model.weight.item() == pytest.approx(norm, rel=1e-4)


def test_a_first_step_that_the_scaler_skips_leaves_no_momentum() -> None:
    model = torch.nn.Linear(1, 1 << 20, bias=False)
    torch.nn.init.ones_(model.weight)
    optim = build_optimiser(model, schedule(optimizer="sgd", lr=1e-2, weight_decay=0.0)).optimizer
    scaler = torch.amp.GradScaler("cpu")
    for factor in (math.inf, 1.0):
        # what fused kernels would take for momentum
        freed = torch.full_like(model.weight, 12345.0)
        scaler.scale(factor * model(torch.ones(1)).sum()).backward()
        del freed
        scaler.step(optim)
        scaler.update()
        optim.zero_grad()
    assert torch.equal(model.weight, torch.full_like(model.weight, 1 - 1e-2))


def test_a_weight_whose_first_gradient_is_late_is_trained() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(1, 1, bias=False) for _ in range(2)])
    optim = build_optimiser(model, schedule(optimizer="sgd", lr=1.0, weight_decay=0.0))
    early, late = (part.weight for part in model)
    before = late.item()
    for loss in (early.sum, lambda: early.sum() + late.sum()):
        optim.update_params(loss())
    assert late.item() == pytest.approx(before - 1)


def test_half_precision_that_skips_step_after_step_is_an_error(
    make_loop: Callable[..., TrainingLoop],
) -> None:
    loop = make_loop()
    loop.optim.loss_scaler = SimpleNamespace(get_scale=lambda: 0.5)
    with pytest.raises(JobError, match=r"gradients are not finite.*\n.*loss scale 0.5"):
        loop.run()
    loop = make_loop("good")
    loop.optim.loss_scaler = SimpleNamespace(get_scale=lambda: 1.0)
    loop.run()
