"""Detectors as one graph from images to boxes and scores: what an ONNX file holds.

Everything here must trace: shapes that follow from the input stay in the graph, and what mmdet decides by
looking at values (fewer priors than a limit, no box left) is written so that one graph serves all cases.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor

from kdlab.detectors.base import Adapter, Recording
from kdlab.errors import UsageError


class DenseGraph(nn.Module):
    """A dense detector of any family.

    Args:
        adapter: of the model.
        nms: whether detections after NMS are given, too.
    """

    def __init__(self, adapter: Adapter, nms: bool) -> None:
        super().__init__()
        self.adapter, self.model, self.nms = adapter, adapter.model, nms
        self.head, self.facts = adapter.head, adapter.facts
        self.cfg = checked(self.head.test_cfg) if nms else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Boxes (1, N, 4), scores (1, N, K), and with NMS boxes (M, 4), scores (M,) and labels (M,)."""
        feats = self.model.extract_feat(images)
        outputs = self.adapter.outputs(Recording(feats=tuple(feats), raw=tuple(self.head(feats))))
        boxes, ranks = [], []
        for level, (logits, raw) in enumerate(zip(outputs.cls_maps, outputs.box_maps, strict=True)):
            priors = self.head.prior_generator.single_level_grid_priors(
                tuple(raw.shape[-2:]), level, device=raw.device
            )
            strides = torch.full_like(priors[:, 0], float(self.facts.strides[level]))
            boxes.append(self.adapter.decode(priors, strides, self._rows(raw)))
            rows = self._rows(logits)
            ranks.append(rows.softmax(dim=-1)[:, :-1] if self.facts.softmax else rows.sigmoid())
        scores = ranks
        if outputs.quality_maps is not None:
            quality = [self._rows(level).sigmoid() for level in outputs.quality_maps]
            scores = [rank * factor for rank, factor in zip(ranks, quality, strict=True)]
        whole = torch.cat(boxes)[None], torch.cat(scores)[None]
        return (*whole, *self._detections(images, boxes, ranks, scores)) if self.nms else whole

    def _rows(self, level_map: Tensor) -> Tensor:
        """(n, X) of one level's map (1, A*X, H, W)."""
        width = level_map.shape[1] // self.facts.anchors
        return level_map.permute(0, 2, 3, 1).reshape(-1, width)

    def _detections(
        self, images: Tensor, boxes: list[Tensor], ranks: list[Tensor], scores: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """mmdet's selection: class scores choose the best of each level, and quality counts after that."""
        found = []
        classes = self.facts.num_classes
        for level_boxes, level_ranks, level_scores in zip(boxes, ranks, scores, strict=True):
            if self.adapter.one_class:
                level_ranks = level_ranks * (level_ranks == level_ranks.amax(-1, keepdim=True))
            rank, place = best(level_ranks.flatten(), self.cfg.get("nms_pre", -1))
            place = place[rank > self.cfg.get("score_thr", 0)]
            prior = torch.div(place, classes, rounding_mode="floor")
            found.append((level_boxes[prior], level_scores.flatten()[place], place - prior * classes))
        chosen = map(torch.cat, zip(*found, strict=True))
        return suppressed(images, *chosen, self.cfg, clips=self.adapter.clips)


class TwoStageGraph(nn.Module):
    """mmdet's FasterRCNN with a StandardRoIHead.

    Args:
        model: the detector.
        nms: whether detections after NMS are given, too.
    """

    def __init__(self, model: nn.Module, nms: bool) -> None:
        super().__init__()
        self.model, self.nms = model, nms
        self.head, self.extractor = model.roi_head.bbox_head, model.roi_head.bbox_roi_extractor
        self.rpn_cfg = checked(model.rpn_head.test_cfg)
        self.cfg = checked(model.roi_head.test_cfg) if nms else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As `DenseGraph`; a row for each RoI and class, in that order, with scores of 0 elsewhere."""
        feats = self.model.extract_feat(images)
        rois, found = self._proposals(images, feats)
        logits, deltas = self.head(self._pooled(feats, rois))
        classes = self.head.num_classes
        own = logits.softmax(dim=-1)[:, :classes] * found[:, None]
        deltas = deltas.reshape(len(rois), -1, 4).expand(-1, classes, -1).reshape(-1, 4)
        boxes = self.head.bbox_coder.decode(rois[:, None].expand(-1, classes, -1).reshape(-1, 4), deltas)
        scores = (own[:, :, None] * torch.eye(classes, device=own.device)).reshape(-1, classes)
        whole = boxes[None], scores[None]
        if not self.nms:
            return whole
        labels = torch.arange(classes, device=own.device).repeat(len(rois))
        keep = own.flatten() > self.cfg.score_thr
        return (*whole, *suppressed(images, boxes[keep], own.flatten()[keep], labels[keep], self.cfg))

    def _proposals(self, images: Tensor, feats: Any) -> tuple[Tensor, Tensor]:
        """(R, 4) RoIs, and (R,) which of them are real; R is `max_per_img` of the RPN's test_cfg."""
        rpn, found = self.model.rpn_head, []
        for level, (logits, raw) in enumerate(zip(*rpn(feats), strict=True)):
            priors = rpn.prior_generator.single_level_grid_priors(
                tuple(logits.shape[-2:]), level, device=logits.device
            )
            score, place = best(logits.permute(0, 2, 3, 1).flatten().sigmoid(), self.rpn_cfg.nms_pre)
            place = place[score >= 0]
            deltas = raw.permute(0, 2, 3, 1).reshape(-1, 4)[place]
            boxes = rpn.bbox_coder.decode(priors[place], deltas)
            found.append((boxes, score[score >= 0], torch.full_like(place, level)))
        boxes, scores, _ = suppressed(images, *map(torch.cat, zip(*found, strict=True)), self.rpn_cfg)
        room = self.rpn_cfg.max_per_img
        real = F.pad(torch.ones_like(scores), (0, room))[:room]
        return F.pad(boxes, (0, 0, 0, room))[:room], real

    def _pooled(self, feats: Any, rois: Tensor) -> Tensor:
        """(R, C, h, w) features of the RoIs, each from the level of its size."""
        rois = F.pad(rois, (1, 0))
        levels = self.extractor.map_roi_levels(rois, self.extractor.num_inputs)
        rows, places = [], []
        for level, layer in enumerate(self.extractor.roi_layers):
            place = (levels == level).nonzero().squeeze(1)
            places.append(place)
            rows.append(
                torchvision.ops.roi_align(
                    feats[level],
                    rois[place],
                    layer.output_size,
                    layer.spatial_scale,
                    layer.sampling_ratio,
                    layer.aligned,
                )
            )
        return torch.cat(rows)[torch.cat(places).argsort()]


class QueryGraph(nn.Module):
    """A DETR on images of one size: that of its maps is a constant of the graph.

    Args:
        adapter: of the model.
        nms: whether detections are given, too; they are the best scores, without NMS.
    """

    def __init__(self, adapter: Adapter, nms: bool) -> None:
        super().__init__()
        self.adapter, self.model, self.nms = adapter, adapter.model, nms
        self.classes, self.most = adapter.num_classes, self.model.test_cfg.max_per_img

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As `DenseGraph`; a row for each query."""
        with self.adapter.recording() as caught:
            self.adapter.look(images)
        logits, boxes = (layers[-1] for layers in caught.raw)
        height, width = images.shape[-2:]
        frame = boxes.new_tensor([width, height, width, height])
        boxes, scores = bbox_cxcywh_to_xyxy(boxes) * frame, logits.sigmoid()
        if not self.nms:
            return boxes, scores
        found, place = scores.flatten().topk(self.most)
        query = torch.div(place, self.classes, rounding_mode="floor")
        inside = torch.minimum(boxes[0, query].clamp(min=0), frame)
        return boxes, scores, inside, found, place - query * self.classes


def best(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The `limit` highest of scores (n,) and their places, all of them if it is not positive.

    Where there are fewer than `limit`, the rest has score -1 and no place.
    """
    if limit <= 0:
        return scores, torch.arange(len(scores), device=scores.device)
    return F.pad(scores, (0, limit), value=-1.0).topk(limit)


def suppressed(
    images: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, cfg: Any, *, clips: bool = True
) -> tuple[Tensor, ...]:
    """Boxes (M, 4), inside the images if it `clips`, scores (M,), labels (M,) that NMS in a label leaves."""
    height, width = shape_as_tensor(images)[2:].to(boxes).unbind()
    frame = torch.stack((width, height, width, height))
    if clips:
        boxes = torch.minimum(boxes.clamp(min=0), frame)
    least = cfg.get("min_bbox_size", -1)
    if least >= 0:
        large = (boxes[:, 2:] - boxes[:, :2] > least).all(dim=1)
        boxes, scores, labels = boxes[large], scores[large], labels[large]
    # boxes beyond the border are as far apart as mmdet moves them
    reach = frame if clips else F.pad(boxes.flatten(), (0, 1))
    apart = 0 if cfg.nms.get("class_agnostic", False) else reach.max() + 1
    shifted = boxes + (labels * apart)[:, None]
    kept = torchvision.ops.nms(shifted, scores, cfg.nms.iou_threshold)[: cfg.get("max_per_img")]
    return boxes[kept], scores[kept], labels[kept]


def checked(cfg: Any) -> Any:
    """A head's test_cfg.

    Raises:
        UsageError: it wants an NMS that ONNX does not have.
    """
    kind = cfg.nms.get("type", "nms")
    if kind != "nms":
        raise UsageError(
            f"ONNX has no {kind}", got=f"test_cfg.nms.type: {kind}", known="nms", fix="leave out --nms"
        )
    return cfg
