"""Instance-Conditional Distillation against numbers worked by hand and a reference in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdlab import catalog
from kdlab.detectors.outputs import Batch, DetectorOutputs
from kdlab.methods.icd import (
    HEADS,
    InstanceConditionalDistillation,
    Instances,
    conditional_loss,
    describe,
    draw_instances,
    identification_loss,
    localisation_loss,
    sine_code,
)
from kdlab.training.distiller import Distiller
from kdlab.training.optimising import build_optimiser
from tests.stubs.jobs import schedule

PARTS = {"distillation", "identification", "localisation"}
STRIDES = (8, 16)
BOXES = [[4.0, 2, 20, 10], [0, 0, 30, 24], [8, 8, 24, 30]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(boxes: list[list[float]], image: list[int] | None = None, shapes: Any = ((24, 32),),
             *, seed: int = 0, iteration: int = 0, max_iterations: int = 1) -> Batch:  # fmt: skip
    sizes = torch.tensor(shapes)
    return Batch(
        torch.tensor(boxes).view(-1, 4).double(), torch.arange(len(boxes)) % 3,
        torch.tensor(image or [0] * len(boxes), dtype=torch.long), sizes, sizes, (32, 32),
        iteration, max_iterations, seeded(seed),
    )  # fmt: skip


TWO = {"image": [0, 0, 1], "shapes": ((24, 32), (32, 20))}


# --- instances ---


def draw(batch: Batch, fakes: int = 5, most: int = 300, jitter: float = 0.3) -> Instances:
    return draw_instances(batch, 3, fakes, most, jitter)


def test_the_objects_of_each_image_come_first_and_five_fakes_of_each_after_them() -> None:
    found = draw(batch_of(BOXES, **TWO))
    assert found.boxes.shape == (2, 12, 4)
    assert found.objects == 2
    assert found.real.sum(1).tolist() == [2, 1]
    assert found.asked.sum(1).tolist() == [12, 6]
    assert (found.real <= found.asked).all()
    assert found.boxes[0, 1].tolist() == [0, 0, 30 / 32, 1]
    assert found.boxes[1, 0].tolist() == [8 / 20, 8 / 32, 24 / 20, 30 / 32]
    assert found.labels[found.real].tolist() == [0, 1, 2]


def test_an_image_without_objects_has_one_fake() -> None:
    found = draw(batch_of(BOXES[:1], [1], TWO["shapes"]))
    assert found.asked.sum(1).tolist() == [1, 6]
    nothing = draw(batch_of([], [], TWO["shapes"]))
    assert nothing.boxes.shape == (2, 1, 4)
    assert not nothing.real.any()
    assert nothing.asked.all()
    assert nothing.objects == 0


@pytest.mark.parametrize(("most", "asked"), [(7, [7, 6]), (1, [2, 1])])
def test_an_image_has_so_many_instances_at_most_but_all_its_objects(most: int, asked: list[int]) -> None:
    found = draw(batch_of(BOXES, **TWO), most=most)
    assert found.asked.sum(1).tolist() == asked
    assert found.real.sum(1).tolist() == [2, 1]


def test_fakes_lie_anywhere_and_are_of_any_class_and_size() -> None:
    found = draw(batch_of(BOXES[:1]), fakes=999, most=1000)
    fakes = found.boxes[0, 1:]
    assert fakes.min() == 0
    assert fakes.max() == 1
    # of mean 0.2 and deviation 0.2, at least 0.002, and cut by the border
    sides = (fakes[:, 2:] - fakes[:, :2]).mean(0)
    assert ((sides > 0.15) & (sides < 0.25)).all()
    shares = torch.bincount(found.labels[0, 1:], minlength=3) / 999
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.06)


def test_centres_stay_within_their_box_however_they_are_moved() -> None:
    found = draw(batch_of(BOXES, **TWO), fakes=99, jitter=0.3)
    first, last = found.boxes.chunk(2, dim=2)
    moved = (found.centres - (first + last) / 2).abs() / (last - first).clamp(min=1e-9)
    assert 0.29 < moved.max() <= 0.3 + 1e-6
    assert torch.equal(draw(batch_of(BOXES), jitter=0).centres, draw(batch_of(BOXES), jitter=0).boxes.view(
        1, 18, 2, 2).mean(2))  # fmt: skip


def test_what_is_drawn_comes_from_the_generator_of_the_batch() -> None:
    first, same, other = (draw(batch_of(BOXES, seed=seed)).centres for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# --- what the module is told ---


def test_a_place_is_coded_by_turns_that_slow_down() -> None:
    # 1/4 is a quarter turn, and 1/400 of one at 10000^(1/2) times the length
    expected = [1, math.sin(math.pi / 200), 0, math.cos(math.pi / 200)]
    assert sine_code(torch.tensor(0.25), 4).tolist() == pytest.approx(expected, abs=1e-6)


def test_sizes_are_told_in_powers_of_two() -> None:
    sides = [1.0, 63.0, 65.0, 300.0, 600.0]
    boxes = [[0.0, 0.0, side, 40.0] for side in sides]
    batch = batch_of(boxes, shapes=((1000, 1000),))
    told = describe(draw(batch), batch, 3)[0, :5, 3 + 256 :]
    assert told[:, :5].argmax(1).tolist() == [0, 0, 1, 3, 4]
    assert told[:, 5:].argmax(1).tolist() == [0] * 5
    assert told.sum(1).tolist() == [2] * 5


# --- losses by hand ---


def instances_of(boxes: Any, centres: Any, real: Any, asked: Any) -> Instances:
    rows = torch.tensor(boxes), torch.zeros(len(real), len(real[0]), dtype=torch.long), torch.tensor(centres)
    return Instances(*rows, torch.tensor(real), torch.tensor(asked), 1)


ONE_OF_THREE = instances_of(
    [[[0.2, 0.1, 0.6, 0.3], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]],
    [[[0.3, 0.2], [0.25, 0.25], [0.5, 0.5]]],
    [[True, False, False]],
    [[True, True, False]],
)


def test_identification_is_averaged_over_objects_and_fakes() -> None:
    # logits of 1/4 and 3/4; what is padding counts nothing
    logits = torch.tensor([[-math.log(3), math.log(3), 50.0]])
    assert identification_loss(logits, ONE_OF_THREE).item() == pytest.approx(math.log(4))


def test_sides_are_measured_from_the_moved_centre_in_sizes_of_the_box() -> None:
    # left and top are 0.1 away, right 0.3 and bottom 0.1, of a box of 0.4 and 0.2
    sides = torch.tensor([[[0.1, 0.1, 0.3, 0.1], [0.9] * 4, [0.9] * 4]])
    assert localisation_loss(sides, ONE_OF_THREE).item() == pytest.approx(0, abs=1e-6)
    sides = sides + torch.tensor([0.04, -0.04, 0.0, 0.02])
    assert localisation_loss(sides, ONE_OF_THREE).item() == pytest.approx(0.1 + 0.2 + 0.1)


def test_a_box_without_a_width_costs_no_infinity() -> None:
    flat = instances_of([[[0.5, 0.5, 0.5, 0.7]]], [[[0.5, 0.6]]], [[True]], [[True]])
    # 0.25 over a thousandth, on two sides
    cost = localisation_loss(torch.tensor([[[0.25, 0.1, 0.25, 0.1]]]), flat)
    assert cost.item() == pytest.approx(2 * 0.25 / 1e-3)


def test_values_differ_where_each_head_looks() -> None:
    # normalised to -1 and 1: equal, and turned round, which is 4 on both channels
    teacher = torch.tensor([[[[1.0, 3.0]] * 2, [[1.0, 3.0]] * 2]])
    student = torch.tensor([[[[0.0, 9.0]] * 2, [[9.0, 0.0]] * 2]])
    mask = torch.tensor([[[3.0, 1.0], [0.0, 2.0]]])
    found = conditional_loss(student, teacher, mask)
    assert found.item() == pytest.approx((4 / 4 + 4) / 2, rel=1e-4)
    # an image without objects is in the mean
    both = conditional_loss(
        student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), torch.cat([mask, 0 * mask])
    )
    assert both.item() == pytest.approx(found.item() / 2)


# --- the method: levels of strides 8 and 16 ---


def outputs(feats: list[Tensor]) -> DetectorOutputs:
    adapter: Any = SimpleNamespace(facts=SimpleNamespace(strides=STRIDES))
    return DetectorOutputs(adapter, feats, feats, (0, 1))


def method_of(student: int = 6, teacher: int = 5, **options: Any) -> InstanceConditionalDistillation:
    pair: Any = SimpleNamespace(
        student=SimpleNamespace(channels=student, num_classes=3), teacher=SimpleNamespace(channels=teacher)
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return InstanceConditionalDistillation(pair, **options).double()


def maps(channels: int, images: int, seed: int) -> list[Tensor]:
    return [
        torch.randn(images, channels, side, side, generator=seeded(seed + side)).double() for side in (4, 2)
    ]


def losses_of(method: InstanceConditionalDistillation, batch: Batch, mine: list[Tensor],
              theirs: list[Tensor]) -> dict[str, Tensor]:  # fmt: skip
    return method(batch, outputs(mine), outputs(theirs), None)


def test_all_parts_are_those_of_a_reference_that_goes_place_by_place() -> None:
    method, mine, theirs = method_of(), maps(6, 2, 0), maps(5, 2, 10)
    found = losses_of(method, batch_of(BOXES, **TWO), mine, theirs)
    batch = batch_of(BOXES, **TWO)
    expected = reference(method, batch, draw(batch), mine, theirs)
    assert found.keys() == PARTS
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-9), name


def reference(
    method: Any, batch: Batch, instances: Instances, mine: list[Tensor], theirs: list[Tensor]
) -> dict[str, float]:
    """The parts in numpy, with loops over images, instances, heads and places."""
    decoder, shapes = method.decoder, batch.image_shapes.tolist()
    distilled, told, sided, objects = [], [], [], 0
    for image, (height, width) in enumerate(shapes):
        places = list(places_of(height, width, mine, theirs, image))
        keys = [linear(decoder.key, place_map + coded(decoder, at)) for place_map, _, at in places]
        values = [linear(decoder.value, place_map) for place_map, _, _ in places]
        masks = np.zeros((HEADS, len(places)))
        for number in range(instances.boxes.shape[1]):
            if not instances.asked[image, number]:
                continue
            box, centre = instances.boxes[image, number].numpy(), instances.centres[image, number].numpy()
            real = bool(instances.real[image, number])
            query = mlp(decoder.encoder, described(box, centre, int(instances.labels[image, number]),
                                                   (height, width)))  # fmt: skip
            shares = attention(linear(decoder.query, query), keys)
            read = np.concatenate(
                [sum(share * split(value)[head] for share, value in zip(shares[head], values, strict=True))
                 for head in range(HEADS)]
            )  # fmt: skip
            state = norm(decoder.norm_found, query + linear(decoder.out, read))
            state = norm(decoder.norm_fed, state + mlp(decoder.feed, state))
            logit, *raw = mlp(decoder.predictor, state)
            told.append(np.log1p(np.exp(-logit if real else logit)))
            if real:
                masks += shares
                objects += 1
                sides = np.array([*(centre - box[:2]), *(box[2:] - centre)])
                size = np.tile(box[2:] - box[:2], 2)
                sided.append(np.sum(np.abs(1 / (1 + np.exp(-np.array(raw))) - sides) / size))
        for head in range(HEADS):
            total, weight = 0.0, 1e-6
            for at, (_, own, _) in enumerate(places):
                pair = split(linear(method.value_student, own))[head], split(values[at])[head]
                total += masks[head, at] * np.mean((plain_norm(pair[0]) - plain_norm(pair[1])) ** 2)
            weight = max(weight, masks[head].sum())
            distilled.append(total / weight)
    return {
        "distillation": 8 * float(np.mean(distilled)),
        "identification": float(np.mean(told)),
        "localisation": float(np.sum(sided) / max(1, objects)),
    }


def places_of(height: int, width: int, mine: Any, theirs: Any, image: int) -> Iterator[Any]:
    """The teacher's and the student's map at each cell that the image reaches, and the cell's place."""
    for stride, own, other in zip(STRIDES, mine, theirs, strict=True):
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        for row in range(rows):
            for column in range(columns):
                at = (row + 1) / rows, (column + 1) / columns
                yield other[image, :, row, column].numpy(), own[image, :, row, column].numpy(), at


def waves(place: float) -> np.ndarray:
    angles = [2 * math.pi * place / 10000 ** (2 * at / 128) for at in range(64)]
    return np.array([*map(math.sin, angles), *map(math.cos, angles)])


def coded(decoder: Any, at: tuple[float, float]) -> np.ndarray:
    return linear(decoder.row, waves(at[0])) + linear(decoder.column, waves(at[1]))


def described(box: np.ndarray, centre: np.ndarray, label: int, shape: tuple[int, int]) -> np.ndarray:
    sizes = [
        min(4, max(0, math.floor(math.log2(max(1, side)) - 5)))
        for side in ((box[2] - box[0]) * shape[1], (box[3] - box[1]) * shape[0])
    ]
    return np.concatenate([np.eye(3)[label], waves(centre[0]), waves(centre[1]), *np.eye(5)[sizes]])


def attention(query: np.ndarray, keys: list[np.ndarray]) -> np.ndarray:
    scores = np.array(
        [[split(query)[head] @ split(key)[head] for key in keys] for head in range(HEADS)]
    ) / math.sqrt(len(query) / HEADS)
    shares = np.exp(scores)
    return shares / shares.sum(1, keepdims=True)


def split(vector: np.ndarray) -> list[np.ndarray]:
    return np.split(vector, HEADS)


def linear(layer: Any, vector: np.ndarray) -> np.ndarray:
    product = layer.weight.detach().numpy() @ vector
    return product if layer.bias is None else product + layer.bias.detach().numpy()


def mlp(layers: Any, vector: np.ndarray) -> np.ndarray:
    for layer in layers:
        vector = linear(layer, vector) if isinstance(layer, nn.Linear) else np.maximum(vector, 0)
    return vector


def plain_norm(vector: np.ndarray) -> np.ndarray:
    return (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5)


def norm(layer: Any, vector: np.ndarray) -> np.ndarray:
    return plain_norm(vector) * layer.weight.detach().numpy() + layer.bias.detach().numpy()


@pytest.mark.parametrize("name", sorted(PARTS))
def test_each_factor_multiplies_its_part(name: str) -> None:
    feats = maps(6, 2, 0), maps(5, 2, 10)
    once = losses_of(method_of(), batch_of(BOXES, **TWO), *feats)
    options = {"distillation": 16.0, "identification": 2.0, "localisation": 2.0}
    twice = losses_of(method_of(**{name: options[name]}), batch_of(BOXES, **TWO), *feats)
    assert {part: twice[part] / once[part] for part in PARTS} == {part: 1 + (part == name) for part in PARTS}


def test_a_student_whose_projection_is_the_modules_own_costs_nothing_at_equal_maps() -> None:
    method, feats = method_of(5), maps(5, 2, 10)
    batch = batch_of(BOXES, **TWO)
    assert losses_of(method, batch, feats, feats)["distillation"] > 0
    method.value_student.load_state_dict(method.decoder.value.state_dict())
    assert losses_of(method, batch, feats, feats)["distillation"].item() == pytest.approx(0, abs=1e-12)


def test_the_same_images_twice_cost_the_same_but_for_what_is_drawn() -> None:
    # objects alone, unmoved: nothing is drawn
    method, mine, theirs = method_of(queries=1, jitter=0.0), maps(6, 2, 0), maps(5, 2, 10)
    once = losses_of(method, batch_of(BOXES, **TWO), mine, theirs)
    doubled = batch_of(BOXES * 2, [0, 0, 1, 2, 2, 3], TWO["shapes"] * 2)
    repeated = [[feat.repeat(2, 1, 1, 1) for feat in feats] for feats in (mine, theirs)]
    twice = losses_of(method, doubled, *repeated)
    for name, loss in once.items():
        assert twice[name].item() == pytest.approx(loss.item(), rel=1e-9), name


def test_pixels_beyond_an_image_are_not_looked_at() -> None:
    method, mine, theirs = method_of(), maps(6, 2, 0), maps(5, 2, 10)
    once = losses_of(method, batch_of(BOXES, **TWO), mine, theirs)
    for level, stride in zip((*mine, *theirs), STRIDES * 2, strict=True):
        level[0, :, math.ceil(24 / stride) :] = 1e3
        level[1, :, :, math.ceil(20 / stride) :] = 1e3
    again = losses_of(method, batch_of(BOXES, **TWO), mine, theirs)
    assert {name: loss.item() for name, loss in again.items()} == pytest.approx(
        {name: loss.item() for name, loss in once.items()}
    )


# --- who learns from what ---


def gradients(method: InstanceConditionalDistillation, batch: Batch, parts: set[str]) -> dict[str, float]:
    """The size of the gradient on everything that could get one."""
    feats = [feat.requires_grad_() for feat in maps(6, 2, 0)]
    theirs = [feat.requires_grad_() for feat in maps(5, 2, 10)]
    found = losses_of(method, batch, feats, theirs)
    torch.stack([found[part] for part in parts]).sum().backward()
    groups: dict[str, list[Tensor]] = {
        "student": feats,
        "teacher": theirs,
        "projection": list(method.value_student.parameters()),
        "module": list(method.decoder.parameters()),
    }
    sizes = {
        name: [0.0 if one.grad is None else one.grad.abs().sum().item() for one in group]
        for name, group in groups.items()
    }
    assert all(math.isfinite(size) for group in sizes.values() for size in group)
    return {name: sum(group) for name, group in sizes.items()}


def learners(*args: Any) -> set[str]:
    return {name for name, size in gradients(*args).items() if size > 0}


def test_the_modules_own_tasks_teach_the_module_alone() -> None:
    for part in ("identification", "localisation"):
        assert learners(method_of(), batch_of(BOXES, **TWO), {part}) == {"module"}


def test_distillation_teaches_the_student_and_its_projection_alone() -> None:
    assert learners(method_of(), batch_of(BOXES, **TWO), {"distillation"}) == {"student", "projection"}


@pytest.mark.parametrize(("until", "iteration", "learns"), [(0.1, 9, False), (0.1, 10, True), (20, 19, False),
                                                            (20, 20, True), (0.0, 0, True)])  # fmt: skip
def test_the_projection_learns_before_the_student(until: float, iteration: int, learns: bool) -> None:
    batch = batch_of(BOXES, **TWO, iteration=iteration, max_iterations=100)
    found = learners(method_of(adapt_until=until), batch, {"distillation"})
    assert found == ({"student", "projection"} if learns else {"projection"})


def test_all_of_the_module_learns() -> None:
    method = method_of()
    gradients(method, batch_of(BOXES, **TWO), PARTS)
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        # a key's bias moves all scores of a query alike
        assert name == "decoder.key.bias" or parameter.grad.abs().sum() > 0, name


def test_a_batch_without_objects_costs_its_fakes_and_stays_in_the_graph() -> None:
    method, batch = method_of(), batch_of([], [], TWO["shapes"])
    found = losses_of(method, batch, maps(6, 2, 0), maps(5, 2, 10))
    assert found["distillation"] == 0
    assert found["localisation"] == 0
    assert found["identification"] > 0
    assert all(loss.requires_grad for loss in found.values())
    sizes = gradients(method, batch, PARTS)
    assert sizes["student"] == sizes["projection"] == sizes["teacher"] == 0
    assert sizes["module"] > 0


def test_an_image_without_objects_beside_others_counts_nothing_but_its_share() -> None:
    method, mine, theirs = method_of(jitter=0.0), maps(6, 2, 0), maps(5, 2, 10)
    both = losses_of(method, batch_of(BOXES[:1], [0], TWO["shapes"]), mine, theirs)
    alone = losses_of(
        method, batch_of(BOXES[:1], [0], TWO["shapes"][:1]), [feat[:1] for feat in mine],
        [feat[:1] for feat in theirs],
    )  # fmt: skip
    assert both["distillation"].item() == pytest.approx(alone["distillation"].item() / 2)
    assert both["localisation"].item() == pytest.approx(alone["localisation"].item())


# --- in training ---


def test_steps_teach_the_module_its_tasks() -> None:
    method, mine, theirs = method_of(), maps(6, 2, 0), maps(5, 2, 10)
    optim = torch.optim.AdamW(method.parameters(), 1e-3)
    seen = []
    for _ in range(30):
        found = losses_of(method, batch_of(BOXES, **TWO), mine, theirs)
        seen.append({name: loss.item() for name, loss in found.items()})
        optim.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        optim.step()
    assert seen[-1]["identification"] < 0.75 * seen[0]["identification"]
    assert seen[-1]["localisation"] < 0.5 * seen[0]["localisation"]


def test_all_of_it_is_in_the_optimiser_and_the_checkpoint_and_none_in_what_is_kept(
    build: Callable[..., Any], term: Callable[..., Any]
) -> None:
    distiller = Distiller(build("gfl", neck_channels=8), {"icd": term("icd")}, build("gfl", 99))
    own = list(distiller.terms["icd"].method.parameters())
    assert distiller.trained_parts == {"icd": sum(one.numel() for one in own)}
    groups = build_optimiser(distiller, schedule()).optimizer.param_groups
    learning = {id(one) for group in groups for one in group["params"]}
    assert {id(one) for one in own} <= learning
    saved = [name for name in distiller.state_dict() if name.startswith("terms.icd.method.")]
    assert len(saved) == len(own)
    assert not any("icd" in name or "decoder" in name for name in distiller.kept.state_dict())


@pytest.mark.parametrize(
    ("detector", "factor", "queries"), [("retinanet", 8.0, 300), ("faster_rcnn", 3.0, 100)]
)
def test_factor_and_instances_are_the_published_ones_of_the_family(
    detector: str, factor: float, queries: int
) -> None:
    info = catalog.methods()["icd"].serving(detector)
    assert info.weight_for({}) == 1
    assert info.options["distillation"].default == factor
    assert info.options["queries"].default == queries
