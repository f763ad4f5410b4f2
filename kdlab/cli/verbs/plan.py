"""kdlab plan: what a run would do, what it reuses and why, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from kdlab.cli.screen.console import Screen, duration, grid
from kdlab.cli.screen.options import ExecutorName, Gpus, Overrides, RecipeName
from kdlab.errors import UsageError
from kdlab.prepared import Prepared

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kdlab.jobs.paths import Runs
    from kdlab.jobs.plan import Plan, PlannedJob
    from kdlab.recipe.settings import Recipe


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
      plan 47ed  digits/quickstart  5 jobs, ~2m35s on 2 cores
        + teacher   gfl r18          ~1s     by a few steps
        + baseline  gfl r18  seed 0  ~59s    by a few steps
        ...
      $ kdlab plan digits/quickstart --set 'seeds=[0,1]' -v
      plan 8b15  digits/quickstart  9 jobs, ~4m51s on 2 cores
        + evaluate-edde88a9307c  teacher          ~1s     by a few steps
        + student-c6d349de4d2a   baseline seed 0  ~59s    by a few steps
        ...
    """
    show(screen, prepare(screen, recipe, overrides or [], executor, gpus))
    screen.next(f"kdlab run{screen.command().removeprefix('kdlab plan')}")


def show(screen: Screen, made: Prepared) -> None:
    """Put out a plan that is not run."""
    screen.emit(**made.plan.to_dict()) if screen.json else screen.data(preview(made, jobs=screen.verbose))


def prepare(
    screen: Screen,
    recipe: str,
    overrides: Sequence[str],
    executor: str,
    gpus: str | None,
    *,
    priced: bool = True,
) -> Prepared:
    """Load the recipe, look at the machine, make the plan; `priced` where its costs are asked for.

    Raises:
        KdlabError: the recipe, the data or the machine do not allow it.
    """
    from kdlab.recipe import loader as recipes
    from kdlab.running.executors import base

    base.check(executor)
    return planned(screen, recipes.load(recipe, overrides), executor, gpus, priced=priced)


def planned(
    screen: Screen, recipe: Recipe, executor: str, gpus: str | None, *, priced: bool = True
) -> Prepared:
    """As `prepare`, of a recipe that is loaded."""
    from kdlab import prepared

    with screen.working(f"planning {recipe.name}") as progress:
        return prepared.prepare(recipe, executor, gpu_numbers(gpus), progress, priced=priced)


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
    from rich.text import Text

    groups: dict[tuple[str, ...], list[PlannedJob]] = {}
    for planned in made.plan.jobs:
        # those of an arm that are done apart from the others
        arm = (planned.job.kind, planned.job.arm, str(planned.done))
        groups.setdefault((planned.job.id,) if jobs else arm, []).append(planned)
    rows = []
    for group in groups.values():
        job, seeds = group[0].job, ""
        if jobs:
            name, about = job.id, job.label
        else:
            model = job.spec.model
            name, about = job.arm, f"{model.detector} {model.backbone}".replace("resnet", "r")
            if job.is_student:
                seeds = f"seed{_s(group)} {' '.join(str(planned.job.seed) for planned in group)}"
        first = Text(f"  + {name}", style="bold")
        if group[0].done:
            first = Text(f"  = {name}", style="green")
        rows.append((first, about, seeds, _cost(group), Text(_reason(group, made.runs), style="dim")))
    head = Text(f"plan {made.plan.id[:4]}  {made.plan.recipe['name']}  {total(made)}", style="bold")
    return Group(head, grid(rows, wrap=[4]), *(Text(f"  note: {note}") for note in made.plan.notes))


def _s(things: Sequence[object]) -> str:
    """The plural's ending."""
    return "s" if len(things) > 1 else ""


def _cost(jobs: Sequence[PlannedJob]) -> str:
    """What one of the jobs costs."""
    if jobs[0].done:
        return "reused"
    known = [planned.cost_s for planned in jobs if planned.cost_s is not None]
    if not known:
        return "cost unknown"
    gpus, each = jobs[0].job.resources.gpus, " each" if len(jobs) > 1 else ""
    return f"~{_gpu_time(gpus * fmean(known)) if gpus else duration(fmean(known))}{each}"


def _gpu_time(seconds: float) -> str:
    """ "40 GPU-min", "5.2 GPU-h", "41 GPU-h"."""
    hours = seconds / 3600
    if hours < 1:
        return f"{60 * hours:.0f} GPU-min"
    return f"{hours:.1f} GPU-h" if hours < 10 else f"{hours:.0f} GPU-h"


def _reason(jobs: Sequence[PlannedJob], runs: Runs) -> str:
    """Why the jobs are reused or not, and where their cost is known from."""
    from kdlab.jobs.result import JobResult

    first = jobs[0]
    if first.done:
        results = [JobResult.read(runs.job(planned.job.id)) for planned in jobs]
        aps = [result.metrics["AP"] for result in results if result and "AP" in result.metrics]
        who = first.job.id if len(jobs) == 1 else f"{len(jobs)} jobs"
        return f"{who} (AP {fmean(aps):.1f}){first.why.removeprefix('reused')}" if aps else who
    parts = [first.why.removeprefix("new: ")]
    if first.cost_s is not None:
        parts = [first.cost_source, parts[0].removeprefix("new")]
    begun = sum(any(runs.job(planned.job.id).checkpoints.glob("*")) for planned in jobs)
    if begun and first.why != "--fresh":
        parts.append("goes on from its checkpoint" if len(jobs) == 1 else f"{begun} go on from checkpoints")
    return ", ".join(filter(None, parts))


def total(made: Prepared) -> str:
    """ "13 jobs, 1 reused, ~41 GPU-h, ~5h10m on 8 GPUs"."""
    from kdlab.cli.screen.progress import makespan_s

    planned, machine = made.plan.jobs, made.machine
    left = [one for one in planned if not one.done]
    parts = [f"{len(planned)} job{_s(planned)}"]
    if not left:
        return f"{parts[0]}, all reused"
    if len(left) < len(planned):
        parts.append(f"{len(planned) - len(left)} reused")
    place = f"on {len(machine.cores)} core{_s(machine.cores)}"
    if machine.gpus:
        place = f"on {len(machine.gpus)} GPU{_s(machine.gpus)}"
    hours, _ = gpu_hours(made.plan)
    if hours:
        parts.append(f"~{_gpu_time(3600 * hours)}")
    costs = {one.job.id: one.cost_s for one in left if one.cost_s is not None}
    unknown = len(left) - len(costs)
    if not costs:
        parts.append(f"cost unknown {place}")
    elif unknown:
        parts.append(f"cost of {unknown} jobs unknown {place}")
    else:
        parts.append(f"~{duration(makespan_s(costs, [one.job for one in left], machine))} {place}")
    return ", ".join(parts)
