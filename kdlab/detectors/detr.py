"""What DETRs with deformable attention share: queries that a decoder matches with objects, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from kdlab.detectors.base import Adapter, Recording, wrapped
from kdlab.detectors.outputs import Batch, Branch, DetectorOutputs, Facts
from kdlab.detectors.queries import Queries, Starts
from kdlab.detectors.sizing import normalised_in_groups, on_backbone, set_classes
from kdlab.errors import JobError
from kdlab.jobs.spec import ModelSettings

_STARTS = ("query", "query_pos", "reference_points")
"""What is said of queries among that which mmdet hands to a decoder; the rest is of the images."""


class DetrAdapter(Adapter):
    """A decoder whose queries are matched one to one with objects; it has no priors, so no dense maps."""

    provides = (*Adapter.provides, "queries", "memory")
    counts_on = "cpu"
    base: ClassVar[str]

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if not self.reads_points:
            check = partial(_enough_places, model.num_queries)
            model.encoder.register_forward_pre_hook(check, with_kwargs=True)

    @classmethod
    def config(cls, settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's own with the recipe's sizes; feed-forward layers keep their ratio to the channels."""
        model, channels, start = on_backbone(cls.base, settings)
        width, levels = settings.neck_channels, len(settings.strides)
        assert width is not None and settings.queries is not None
        model.backbone.out_indices = model.backbone.out_indices[start:]
        model.neck.update(in_channels=channels[start:], out_channels=width, num_outs=levels)
        model.neck.norm_cfg = normalised_in_groups(width)
        model.update(num_queries=settings.queries, num_feature_levels=levels)
        model.positional_encoding.num_feats = width // 2
        for part in (model.encoder, model.decoder):
            part.num_layers = settings.layers
            for name, block in part.layer_cfg.items():
                if name == "ffn_cfg":
                    block.feedforward_channels = block.feedforward_channels * width // block.embed_dims
                elif not (name == "self_attn_cfg" and part is model.decoder):
                    block.num_levels = levels
                block.embed_dims = width
        model.bbox_head.embed_dims = width
        model.test_cfg.max_per_img = min(model.test_cfg.max_per_img, settings.queries * num_classes)
        set_classes(model, num_classes)
        return model

    @cached_property
    def facts(self) -> Facts:
        """What the plan and the methods may know of the model."""
        family = type(self).__module__.rpartition(".")[2]
        # those of two stages have positions besides
        placed = hasattr(self.model, "pos_trans_fc")
        begin = "points" if self.reads_points else "placed boxes" if placed else "boxes"
        return replace(super().facts, detector=family, priors=begin)

    @contextmanager
    def recording(self, towers: Sequence[tuple[Branch, int]] = ()) -> Iterator[Recording]:
        """Also what the decoder is given, and what its layers give."""

        def forward_decoder(original: Any, **given: Any) -> dict[str, Any]:
            found: dict[str, Any] = original(**given)
            caught.decoding, caught.states = given, found["hidden_states"]
            return found

        with super().recording(towers) as caught, wrapped(self.model, "forward_decoder", forward_decoder):
            yield caught

    def hooks(
        self, caught: Recording, towers: Sequence[tuple[Branch, int]]
    ) -> Iterator[tuple[nn.Module, Any]]:
        """Also the head's logits and boxes."""
        yield from super().hooks(caught, towers)
        yield self.head, lambda _m, _i, out: setattr(caught, "raw", tuple(out))

    @contextmanager
    def capturing(self, caught: Recording) -> Iterator[None]:
        """Learn which object each query serves: a matching for each layer and image, in this order."""

        def assign(original: Any, **given: Any) -> Any:
            found = original(**given)
            # mmdet counts objects from 1, and 0 is none
            caught.assigned.append((given["gt_instances"], found.gt_inds - 1))
            return found

        with wrapped(self.head.assigner, "assign", assign):
            yield

    def look(self, inputs: Tensor, with_head: bool = True, data_samples: Sequence[Any] | None = None) -> None:
        """The neck's maps and, unless nobody asks for them, all layers."""
        feats = self.model.extract_feat(inputs)
        if not with_head:
            return
        if data_samples is None:
            sides = tuple(inputs.shape[-2:])
            whole = {"batch_input_shape": sides, "img_shape": sides}
            data_samples = [DetDataSample(metainfo=whole) for _ in inputs]
        found = self.model.forward_transformer(feats, list(data_samples))
        self.head(found["hidden_states"], found["references"])

    def forward_all(self, inputs: Tensor) -> None:
        """Every layer once, as in a test: training adds queries for denoising."""
        self.model.eval()
        self.look(inputs)

    def outputs(self, caught: Recording) -> DetectorOutputs:
        """The interface over what one pass produced, in fp32."""
        outputs = super().outputs(caught)
        if not caught.raw:
            return outputs
        given = caught.decoding
        queries = self.model.num_queries
        # denoising goes before them in training
        logits, boxes, states = (part[:, :, -queries:].float() for part in (*caught.raw, caught.states))
        index = None
        if caught.assigned:
            layers, images = logits.shape[:2]
            # the encoder's own proposals are matched after all layers
            rows = [found for _, found in caught.assigned[: layers * images]]
            index = torch.stack(rows).unflatten(0, (layers, images))
        begun = {name: value[:, -queries:].float() for name, value in given.items() if name in _STARTS}
        if self.reads_points:
            del begun["reference_points"]
        starts = Starts(begun["query"], begun.get("query_pos"), begun.get("reference_points"))
        sizes = [level.shape[-2:] for level in caught.feats]
        rows = given["memory"].float().mT.split([height * width for height, width in sizes], dim=2)
        return replace(
            outputs,
            queries=Queries(logits, boxes, states, index),
            memory=[level.unflatten(2, size) for level, size in zip(rows, sizes, strict=True)],
            starts=starts,
            decoding=_of_images(given),
        )

    @property
    def reads_points(self) -> bool:
        """Whether the decoder starts from points that a layer reads from the queries' positions."""
        return hasattr(self.model, "reference_points_fc")

    def decode_queries(self, decoding: dict[str, Any], starts: Starts) -> Queries:
        """What the decoder says of queries that begin as `starts`, in the images of `decoding`."""
        given = {"query": starts.content, "reference_points": starts.boxes, **decoding}
        if starts.position is not None:
            given["query_pos"] = starts.position
        if self.reads_points:
            given["reference_points"] = self.model.reference_points_fc(starts.position).sigmoid()
        found = self.model.forward_decoder(**given)
        logits, boxes = self.head(found["hidden_states"], found["references"])
        return Queries(logits.float(), boxes.float(), found["hidden_states"].float())

    @torch.no_grad()
    def match_queries(self, queries: Queries, batch: Batch) -> Tensor:
        """(L, B, Q) which object of its image the model's own matcher gives to each query; -1 none."""
        objects, metas = _as_mmdets(batch)
        scales = batch.image_shapes.flip(1).repeat(1, 2)
        rows = []
        for logits, boxes in zip(queries.logits.flatten(0, 1), queries.boxes.flatten(0, 1), strict=True):
            place = len(rows) % len(objects)
            seen = InstanceData(scores=logits, bboxes=bbox_cxcywh_to_xyxy(boxes) * scales[place])
            found = self.head.assigner.assign(seen, gt_instances=objects[place], img_meta=metas[place])
            rows.append(found.gt_inds - 1)
        return torch.stack(rows).unflatten(0, queries.logits.shape[:2])

    def query_loss(self, queries: Queries, gt_index: Tensor, batch: Batch) -> Tensor:
        """The head's own loss of queries that serve the objects (L, B, Q) of another matching."""
        rows = iter(gt_index.flatten(0, 1))

        def assign(original: Any, **given: Any) -> Any:
            return InstanceData(gt_inds=next(rows) + 1)

        (objects, metas), losses = _as_mmdets(batch), []
        with wrapped(self.head.assigner, "assign", assign):
            for logits, boxes in zip(queries.logits, queries.boxes, strict=True):
                losses += self.head.loss_by_feat_single(logits, boxes, objects, metas)
        return torch.stack([loss.sum() for loss in losses]).sum()


def _enough_places(queries: int, _encoder: nn.Module, _args: Any, given: dict[str, Any]) -> None:
    """Refuse images whose maps have fewer places than there are queries to be chosen among them.

    Raises:
        JobError: they do; mmdet would ask torch for more than there is.
    """
    places = given["query"].shape[1]
    if places < queries:
        height, width = given["spatial_shapes"][0].tolist()
        got = f"queries: {queries}, {places} places in maps of {width}x{height} and less"
        fix = f"queries: {places} or fewer, or larger images"
        raise JobError("queries are chosen among the places of the maps", got=got, fix=fix)


def _of_images(given: dict[str, Any]) -> dict[str, Any]:
    """What a decoder was given but for its queries, in fp32."""
    kept = {name: value for name, value in given.items() if name not in (*_STARTS, "dn_mask")}
    memory = kept.pop("memory")
    return {**kept, "memory": memory.float()}


def _as_mmdets(batch: Batch) -> tuple[list[InstanceData], list[dict[str, Any]]]:
    """mmdet's ground truth of each image, and how large that is without its padding."""
    counts, *sides = batch.numbers
    parts = zip(batch.gt_boxes.split(counts), batch.gt_labels.split(counts), strict=True)
    objects = [InstanceData(bboxes=boxes, labels=labels) for boxes, labels in parts]
    return objects, [{"img_shape": shape} for shape in zip(*sides, strict=True)]
