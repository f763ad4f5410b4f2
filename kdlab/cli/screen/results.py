"""Results in files and with trackers: where tables go, and what is said of it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.cli.screen.console import Screen
from kdlab.errors import KdlabError

if TYPE_CHECKING:
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.plan import Plan
    from kdlab.reporting.tables import Table
    from kdlab.tracking.base import Lacking

RESULTS = Path("results")
_MAKES_NO_JOB = ("name", "path", "command", "title", "resources", "tune")
"""What a recipe may say otherwise and still make the same jobs."""


def again(plan: Plan) -> str:
    """The command that goes on with a plan: as it was typed last, for the one in the plan is for others."""
    from kdlab.jobs.paths import Runs
    from kdlab.recipe.files import go_on
    from kdlab.running.driver import Driver

    driver = Driver.of(plan.id, Runs.here())
    return driver.command if driver else plan.recipe.get("command") or go_on(plan.recipe)


def written(
    screen: Screen,
    table: Table,
    plan: Plan,
    formats: Sequence[str] = ("md", "csv"),
    page: str = "",
    part: str = "",
) -> list[Path]:
    """Write a table to `results/` and say so; a folder that cannot be written is told, not raised.

    Args:
        screen: where to say it.
        table: what to write.
        plan: it is of.
        formats: names of `renderers.FORMATS`.
        page: the HTML page in place of a plain one.
        part: end of the files' names, of a table beside the plan's own.

    Returns:
        The files.
    """
    from kdlab.jobs.files import write_text
    from kdlab.reporting import renderers

    files: list[Path] = []
    with forgiving(screen):
        files = renderers.write(table, RESULTS, f"{results_stem(plan)}{part}", formats)
        if page:
            write_text(files[formats.index("html")], page)
        screen.say(f"written: {', '.join(map(str, files))}")
    return files


@contextmanager
def forgiving(screen: Screen) -> Iterator[None]:
    """Tell that `results/` cannot be written where that is so."""
    try:
        yield
    except OSError as error:
        screen.err.print(f"warning: {RESULTS}/ cannot be written: {error}", soft_wrap=True)


def tell_lacking(screen: Screen, lacking: Sequence[Lacking]) -> None:
    """Say what trackers did not get."""
    for each in lacking:
        jobs = f"{each.jobs} job{'s' * (each.jobs != 1)}" if each.jobs else "the plan"
        screen.say(f"{each.tracker} lacks news of {jobs} ({each.why}); {each.fix}")


def results_stem(plan: Plan) -> str:
    """Path of a plan's files below `results/`, without their endings: its recipe's name, or "query".

    A plan of a query, and one of a recipe that `--set` changed or that was edited since, has its id behind
    the name, so that a trial never replaces the numbers of the recipe as it stands.
    """
    told = plan.recipe
    if "query" in told:
        return f"query-{plan.id}"
    return str(told["name"]) if _stands(told, ()) else f"{told['name']}-{plan.id}"


def makes_again(plan: Plan) -> bool:
    """Whether the command that a table names still makes the plan; as far as that can be seen here."""
    words = shlex.split(plan.recipe.get("command", ""))
    # what stood in place of a path is not known, and what derived a recipe is not derived again to see
    if words[:2] != ["kdlab", "run"] or any("PATH" in word for word in words[3:]):
        return True
    return _stands(plan.recipe, words[4::2])


def _stands(told: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Whether a recipe, with these overrides, is still as a plan has it."""
    from kdlab.recipe import loader as recipes
    from kdlab.recipe.settings import Recipe

    try:
        path = told.get("path", "")
        now = recipes.load(path if Path(path).is_file() else told["name"], overrides).to_dict()
        # keys that are newer than the plan have their defaults
        known = {key: value for key, value in told.items() if key in Recipe.model_fields}
        then = Recipe.model_validate_json(json.dumps(known)).to_dict()
    except (KdlabError, ValueError):
        return False
    return _making_jobs(now) == _making_jobs(then)


def _making_jobs(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of its jobs, and the recipe that its teacher comes from of those."""
    found = {key: value for key, value in told.items() if key not in _MAKES_NO_JOB}
    return found | {"stage": _making_jobs(found["stage"])} if found["stage"] else found


def send_all(screen: Screen, runs: Runs, limit_s: float = math.inf) -> None:
    """Bring trackers up to date with all plans, and say what they still lack."""
    from kdlab import session
    from kdlab.jobs import store

    tell_lacking(screen, session.catch_up(store.plans(runs), runs, limit_s))
