"""The options and arguments that several verbs share, each spelled once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from kdlab import catalog
from kdlab.errors import KdlabError

if TYPE_CHECKING:
    from kdlab.jobs.plan import Plan


def names_in(text: str) -> list[str]:
    """The names in "rm,pfi[weight=1,y=logit]": commas in the brackets of an arm's name part nothing."""
    return [word.strip() for word in re.split(r",(?![^\[]*\])", text)]


def recipe_names(incomplete: str) -> list[tuple[str, str]]:
    """Names that a shell may complete, each with what it is."""
    return [(name, info.summary) for name, info in catalog.recipes().items() if name.startswith(incomplete)]


def method_names(incomplete: str) -> list[tuple[str, str]]:
    """Methods that may stand behind the last comma, each with what it is."""
    before, comma, word = incomplete.rpartition(",")
    named = before.split(",")
    return [
        (f"{before}{comma}{key}", info.summary)
        for key, info in catalog.methods().items()
        if key.startswith(word) and key not in named
    ]


def job_names(incomplete: str) -> list[tuple[str, str]]:
    """Ids of the newest plan's jobs, each with its label, and the labels of one word."""
    ids, labels = [], []
    for plan in islice(_plans(), 1):
        for planned in plan.jobs:
            job = planned.job
            ids.append((job.id, job.label))
            # bash would not quote a label of several words
            if " " not in job.label:
                labels.append((job.label, job.id))
    return [(name, about) for name, about in (*ids, *labels) if name.startswith(incomplete)]


def plan_names(incomplete: str) -> list[str]:
    """Ids of the plans that were run here, and the names of their recipes."""
    plans = list(_plans())
    names = [*dict.fromkeys(plan.recipe["name"] for plan in plans), *(plan.id for plan in plans)]
    return [name for name in names if name.startswith(incomplete)]


def executor_names(incomplete: str) -> list[tuple[str, str]]:
    """Executors, each with what it is."""
    return [(key, info.summary) for key, info in catalog.executors().items() if key.startswith(incomplete)]


def override_keys(incomplete: str) -> list[str]:
    """Keys of a recipe that `--set` changes, up to their equals sign."""
    from kdlab.jobs.spec import ModelSettings, Schedule
    from kdlab.recipe.settings import DatasetSettings, Resources, TeacherSettings, TuneSettings

    sections = {
        "dataset": DatasetSettings,
        "teacher": TeacherSettings,
        "student": ModelSettings,
        "schedule": Schedule,
        "resources": Resources,
        "tune": TuneSettings,
    }
    keys = [f"{section}.{name}" for section, model in sections.items() for name in model.model_fields]
    for key, info in catalog.methods().items():
        keys += [f"methods.{key}.{name}" for name in ("weight", *info.options)]
    # these two stand for others in what a recipe becomes
    written = [key for key in keys if not key.endswith((".options", ".executors"))]
    return [f"{key}=" for key in (*written, "seeds") if f"{key}=".startswith(incomplete)]


def _plans() -> Iterator[Plan]:
    """The plans that can be read, the newest first; a shell that completes must see no error."""
    from kdlab.jobs import store
    from kdlab.jobs.paths import Runs

    with suppress(KdlabError):
        yield from store.plans(Runs.here())


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A name that `kdlab ls recipes` shows, or the path of a YAML file.",
        show_default=False,
        autocompletion=recipe_names,
    ),
]
PlanName = Annotated[
    str | None,
    typer.Argument(
        metavar="[PLAN|RECIPE]",
        help="Which plan; by default the newest.",
        show_default=False,
        autocompletion=plan_names,
    ),
]
_A_JOB = "An id or the beginning of one, or a label of the newest plan: 'rm+pfi seed 0'."
JobName = Annotated[
    str, typer.Argument(metavar="JOB", help=_A_JOB, show_default=False, autocompletion=job_names)
]
JobNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[JOB]...", help=_A_JOB, show_default=False, autocompletion=job_names),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change the recipe: --set schedule.epochs=3. Repeatable.",
        autocompletion=override_keys,
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus", metavar="IDS", help="GPUs to use, also busy ones: 0,2. Default: all that are free."
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "-j", "--jobs", metavar="N", min=1, help="Jobs at once, at most. Default: as many as devices allow."
    ),
]
ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="NAME",
        help="local: processes; slurm, ray: a cluster; inline: here, for a debugger.",
        autocompletion=executor_names,
    ),
]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="End all jobs at the first failure.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would run, as `kdlab plan` does.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask before an expensive plan.")]

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only data and errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")]
