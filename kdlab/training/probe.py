"""Facts about detectors, without data: `python -m kdlab.training.probe < requests.json`.

A short process of its own, because planning never imports torch. Standard input is a list of requests, each
with a "model" (a `ModelSpec`), "num_classes" and "input" (height, width), the "file" of an mmdet config if it
is one, and where it starts from weights their "files" and the dataset's "classes"; standard output holds
their facts.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdlab import children, detectors
from kdlab.backbones.swin import layers
from kdlab.detectors import registered
from kdlab.detectors.mmdet_config import DOUBLED_TO, DOUBLING, folders_of, read_config, see
from kdlab.errors import Fault, JobError, KdlabError, UsageError
from kdlab.jobs.spec import ModelSpec
from kdlab.training import weights
from kdlab.training.distiller import averages_batches
from kdlab.training.weights.backbones import check_torchvision, fit_backbone
from kdlab.training.weights.key_report import fit


def probe(
    spec: ModelSpec,
    num_classes: int,
    input_shape: tuple[int, int],
    files: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    file: str | None = None,
    ema: bool = False,
) -> dict[str, Any]:
    """Facts of a model for the plan.

    Args:
        spec: the model's settings.
        num_classes: of the dataset.
        input_shape: height and width on which FLOPs are counted.
        files: paths of weights, "checkpoint" for the whole model, "init" for its backbone.
        classes: of the dataset, to compare with those of the files.
        file: path of the mmdet config that the model is, if it is one.
        ema: whether the averaged weights of the checkpoint are meant.

    Returns:
        `Facts` as plain data and: "params"; "flops" of one image (2 a multiply-add), of a head that kdlab
        does not know without the head; "batch_norm_trains", whether its statistics move in training;
        "preprocessing"; "layers", how many a backbone of blocks in sequence has, 0 for others;
        "parts", the names of all modules with parameters; "neck_and_head", the shape of each tensor
        there; "pad_divisor", to which images are padded, and "least_divisor", without which its neck fails;
        for each file its key report and faults; and of an mmdet config what `read_config` gives, and
        "modules", the folders of its own modules.

    Raises:
        JobError: a file cannot be read, or torchvision's weights do not fit.
        UsageError: the settings name a file that is no config of a detector.
    """
    folders = folders_of(Path(file)) if file else []
    see(folders)
    found = read_config(Path(file), spec.init) if file else {}
    spec = spec.model_copy(update=found)
    cfg = detectors.config(spec, num_classes).model
    cfg.backbone.init_cfg = None
    model = detectors.assembled(spec, cfg).train()
    if spec.init == "imagenet":
        check_torchvision(str(spec.backbone), model.backbone)
    facts = {
        **found,
        "modules": folders if spec.imports else [],
        **asdict(detectors.adapt(model).facts),
        "params": sum(p.numel() for p in model.parameters()),
        "batch_norm_trains": averages_batches(model),
        "preprocessing": {key: cfg.data_preprocessor.get(key) for key in ("mean", "std", "bgr_to_rgb")},
        "layers": len(layers(model.backbone)),
        "parts": [
            name
            for name, module in model.named_modules()
            if name and next(module.parameters(), None) is not None
        ],
        "neck_and_head": {
            name: list(value.shape) for name, value in weights.neck_and_head(model.state_dict()).items()
        },
        "pad_divisor": model.data_preprocessor.pad_size_divisor,
        "least_divisor": DOUBLED_TO if DOUBLING & {type(part).__name__ for part in model.modules()} else 1,
        **{part: _file_facts(part, Path(path), model, classes, ema) for part, path in (files or {}).items()},
    }
    return facts | {"flops": flops(model, input_shape)}


def flops(model: nn.Module, input_shape: tuple[int, int]) -> int:
    """FLOPs of a model for one image, 2 per multiply-add; sides are rounded up to 32.

    The model is left where its family counts, mostly on the meta device, and without gradient.
    """
    height, width = (-(-side // 32) * 32 for side in input_shape)
    adapter = detectors.adapt(model)
    # torch's counter follows what has a gradient, also where none is computed
    # and batch norm has nothing to learn from the one place of a coarse map of one image
    model.requires_grad_(False).eval().to(adapter.counts_on)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        adapter.forward_all(torch.zeros(1, 3, height, width, device=adapter.counts_on))
    return int(counter.get_total_flops())


def _file_facts(part: str, path: Path, model: nn.Module, classes: Sequence[str], ema: bool) -> dict[str, Any]:
    """Key report and faults of a file of weights for a model, without where the file lies."""
    found, wrong_classes = weights.read(path, ema=ema and part == "checkpoint"), None
    if part == "init":
        _, report = fit_backbone(model.backbone.state_dict(), found.tensors, str(path))
        role, fix = "backbone", "name a file of this very backbone"
    else:
        _, report = fit(model.state_dict(), found.tensors, str(path))
        role = "teacher"
        fix = "name a checkpoint of this very model, or accept it as it is: teacher.partial: true"
        wrong_classes = weights.class_fault(found, classes)
    return {
        "report": report.to_dict(),
        "lines": report.lines(),
        "classes": found.classes,
        "also": found.also,
        "expected": len(classes),
        "key_fault": None if report.whole else asdict(report.fault("", role, fix)),
        "class_fault": wrong_classes and asdict(wrong_classes),
    }


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The facts, or "unreadable": the faults of a file that cannot be read, or of what cannot be built.

    A fault of the settings has its dotted path below the model in place of a file: "overrides.model.neck".
    """
    spec = ModelSpec.model_validate(request["model"])
    known = {key: request[key] for key in ("files", "classes", "file", "ema") if key in request}
    try:
        return probe(spec, request["num_classes"], tuple(request["input"]), **known)
    except (JobError, UsageError) as error:
        return {"unreadable": [asdict(fault) for fault in error.faults]}
    except (KdlabError, ImportError, MemoryError, OSError):
        # the machine, and not what the recipe says
        raise
    except Exception as error:
        return {"unreadable": [asdict(unbuildable(spec, error, own="file" in request))]}


def unbuildable(spec: ModelSpec, error: Exception, *, own: bool = False) -> Fault:
    """Fault of settings that mmdet or torch refused, with the override that their words name, else all.

    Args:
        spec: the model's settings.
        error: what was raised.
        own: whether they change a config of the user's own, which may be what is wrong.
    """
    told = f"{type(error).__name__}: {error}".strip().partition("\n")[0][:300]
    paths = [path for path, _ in registered.leaves(spec.overrides, "overrides")]
    # the place in a list is in any message with a number
    words = {word for word in re.findall(r"\w+", told) if not word.isdigit()}
    named = [path for path in paths if path.rpartition(".")[2] in words]
    usual = "" if own or not spec.overrides else "overrides"
    if len(spec.overrides) == 1 and usual:
        named.append(f"overrides.{next(iter(spec.overrides))}")
    where = [*named, usual][0]
    which = f" ({', '.join(spec.overrides)})" if where == "overrides" else ""
    return Fault(f"{where}{which} makes a model that cannot be built".strip(), where, told, fix="correct it")


def main() -> int:
    """Answer the requests on standard input."""
    for parent in sys.argv[1:]:
        children.end_with_parent(int(parent))
    requests = json.load(sys.stdin)
    # mmengine talks on standard output
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answers = [answer(request) for request in requests]
        except KdlabError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    json.dump(answers, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
