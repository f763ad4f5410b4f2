"""Every backbone meets a neck, is known by its config, and takes torchvision's weights whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab import backbones, catalog, detectors
from kdlab.training.weights.backbones import check_torchvision

INFOS = catalog.backbones()
KINDS = {kind.names[0]: kind for kind in backbones.kinds()}


def narrow(name: str) -> int:
    """A small width that the backbone takes."""
    info = INFOS[name]
    return info.width if info.one_width else max(8, info.width_step)


def test_the_catalog_and_the_files_know_the_same_backbones() -> None:
    assert list(INFOS) == [name for kind in backbones.kinds() for name in kind.names]
    for kind in backbones.kinds():
        for name in kind.names:
            info = INFOS[name]
            width = kind.width if isinstance(kind.width, int) else kind.width[kind.names.index(name)]
            assert (info.width, info.width_step, info.one_width) == (width, kind.width_step, kind.one_width)


@pytest.mark.parametrize("name", INFOS)
def test_a_backbone_meets_its_neck_at_the_asked_strides(build: Callable[..., Any], name: str) -> None:
    model = build("gfl", backbone=name, width=narrow(name), strides=(4, 8, 16, 32, 64)).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in maps] == [(16, 64 // s, 64 // s) for s in (4, 8, 16, 32, 64)]


@pytest.mark.parametrize("name", INFOS)
def test_a_backbone_is_known_by_its_config(name: str) -> None:
    config, channels = backbones.kind_of(name).config(name, narrow(name), 4, learned=False)
    assert backbones.name_of(config) == name
    assert len(channels) == 4


def test_a_config_of_no_kind_is_called_by_its_type() -> None:
    assert backbones.name_of({"type": "Darknet", "depth": 53}) == "darknet"
    assert backbones.name_of({"type": "SwinTransformer", "depths": (1, 1, 1, 1)}) == "swin"


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_frozen_that_was_not_learned(name: str) -> None:
    config, _ = KINDS[name].config(name, narrow(name), 4, learned=False)
    assert config.get("frozen_stages", -1) == -1
    assert not config.get("norm_eval")


@pytest.mark.parametrize("name", ["resnet18", "resnext101_64x4d", "mobilenet_v2"])
def test_learned_statistics_stand_still(name: str) -> None:
    config, _ = KINDS[name].config(name, narrow(name), 4, learned=True)
    assert config["norm_eval"]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet34", [64, 128, 256, 512]),
        ("resnet50", [256, 512, 1024, 2048]),
        ("resnext101_64x4d", [256, 512, 1024, 2048]),
        ("mobilenet_v2", [24, 32, 96, 320]),
        ("swin_t", [96, 192, 384, 768]),
        ("cspnext_tiny", [48, 96, 192, 384]),
        ("cspnext_x", [160, 320, 640, 1280]),
        ("cspdarknet_s", [64, 128, 256, 512]),
        ("cspdarknet_m", [96, 192, 384, 768]),
    ],
)
def test_at_its_own_width_a_backbone_is_that_of_its_paper(name: str, channels: list[int]) -> None:
    config, found = backbones.kind_of(name).config(name, INFOS[name].width, 4, learned=False)
    assert found == channels
    assert name != "swin_t" or config["num_heads"] == (3, 6, 12, 24)


@pytest.mark.parametrize("name", [*(name for name in KINDS if not name.startswith("csp")), "resnet50"])
def test_torchvisions_weights_fit_the_backbone_of_that_name(
    model_settings: Callable[..., Any], name: str
) -> None:
    settings = model_settings("gfl", backbone=name, width=INFOS[name].width)
    check_torchvision(name, detectors.build(settings, 3).backbone)


class TestANewFile:
    SOURCE = '''"""A stranger's backbone."""
from kdlab.backbones.base import Backbone

class Stranger(Backbone):
    names = ("stranger",)
    width = 16

    @staticmethod
    def config(name, width, stages, learned):
        blocks = dict(depth=18, base_channels=width, num_stages=stages, strides=(1, 2, 2, 2)[:stages],
                      dilations=(1,) * stages, out_indices=tuple(range(stages)))
        return dict(type="ResNetV1d", **blocks), [width * 2**stage for stage in range(stages)]

    @staticmethod
    def name_of(config):
        return "stranger" if config["type"] == "ResNetV1d" else None

BACKBONE = Stranger
'''

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        (tmp_path / "stranger.py").write_text(self.SOURCE)
        monkeypatch.setattr(backbones, "__path__", [*backbones.__path__, str(tmp_path)])
        backbones.kinds.cache_clear()
        yield tmp_path
        backbones.kinds.cache_clear()

    def test_is_a_backbone_of_detectors_and_of_the_catalog(
        self, folder: Path, model_settings: Callable[..., Any]
    ) -> None:
        assert catalog.backbones(folder)["stranger"].width == 16
        model = detectors.build(model_settings("gfl", backbone="stranger"), 3)
        assert type(model.backbone).__name__ == "ResNetV1d"
        assert backbones.name_of({"type": "ResNetV1d"}) == "stranger"
