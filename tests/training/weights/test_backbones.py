"""First weights of a backbone give the outputs that they gave where they came from, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from mmdet.models.backbones import MobileNetV2, ResNet, SwinTransformer
from torch import nn

from kdlab import detectors
from kdlab.errors import JobError, MachineError
from kdlab.training import checkpoints
from kdlab.training.weights.backbones import check_torchvision, first_weights, load_backbone
from tests.stubs.jobs import model


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def unlike(model: nn.Module) -> nn.Module:
    """The model in eval mode with statistics and offsets that tell every channel from its neighbour."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def resting(backbone: Any) -> Any:
    """The backbone in eval mode; mmdet's `eval` does not return it."""
    backbone.eval()
    return backbone


def saved(folder: Path, model: nn.Module, prefix: str = "") -> Path:
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    torch.save(state, folder / "a.pth")
    return folder / "a.pth"


def test_a_classifiers_resnet_loads_without_its_last_layer(tmp_path: Path, pixels: torch.Tensor) -> None:
    theirs, mine = unlike(torchvision.models.resnet18()), resting(ResNet(18))
    report = load_backbone(mine, saved(tmp_path, theirs))
    assert report.beside == {"fc": 2}
    cut = nn.Sequential(*list(theirs.children())[:-2])
    assert torch.equal(mine(pixels)[-1], cut(pixels))


def test_torchvisions_mobilenet_gives_the_same_features(tmp_path: Path, pixels: torch.Tensor) -> None:
    theirs, mine = unlike(torchvision.models.mobilenet_v2()), resting(MobileNetV2())
    report = load_backbone(mine, saved(tmp_path, theirs))
    assert report.beside == {"classifier": 2}
    wanted = {1: 4, 2: 7, 4: 14, 6: 18}
    mine.out_indices = tuple(wanted)
    for feature, depth in zip(mine(pixels), wanted.values(), strict=True):
        torch.testing.assert_close(feature, theirs.features[:depth](pixels))


def test_torchvisions_swin_gives_the_same_features(tmp_path: Path) -> None:
    # in maps smaller than a window the two differ: torchvision then shifts none
    pixels = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    theirs = unlike(torchvision.models.swin_t())
    mine = resting(SwinTransformer(embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]))
    report = load_backbone(mine, saved(tmp_path, theirs))
    assert report.whole
    feature = nn.functional.layer_norm(theirs.features(pixels), (768,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(mine(pixels)[-1], feature, atol=1e-4, rtol=1e-4)


def test_a_detectors_backbone_loads(build: Callable[..., Any], tmp_path: Path) -> None:
    detector, other = build("gfl", seed=1), build("fcos", seed=2)
    report = load_backbone(other.backbone, saved(tmp_path, detector))
    assert report.prefix == "backbone."
    assert set(report.beside) == {"neck", "bbox_head"}
    assert torch.equal(other.backbone.conv1.weight, detector.backbone.conv1.weight)


def test_a_model_of_fewer_stages_takes_what_it_has(tmp_path: Path) -> None:
    mine = ResNet(18, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2))
    assert set(load_backbone(mine, saved(tmp_path, torchvision.models.resnet18())).beside) == {"layer4", "fc"}


@pytest.mark.parametrize(
    ("mine", "theirs", "clause"),
    [
        (lambda: ResNet(18), torchvision.models.resnet34, "does not load whole"),
        (lambda: ResNet(34), torchvision.models.resnet18, "does not load whole"),
        (lambda: ResNet(18, base_channels=16), torchvision.models.resnet18, "64x3x7x7, not 16x3x7x7"),
        (lambda: ResNet(18), torchvision.models.mobilenet_v2, "torchvision's MobileNetV2"),
        (lambda: MobileNetV2(widen_factor=0.5), torchvision.models.mobilenet_v2, "another width"),
        (lambda: MobileNetV2(), torchvision.models.resnet18, "does not load whole"),
    ],
    ids=["deeper", "shallower", "narrower", "mobilenet", "narrower-mobilenet", "resnet"],
)
def test_another_backbone_is_refused(mine: Any, theirs: Any, clause: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=clause):
        load_backbone(mine(), saved(tmp_path, theirs()))


def test_build_draws_the_rest_as_without_a_file(tmp_path: Path, model_settings: Callable[..., Any]) -> None:
    settings = model_settings("gfl", width=64)
    theirs = unlike(torchvision.models.resnet18())
    torch.manual_seed(0)
    plain = detectors.build(settings, 3)
    torch.manual_seed(0)
    begun = detectors.build(settings, 3)
    load_backbone(begun.backbone, saved(tmp_path, theirs))
    assert torch.equal(begun.backbone.conv1.weight, theirs.conv1.weight)
    for name, value in plain.bbox_head.state_dict().items():
        assert torch.equal(begun.bbox_head.state_dict()[name], value)


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = saved(tmp_path, nn.Conv2d(1, 1, 1))
    known = f"sha256:{checkpoints.sha256(path)}"
    assert first_weights(model(init=known), str(path)) == path
    assert first_weights(model(), None) is None
    for init, lies in (("sha256:0", path), (known, tmp_path / "gone.pth")):
        with pytest.raises(JobError, match="not the ones that were planned with"):
            first_weights(model(init=init), str(lies))


class TestImageNet:
    @pytest.fixture(autouse=True)
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        return tmp_path / "hub" / "checkpoints"

    @pytest.mark.parametrize("whole", [True, False])
    def test_torchs_own_cache_is_used_where_its_content_is_right(
        self, hub: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
    ) -> None:
        fetched: list[Any] = []
        monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **_: fetched.append(args))
        monkeypatch.setattr(checkpoints, "sha256", lambda _: "f37072fd0" if whole else "00000000")
        hub.mkdir(parents=True)
        (hub / "resnet18-f37072fd.pth").touch()
        found = first_weights(model(init="imagenet"), None)
        assert found == hub / "resnet18-f37072fd.pth"
        assert len(fetched) == (0 if whole else 1)

    @pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "swin_t", "resnext101_64x4d"])
    def test_no_network_names_the_url_and_the_way_out(
        self, backbone: str, hub: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def offline(*_: Any, **__: Any) -> None:
            raise URLError("no network")

        monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
        with pytest.raises(MachineError, match="no network") as raised:
            first_weights(model(init="imagenet", backbone=backbone), None)
        (fault,) = raised.value.faults
        assert fault.where.startswith(f"https://download.pytorch.org/models/{backbone}-")
        assert str(hub) in fault.fix
        assert "init: FILE" in fault.fix


def test_imagenet_weights_that_torchvision_lacks_are_refused() -> None:
    with pytest.raises(JobError, match="torchvision has no weights for cspdarknet"):
        first_weights(model(init="imagenet", backbone="cspdarknet"), None)


@pytest.mark.parametrize("changed", [{"depth": 34}, {"base_channels": 32}, {"deep_stem": True}])
def test_torchvisions_weights_are_refused_for_another_backbone(changed: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="backbone does not load whole"):
        check_torchvision("resnet18", ResNet(**{"depth": 18, **changed}))
