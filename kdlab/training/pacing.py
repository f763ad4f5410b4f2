"""Seconds of a training step before there is a recipe: `python -m kdlab.training.pacing < request.json`.

A short process of its own, because the command line never imports torch. Standard input holds the "teacher"
and the "student" as a job has them, the number of "classes", the "size" of images and the "batch"; standard
output the seconds of a step.
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
from kdlab.training.bench import step_times
from kdlab.training.distiller import Distiller
from kdlab.training.optimising import build_optimiser

ROUNDS = 3
OBJECTS = 8


def seconds(request: dict[str, Any]) -> dict[str, float]:
    """Median seconds of a step: the "student" alone, "distilled" by methods, the "teacher" alone."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher, student = (
        detectors.build(ModelSpec.model_validate(request[name]), request["classes"])
        for name in ("teacher", "student")
    )
    methods = {name: MethodSettings.model_validate(one) for name, one in request["methods"].items()}
    schedule = Schedule.model_validate(request["schedule"])
    data = batch(request["classes"], *request["size"], request["batch"])
    pair = Distiller(student, methods, teacher).to(device)
    found = step_times(pair, build_optimiser(pair, schedule), data, ROUNDS)
    alone = Distiller(teacher.requires_grad_(), {}).to(device)
    own = step_times(alone, build_optimiser(alone, schedule), data, ROUNDS)
    return {
        "student": found["student_step_s"],
        "distilled": found["distill_step_s"],
        "teacher": own["student_step_s"],
    }


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
