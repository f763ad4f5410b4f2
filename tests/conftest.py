"""Tiny models and batches for tests of the training side.

torch and mmdet are imported inside the fixtures, so that all other tests stay quick.
"""

from __future__ import annotations

import copy
import gc
import json
import os
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import kdlab.mmcv_ops  # noqa: F401 - from here on mmdet finds its compiled operators
from kdlab import catalog
from kdlab.jobs.spec import MethodSettings, ModelSpec
from tests.stubs.jobs import method, model

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
CLASSES = 3

# (height, width), boxes, labels: overlapping objects, more than there are classes, an image without any
# between two that have some, all of different size
IMAGES: list[tuple[tuple[int, int], list[list[float]], list[int]]] = [
    (
        (64, 96),
        [[4, 4, 40, 40], [10, 8, 60, 50], [12, 12, 36, 44], [0, 0, 90, 62], [70, 40, 84, 58]],
        [0, 1, 2, 0, 1],
    ),
    ((64, 64), [], []),
    ((40, 56), [[5, 5, 30, 35], [8, 8, 28, 30]], [2, 2]),
]


# with several workers the long files have to come before the many short ones
LONGEST_FIRST = ("e2e", "contracts", "training")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first, and skip what is slow unless `-m slow` asks for it."""
    rooms = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rooms.get(item.path.relative_to(HERE).parts[0], len(rooms)))
    if "slow" in config.getoption("markexpr"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a file as a whole, for its fixtures, and all of `e2e`, for its one warm process."""
    from xdist.scheduler import LoadFileScheduling

    class FilesScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "e2e" if "/e2e/" in file else file

    return FilesScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what the imports make out of garbage collection, which mmengine asks for with every dataset."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture
def quick_stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stub jobs of `Local` are forks of one small process, started in milliseconds and looked at as often."""
    from kdlab.running import scheduler
    from kdlab.running.executors import local
    from tests.stubs.stub_server import SUBPROCESS

    monkeypatch.setattr(local, "subprocess", SUBPROCESS)
    monkeypatch.setitem(scheduler.run.__kwdefaults__, "poll_s", 0.02)


@pytest.fixture(scope="session")
def model_settings() -> Callable[..., ModelSpec]:
    """`model_settings("gfl", width=16)`: the model of a job."""

    def model_settings(detector: str, **changes: Any) -> ModelSpec:
        strides = tuple(changes.pop("strides", (8, 16, 32)))
        if catalog.detectors()[detector].queries:
            changes = {"queries": 20, "layers": 2} | changes
        if detector == "dino":
            changes["neck_channels"] = 256
        # unlike those of a recipe they may begin anywhere
        return model(detector=detector, **{"head_convs": 2} | changes).model_copy(update={"strides": strides})

    return model_settings


@pytest.fixture(scope="session")
def torch_() -> Any:
    """torch on one thread, with every family of mmdet registered."""
    import torch

    import kdlab.detectors  # noqa: F401

    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="session")
def build(torch_: Any, model_settings: Callable[..., ModelSpec]) -> Callable[..., Any]:
    """`build("gfl", seed=0, classes=3, width=8)`: a tiny model, its predictions unlike everywhere."""
    from kdlab import detectors

    @cache
    def built(settings: str, classes: int, seed: int) -> Any:
        with torch_.random.fork_rng(devices=[]):
            torch_.manual_seed(seed)
            model = detectors.build(ModelSpec.model_construct(**json.loads(settings)), classes)
            heads = [getattr(model, name, None) for name in ("bbox_head", "rpn_head", "roi_head")]
            for layer in torch_.nn.ModuleList(filter(None, heads)).modules():
                if isinstance(layer, torch_.nn.Conv2d):
                    torch_.nn.init.normal_(layer.weight, std=0.1)
                    if layer.bias is not None:
                        torch_.nn.init.zeros_(layer.bias)
            for level, layer in enumerate(getattr(heads[0], "scales", ())):
                layer.scale.data.fill_(1 + level / 10)
            for layer in getattr(heads[0], "rtm_reg", ()):
                # distances in strides, mostly above 0
                torch_.nn.init.constant_(layer.bias, 1.5)
            for layer in getattr(heads[0], "multi_level_conv_reg", ()):
                # sizes of three strides, so that an object has several positives
                layer.bias.data[2:] = 1.0
            for name in ("multi_level_conv_cls", "multi_level_conv_obj"):
                for layer in getattr(heads[0], name, ()):
                    layer.weight.data.mul_(20)
        return model

    def build(detector: str, seed: int = 0, classes: int = CLASSES, **changes: Any) -> Any:
        return copy.deepcopy(built(model_settings(detector, **changes).model_dump_json(), classes, seed))

    return build


@pytest.fixture(scope="session")
def raw_batch(torch_: Any) -> Callable[..., dict[str, Any]]:
    """`raw_batch()`: the adversarial batch as a loader gives it; `raw_batch([1])` some of its images."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmengine.structures import InstanceData

    def image(number: int) -> tuple[Any, Any]:
        (height, width), boxes, labels = IMAGES[number]
        generator = torch_.Generator().manual_seed(number)
        pixels = torch_.randint(0, 256, (3, height, width), dtype=torch_.uint8, generator=generator)
        sample = DetDataSample(
            metainfo={"img_id": number, "img_shape": (height, width), "ori_shape": (height, width),
                      "scale_factor": (1.0, 1.0)}
        )  # fmt: skip
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(torch_.tensor(boxes, dtype=torch_.float32).view(-1, 4)),
            labels=torch_.tensor(labels, dtype=torch_.long),
        )
        sample.ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(torch_.zeros(0, 4)), labels=torch_.zeros(0, dtype=torch_.long)
        )
        return pixels, sample

    def raw_batch(numbers: Any = (0, 1, 2)) -> dict[str, Any]:
        images = [image(number) for number in numbers]
        return {"inputs": [pixels for pixels, _ in images], "data_samples": [sample for _, sample in images]}

    return raw_batch


@pytest.fixture(scope="session")
def term() -> Callable[..., MethodSettings]:
    """`term("rm", score="logit")`: a method of an arm."""

    def term(key: str, **changes: Any) -> MethodSettings:
        return MethodSettings.model_validate(method(key, **changes))

    return term


@pytest.fixture(scope="session")
def distil(build: Callable[..., Any]) -> Callable[..., Any]:
    """`distil("gfl", {"rm": term("rm")})`: a Distiller of a tiny student and a tiny teacher."""
    from kdlab.training.distiller import Distiller

    def distil(detector: str, methods: dict[str, Any] | None = None, *, seed: int = 0, teacher: Any = None,
               **student: Any) -> Any:  # fmt: skip
        if teacher is None:
            teacher = build(detector, seed=99)
        return Distiller(build(detector, seed, **student), methods or {}, teacher, seed)

    return distil


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A data set of 24 training scenes and 8 for evaluation, 64 px wide."""
    from kdlab.datasets import digits

    cache_folder: Path = tmp_path_factory.mktemp("digits")
    return digits.prepare(image_px=64, train_images=24, val_images=8, cache=str(cache_folder))
