"""Facts about detectors, without weights or data: `python -m kdlab.training.probe < requests.json`.

A short process of its own, because orchestration never imports torch. Standard input is a list of requests,
each with the "settings" of a model, "num_classes" and "input" (height, width); standard output their facts.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from kdlab.errors import KdlabError
from kdlab.training import detectors


def probe(settings: dict[str, Any], num_classes: int, input_shape: tuple[int, int]) -> dict[str, Any]:
    """What the plan may know of a model.

    Returns:
        `Facts` as plain data and: "params"; "flops" of one image (2 a multiply-add); "batch_norm_trains",
        whether its statistics move in training; "preprocessing".
    """
    cfg = detectors.config(settings, num_classes).model
    cfg.backbone.init_cfg = None
    with torch.device("meta"):
        model = MODELS.build(cfg)
    adapter = detectors.family(settings["detector"])(MODELS.build(cfg))
    model.train()
    return {
        **asdict(adapter.facts),
        "params": sum(p.numel() for p in model.parameters()),
        "flops": _flops(model, input_shape),
        "batch_norm_trains": any(isinstance(m, _BatchNorm) and m.training for m in model.modules()),
        "preprocessing": {key: cfg.data_preprocessor[key] for key in ("mean", "std", "bgr_to_rgb")},
    }


def _flops(model: nn.Module, input_shape: tuple[int, int]) -> int:
    height, width = (-(-side // 32) * 32 for side in input_shape)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 3, height, width, device="meta"), mode="tensor")
    return counter.get_total_flops()


def main() -> int:
    """Answer the requests on standard input."""
    requests = json.load(sys.stdin)
    # mmengine talks on standard output
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answers = [probe(r["settings"], r["num_classes"], tuple(r["input"])) for r in requests]
        except KdlabError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    json.dump(answers, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
