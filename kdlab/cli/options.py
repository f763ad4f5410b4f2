"""The options and arguments that several verbs share, each spelled once."""

from __future__ import annotations

from typing import Annotated

import typer

from kdlab import catalog


def recipe_names(incomplete: str) -> list[tuple[str, str]]:
    """Names that a shell may complete, each with what it is."""
    return [(name, info.summary) for name, info in catalog.recipes().items() if name.startswith(incomplete)]


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A name that `kdlab ls recipes` shows, or the path of a YAML file.",
        show_default=False,
        autocompletion=recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the recipe: --set schedule.epochs=3. Repeatable."
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
    typer.Option("-j", metavar="N", min=1, help="Jobs at once, at most. Default: as many as devices allow."),
]
ExecutorName = Annotated[
    str, typer.Option("--executor", metavar="NAME", help="local: processes; inline: here, for a debugger.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would run, as `kdlab plan` does.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask before an expensive plan.")]

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only data and errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")]
