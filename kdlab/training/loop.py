"""Training loop: what it does at (seed, epoch, batch) depends on nothing else, so a kill is a resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from statistics import median
from typing import Self

from torch.utils.data import DataLoader

from kdlab.errors import JobError, OutOfMemory
from kdlab.jobs.events import JobCheckpointed, JobEvaluated, JobProgress, JobStarted
from kdlab.jobs.result import Curves, Evaluation
from kdlab.training import ranks
from kdlab.training.attempt import Attempt
from kdlab.training.averaging import Average
from kdlab.training.checkpoints import TrainingCheckpoints, random_state, restore_random_state
from kdlab.training.data import batches_of
from kdlab.training.device import is_out_of_memory, memory_facts
from kdlab.training.distiller import Distiller, averages_batches
from kdlab.training.optimising import build_optimiser, build_schedulers
from kdlab.training.step import Step

REPORTS = 100
"""Number of intervals over which losses are averaged, of at most 50 iterations each."""
_SHOWN = 500
_UNMATCHED = "invalid numeric entries"  # scipy, of what mmdet's matcher of a DETR hands to it


class Stopped(Exception):  # noqa: N818 - not an error
    """Training was asked to stop and wrote a checkpoint."""


@dataclass
class Progress:
    """State of the training besides weights and generators: all of it is in the checkpoint."""

    epoch: int = 0
    batch: int = 0
    iteration: int = 0
    wall_s: float = 0.0
    history: list[Evaluation] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)
    window: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `json.dumps(asdict(...))`."""
        fields = json.loads(text)
        return cls(**fields | {"history": [Evaluation(**one) for one in fields["history"]]})

    def curves(self) -> Curves:
        """All evaluations, and as many reports of losses as a plot can show."""
        return Curves(self.history, self.losses[:: max(1, len(self.losses) // _SHOWN)])


def _mean(name: str, steps: Sequence[Mapping[str, float]]) -> float:
    """Of a loss over steps, 0 in those without it; of a share of the gradient over those that looked."""
    told = [one[name] for one in steps if name in one]
    return sum(told) / len(told if name.startswith("share_") else steps)


class TrainingLoop:
    """Trains a Distiller over a schedule, evaluating and writing checkpoints on the way.

    Args:
        distiller: the model, on its device.
        loader: of `training_loader`.
        attempt: at a job that trains; the states are in its folder.
        evaluate: measures the student as it is; None where nothing is measured.
    """

    def __init__(
        self,
        distiller: Distiller,
        loader: DataLoader,
        attempt: Attempt,
        evaluate: Callable[[], Evaluation] | None,
    ) -> None:
        spec, schedule = attempt.job.spec, attempt.job.spec.schedule
        self.distiller, self.loader, self.schedule = distiller, loader, schedule
        self.evaluate, self.emit, self.may_write = evaluate, attempt.emit, attempt.may_write
        self.should_stop = attempt.should_stop
        self.checkpoints = TrainingCheckpoints(attempt.paths.checkpoints)
        self.checkpoint_s = 60 * attempt.job.resources.checkpoint_minutes
        # reading a loss there waits for the device, so it is read only for a report
        self.on_gpu = next(distiller.parameters()).is_cuda
        batches = len(loader.batch_sampler)
        self.iterations = spec.iterations or schedule.iterations or schedule.epochs * batches
        self.epochs = math.ceil(self.iterations / batches)
        self.mixed_epochs = spec.mixed_epochs
        self.interval = max(1, min(50, self.iterations // REPORTS))
        self.optim = build_optimiser(distiller, schedule)
        self.schedulers = build_schedulers(self.optim, schedule, self.iterations)
        if schedule.ema is not None:
            distiller.average = Average(distiller.student, schedule.ema, self.iterations)
        self.optim.initialize_count_status(distiller, 0, self.iterations)
        self.step = Step(distiller, self.optim, spec.images_a_forward)
        self.progress = Progress()
        self.seconds: list[tuple[float, float]] = []
        """Of each step of this process, and of it of the wait for data."""
        self._saved, self._saved_at = 0, time.monotonic()
        self._shares: dict[str, float] = {}
        """Of the gradient, as they were looked at last."""

    def run(self) -> Progress:
        """Train to the end of the schedule, from where `resume` put it or from the start.

        Raises:
            Stopped: on request, after a checkpoint.
            JobError: a loss is not finite, or a checkpoint cannot be written.
        """
        while self.progress.epoch < self.epochs:
            self._run_epoch()
        return self.progress

    def resume_and_run(self, device: str) -> Progress:
        """Train from the newest checkpoint or from the start; as `run` otherwise.

        Raises:
            OutOfMemory: the GPU's memory did not hold a step.
        """
        for name in self.resume():
            print(f"passed over {name}: its content is not what its hash says", flush=True)
        at = self.progress
        evaluated = at.history[-1].iteration if at.history else 0
        counts = {"epochs": self.epochs, "iterations": self.iterations, "iteration": at.iteration}
        self.emit(JobStarted, device=device, evaluated=evaluated, **counts)
        try:
            return self.run()
        except ValueError as error:
            if _UNMATCHED not in str(error):
                raise
            raise JobError(
                "the outputs are not finite, so no query can be matched with an object",
                where=f"iteration {self.progress.iteration + 1}",
                got=str(error),
                fix="lower schedule.lr or the method's weight, or give it warmup_iters; "
                "the last good checkpoint is kept",
            ) from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            place = next(self.distiller.parameters()).device
            memory, images = memory_facts(place), self.step.images
            # it can also have happened in an evaluation
            batchnorm = averages_batches(self.distiller.train())
            raise OutOfMemory(
                "the GPU is out of memory",
                where=f"iteration {self.progress.iteration + 1}",
                got=f"{memory['peak_gb']} GB of {memory['total_gb']} GB at {images} images a forward",
                fix="lower schedule.batch_size, or take a smaller model or a larger GPU",
                facts={**memory, "micro_batch": images, "batchnorm": batchnorm},
            ) from error

    def resume(self) -> list[str]:
        """Go back to the newest whole checkpoint; returns the names of broken ones that were passed over."""
        state, broken = self.checkpoints.newest()
        if state is not None:
            self.progress = Progress.from_json(state["progress"])
            self.distiller.load_state_dict(state["distiller"])
            self.optim.load_state_dict(state["optimiser"])
            for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
                scheduler.load_state_dict(saved)
            # a state of an earlier kdlab is that of a single process
            own = state["ranks"][ranks.rank()] if "ranks" in state else state
            self.progress.window = own.get("window", self.progress.window)
            for name, term in self.distiller.terms.items():
                term.generator.set_state(own["generators"][name])
            restore_random_state(own["random"])
        return [path.name for path in broken]

    def median_s(self, last: int = 0) -> tuple[float, float]:
        """Median seconds of the last steps or of all, and of the wait for data in them."""
        if not self.seconds:
            return 0.0, 0.0
        step_s, data_s = zip(*self.seconds[-last:], strict=True)
        return median(step_s), median(data_s)

    def _run_epoch(self) -> None:
        at, every = self.progress, self.schedule.eval_every
        self.distiller.train()
        if at.epoch >= self.mixed_epochs:
            self.distiller.adapter.finish()
        self.loader.batch_sampler.start_at(at.epoch, at.batch)
        asked = time.perf_counter()
        for data in islice(batches_of(self.loader), self.iterations - at.iteration):
            got = time.perf_counter()
            # one iteration: a step of the weights, then of their learning rate
            self.distiller.iteration, self.distiller.max_iterations = at.iteration, self.iterations
            at.window.append(self.step(data))
            for scheduler in self.schedulers:
                scheduler.step()
            if self.distiller.average is not None:
                self.distiller.average.follow(self.distiller.student, at.iteration)
            self.seconds.append((time.perf_counter() - asked, got - asked))
            at.batch, at.iteration = at.batch + 1, at.iteration + 1
            self._report_and_save()
            asked = time.perf_counter()
        epoch = at.epoch + 1
        due = epoch == self.epochs or (every > 0 and epoch % every == 0)
        if due and self.evaluate is not None:
            if self._saved != at.iteration:
                # an evaluation can take long, and its images can be broken
                self._save()
            self._keep(replace(self.evaluate(), epoch=epoch, iteration=at.iteration))
        for term in self.distiller.terms.values():
            term.weight.end_epoch()
        at.epoch, at.batch = epoch, 0
        self._save()

    def _keep(self, found: Evaluation) -> None:
        """Add an evaluation to the history, and keep the weights where it is the best."""
        history = self.progress.history
        is_best = all(found.metrics["AP"] > before.metrics["AP"] for before in history)
        history.append(found)
        if self.schedule.keep_best and is_best and ranks.rank() == 0:
            self.may_write()
            self.checkpoints.save_best({"state_dict": self.distiller.kept.state_dict()})
        self.emit(JobEvaluated, epoch=found.epoch, iteration=found.iteration, metrics=found.metrics)

    def _report_and_save(self) -> None:
        """What may be due after an iteration: a report of the losses, a checkpoint, a stop."""
        at = self.progress
        if not self.on_gpu:
            self._settle_window()
        if at.iteration % self.interval == 0 or at.iteration == self.iterations:
            self._settle_window()
            steps, at.window = at.window, []
            # a method that stops is in some of them only
            names = dict.fromkeys(name for one in steps for name in one)
            means = ranks.mean({name: _mean(name, steps) for name in names})
            lr = self.optim.get_lr()["lr"][0]
            at.losses.append({"iteration": at.iteration, "lr": lr, **means})
            self._check_scale()
            step_s, data_s = self.median_s(last=self.interval)
            counts = {"epochs": self.epochs, "iteration": at.iteration, "iterations": self.iterations}
            times = {"step_s": step_s, "data_s": data_s, "eta_s": (self.iterations - at.iteration) * step_s}
            self._shares |= {name: value for name, value in means.items() if name.startswith("share_")}
            told = means | self._shares
            self.emit(JobProgress, epoch=at.epoch, losses=told, lr=lr, **counts, **times)
        late = time.monotonic() - self._saved_at > self.checkpoint_s
        stop, due = ranks.any_of(self.should_stop(), late)
        if stop or due:
            self._save()
        if stop:
            raise Stopped

    def _check_scale(self) -> None:
        """Stop where half precision has skipped step after step: losses are finite and gradients are not."""
        scaler = getattr(self.optim, "loss_scaler", None)
        scale = scaler.get_scale() if scaler else 1.0
        if scale < 1:
            raise JobError(
                "gradients are not finite, so nothing is trained",
                where=f"iteration {self.progress.iteration}",
                got=f"loss scale {scale:g}, 65536 at the start",
                fix="lower schedule.lr or the method's weight, or train with schedule.precision=fp32",
            )

    def _settle_window(self) -> None:
        """Bring the losses since the last report to the host, and stop at one that is not finite."""
        window = self.progress.window
        for place, losses in enumerate(window):
            window[place] = {name: float(value) for name, value in losses.items()}
            bad = {name: value for name, value in window[place].items() if not math.isfinite(value)}
            if len(bad) > 1:
                # their sum
                bad.pop("loss", None)
            if bad:
                raise JobError(
                    f"{', '.join(bad)} is not finite",
                    where=f"iteration {self.progress.iteration - len(window) + place + 1}",
                    got=", ".join(f"{name} {value}" for name, value in bad.items()),
                    fix="lower schedule.lr or the method's weight, or give it warmup_iters; "
                    "the last good checkpoint is kept",
                )

    def _save(self) -> None:
        self._settle_window()
        self.may_write()
        at, now = self.progress, time.monotonic()
        at.wall_s += now - self._saved_at
        self._saved, self._saved_at = at.iteration, now
        generators = {name: term.generator.get_state() for name, term in self.distiller.terms.items()}
        # what differs between the processes of a job
        own = {"random": random_state(), "generators": generators, "window": at.window}
        state = {
            "progress": json.dumps(asdict(at)),
            "distiller": self.distiller.state_dict(),
            "optimiser": self.optim.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "ranks": ranks.gathered(own),
        }
        if ranks.rank() == 0:
            self.checkpoints.save(at.iteration, state)
        self.emit(JobCheckpointed, iteration=at.iteration)
