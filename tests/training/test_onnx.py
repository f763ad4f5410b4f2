from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdlab import catalog
from kdlab.errors import JobError, UsageError

pytest.importorskip("onnxruntime")

IMAGES = Path(__file__).parents[2] / ".." / "shared" / "data" / "coco-mini-cc" / "images" / "val"
DETECTORS = [key for key, info in catalog.detectors().items() if info.head_convs]
QUERIES = [key for key, info in catalog.detectors().items() if info.queries]
CLASSES = ["a", "b", "c"]
FIXED = (128, 160)


def sizes(*detectors: str) -> pytest.MarkDecorator:
    """Any size with each of these, and a fixed one with one of each kind: dense and two stages."""
    cases = [(name, None) for name in detectors]
    cases += [(name, FIXED) for name in detectors if name in ("gfl", "faster_rcnn")]
    return pytest.mark.parametrize(("detector", "size"), cases)


@pytest.fixture(scope="module")
def two_stages(torch_: Any) -> Any:
    """mmdet's own FasterRCNN, made small, its predictions unlike everywhere."""
    from mmdet.registry import MODELS
    from mmengine.config import Config

    from kdlab.detectors.sizing import CONFIGS

    model = Config.fromfile(CONFIGS / "faster_rcnn" / "faster-rcnn_r50_fpn_1x_coco.py").model
    model.backbone.update(depth=18, base_channels=8, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.roi_head.bbox_roi_extractor.out_channels = 16
    model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=len(CLASSES))
    model.test_cfg.rpn.update(nms_pre=200, max_per_img=50)
    with torch_.random.fork_rng(devices=[]):
        torch_.manual_seed(0)
        built = MODELS.build(model).eval()
        for part in (built.rpn_head, built.roi_head):
            for layer in part.modules():
                if isinstance(layer, torch_.nn.Conv2d | torch_.nn.Linear):
                    torch_.nn.init.normal_(layer.weight, std=0.1)
                    torch_.nn.init.zeros_(layer.bias)
    return built


@pytest.fixture(scope="module")
def session(build: Callable[..., Any], two_stages: Any) -> Callable[..., tuple[Any, Any]]:
    """`session("gfl", size=None, nms=False)`: a tiny model, and ONNX Runtime on its file."""
    import onnxruntime

    from kdlab.training import onnx

    def session(detector: str, **wish: Any) -> tuple[Any, Any]:
        model = two_stages if detector == "faster_rcnn" else build(detector).eval()
        if detector == "retinanet":
            # deltas as small as a trained head's; the exponent of large ones enlarges rounding to 2e-3 px
            model.bbox_head.retina_reg.weight.data.mul_(0.2)
        data, _ = onnx.export(model, {"classes": json.dumps(CLASSES)}, **wish)
        return model, onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    return session


def photographs(torch_: Any, model: Any, size: tuple[int, int] | None) -> list[Any]:
    """Five real images (1, 3, H, W) as the file takes them, each of another size if none is given."""
    import cv2

    paths = sorted(IMAGES.glob("*.jpg"))[:5]
    if len(paths) < 5:
        pytest.skip("the shared photographs are not here")
    batches = []
    for number, path in enumerate(paths):
        height, width = size or (32 * (3 + number), 32 * (6 - number))
        pixels = cv2.resize(cv2.imread(str(path)), (width, height))
        image = torch_.from_numpy(pixels).permute(2, 0, 1)
        batches.append(model.data_preprocessor({"inputs": [image], "data_samples": None})["inputs"])
    return batches


def own_detections(model: Any, images: Any) -> Any:
    """What mmdet itself predicts for an image without padding."""
    from mmdet.structures import DetDataSample

    size = tuple(images.shape[-2:])
    meta = dict.fromkeys(("img_shape", "ori_shape", "batch_input_shape"), size)
    sample = DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})
    return model.predict(images, [sample], rescale=False)[0].pred_instances


@sizes(*DETECTORS)
def test_photographs_give_the_interface_s_boxes_and_the_head_s_scores(
    detector: str, size: Any, session: Callable[..., Any], torch_: Any
) -> None:
    from kdlab import detectors

    model, runtime = session(detector, size=size)
    adapter = detectors.adapt(model)
    for images in photographs(torch_, model, size):
        with torch_.no_grad(), adapter.recording() as caught:
            model.bbox_head(model.extract_feat(images))
        outputs = adapter.outputs(caught)
        scores = outputs.cls_logits.sigmoid()
        if outputs.quality_maps is not None:
            quality = [level.permute(0, 2, 3, 1).flatten(1) for level in outputs.quality_maps]
            scores = scores * torch_.cat(quality, dim=1)[..., None].sigmoid()
        boxes_there, scores_there = runtime.run(None, {"images": images.numpy()})
        assert np.abs(boxes_there - outputs.boxes.numpy()).max() < 1e-3
        assert np.abs(scores_there - scores.numpy()).max() < 1e-5


def test_a_model_that_does_not_normalise_says_so(build: Callable[..., Any], torch_: Any) -> None:
    from onnxruntime import InferenceSession

    from kdlab.training import onnx

    model = build("yolox", backbone="cspdarknet_s").eval()
    data, _ = onnx.export(model, {"classes": json.dumps(CLASSES)}, size=(64, 64))
    session = InferenceSession(data, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert (said["mean"], said["std"]) == ("[0.0, 0.0, 0.0]", "[1.0, 1.0, 1.0]")


@sizes(*DETECTORS, "faster_rcnn")
def test_detections_are_mmdet_s_own(
    detector: str, size: Any, session: Callable[..., Any], torch_: Any
) -> None:
    model, runtime = session(detector, size=size, nms=True)
    for images in photographs(torch_, model, size)[:3]:
        with torch_.no_grad():
            own = own_detections(model, images)
        *_, boxes, scores, labels = runtime.run(None, {"images": images.numpy()})
        assert len(labels) == len(own) > 0
        assert np.abs(scores - own.scores.numpy()).max() < 1e-5
        # equal scores may stand in either order
        assert np.mean(labels == own.labels.numpy()) > 0.95
        assert np.mean(np.abs(boxes - own.bboxes.numpy()).max(axis=1) < 1e-3) > 0.95


@pytest.mark.parametrize("detector", QUERIES)
def test_a_detr_s_file_says_what_mmdet_does_for_images_of_its_size(
    detector: str, session: Callable[..., Any], torch_: Any
) -> None:
    model, runtime = session(detector, size=FIXED, nms=True)
    for images in photographs(torch_, model, FIXED)[:3]:
        with torch_.no_grad():
            own = own_detections(model, images)
        every, rows, boxes, scores, labels = runtime.run(None, {"images": images.numpy()})
        assert every.shape == (1, 20, 4)
        assert rows.shape == (1, 20, 3)
        assert len(labels) == len(own) > 0
        assert np.abs(scores - own.scores.numpy()).max() < 1e-5
        assert np.mean(labels == own.labels.numpy()) > 0.95
        assert np.mean(np.abs(boxes - own.bboxes.numpy()).max(axis=1) < 1e-3) > 0.95


def test_a_detr_without_a_size_is_refused(build: Callable[..., Any]) -> None:
    from kdlab.training import onnx

    with pytest.raises(UsageError, match="for images of one size"):
        onnx.export(build("deformable_detr").eval(), {"classes": json.dumps(CLASSES)})


def test_a_two_stage_row_scores_its_own_class_only(session: Callable[..., Any], torch_: Any) -> None:
    _, runtime = session("faster_rcnn", size=FIXED)
    boxes, scores = runtime.run(None, {"images": np.zeros((1, 3, *FIXED), np.float32)})
    assert boxes.shape == (1, 50 * 3, 4)
    assert scores.reshape(50, 3, 3)[:, ~np.eye(3, dtype=bool)].max() == 0
    assert scores.max() > 0


def test_nothing_above_the_threshold_gives_no_detections(session: Callable[..., Any], build: Any) -> None:
    import onnxruntime

    from kdlab.training import onnx

    model = build("gfl").eval()
    model.bbox_head.test_cfg.score_thr = 1.0
    data, _ = onnx.export(model, {"classes": json.dumps(CLASSES)}, size=FIXED, nms=True)
    outputs = onnxruntime.InferenceSession(data).run(None, {"images": np.zeros((1, 3, *FIXED), np.float32)})
    assert [output.shape for output in outputs[2:]] == [(0, 4), (0,), (0,)]


def test_the_file_says_how_to_feed_it(session: Callable[..., Any]) -> None:
    _, runtime = session("gfl")
    (images,) = runtime.get_inputs()
    assert (images.name, images.shape) == ("images", [1, 3, "height", "width"])
    assert [(output.name, output.shape[2]) for output in runtime.get_outputs()] == [
        ("boxes", 4),
        ("scores", 3),
    ]
    said = {key: json.loads(value) for key, value in runtime.get_modelmeta().custom_metadata_map.items()}
    assert said["classes"] == CLASSES
    assert said["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert (said["channels"], said["size_divisor"]) == ("RGB", 32)


def test_a_size_between_multiples_names_the_next_one(session: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="--size 128x160"):
        session("gfl", size=(100, 160))


def test_soft_nms_is_refused(build: Callable[..., Any]) -> None:
    from kdlab.training import onnx

    model = build("gfl").eval()
    model.bbox_head.test_cfg.nms.type = "soft_nms"
    with pytest.raises(UsageError, match="ONNX has no soft_nms"):
        onnx.graph_of(model, nms=True)


def test_a_file_that_computes_something_else_is_refused(build: Callable[..., Any]) -> None:
    from kdlab.training import onnx

    model = build("gfl").eval()
    data, _ = onnx.export(model, {"classes": json.dumps(CLASSES)}, size=FIXED)
    other = onnx.graph_of(build("gfl", seed=1).eval(), nms=False)
    import torch

    with torch.no_grad(), pytest.raises(JobError, match="give different boxes or scores"):
        onnx.check(other, data, FIXED)


def test_a_head_that_kdlab_does_not_know_is_refused(build: Callable[..., Any]) -> None:
    from kdlab.training import onnx

    model = build("gfl").eval()
    model.bbox_head.__class__ = type("OtherHead", (type(model.bbox_head),), {})
    with pytest.raises(UsageError, match="a head that kdlab knows"):
        onnx.graph_of(model, nms=False)
