"""Seconds of a training step of models with random weights: `python -m kdlab.training.pacing < request.json`.

A short process of its own, because the command line never imports torch. Standard input holds the "teacher"
(or null) and the "student" as a job has them, the "methods" by instance, the "schedule", the number of
"classes", the "size" of images, the images of a "batch" and the "threads"; standard output the seconds.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from kdlab import children, detectors
from kdlab.jobs.spec import MethodSettings, ModelSpec, Schedule
from kdlab.training.bench import step_times, timed
from kdlab.training.distiller import Distiller
from kdlab.training.optimising import build_optimiser

ROUNDS = 3
OBJECTS = 8
FEWEST_IMAGES = 2
"""BatchNorm needs two where a level is one pixel."""
LONGEST_S = 1.0
"""A step of the whole batch is measured where one of the fewest images lets it take no longer."""


def seconds(request: dict[str, Any]) -> dict[str, float]:
    """Median seconds of what a job repeats, each of one batch.

    Returns:
        "student" and "teacher", a training step of each alone; "forward", the teacher's pass without
        gradients; "distilled", a training step of the student with all methods. Without a teacher "student"
        alone.
    """
    torch.set_num_threads(request["threads"])
    roles = [role for role in ("student", "teacher") if request[role]]
    specs = {role: ModelSpec.model_validate(request[role]) for role in roles}
    # first weights change no time, and those of a file or a server are not fetched for it
    models = {
        role: detectors.assembled(spec, detectors.config(spec, request["classes"]).model)
        for role, spec in specs.items()
    }
    methods = {name: MethodSettings.model_validate(one) for name, one in request["methods"].items()}
    pair = _steps(Distiller(models["student"], methods, models.get("teacher")), request)
    told = {"student": pair["student_step_s"]}
    if "teacher" in models:
        alone = _steps(Distiller(models["teacher"].requires_grad_(), {}), request)
        told["teacher"] = alone["student_step_s"]
    if methods:
        told |= {"forward": pair["teacher_forward_s"], "distilled": pair["distill_step_s"]}
    return told


def _steps(distiller: Distiller, request: dict[str, Any]) -> dict[str, float]:
    """As `step_times`; of a batch that takes long the first images stand for all."""
    distiller.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    optim = build_optimiser(distiller, Schedule.model_validate(request["schedule"]))
    images, fewest = request["batch"], min(request["batch"], FEWEST_IMAGES)
    few = batch(request["classes"], *request["size"], fewest)
    distiller.train()
    first, second = (timed(lambda: distiller.train_step(few, optim)) for _ in range(2))
    if min(first, second) * images / fewest > LONGEST_S:
        taken, data = fewest, few
    else:
        taken, data = images, batch(request["classes"], *request["size"], images)
    found = step_times(distiller, optim, data, ROUNDS)
    return {name: one * images / taken for name, one in found.items()}


def batch(classes: int, width: int, height: int, images: int) -> dict[str, Any]:
    """Images of noise with objects, as a loader gives them."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(images):
        corners = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([width, height]) * 0.7
        sides = torch.tensor([width, height]) * 0.2
        sample = DetDataSample(
            metainfo={
                "img_id": number,
                "img_shape": (height, width),
                "ori_shape": (height, width),
                "scale_factor": (1.0, 1.0),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.cat([corners, corners + sides], 1)),
            labels=torch.randint(classes, (OBJECTS,), generator=generator),
        )
        sample.ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    pixels = [torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator) for _ in samples]
    return {"inputs": pixels, "data_samples": samples}


if __name__ == "__main__":
    sys.exit(children.answer(seconds))
