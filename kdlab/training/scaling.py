"""How large the terms of methods are beside the loss of detection: the job of kind "scale"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdlab.jobs.result import Evaluation
from kdlab.training.loop import Progress
from kdlab.training.trainer import Trainer


class Scale(Trainer):
    """A student's job that takes a few steps and is asked for its losses: whoever tunes weights reads them.

    Nothing is measured and no weights are kept.

    Raises:
        MachineError: the job needs a GPU that torch does not see.
        JobError: a parent's weights or the first ones are missing, broken or of another model.
    """

    def _evaluation(self) -> Callable[[], Evaluation] | None:
        return None

    def _finish(self, progress: Progress) -> dict[str, Any]:
        return {
            "timing": self._timing(),
            "model": self._model(digest=""),
            "data": self.reading.report(),
        }
