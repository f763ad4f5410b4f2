"""A plan with what it was made for: who runs it, on what, in which folder."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdlab.devices import Machine
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.plan import Plan
    from kdlab.recipe.settings import Recipe
    from kdlab.running.executors.base import Executor

HERE = ("local", "inline")
"""Executors whose machine is this one."""


@dataclass(frozen=True)
class Prepared:
    """A plan, its executor with the machine that it has, and the folder of runs."""

    plan: Plan
    executor: Executor
    machine: Machine
    runs: Runs


def prepare(
    recipe: Recipe,
    executor: str = "local",
    gpus: Collection[int] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    *,
    priced: bool = True,
) -> Prepared:
    """Look at the machine and plan a recipe for it.

    Args:
        recipe: as `recipe.loader.load` gives it.
        executor: key of the catalog.
        gpus: numbers of those to use; None for all that are free.
        progress: told what takes time.
        priced: where this machine trains, a few steps tell the cost of jobs that no finished one tells.

    Raises:
        KdlabError: the data, the models or the machine do not allow it.
    """
    from kdlab.jobs.paths import Runs
    from kdlab.planning import build, pace
    from kdlab.running.executors import base

    runs = Runs.here()
    runner = base.load(executor, gpus, recipe.resources.executors.get(executor))
    plan = build.prepare(recipe, runs, runner.machine, progress)
    if priced and executor in HERE:
        plan = pace.priced(plan, runner.machine, progress)
    return Prepared(plan, runner, runner.machine, runs)


def smaller(made: Prepared) -> bool:
    """Whether a job ran out of memory that a new plan will have in smaller parts."""
    from kdlab.jobs import store
    from kdlab.planning import out_of_memory as memory

    if made.plan.recipe["resources"]["on_oom"] != "micro_batch":
        return False
    jobs = [planned.job for planned in made.plan.jobs]
    failed = [(job, store.shortage(made.runs.job(job.id))) for job in jobs]
    return any(failure and memory.smaller(job, failure) for job, failure in failed)
