"""First weights of a backbone: torchvision's, or those of a file; a whole backbone or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from kdlab.backbones import kinds
from kdlab.errors import JobError, MachineError
from kdlab.jobs.spec import ModelSpec
from kdlab.training import checkpoints, weights
from kdlab.training.weights.key_report import KeyReport, fit


def load_backbone(backbone: nn.Module, path: Path) -> KeyReport:
    """Load an mmdet backbone from the file of a classifier or of a detector.

    Raises:
        JobError: the file cannot be read, or lacks a part of the backbone.
    """
    found, report = fit_backbone(backbone.state_dict(), weights.read(path).tensors, str(path))
    if not report.whole:
        raise JobError(faults=[report.fault(str(path), "backbone", "name a file of this very backbone")])
    backbone.load_state_dict(found, strict=False)
    return report


def fit_backbone(
    model: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str = ""
) -> tuple[dict[str, Tensor], KeyReport]:
    """As `key_report.fit`, for a backbone: names that are not mmdet's are brought to its own first."""
    given = {name.removeprefix("module."): value for name, value in tensors.items()}
    for kind in kinds():
        if not given.keys().isdisjoint(kind.foreign_keys):
            return fit(*kind.renamed(model, given, where), where)
    return fit(model, tensors, where)


def first_weights(model: ModelSpec, path: str | None) -> Path | None:
    """The file that a model's backbone starts from; None where all is drawn.

    Args:
        model: its `init` is "none", "imagenet" or "sha256:<hex>".
        path: where the file of that content lies now.

    Raises:
        JobError: the file is not the one that was planned with.
    """
    if model.init == "none":
        return None
    if model.init == "imagenet":
        return torchvision_file(str(model.backbone))
    file = Path(path or "")
    if not file.is_file() or f"sha256:{checkpoints.sha256(file)}" != model.init:
        raise JobError(
            "the backbone's first weights are gone, or not the ones that were planned with",
            where=str(file),
            fix="put the file back, or run again with the file as it is now",
        )
    return file


def check_torchvision(name: str, backbone: nn.Module) -> None:
    """See without a download whether torchvision's weights fit an mmdet backbone.

    Raises:
        JobError: torchvision has none of that name, or they are of another model.
    """
    _weights_of(name)
    with torch.device("meta"):
        given = get_model(name).state_dict()
    _, report = fit_backbone({k: v.to("meta") for k, v in backbone.state_dict().items()}, given)
    if not report.whole:
        fix = "name a file of this very backbone: init: FILE"
        raise JobError(faults=[report.fault(f"init: imagenet ({name})", "backbone", fix)])


def _weights_of(backbone: str) -> Any:
    """Torchvision's first ImageNet weights of a backbone."""
    try:
        return get_model_weights(backbone).IMAGENET1K_V1
    except ValueError as error:
        fix = "name a file: init: FILE"
        raise JobError(f"torchvision has no weights for {backbone}", got="init: imagenet", fix=fix) from error


def torchvision_file(backbone: str) -> Path:
    """The weights that torchvision trained on ImageNet first, in torch's own cache.

    Raises:
        MachineError: they cannot be downloaded.
    """
    url = _weights_of(backbone).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    digest = path.stem.rpartition("-")[2]
    if path.exists() and checkpoints.sha256(path).startswith(digest):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
    except (OSError, RuntimeError) as error:
        raise MachineError(
            "torchvision's weights cannot be downloaded",
            where=url,
            got=str(getattr(error, "reason", None) or error),
            fix=f"put the file at {path}, or name it in the recipe: init: FILE",
        ) from error
    return path
