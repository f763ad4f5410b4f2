"""DINO: Deformable DETR with chosen boxes as queries and denoising in training (Zhang et al., ICLR 2023)."""

from __future__ import annotations

from mmengine.config import ConfigDict

from kdlab.detectors.detr import DetrAdapter
from kdlab.errors import JobError
from kdlab.jobs.spec import ModelSettings

STRIDES = (8, 16, 32, 64)
HEAD_CONVS = 0
QUERIES = 900
LAYERS = 6
_CHANNELS = 256


class DINO(DetrAdapter):
    """Queries begin as the encoder's best boxes; those of denoising are no business of methods."""

    heads = ("DINOHead",)
    base = "dino/dino-4scale_r50_8xb2-12e_coco.py"

    @classmethod
    def config(cls, settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's own with the recipe's sizes but its channels, which mmdet's decoder has fixed.

        Raises:
            JobError: `neck_channels` is another number.
        """
        if settings.neck_channels != _CHANNELS:
            got, fix = f"neck_channels: {settings.neck_channels}", f"neck_channels: {_CHANNELS}"
            raise JobError("mmdet's DINO codes boxes for 256 channels alone", got=got, fix=fix)
        return super().config(settings, num_classes)


FAMILY = DINO
