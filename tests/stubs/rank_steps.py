"""Steps of a Distiller by one process or by several: run by `kdlab.training.launch` in place of a job.

The folder holds `cases.pkl`, name -> `Case`; rank 0 leaves `found.pt`, name -> what `steps` returns.
"""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdlab.jobs.job import read_job
from kdlab.jobs.paths import JobPaths
from kdlab.training import ranks
from kdlab.training.distiller import Distiller
from kdlab.training.optimising import build_optimiser
from kdlab.training.step import Step
from tests.stubs.jobs import schedule

SCHEDULE = schedule(optimizer="sgd", weight_decay=1e-4)


@dataclass
class Case:
    """A student and its teacher, the methods, and the batches of all processes together."""

    student: nn.Module
    teacher: nn.Module
    methods: dict[str, Any]
    batches: list[dict[str, Any]]
    micro_batch: int | None = None
    statistics: bool = field(default=False)


def steps(case: Case) -> dict[str, Any]:
    """Losses of each step, the mean over the processes, and the student's weights after them."""
    distiller = Distiller(case.student, case.methods, case.teacher).train()
    for module in distiller.modules():
        if isinstance(module, _BatchNorm):
            module.train(case.statistics)
    step = Step(distiller, build_optimiser(distiller, SCHEDULE), case.micro_batch)
    losses = []
    for batch in case.batches:
        own = {name: values[ranks.rank() :: ranks.count()] for name, values in batch.items()}
        losses.append(ranks.mean({name: value.item() for name, value in step(own).items()}))
    return {
        "losses": losses,
        "weights": distiller.state_dict(),
        "drawn": ranks.gathered([torch.rand(1, generator=t.generator) for t in distiller.terms.values()]),
    }


def main(folder: Path) -> None:
    """Run all cases."""
    torch.set_num_threads(1)
    with ranks.joined(read_job(JobPaths(folder))):
        cases = pickle.loads((folder / "cases.pkl").read_bytes())
        found = {name: steps(case) for name, case in cases.items()}
        if os.environ["RANK"] == "0":
            torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
