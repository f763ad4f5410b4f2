"""kdlab ls: what there is to run, to combine and to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab import catalog
from kdlab.cli.screen.console import Screen, duration, grid
from kdlab.cli.screen.method_card import card, serves
from kdlab.cli.screen.options import method_names
from kdlab.errors import UsageError, suggestion

if TYPE_CHECKING:
    from rich.table import Table

    from kdlab.catalog.plugin_files import PluginInfo


def list_names(incomplete: str) -> list[str]:
    """The lists that there are."""
    return [name for name in _LISTS if name.startswith(incomplete)]


def explained_names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """What one can be told all about: methods alone."""
    return method_names(incomplete) if ctx.params.get("what") == "methods" else []


def ls(
    screen: Screen,
    what: Annotated[
        str,
        typer.Argument(
            metavar="[recipes|methods|detectors|backbones|datasets|executors|trackers|runs]",
            help="Which list; without it the recipes and how much there is of the rest.",
            show_default=False,
            autocompletion=list_names,
        ),
    ] = "",
    name: Annotated[
        str,
        typer.Argument(
            metavar="[METHOD]",
            help="One method: its options, pairs, source.",
            show_default=False,
            autocompletion=explained_names,
        ),
    ] = "",
) -> None:
    """List recipes, methods, ..., trackers or runs; or tell all about one method.

    \b
    Examples:
      $ kdlab ls
      recipe  pair  dataset  methods  n  took
      ...
      digits/quickstart  gfl r18/16 -> r18/8  digits  rm, pfi  1
      ...
      $ kdlab ls methods rm
      rm  Rank Mimicking: copy the teacher's ranking of the boxes that serve one object.
      ...
    """
    if what and what not in _LISTS:
        fix = suggestion(what, _LISTS) or "kdlab ls"
        raise UsageError(f"there is no list of {what}", known=", ".join(_LISTS), fix=fix)
    if name:
        _explain(screen, what, name)
        return
    entries = {name: _entries(name) for name in ([what] if what else _LISTS)}
    if screen.json:
        screen.emit(**entries)
        return
    shown = what or "recipes"
    if not entries[shown]:
        screen.say(f"no {shown} yet")
        screen.next(_NEXT["recipes"])
        return
    screen.data(_recipes(entries[shown]) if shown == "recipes" else _table(entries[shown]))
    if not what:
        counts = [f"{len(found)} {name}" for name, found in entries.items() if name != shown]
        screen.say(f"also {', '.join(counts)}: kdlab ls {_LISTS[1]}, ...")
    screen.next(_NEXT.get(shown, "kdlab ls recipes"))


def _explain(screen: Screen, what: str, name: str) -> None:
    """All about one method."""
    methods = catalog.methods()
    if what != "methods" or name not in methods:
        fix = suggestion(name, list(methods)) if what == "methods" else f"kdlab ls {what}"
        raise UsageError(f"{name} is not a method", known=", ".join(methods), fix=fix or "kdlab ls methods")
    screen.emit(**_plugin(what, methods[name])) if screen.json else screen.data(card(methods[name]))
    screen.next("kdlab ls methods")


_VERBS = {"diagnoses": "diagnose", "benches": "bench"}
"""What makes plans about another plan, by what they say of it."""
MOST_NAMED = 4
"""Methods of a recipe that are named."""
_CATALOGS: dict[str, Callable[[], Mapping[str, PluginInfo]]] = {
    "methods": catalog.methods,
    "detectors": catalog.detectors,
    "backbones": catalog.backbones,
    "datasets": catalog.datasets,
    "executors": catalog.executors,
    "trackers": catalog.trackers,
}
_LISTS = ("recipes", *_CATALOGS, "runs")
_NEXT = {
    "recipes": "kdlab run digits/quickstart",
    "methods": "kdlab ls methods rm",
    "runs": "kdlab report --table",
}


def _entries(what: str) -> list[dict[str, Any]]:
    """A list as plain data."""
    if what == "recipes":
        from kdlab.recipe import files
        from kdlab.recipe.overview import overview

        # those of the working folder, of the catalog, and those that `ablate` and `tune` have written
        found = {name: files.about(path) for name, path in files.own().items()}
        found |= {info.name: info.summary for info in catalog.recipes().values()} | files.all_derived()
        costs = _costs()
        return [
            {"name": name, **overview(name), "cost_s": costs.get(name), "about": about}
            for name, about in found.items()
        ]
    if what != "runs":
        return [_plugin(what, info) for info in _CATALOGS[what]().values()]
    from kdlab.jobs import store
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.status import of_plan

    runs, entries = Runs.here(), []
    for plan in store.plans(runs):
        states = Counter(str(status.state) for status in of_plan(plan, runs))
        saved = datetime.fromtimestamp(plan.path(runs).stat().st_mtime).isoformat(" ", "minutes")
        verb = "tune" if plan.is_search else _VERBS.get(plan.about, "run")
        entries.append(
            {"plan": plan.id, "verb": verb, "recipe": plan.recipe["name"], "jobs": dict(states), "run": saved}
        )
    return entries


def _costs() -> dict[str, float]:
    """Seconds that the jobs of recipes took one after another, by name, of those that ran to their end."""
    from kdlab.jobs import store
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.result import JobResult

    runs, found = Runs.here(), dict[str, float]()
    for plan in store.plans(runs):
        if plan.compares and (name := plan.recipe["name"]) not in found:
            results = [JobResult.read(runs.job(planned.job.id)) for planned in plan.jobs]
            done = [result.wall_s for result in results if result]
            if len(done) == len(results):
                found[name] = sum(done)
    return found


def _plugin(what: str, info: PluginInfo) -> dict[str, Any]:
    """A plugin with the defaults of its options as plain data; None for an option that must be given."""
    about = f"{info.summary}  ({info.path})" if info.own else info.summary
    entry: dict[str, Any] = {"name": info.key, "about": about}
    options = {name: None if option.required else option.default for name, option in info.options.items()}
    if isinstance(info, catalog.MethodInfo):
        entry |= {"for": serves(info), "weight": info.default_weight, "options": options}
        entry["defaults_for"] = info.defaults_for
    elif isinstance(info, catalog.BackboneInfo):
        entry["options"] = {"width": info.width}
    elif what in ("datasets", "executors"):
        entry["options"] = options
    return entry


def _recipes(entries: Sequence[dict[str, Any]]) -> Table:
    """A line a recipe; what they are about in full is in `kdlab show` and --json."""
    from rich.text import Text

    rows = [("recipe", "pair", "dataset", "methods", "n", "took")]
    rows += [
        (
            one["name"],
            one["pair"] or one["about"],
            one["dataset"] or "",
            _few(one["methods"]),
            str(len(one["seeds"])) if one["seeds"] else "",
            "" if one["cost_s"] is None else duration(one["cost_s"]),
        )
        for one in entries
    ]
    first, *others = rows
    dim = [Text(word, style="dim") for word in first]
    told = [[Text(name, style="bold"), *rest] for name, *rest in others]
    return grid([dim, *told], wrap=[0, 1, 3], right=[4, 5])


def _few(methods: Sequence[str] | None) -> str:
    """Their names, or how many there are."""
    if methods is None:
        return "does not load"
    return ", ".join(methods) if len(methods) <= MOST_NAMED else f"{len(methods)} methods"


def _table(entries: Sequence[dict[str, Any]]) -> Table:
    """The entries in columns without rules; what is long wraps."""
    from rich.text import Text

    names = [name for name in entries[0] if "for" not in entries[0] or name in ("name", "about", "for")]
    rows = []
    for entry in entries:
        styled = [Text(_words(name, entry[name]), style=_STYLES.get(name, "")) for name in names]
        rows.append(styled)
    return grid(rows, wrap=[names.index(name) for name in ("about", "options", "jobs") if name in names])


_STYLES = {"name": "bold", "plan": "bold", "options": "dim", "run": "dim", "for": "dim"}


def _words(name: str, value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    separator = " " if name == "jobs" else "="
    return ", ".join(f"{key}{separator}{'...' if inner is None else inner}" for key, inner in value.items())
