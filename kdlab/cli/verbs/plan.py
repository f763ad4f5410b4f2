"""kdlab plan: what a run would do, what it reuses and why, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from kdlab.cli.screen.console import Screen, duration
from kdlab.cli.screen.options import ExecutorName, Gpus, Overrides, RecipeName
from kdlab.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kdlab.devices import Machine
    from kdlab.jobs.job import Job
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.plan import Plan, PlannedJob
    from kdlab.recipe.settings import Recipe
    from kdlab.running.executors.base import Executor


def plan(
    screen: Screen,
    recipe: RecipeName,
    overrides: Overrides = None,
    executor: ExecutorName = "local",
    gpus: Gpus = None,
) -> None:
    """Show what a run would do, reuse and cost.

    \b
    Examples:
      $ kdlab plan digits/quickstart
      plan 70e4  digits/quickstart  5 jobs, cost unknown on 2 cores
        + teacher   gfl r18          cost unknown  new
        + baseline  gfl r18  seed 0  cost unknown  new
        ...
      $ kdlab plan digits/quickstart --set 'seeds=[0,1]' -v
      plan 145e  digits/quickstart  9 jobs, cost unknown on 2 cores
        + teacher-865304b0  teacher          cost unknown  new
        + student-937e8fad  baseline seed 0  cost unknown  new
        ...
    """
    made = prepare(screen, recipe, overrides or [], executor, gpus)
    if screen.json:
        screen.emit(**made.plan.to_dict())
        return
    screen.data(preview(made, jobs=screen.verbose))
    screen.next(f"kdlab run{screen.command().removeprefix('kdlab plan')}")


@dataclass(frozen=True)
class Prepared:
    """A plan with what it was made for: who runs it, on what, in which folder."""

    plan: Plan
    executor: Executor
    machine: Machine
    runs: Runs


def prepare(
    screen: Screen, recipe: str, overrides: Sequence[str], executor: str, gpus: str | None
) -> Prepared:
    """Load the recipe, look at the machine, make the plan.

    Raises:
        KdlabError: the recipe, the data or the machine do not allow it.
    """
    from kdlab.recipe import loader as recipes
    from kdlab.running.executors import base

    base.check(executor)
    return planned(screen, recipes.load(recipe, overrides), executor, gpus)


def planned(screen: Screen, recipe: Recipe, executor: str, gpus: str | None) -> Prepared:
    """As `prepare`, of a recipe that is loaded."""
    from kdlab.jobs.paths import Runs
    from kdlab.planning import build as planning
    from kdlab.running.executors import base

    runs = Runs.here()
    with screen.working(f"planning {recipe.name}") as progress:
        runner = base.load(executor, gpu_numbers(gpus), recipe.resources.executors.get(executor))
        machine = runner.machine
        return Prepared(planning.prepare(recipe, runs, machine, progress), runner, machine, runs)


def gpu_numbers(text: str | None) -> list[int] | None:
    """The numbers in "0,2"; None for None.

    Raises:
        UsageError: it is not a list of numbers.
    """
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdigit() for word in words):
        raise UsageError("--gpus takes numbers as nvidia-smi counts them", got=text, fix="--gpus 0,2")
    return [int(word) for word in words]


def gpu_hours(plan: Plan) -> tuple[float, int]:
    """Hours that the known jobs to run will hold GPUs, and how many jobs on GPUs have no known cost."""
    jobs = [planned for planned in plan.jobs if planned.job.resources.gpus and not planned.done]
    known = [planned.job.resources.gpus * planned.cost_s for planned in jobs if planned.cost_s is not None]
    return sum(known) / 3600, len(jobs) - len(known)


def preview(made: Prepared, *, jobs: bool = False) -> RenderableType:
    """The plan for people: a line an arm, or with `jobs` a line a job."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column(no_wrap=True)
    table.add_column()
    for planned in [[one] for one in made.plan.jobs] if jobs else _by_arm(made.plan):
        name = planned[0].job.id if jobs else planned[0].job.arm
        about = planned[0].job.label if jobs else _model(planned[0].job)
        seeds = _seeds(planned) if planned[0].job.spec.is_student and not jobs else ""
        sign, style = ("=", "green") if planned[0].done else ("+", "bold")
        cells = [f"  {sign} {name}", about, seeds, _cost(planned), _reason(planned, made.runs)]
        table.add_row(
            *(Text(cell, style=look) for cell, look in zip(cells, (style, "", "", "", "dim"), strict=True))
        )
    head = Text(f"plan {made.plan.id[:4]}  {made.plan.recipe['name']}  {total(made)}", style="bold")
    return Group(head, table, *(Text(f"  note: {note}") for note in made.plan.notes))


def _by_arm(plan: Plan) -> list[list[PlannedJob]]:
    """The jobs of each arm, those that are done apart from the others."""
    groups: dict[tuple[str, str, bool], list[PlannedJob]] = {}
    for planned in plan.jobs:
        groups.setdefault((planned.job.kind, planned.job.arm, planned.done), []).append(planned)
    return list(groups.values())


def _model(job: Job) -> str:
    """ "gfl r18"."""
    model = job.spec.model
    return f"{model.detector} {str(model.backbone).replace('resnet', 'r')}"


def _seeds(jobs: Sequence[PlannedJob]) -> str:
    return f"seed{'s' * (len(jobs) > 1)} {' '.join(str(planned.job.seed) for planned in jobs)}"


def _cost(jobs: Sequence[PlannedJob]) -> str:
    """What one of the jobs costs."""
    if jobs[0].done:
        return "reused"
    known = [planned.cost_s for planned in jobs if planned.cost_s is not None]
    if not known:
        return "cost unknown"
    return f"~{_amount(fmean(known), jobs[0].job.resources.gpus)}{' each' * (len(jobs) > 1)}"


def _amount(seconds: float, gpus: int) -> str:
    hours = seconds * gpus / 3600
    if not gpus:
        return duration(seconds)
    return (
        f"{60 * hours:.0f} GPU-min"
        if hours < 1
        else f"{hours:.1f} GPU-h"
        if hours < 10
        else f"{hours:.0f} GPU-h"
    )


def _reason(jobs: Sequence[PlannedJob], runs: Runs) -> str:
    """Why the jobs are reused or not, and where their cost is known from."""
    from kdlab.jobs.result import JobResult

    first = jobs[0]
    if first.done:
        results = [JobResult.read(runs.job(planned.job.id)) for planned in jobs]
        aps = [result.metrics["AP"] for result in results if result and "AP" in result.metrics]
        who = first.job.id if len(jobs) == 1 else f"{len(jobs)} jobs"
        return f"{who} (AP {fmean(aps):.1f}){first.why.removeprefix('reused')}" if aps else who
    begun = sum(any(runs.job(planned.job.id).checkpoints.glob("*")) for planned in jobs)
    new = first.why.removeprefix("new: ")
    parts = [new] if first.cost_s is None else [first.cost_source, new.removeprefix("new")]
    if begun:
        parts.append("goes on from its checkpoint" if len(jobs) == 1 else f"{begun} go on from checkpoints")
    return ", ".join(part for part in parts if part)


def total(made: Prepared) -> str:
    """ "13 jobs, 1 reused, ~41 GPU-h, ~5h10m on 8 GPUs"."""
    left = [planned for planned in made.plan.jobs if not planned.done]
    reused = len(made.plan.jobs) - len(left)
    parts = [f"{len(made.plan.jobs)} job{'s' * (len(made.plan.jobs) > 1)}"]
    if not left:
        return f"{parts[0]}, all reused"
    return ", ".join([*parts, *([f"{reused} reused"] if reused else []), *_price(made, left)])


def _price(made: Prepared, left: Sequence[PlannedJob]) -> Iterator[str]:
    from kdlab.cli.screen.progress import makespan_s

    gpus, cores = len(made.machine.gpus), len(made.machine.cores)
    place = f"on {gpus} GPU{'s' * (gpus > 1)}" if gpus else f"on {cores} core{'s' * (cores > 1)}"
    costs = {planned.job.id: planned.cost_s for planned in left if planned.cost_s is not None}
    hours, _ = gpu_hours(made.plan)
    if hours:
        yield f"~{_amount(3600 * hours, 1)}"
    if unknown := len(left) - len(costs):
        yield f"cost {f'of {unknown} jobs ' if costs else ''}unknown {place}"
    else:
        yield f"~{duration(makespan_s(costs, [planned.job for planned in left], made.machine))} {place}"
