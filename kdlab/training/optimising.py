"""The optimiser and its learning rates, as a schedule says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from kdlab.backbones.swin import layers
from kdlab.jobs.spec import Schedule
from kdlab.training import precision  # noqa: F401 - its optimiser is named in a config

FLAT_COSINE_ENDS = 0.05  # of the peak, as in RTMDet's recipes
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def build_optimiser(model: nn.Module, schedule: Schedule) -> OptimWrapper:
    """The optimiser over everything that trains: the student and what the methods brought."""
    optimizer = {"type": "AdamW", "fused": True, "lr": schedule.lr, "weight_decay": schedule.weight_decay}
    if schedule.optimizer == "sgd":
        optimizer |= {"type": "SGD", "momentum": schedule.momentum}
    config: dict[str, Any] = {"type": "OptimWrapper"}
    if schedule.precision != "fp32":
        config["type"] = {"fp16": "AmpOptimWrapper", "bf16": "Bf16OptimWrapper"}[schedule.precision]
    if schedule.clip_grad:
        config["clip_grad"] = {"max_norm": schedule.clip_grad}
    built = OPTIMIZERS.build({**optimizer, "params": _groups(model, schedule)})
    if schedule.optimizer == "sgd":
        # torch's fused SGD makes them of freed memory, which a first step that a scaler skips leaves as it is
        for group in built.param_groups:
            for weight in filter(attrgetter("requires_grad"), group["params"]):
                built.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return OPTIM_WRAPPERS.build({**config, "optimizer": built})


def _groups(model: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay, those of the schedule's own rate first."""
    student = getattr(model, "student", model)
    factors = dict(_factors(student, schedule.lr_factors))
    if schedule.layer_decay is not None:
        for parameter, factor in _layer_factors(student.backbone, schedule.layer_decay):
            factors[parameter] = factor * factors.get(parameter, 1.0)
    plain = set() if schedule.decay_norms else set(_norms_and_biases(model))
    groups: defaultdict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    groups[1.0, True] = []
    for parameter in model.parameters():
        groups[factors.get(parameter, 1.0), parameter not in plain].append(parameter)
    return [
        {"params": parameters, "lr": factor * schedule.lr, "weight_decay": decays * schedule.weight_decay}
        for (factor, decays), parameters in groups.items()
        if parameters
    ]


def _factors(student: nn.Module, wanted: Mapping[str, float]) -> Iterator[tuple[nn.Parameter, float]]:
    """The factor of each parameter of the named parts; of a part within a part its own."""
    for name in sorted(wanted, key=lambda name: name.count(".")):
        part = student.get_submodule(name)
        yield from ((parameter, wanted[name]) for parameter in part.parameters())


def _layer_factors(backbone: nn.Module, decay: float) -> Iterator[tuple[nn.Parameter, float]]:
    """BEiT's factor of each parameter, decay ** (L + 1 - i) in layer i of L blocks, 0 being what embeds."""
    sequence = layers(backbone)
    for i, modules in enumerate(sequence):
        for module in modules:
            yield from ((parameter, decay ** (len(sequence) - i)) for parameter in module.parameters())


def _norms_and_biases(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, _NORMS) or name == "bias":
                yield parameter


def build_schedulers(optim: OptimWrapper, schedule: Schedule, iterations: int) -> list[Any]:
    """Linear warm-up, then steps or a cosine, all counted in iterations."""
    warmup = min(schedule.warmup_iters, iterations - 1)
    configs: list[dict[str, Any]] = []
    # mmengine's ramp ends one step early: one of a single step would never leave its start
    if warmup > 1:
        configs.append({"type": "LinearLR", "start_factor": schedule.warmup_factor, "end": warmup})
    if schedule.decay == "cosine":
        configs.append({"type": "CosineAnnealingLR", "T_max": iterations - warmup, "begin": warmup})
    elif schedule.decay == "flat_cosine":
        flat = iterations // 2
        falling = {"T_max": max(1, iterations - flat), "begin": flat, "eta_min_ratio": FLAT_COSINE_ENDS}
        configs.append({"type": "CosineAnnealingLR", **falling})
    else:
        milestones = [round(part * iterations) for part in schedule.milestones]
        configs.append({"type": "MultiStepLR", "milestones": milestones, "gamma": 0.1})
    return [
        PARAM_SCHEDULERS.build({**config, "by_epoch": False}, default_args={"optimizer": optim})
        for config in configs
    ]
