"""Instance-Conditional Distillation: imitate where a module looks that is asked for each object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods.base import Method, Pair, averaged

WIDTH = 256  # of queries, keys and values
HEADS = 8
SIZES = 5  # sides below 64 px, 128, 256, 512, and above
WAVELENGTH = 10000.0
SMALLEST = 1e-3  # of the image: a shorter side counts as one of so much


class Instances(NamedTuple):
    """What the module is asked for: an image's objects, then its fake instances, then padding.

    Args:
        boxes: (B, Q, 4) xyxy as fractions of the image.
        labels: (B, Q) int64 in [0, K).
        centres: (B, Q, 2) xy as fractions of the image, jittered.
        real: (B, Q) bool, the objects.
        asked: (B, Q) bool, objects and fakes.
        objects: the most objects of an image: real ones are among the first so many.
    """

    boxes: Tensor
    labels: Tensor
    centres: Tensor
    real: Tensor
    asked: Tensor
    objects: int


def draw_instances(batch: Batch, classes: int, fakes: int, most: int, jitter: float) -> Instances:
    """The objects of each image and fakes of it, drawn on the CPU by the batch's generator.

    Args:
        batch: its objects.
        classes: K; a fake's is one of them, each as likely.
        fakes: for each object of the image. An image without objects has one.
        most: instances of an image, but for its objects, which are all asked for.
        jitter: the most that a centre is moved, as a fraction of its box.

    Returns:
        Q is the most of any image. A fake's centre is uniform over the image, and each side a normal variable
        of mean and deviation 0.2 of the image's, cut at two deviations.

    Source: Kang et al., NeurIPS 2021, arXiv:2110.12724, code: as it draws for datasets other than COCO.
    Differs: for COCO the code draws a fake's class and sides as COCO's objects have them.
    """
    device, images = batch.gt_boxes.device, len(batch.image_shapes)
    counts = (batch.gt_image[:, None] == torch.arange(images, device=device)).sum(0)
    # how far to pad: the one number for which a GPU is waited
    objects = int(counts.max())
    places = min(max(1, (1 + fakes) * objects), max(most, objects))
    totals = torch.minimum(((1 + fakes) * counts).clamp(min=1), counts.clamp(min=most))
    place = torch.arange(places, device=device)

    uniform = torch.rand(images, places, 4, generator=batch.generator)
    normal = torch.randn(images, places, 2, generator=batch.generator)
    labels = torch.randint(classes, (images, places, 1), generator=batch.generator)
    # one copy to the device
    drawn = torch.cat([uniform, normal, labels.float()], dim=2).to(batch.gt_boxes)
    middle, moved, normal, labels = drawn.split((2, 2, 2, 1), dim=2)
    half = (0.2 + 0.2 * normal.clamp(-2, 2)).clamp(0.002, 0.7) / 2
    middle = middle.clamp(0.03, 0.97)
    boxes = torch.cat([middle - half, middle + half], dim=2).clamp(0, 1)

    image = batch.gt_image
    own = image, torch.arange(len(image), device=device) - batch.first_object[image]
    boxes = boxes.index_put(own, batch.gt_boxes / _scale(batch)[image])
    first, last = boxes.chunk(2, dim=2)
    return Instances(
        boxes,
        labels.squeeze(2).long().index_put(own, batch.gt_labels),
        (first + last) / 2 + jitter * (2 * moved - 1) * (last - first),
        place < counts[:, None],
        place < totals[:, None],
        objects,
    )


def sine_code(places: Tensor, channels: int) -> Tensor:
    """(..., channels) sines and cosines of places (...), as DETR codes them: 1 is one turn of the fastest."""
    power = torch.arange(channels // 2, device=places.device, dtype=places.dtype) * 2 / channels
    angles = 2 * math.pi * places[..., None] / WAVELENGTH**power
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def describe(instances: Instances, batch: Batch, classes: int) -> Tensor:
    """What the module is told of each instance, which is not enough to know its sides.

    Args:
        instances: (B, Q) of them.
        batch: for the sizes of its images.
        classes: K.

    Returns:
        (B, Q, K + 256 + 10): one-hot class, codes of the jittered centre's x and y, one-hot width and height
        in powers of two from 64 to 512 px.

    Source: Kang et al., NeurIPS 2021, arXiv:2110.12724, code.  Differs: none known.
    """
    first, last = (instances.boxes * _scale(batch)[:, None]).chunk(2, dim=2)
    size = ((last - first).clamp(min=1).log2() - 5).clamp(0, SIZES - 1).long()
    codes = sine_code(instances.centres, WIDTH // 2)
    told = [_one_hot(instances.labels, classes).to(codes), codes.flatten(2)]
    return torch.cat([*told, _one_hot(size, SIZES).to(codes).flatten(2)], dim=2)


def _scale(batch: Batch) -> Tensor:
    """(B, 4) width, height, width and height of each image."""
    return batch.image_shapes.flip(1).repeat(1, 2)


def _one_hot(numbers: Tensor, kinds: int) -> Tensor:
    """(..., kinds) bool; torch's own asks for the largest number."""
    return numbers[..., None] == torch.arange(kinds, device=numbers.device)


def identification_loss(logits: Tensor, instances: Instances) -> Tensor:
    """Whether an instance is an object of the image.

    Args:
        logits: (B, Q).
        instances: (B, Q) of them.

    Returns:
        Scalar >= 0: binary cross-entropy, mean over all objects and fakes of the batch, their count averaged
        over ranks.

    Source: Kang et al., NeurIPS 2021, arXiv:2110.12724, code.  Differs: its count is the GPU's own.
    """
    cost = F.binary_cross_entropy_with_logits(logits, instances.real.to(logits), reduction="none")
    return (cost * instances.asked).sum() / averaged(instances.asked.sum())


def localisation_loss(sides: Tensor, instances: Instances) -> Tensor:
    """How far an object's sides are from its jittered centre.

    Args:
        sides: (B, Q, 4) distances to left, top, right and bottom as fractions of the image.
        instances: (B, Q) of them.

    Returns:
        Scalar >= 0: absolute differences over the box's own width or height, summed over the sides, mean over
        the objects of the batch (their count averaged over ranks); 0 and in the graph without any.

    Source: Kang et al., NeurIPS 2021, arXiv:2110.12724, code.
    Differs: its count is the GPU's own, and the least width and height there are 1e-7 of the image.
    """
    first, last = instances.boxes.chunk(2, dim=2)
    target = torch.cat([instances.centres - first, last - instances.centres], dim=2)
    size = (last - first).clamp(min=SMALLEST).repeat(1, 1, 2)
    cost = ((sides - target).abs() / size).sum(2)
    return (cost * instances.real).sum() / averaged(instances.real.sum())


def conditional_loss(values_student: Tensor, values_teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference of normalised values, where each head looks.

    Args:
        values_student: (B, S, heads, D) at all places of all levels.
        values_teacher: the same; no gradient flows here.
        mask: (B, heads, S) >= 0; no gradient flows here.

    Returns:
        Scalar >= 0: over places the mean weighted by the mask, then the mean over images, heads and channels.
        An image whose mask is 0 counts 0.

    Source: Kang et al., NeurIPS 2021, arXiv:2110.12724, code.  Differs: none known.
    """
    mine, theirs = (
        F.layer_norm(values, values.shape[-1:]) for values in (values_student, values_teacher.detach())
    )
    difference = (mine - theirs).square().mean(-1)
    weighted = torch.einsum("bsh,bhs->bh", difference, mask.detach())
    return (weighted / mask.detach().sum(2).clamp(min=1e-6)).mean()


def flat(feats: Sequence[Tensor]) -> Tensor:
    """(B, S, C) all places of maps (B, C, H_l, W_l)."""
    return torch.cat([feat.flatten(2).transpose(1, 2) for feat in feats], dim=1)


def by_head(projected: Tensor) -> Tensor:
    """(B, N, heads, D) of (B, N, WIDTH)."""
    return projected.unflatten(2, (HEADS, -1))


class Decoded(NamedTuple):
    """What the module says of Q instances, and of S places of the teacher's maps.

    Args:
        logits: (B, Q) of being real.
        sides: (B, Q, 4) in (0, 1).
        values: (B, S, heads, D), without gradient.
        mask: (B, heads, S) how much the objects look at each place, 1 in all for each; without gradient.
    """

    logits: Tensor
    sides: Tensor
    values: Tensor
    mask: Tensor


class ConditionalDecoder(nn.Module):
    """One layer of a transformer's decoder that is asked for instances and looks for them in neck maps.

    Args:
        channels: C of the teacher's maps.
        classes: K.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.encoder = _mlp(classes + WIDTH + 2 * SIZES, WIDTH)
        # of a place's code, the half of its row and that of its column
        self.row, self.column = nn.Linear(WIDTH // 2, channels), nn.Linear(WIDTH // 2, channels, bias=False)
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(channels, WIDTH), nn.Linear(channels, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH))
        self.norm_found, self.norm_fed = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.predictor = _mlp(WIDTH, 1 + 4)

    def forward(
        self, batch: Batch, feats: Sequence[Tensor], strides: Sequence[float], instances: Instances
    ) -> Decoded:
        """What is found of `instances` in `feats`, over levels (B, C, H_l, W_l) of these `strides`."""
        feats = [feat.detach() for feat in feats]
        places = [self.placed(batch, stride, feat) for stride, feat in zip(strides, feats, strict=True)]
        inside = torch.cat([cells.flatten(1) for cells, _ in places], dim=1)
        queries = self.encoder(describe(instances, batch, self.classes))
        keys = by_head(self.key(flat([coded for _, coded in places]))).transpose(1, 2)
        values = by_head(self.value(flat(feats)))
        asked = by_head(self.query(queries)).transpose(1, 2)
        # fused: what each query looks at is not kept
        found = F.scaled_dot_product_attention(
            asked, keys, values.transpose(1, 2), attn_mask=inside[:, None, None]
        )
        found = self.norm_found(queries + self.out(found.transpose(1, 2).flatten(2)))
        logits, sides = self.predictor(self.norm_fed(found + self.feed(found))).split((1, 4), dim=2)
        mask = attention_of_objects(asked, keys, inside, instances)
        return Decoded(logits.squeeze(2), sides.sigmoid(), values.detach(), mask)

    def placed(self, batch: Batch, stride: float, feat: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W) which cells have a part of the image; the map (B, C, H, W) with its places coded."""
        cells = (batch.image_shapes / stride).ceil().to(feat)
        rows, columns = (
            torch.arange(1, side + 1, device=feat.device) / cells[:, axis, None]
            for axis, side in enumerate(feat.shape[-2:])
        )
        down = self.row(sine_code(rows, WIDTH // 2)).transpose(1, 2)
        across = self.column(sine_code(columns, WIDTH // 2)).transpose(1, 2)
        inside = (rows <= 1)[:, :, None] & (columns <= 1)[:, None, :]
        return inside, feat + down[:, :, :, None] + across[:, :, None, :]


@torch.no_grad()
def attention_of_objects(queries: Tensor, keys: Tensor, inside: Tensor, instances: Instances) -> Tensor:
    """How much an image's objects look at each place, all together.

    Args:
        queries: (B, heads, Q, D).
        keys: (B, heads, S, D).
        inside: (B, S) bool, the places that are not padding.
        instances: whose real ones count.

    Returns:
        (B, heads, S): the softmax over places of each object, summed over objects; no gradient.

    Source: Kang et al., NeurIPS 2021, arXiv:2110.12724, code, whose temperature is 1.  Differs: none known.
    """
    objects = slice(instances.objects)
    scores = queries[:, :, objects] @ keys.transpose(2, 3) / math.sqrt(keys.shape[3])
    shares = scores.masked_fill_(~inside[:, None, None], -math.inf).softmax(3)
    return torch.einsum("bhqs,bq->bhs", shares, instances.real[:, objects].to(shares))


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Three linear layers."""
    first, second, third = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, outputs)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


class InstanceConditionalDistillation(Method):
    """ICD: what is imitated of neck maps is what says of each object that it is there, and where.

    A module learns beside the student to tell, in the teacher's maps, objects from fakes and to find their
    sides. Where it looks for the objects of an image, the values that it reads are imitated.

    `identification` and `localisation` give a gradient to the module alone, `distillation` to the student and
    the student's own projection to values alone. So no factor weighs the module's tasks against the student:
    one of both tasks changes hardly anything under AdamW, and under SGD is one of the module's learning rate.

    Memory: seven maps of 256 channels are kept for the backward pass, at 800 x 1344 px 0.2 GB an image with
    strides 8 to 128, 0.7 GB with strides 4 to 64. Attention is kept for no query; that of the objects is made
    once, for each image 1.4 MB, or 5.7, times the objects of the fullest one.

    Args:
        pair: the two models; the teacher is anything with a neck.
        distillation: factor of the imitation, 3 for two stages.
        identification: factor of telling objects from fakes.
        localisation: factor of finding sides.
        fakes: of each object.
        queries: the most of an image, objects and fakes; its objects are all asked for.
        jitter: the most that a centre is moved, as a fraction of its box.
        adapt_until: until when the distillation trains the student's projection alone: below 1 a fraction of
            the student's iterations, from 1 on a number of them. Published are 1,000 of the 90,000 of 1x.

    Source: Kang et al., NeurIPS 2021, arXiv:2110.12724, and the authors' code, with its factors.
    Differs: the module learns by the recipe's optimiser and rate; theirs has AdamW at 1e-4 on a cosine, and
    gradients clipped at 0.01 apart from the student's. Fakes are drawn as they are there for datasets other
    than COCO. Their students start from the teacher's neck and head (`inherit: true` here). Attention's
    projections are drawn as torch draws linear layers, there by Xavier's rule.
    """

    default_weight = 1.0
    defaults_for = {"faster_rcnn": {"distillation": 3.0, "queries": 100}}
    # moved further, a centre could leave its box
    limits = {"fakes": (1, 100), "queries": (1, 10000), "jitter": (0.0, 0.5)}
    needs = ("feats",)

    def __init__(
        self,
        pair: Pair,
        *,
        distillation: float = 8.0,
        identification: float = 1.0,
        localisation: float = 1.0,
        fakes: int = 5,
        queries: int = 300,
        jitter: float = 0.3,
        adapt_until: float = 0.011,
    ) -> None:
        super().__init__(pair)
        self.distillation, self.identification, self.localisation = distillation, identification, localisation
        self.fakes, self.queries, self.jitter, self.adapt_until = fakes, queries, jitter, adapt_until
        self.decoder = ConditionalDecoder(pair.teacher.channels, pair.student.num_classes)
        self.value_student = nn.Linear(pair.student.channels, WIDTH)

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The three parts with their factors."""
        instances = draw_instances(batch, self.decoder.classes, self.fakes, self.queries, self.jitter)
        decoded = self.decoder(batch, teacher.feats, teacher.level_strides, instances)
        of_all = batch.max_iterations if self.adapt_until < 1 else 1
        feats = student.feats
        if batch.iteration < int(self.adapt_until * of_all):
            feats = [feat.detach() for feat in feats]
        mine = by_head(self.value_student(flat(feats)))
        return {
            "distillation": self.distillation * conditional_loss(mine, decoded.values, decoded.mask),
            "identification": self.identification * identification_loss(decoded.logits, instances),
            "localisation": self.localisation * localisation_loss(decoded.sides, instances),
        }
