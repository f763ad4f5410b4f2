"""Augmentation of training images: named steps in their order, each of them one of mmdet's transforms."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from kdlab.errors import suggestion
from kdlab.jobs.settings import Fraction, Listed, Settings, Side

GREY = 114
"""Of what is between tiles and around moved or padded images, as in YOLOX and RTMDet."""
Size = Annotated[tuple[Side, Side], Listed]
Probability = Annotated[float, Field(ge=0, le=1)]


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"must ascend: {bounds[0]:g} is above {bounds[1]:g}")
    return bounds


Range = Annotated[tuple[PositiveFloat, PositiveFloat], Listed, AfterValidator(_ascending)]
"""The smallest and the largest of a factor."""


class Step(Settings):
    """One step; its name is `step`."""

    sized: ClassVar[bool] = False
    """It makes images of a size of its own, so that none is made before."""
    mixes: ClassVar[bool] = False
    """It draws other images into one, or mends what that left; `augment_stop` ends it."""
    scaled: ClassVar[bool] = False
    """It works towards `dataset.scale`, whatever its options."""
    step: str

    @property
    def needs_scale(self) -> bool:
        """Whether it works towards `dataset.scale`."""
        return self.scaled


class MultiScale(Step):
    """Resize to fit a size that is drawn for each image.

    Args:
        scales: the smallest and the largest (width, height), between which it lies.
        ratio: or by what `dataset.scale` is multiplied at least and at most.
    """

    sized = True

    step: Literal["multi_scale"]
    scales: Annotated[tuple[Size, Size], Listed] | None = None
    ratio: Range | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.scales is None) == (self.ratio is None):
            raise ValueError("needs either scales, two sizes, or ratio, two factors of dataset.scale")
        return self

    @property
    def needs_scale(self) -> bool:
        """Whether it works towards `dataset.scale`."""
        return self.ratio is not None


class RandomCrop(Step):
    """Cut out a part of a fixed size; an image that is smaller stays.

    Args:
        size: (width, height); that of `dataset.scale` where it is left out.
    """

    step: Literal["random_crop"]
    size: Size | None = None

    @property
    def needs_scale(self) -> bool:
        """Whether it works towards `dataset.scale`."""
        return self.size is None


class RandomResizeCrop(Step):
    """Resize by a drawn factor, then cut out what `dataset.scale` says.

    Args:
        ratio: the smallest and the largest factor of `dataset.scale`, behind a mosaic of its four tiles.
    """

    sized = scaled = True

    step: Literal["random_resize_crop"]
    ratio: Range = (0.5, 2.0)


class Photometric(Step):
    """Brightness, contrast, saturation, hue and order of channels, each at random."""

    step: Literal["photometric"]


class HSV(Step):
    """Shift hue, saturation and value, as YOLOX does.

    Args:
        hue: largest shift, of 180.
        saturation: largest shift, of 255.
        value: largest shift, of 255.
    """

    step: Literal["hsv"]
    hue: NonNegativeInt = 5
    saturation: NonNegativeInt = 30
    value: NonNegativeInt = 30


class Mosaic(Step):
    """Four images as tiles of `dataset.scale` around a random centre: twice as wide and high.

    What follows cuts that down: `random_affine`, `random_crop` or `random_resize_crop`, else it is resized.
    """

    sized = mixes = scaled = True

    step: Literal["mosaic"]


class MixUp(Step):
    """The mean of two images with the boxes of both.

    Args:
        ratio: the smallest and the largest factor by which the other one is resized.
    """

    mixes = scaled = True

    step: Literal["mixup"]
    ratio: Range = (0.5, 1.5)


class RandomAffine(Step):
    """Rotate, scale, shear and shift, and cut out the middle of a mosaic.

    Args:
        rotate: largest angle in degrees.
        shift: largest part of the size.
        scaling: smallest and largest factor.
        shear: largest angle in degrees.
    """

    mixes = True

    step: Literal["random_affine"]
    rotate: NonNegativeFloat = 10.0
    shift: Probability = 0.1
    scaling: Range = (0.5, 1.5)
    shear: NonNegativeFloat = 2.0


class Erase(Step):
    """Grey patches; a box of which little is left goes.

    Args:
        patches: how many: from the first number to the one before the second.
        ratio: of the sides of an image, at least and at most.
    """

    step: Literal["erase"]
    patches: Annotated[tuple[PositiveInt, PositiveInt], Listed] = (1, 5)
    ratio: Annotated[tuple[Fraction, Fraction], Listed] = (0.05, 0.2)

    @model_validator(mode="after")
    def _both_ascend(self) -> Self:
        for name in ("patches", "ratio"):
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"{name} must ascend: {low:g} is not below {high:g}")
        return self


AnyStep = (
    MultiScale | RandomCrop | RandomResizeCrop | Photometric | HSV | Mosaic | MixUp | RandomAffine | Erase
)
STEPS: dict[str, type[Step]] = {
    get_args(kind.model_fields["step"].annotation)[0]: kind for kind in get_args(AnyStep)
}
PRESETS: dict[str, list[dict[str, Any]]] = {
    "coco": [],
    "coco_ms": [{"step": "multi_scale", "scales": [[1333, 640], [1333, 800]]}],
    "rtmdet": [
        {"step": "mosaic"},
        {"step": "random_resize_crop", "ratio": [0.1, 2.0]},
        {"step": "hsv"},
        {"step": "mixup", "ratio": [1.0, 1.0]},
    ],
    "yolox": [
        {"step": "mosaic"},
        {"step": "random_affine", "scaling": [0.1, 2.0]},
        {"step": "mixup", "ratio": [0.8, 1.6]},
        {"step": "hsv"},
    ],
    "small_data": [{"step": "random_resize_crop", "ratio": [0.6, 1.6]}, {"step": "photometric"}],
}
"""Of mmdet's recipes, with the flip that all have as `dataset.flip`; `small_data` is ours."""


def _named(given: Any) -> Any:
    """Steps from the forms in which a recipe writes them: a preset, a name, a name with options."""
    if isinstance(given, str):
        _known(given, PRESETS, "is no preset of augmentation")
        return PRESETS[given]
    if not isinstance(given, list | tuple):
        raise ValueError(f"must be a list of steps, or a preset: {', '.join(PRESETS)}")
    return [_step(one) for one in given]


def _step(one: Any) -> Any:
    if isinstance(one, Step):
        return one
    if isinstance(one, dict) and "step" in one:
        _known(one["step"], STEPS, "is no step of augmentation")
        return one
    name: Any = one
    options: Any = {}
    if isinstance(one, dict) and len(one) == 1:
        ((name, options),) = one.items()
    if not (isinstance(name, str) and isinstance(options, dict)):
        raise ValueError("a step is a name, or a name with options: {mixup: {ratio: [0.8, 1.6]}}")
    _known(name, STEPS, "is no step of augmentation")
    return {"step": name, **options}


def _known(name: Any, known: dict[str, Any], what: str) -> None:
    if not isinstance(name, str) or name not in known:
        near = suggestion(str(name), list(known))
        raise ValueError(f"{name} {what}; known: {', '.join(known)}{f'; {near}' if near else ''}")


Augment = Annotated[
    tuple[Annotated[AnyStep, Field(discriminator="step")], ...], BeforeValidator(_named), Listed
]
"""Steps in their order: `[mosaic, {random_affine: {scaling: [0.1, 2]}}]`, or the name of a preset."""
