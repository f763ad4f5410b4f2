"""The ONNX file of a detector, compared with torch before anybody gets it.

torch's TorchScript exporter writes it. Both exporters were tried on all families with dynamic sizes and agree
with torch; this one takes one second where `dynamo=True` takes twenty, and follows mmdet's own branches.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import nn

from kdlab import detectors
from kdlab.detectors.dense import DenseAdapter
from kdlab.detectors.detr import DetrAdapter
from kdlab.detectors.faster_rcnn import FasterRCNN
from kdlab.errors import JobError, UsageError
from kdlab.training.graphs import DenseGraph, QueryGraph, TwoStageGraph

OPSET = 17
MOST_PX, MOST_SCORE = 1e-2, 1e-3
DETECTIONS = ("detections_boxes", "detections_scores", "detections_labels")


def export(
    model: nn.Module, origin: dict[str, str], *, size: Sequence[int] | None = None, nms: bool = False
) -> tuple[bytes, list[dict[str, Any]]]:
    """A model in eval mode as an ONNX file.

    Args:
        model: an mmdet detector on the CPU.
        origin: written into the file's metadata besides the normalisation.
        size: height and width of its input; None takes any multiple of the size divisor.
        nms: whether it also gives detections after the head's own threshold and NMS.

    Returns:
        The file, and its checks as `check` gives them.

    Raises:
        UsageError: the size is not a multiple of the divisor, or missing for a DETR, or NMS is of a kind that
            ONNX lacks.
        JobError: ONNX Runtime computes something else than torch.
    """
    divisor = model.data_preprocessor.pad_size_divisor
    # one to trace with and another one to try
    sizes = [size] if size else [(8 * divisor, 6 * divisor), (5 * divisor, 9 * divisor)]
    height, width = sizes[0]
    if min(height, width) < 1 or height % divisor or width % divisor:
        fitting = "x".join(str(max(1, -(-side // divisor)) * divisor) for side in (height, width))
        raise UsageError(
            f"the detector takes multiples of {divisor}",
            got=f"--size {height}x{width}",
            fix=f"--size {fitting}",
        )
    graph = graph_of(model, nms)
    if isinstance(graph, QueryGraph) and size is None:
        raise UsageError("a DETR goes into an ONNX file for images of one size", fix="--size 800x1344")
    with torch.no_grad():
        data = with_metadata(traced(graph, (height, width), fixed=size is not None), model, origin)
        return data, [check(graph, data, one) for one in sizes]


def graph_of(model: nn.Module, nms: bool) -> nn.Module:
    """What goes into the file: one graph for all dense families, one for two stages, one for DETRs.

    Raises:
        UsageError: kdlab does not know the detector's head, or NMS is of a kind that ONNX lacks.
    """
    adapter = detectors.adapt(model)
    if isinstance(adapter, DenseAdapter):
        return DenseGraph(adapter, nms).eval()
    if isinstance(adapter, DetrAdapter):
        return QueryGraph(adapter, nms).eval()
    if isinstance(adapter, FasterRCNN):
        pooling = model.roi_head.bbox_roi_extractor
        # the graph pools each proposal from one level, and hands it to the head as it is
        if isinstance(pooling, SingleRoIExtractor) and not model.roi_head.with_shared_head:
            return TwoStageGraph(model, nms).eval()
    raise UsageError(
        "ONNX needs a head that kdlab knows",
        got=type(adapter.head).__name__,
        fix="leave out --onnx; mmdeploy may serve the exported config and weights",
    )


def check(graph: nn.Module, data: bytes, size: Sequence[int]) -> dict[str, Any]:
    """Run a file and the graph that it came from on one random image.

    Returns:
        "size", its height and width; "boxes_px", the largest difference of a coordinate, inside the image and
        one size around it; "scores", the largest difference of a score.

    Raises:
        JobError: their boxes or scores are not the same.
    """
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    boxes, scores, *_ = (tensor.numpy() for tensor in graph(images))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    boxes_there, scores_there = session.run(["boxes", "scores"], {"images": images.numpy()})
    if not isinstance(graph, DenseGraph):
        # two proposals of equal score may change places
        classes = graph.head.num_classes if isinstance(graph, TwoStageGraph) else 1
        found = (boxes, scores), (boxes_there, scores_there)
        rows = [np.concatenate([box[0], 100 * score[0]], axis=1) for box, score in found]
        mine, theirs = (torch.from_numpy(row.reshape(-1, classes * row.shape[1])) for row in rows)
        nearest = torch.cdist(mine, theirs).argmin(dim=1)
        order = (nearest[:, None] * classes + torch.arange(classes)).flatten().numpy()
        boxes_there, scores_there = boxes_there[:, order], scores_there[:, order]
    most = max(size)
    apart = float(np.abs(boxes.clip(-most, 2 * most) - boxes_there.clip(-most, 2 * most)).max())
    ranked = float(np.abs(scores - scores_there).max())
    if not (apart <= MOST_PX and ranked <= MOST_SCORE):
        raise JobError(
            "ONNX Runtime and torch give different boxes or scores, so the file is not written",
            where=f"a random image of {size[0]}x{size[1]}",
            got=f"boxes {apart:.3g} px, scores {ranked:.3g} apart",
            known=f"up to {MOST_PX:g} px and {MOST_SCORE:g}",
            fix="leave out --onnx, and report the detector and the versions that kdlab doctor shows",
        )
    return {"size": size, "boxes_px": apart, "scores": ranked}


def traced(graph: nn.Module, size: tuple[int, int], fixed: bool) -> bytes:
    """The graph as torch exports it."""
    buffer = io.BytesIO()
    names = ["boxes", "scores"]
    if graph.nms:
        names += DETECTIONS
    free = {name: {0: "detections"} for name in names[2:]}
    if not fixed:
        free |= {"images": {2: "height", 3: "width"}, "boxes": {1: "boxes"}, "scores": {1: "boxes"}}
    with warnings.catch_warnings():
        # of tracing: what it would freeze is tried with a second size
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (torch.zeros(1, 3, *size),),
            buffer,
            input_names=["images"],
            output_names=names,
            dynamic_axes=free,
            opset_version=OPSET,
            dynamo=False,
        )
    return buffer.getvalue()


def with_metadata(data: bytes, model: nn.Module, origin: dict[str, str]) -> bytes:
    """The file with what a program must know to feed it, and with the shapes that tracing lost."""
    proto = onnx.load_from_string(data)
    classes = len(json.loads(origin["classes"]))
    for output, last in zip(proto.graph.output, (4, classes), strict=False):
        shape = output.type.tensor_type.shape.dim
        shape[0].dim_value, shape[2].dim_value = 1, last
    preprocessor = model.data_preprocessor
    normalises = preprocessor._enable_normalize
    facts = {
        "mean": preprocessor.mean.flatten().tolist() if normalises else [0.0] * 3,
        "std": preprocessor.std.flatten().tolist() if normalises else [1.0] * 3,
        "channels": "RGB" if preprocessor._channel_conversion else "BGR",
        "pad_value": preprocessor.pad_value,
        "size_divisor": preprocessor.pad_size_divisor,
    }
    onnx.helper.set_model_props(proto, origin | {key: json.dumps(value) for key, value in facts.items()})
    onnx.checker.check_model(proto)
    return proto.SerializeToString()
