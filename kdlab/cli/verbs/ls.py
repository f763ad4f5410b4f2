"""kdlab ls: what there is to run, to combine and to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab import catalog
from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.method_card import card, serves
from kdlab.errors import UsageError, suggestion

if TYPE_CHECKING:
    from rich.table import Table

    from kdlab.catalog.options import Option


def ls(
    screen: Screen,
    what: Annotated[
        str,
        typer.Argument(
            metavar="[recipes|methods|detectors|backbones|datasets|executors|trackers|runs]",
            help="Which list; without it the recipes and how much there is of the rest.",
            show_default=False,
        ),
    ] = "",
    name: Annotated[
        str,
        typer.Argument(
            metavar="[METHOD]", help="One method: its options, pairs, source.", show_default=False
        ),
    ] = "",
) -> None:
    """List recipes, methods, ..., trackers or runs; or tell all about one method.

    \b
    Examples:
      $ kdlab ls
      ...
      digits/quickstart          GFL R18 to a slimmer R18 on handwritten digits: ...
      $ kdlab ls methods rm
      rm  Rank Mimicking: copy the teacher's ranking of the boxes that serve one object.
      ...
    """
    known = list(_LISTS)
    if what and what not in known:
        fix = suggestion(what, known) or "kdlab ls"
        raise UsageError(f"there is no list of {what}", known=", ".join(known), fix=fix)
    if name:
        _tell(screen, what, name)
        return
    entries = {name: _LISTS[name]() for name in ([what] if what else known)}
    if screen.json:
        screen.emit(**entries)
        return
    shown = what or "recipes"
    if entries[shown]:
        screen.data(_table(entries[shown]))
    else:
        screen.say(f"no {shown} yet")
    if not what:
        counts = [f"{len(found)} {name}" for name, found in entries.items() if name != "recipes"]
        screen.say(f"also {', '.join(counts)}: kdlab ls {known[1]}, ...")
    screen.next(_NEXT.get(shown, "kdlab ls recipes"))


def _tell(screen: Screen, what: str, name: str) -> None:
    """All about one method."""
    methods = catalog.methods()
    if what != "methods" or name not in methods:
        fix = suggestion(name, list(methods)) if what == "methods" else f"kdlab ls {what}"
        raise UsageError(f"{name} is not a method", known=", ".join(methods), fix=fix or "kdlab ls methods")
    screen.emit(**_method(methods[name])) if screen.json else screen.data(card(methods[name]))
    screen.next("kdlab ls methods")


_NEXT = {
    "recipes": "kdlab run digits/quickstart",
    "methods": "kdlab ls methods rm",
    "runs": "kdlab report --table",
}


def _recipes() -> list[dict[str, Any]]:
    """Those of the catalog, then those in the runs folder that `ablate` and `tune` have written."""
    from kdlab.recipe.files import all_derived

    found = {info.name: info.summary for info in catalog.recipes().values()} | all_derived()
    return [{"name": name, "about": about} for name, about in found.items()]


def _methods() -> list[dict[str, Any]]:
    return [_method(info) for info in catalog.methods().values()]


def _method(info: catalog.MethodInfo) -> dict[str, Any]:
    return {
        "name": info.key,
        "about": info.summary,
        "for": serves(info),
        "weight": info.default_weight,
        **_options(info.options),
        "defaults_for": info.defaults_for,
    }


def _detectors() -> list[dict[str, Any]]:
    return [{"name": info.key, "about": info.summary} for info in catalog.detectors().values()]


def _backbones() -> list[dict[str, Any]]:
    return [
        {"name": info.key, "about": info.summary, "options": {"width": info.width}}
        for info in catalog.backbones().values()
    ]


def _datasets() -> list[dict[str, Any]]:
    return [_with_options(info) for info in catalog.datasets().values()]


def _executors() -> list[dict[str, Any]]:
    return [_with_options(info) for info in catalog.executors().values()]


def _trackers() -> list[dict[str, Any]]:
    return [{"name": info.key, "about": info.summary} for info in catalog.trackers().values()]


def _with_options(info: catalog.PluginInfo) -> dict[str, Any]:
    return {"name": info.key, "about": info.summary, **_options(info.options)}


def _options(options: dict[str, Option]) -> dict[str, Any]:
    values = {name: None if option.required else option.default for name, option in options.items()}
    return {"options": values}


def _runs() -> list[dict[str, Any]]:
    """The plans, the newest first."""
    from kdlab.jobs import store
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.status import of_plan

    runs = Runs.here()
    return [
        {
            "plan": plan.id,
            "recipe": plan.recipe["name"],
            "jobs": dict(Counter(str(status.state) for status in of_plan(plan, runs))),
            "run": datetime.fromtimestamp(plan.path(runs).stat().st_mtime).isoformat(" ", "minutes"),
        }
        for plan in store.plans(runs)
    ]


_LISTS = {
    "recipes": _recipes,
    "methods": _methods,
    "detectors": _detectors,
    "backbones": _backbones,
    "datasets": _datasets,
    "executors": _executors,
    "trackers": _trackers,
    "runs": _runs,
}


def _table(entries: Sequence[dict[str, Any]]) -> Table:
    """The entries in columns without rules; what is long wraps."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    names = [name for name in entries[0] if "for" not in entries[0] or name in ("name", "about", "for")]
    for name in names:
        table.add_column(no_wrap=name not in ("about", "options"), overflow="fold")
    for entry in entries:
        table.add_row(*(Text(_words(name, entry[name]), style=_STYLES.get(name, "")) for name in names))
    return table


_STYLES = {"name": "bold", "plan": "bold", "options": "dim", "run": "dim", "for": "dim"}


def _words(name: str, value: Any) -> str:
    if name == "weight":
        return f"weight {value:g}"
    if isinstance(value, dict):
        pairs: Iterable[tuple[str, Any]] = value.items()
        separator = " " if name == "jobs" else "="
        return ", ".join(f"{key}{separator}{'...' if inner is None else inner}" for key, inner in pairs)
    return str(value)
