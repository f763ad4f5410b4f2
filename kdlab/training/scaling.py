"""Size of the terms of methods next to the loss of detection: the job of kind "scale"."""

from __future__ import annotations

from typing import Any

from kdlab.training.trainer import Trainer


class Scale(Trainer):
    """A student's job that takes a few steps and is asked for its losses: whoever tunes weights reads them.

    Nothing is measured and no weights are kept.
    """

    def evaluation(self) -> None:
        """None: nothing is measured."""

    def run(self) -> dict[str, Any]:
        """Train for the losses; as `Work.run` otherwise."""
        return self.train()
