"""Two processes train as one does with the batch of both."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from kdlab import catalog
from kdlab.errors import JobError
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Resources
from kdlab.jobs.paths import JobPaths
from kdlab.training import ranks
from tests.stubs.jobs import make
from tests.stubs.rank_steps import Case, steps

TWO = Resources(ranks=2)
ROOT = Path(__file__).parents[2]
DETECTORS = ["fcos", "gfl", "atss", "retinanet", "faster_rcnn"]
# statistics over the images of a process, random masks or fakes, or another family of detectors
ELSEWHERE = {"pkd", "crosskd", "mgd", "icd", "dkd", "detrdistill", "kd_detr"}
METHODS = sorted(set(catalog.methods()) - ELSEWHERE)
REGIONS = ["positives", "negatives", "gt_mask"]
# correlations over the positives of a process
OPTIONS: dict[str, dict[str, Any]] = {"dist": {"intra": 0.0}}
# several in one step, for each tells its own term
GROUPS = {f"methods {' '.join(METHODS[at::4])}": METHODS[at::4] for at in range(4)}
# images 64 px wide, process 0 takes the first and third: boxes of each
OBJECTS = [
    [[4, 4, 40, 40], [10, 8, 60, 50], [30, 30, 60, 62]],
    [[20, 12, 52, 44]],
    [[2, 30, 34, 62], [8, 8, 28, 30]],
    [[16, 16, 48, 60]],
]


def batch(objects: list[list[list[int]]], seed: int = 0) -> dict[str, Any]:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(seed)
    samples = []
    for number, boxes in enumerate(objects):
        meta = {"img_id": number, "img_shape": (64, 64), "ori_shape": (64, 64), "scale_factor": (1.0, 1.0)}
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)),
            labels=torch.arange(len(boxes)) % 3,
        )
        sample.ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    pixels = torch.randint(0, 256, (len(objects), 3, 64, 64), dtype=torch.uint8, generator=generator)
    return {"inputs": list(pixels), "data_samples": samples}


@pytest.fixture(scope="module")
def cases(build: Callable[..., Any], term: Callable[..., Any]) -> dict[str, Case]:
    both = {"rm": term("rm", weight=4.0), "pfi": term("pfi", weight=1.5)}

    def case(detector: str, methods: dict[str, Any], batches: list[Any], **options: Any) -> Case:
        models = [build(detector, seed, neck_channels=8) for seed in (0, 1)]
        return Case(*models, methods, batches, **options)

    def queries() -> Case:
        methods = {"detrdistill": term("detrdistill"), "kd_detr": term("kd_detr", points=0)}
        found = case("deformable_detr", methods, [batch(OBJECTS)])
        for layer in found.student.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
            if isinstance(layer, torch.nn.MultiheadAttention):
                layer.dropout = 0.0
        return found

    full, half = batch(OBJECTS), batch([OBJECTS[0], [], OBJECTS[2], []])
    three = [batch(OBJECTS, seed) for seed in range(3)]
    return {
        **{f"steps {name}": case(name, both, three) for name in ("atss", "fcos", "gfl")},
        "steps retinanet": case("retinanet", both, [full]),
        **{
            f"empty {name}": case(name, {"fitnet": term("fitnet")}, [half, full])
            for name in DETECTORS
        },
        **{
            label: case("gfl", {name: term(name, **OPTIONS.get(name, {})) for name in names}, [full])
            for label, names in GROUPS.items()
        },
        "regions": case("gfl", {f"pfi@{name}": term("pfi", region=name) for name in REGIONS}, [full]),
        "queries": queries(),
        "masks": case("gfl", {"mgd": term("mgd")}, [full]),
        "micro gfl": case("gfl", {"fitnet": term("fitnet")}, three, micro_batch=1),
    }  # fmt: skip


@pytest.fixture(scope="module")
def two(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes find in all cases."""
    folder = tmp_path_factory.mktemp("two")
    write_json(folder / "job.json", make("student-1", resources=TWO).to_dict())
    (folder / "cases.pkl").write_bytes(pickle.dumps(cases))
    code = "import sys; from kdlab.training import launch; "
    code += "launch.leave(launch.main(sys.argv[1], 'tests.stubs.rank_steps'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.fixture
def one(cases: dict[str, Case]) -> Callable[[str], dict[str, Any]]:
    return lambda name: steps(copy.deepcopy(cases[name]))


def assert_equal_training(one: dict[str, Any], two: dict[str, Any]) -> None:
    # steps add up the differences that single precision makes
    tolerance = {"rel": 1e-5, "abs": 1e-7 if len(one["losses"]) == 1 else 1e-6}
    for mine, theirs in zip(one["losses"], two["losses"], strict=True):
        assert theirs == pytest.approx(mine, **tolerance)
    for name, value in one["weights"].items():
        assert torch.allclose(value.double(), two["weights"][name].double(), rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("detector", ["atss", "fcos", "gfl"])
def test_steps_of_two_processes_are_those_of_one(detector: str, one: Any, two: Any) -> None:
    assert_equal_training(one(f"steps {detector}"), two[f"steps {detector}"])


def test_rm_and_pfi_of_two_processes_are_those_of_one_where_detection_is_not(one: Any, two: Any) -> None:
    mine, theirs = one("steps retinanet")["losses"][0], two["steps retinanet"]["losses"][0]
    for name in ("raw_rm", "raw_pfi"):
        assert theirs[name] == pytest.approx(mine[name], rel=1e-5)


@pytest.mark.parametrize("case", [*GROUPS, "regions", "queries"])
def test_a_step_of_every_method_is_that_of_one_process(case: str, one: Any, two: Any) -> None:
    assert_equal_training(one(case), two[case])


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_process_without_objects_does_not_stop_the_others(detector: str, two: Any) -> None:
    losses = two[f"empty {detector}"]["losses"]
    assert len(losses) == 2
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in losses)


def test_processes_draw_different_masks(two: Any) -> None:
    first, second = two["masks"]["drawn"]
    assert not torch.equal(first[0], second[0])


def test_two_forwards_of_two_processes_are_two_of_one_with_twice_the_images(cases: Any, two: Any) -> None:
    alone = steps(copy.deepcopy(replace(cases["micro gfl"], micro_batch=2)))
    assert_equal_training(alone, two["micro gfl"])


def test_a_job_of_two_that_is_started_alone_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    job = make("student-1", resources=TWO)
    with pytest.raises(JobError, match="started alone"), ranks.joined(job):
        pass
    assert JobPaths(tmp_path).failure.exists() is False


def test_a_process_alone_agrees_with_itself() -> None:
    assert ranks.any_of(True, False) == (True, False)
    assert ranks.mean({"a": 0.5}) == {"a": 0.5}
    assert ranks.gathered("mine") == ["mine"]
    assert ranks.broadcast("mine") == "mine"
    assert not ranks.is_loss_of_peer(RuntimeError("gloo"))


REMOTE = "NCCL communicator was aborted: remote process exited or there was a network error"
SYSTEM = "NCCL error in: ../NCCLUtils.cpp:94, unhandled system error (run with NCCL_DEBUG=INFO for details)"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistBackendError(REMOTE), True),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (dist.DistBackendError(SYSTEM), False),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_what_nccl_met_itself_is_no_loss_of_a_peer(
    monkeypatch: pytest.MonkeyPatch, error: Exception, lost: bool
) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 2)
    assert ranks.is_loss_of_peer(error) is lost
