"""Reference pages of the site, made from the code when the site is built, so that nothing is written twice.

Keys of a recipe are the fields of its settings: what each accepts and its default come from their types, what
each means from the docstrings. Methods, detectors, backbones, datasets and executors come from the catalog,
verbs from the command line.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from kdlab import catalog
from kdlab.catalog.options import Option
from kdlab.catalog.plugin_files import PluginInfo, function_in
from kdlab.cli import app
from kdlab.cli.screen.method_card import options_explained, serves
from kdlab.jobs.augment import PRESETS, STEPS
from kdlab.jobs.settings import Settings
from kdlab.jobs.spec import MethodSettings, ModelSettings, Schedule, Share
from kdlab.recipe.settings import DatasetSettings, Recipe, Resources, TeacherSettings, TuneSettings

DOCS = Path(__file__).parents[1]
_NUMBERS = {"integer": "whole number", "number": "number"}
_PLAIN = {"string": "text", "boolean": "true or false", "null": "null", "object": "keys and values"}


def explained(model: type[Settings]) -> dict[str, str]:
    """What each key of a section means, from the docstrings of its class and of those above it."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        found |= options_explained(inspect.cleandoc(kind.__doc__ or ""))
    return found


def accepted(schema: Mapping[str, Any]) -> str:
    """What a JSON schema accepts, in words."""
    if "$ref" in schema:
        return "keys and values, see below"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(accepted(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(_code(value) for value in schema["enum"])
    match schema.get("type"):
        case "integer" | "number" as kind:
            return _NUMBERS[kind] + _limits(schema)
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(accepted(one) for one in schema['prefixItems'])}]"
        case "array":
            return f"list of: {accepted(schema['items'])}" if "type" in schema["items"] else "list"
        case str() as kind:
            return _PLAIN[kind]
    return "any value"


def _limits(schema: Mapping[str, Any]) -> str:
    if schema["type"] == "integer" and "exclusiveMinimum" in schema:
        schema = {**schema, "minimum": schema["exclusiveMinimum"] + 1}
        del schema["exclusiveMinimum"]
    words = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    return "".join(f" {word} {schema[key]:,}" for key, word in words.items() if key in schema)


def keys_table(model: type[Settings], left_out: Iterable[str] = (), needed: str = "needed") -> str:
    """The keys of a section: accepted values, default and meaning.

    Args:
        model: the section.
        left_out: keys that are not shown.
        needed: what stands for the default of a key that has none.

    Raises:
        KeyError: a key is not explained in a docstring.
    """
    schema, meanings = model.model_json_schema(), explained(model)
    rows = []
    for name, entry in schema["properties"].items():
        if name not in left_out:
            default = needed if name in schema.get("required", ()) else _code(entry.get("default", {}))
            rows.append((f"`{name}`", accepted(entry), default, meanings[name].replace("None", "`null`")))
    return table(("key", "accepts", "default", "meaning"), rows)


def options_table(options: Mapping[str, Option], meanings: Mapping[str, str]) -> str:
    """The options of a plugin."""
    rows = []
    for name, option in options.items():
        default = "needed" if option.required else _code(option.default)
        rows.append((f"`{name}`", option.accepted, default, meanings.get(name, "")))
    return table(("option", "accepts", "default", "meaning"), rows)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(value: Any) -> str:
    """A value as YAML would write it."""
    match value:
        case None:
            return "`null`"
        case bool():
            return f"`{str(value).lower()}`"
        case list() | tuple():
            return f"`[{', '.join(_code(one).strip('`') for one in value)}]`"
        case float():
            return f"`{value:g}`"
    return f"`{value}`"


def recipe_keys() -> str:
    """Page of all keys of a recipe."""
    whole = explained(Recipe)
    own = TeacherSettings.model_fields.keys() - ModelSettings.model_fields.keys() - {"schedule"}
    executors = {key: info for key, info in catalog.executors().items() if info.options}
    return _page(
        "Keys of a recipe",
        "`kdlab show RECIPE` shows the value of every key of a recipe and where it was written; "
        "`--set schedule.epochs=6` sets any of them.",
        "## `dataset`",
        "The options of the dataset that `name` names ([what there is](built-in.md#datasets)), and:",
        keys_table(DatasetSettings, ["options"]),
        "### Steps of `augment`",
        table(("preset", "steps"), [(_code(name), _steps(preset)) for name, preset in PRESETS.items()]),
        *(_step(name, step) for name, step in STEPS.items()),
        "## `teacher`",
        "`null` where no arm distils. It has all keys of `student`, a `schedule` of its own, whose keys "
        "default to those of the students, and:",
        keys_table(TeacherSettings, TeacherSettings.model_fields.keys() - own),
        "## `student`",
        keys_table(ModelSettings),
        "## `schedule`",
        keys_table(Schedule, needed="the preset's"),
        "### Presets",
        _schedule_presets(),
        "## `arms` and `methods`",
        f"`arms`: {whole['arms']} `inherit: true` beside the methods of an arm: its students start from the "
        "teacher's neck and head. `methods` holds what all arms share, by instance. A method has "
        "[options of its own](method-options.md), and:",
        keys_table(MethodSettings, ["method", "options"], "the method's"),
        "### `gradient_share`",
        keys_table(Share),
        "## `seeds`",
        f"A list of whole numbers, `[0]` by default: {whole['seeds']}",
        "## `resources`",
        f"{whole['resources']} Beside these keys stand the blocks of executors.",
        keys_table(Resources, ["executors"]),
        *(f"### `{key}`\n\n{_options_of(info, key.title())}" for key, info in executors.items()),
        "## `tune`",
        keys_table(TuneSettings),
    )


def _step(name: str, step: type[Settings]) -> str:
    keys = keys_table(step, ["step"]) if len(step.model_fields) > 1 else ""
    return f"#### `{name}`\n\n{_before_args(inspect.cleandoc(step.__doc__ or ''))}\n\n{keys}"


def _schedule_presets() -> str:
    """The keys in which presets differ from what a recipe has without one."""
    named = get_args(Schedule.model_fields["preset"].annotation)
    presets = [Schedule.model_validate({"preset": name}) for name in named if name != "custom"]
    values = [preset.model_dump() for preset in presets]
    plain = Schedule.model_fields
    keys = [key for key in plain if any(one[key] != plain[key].get_default() for one in values)]
    keys.remove("preset")
    rows = [[_code(one[key]) for key in ("preset", *keys)] for one in values]
    return table(("preset", *map(_code, keys)), rows)


def method_options() -> str:
    """Page of all methods with their options."""
    return _page(
        "Options of methods",
        "What `kdlab ls methods NAME` says of each. Keys that all methods have (`weight`, `warmup_iters`, "
        "...) are among the [keys of a recipe](recipe-keys.md#arms-and-methods).",
        *(_method(info) for info in catalog.methods().values()),
    )


def _method(info: catalog.MethodInfo) -> str:
    needs, equal = info.needs_for({})
    where = next(
        (page for page in sorted(DOCS.glob("methods/*.md")) if f"`{info.key}`" in _heads(page)), None
    )
    weights = [f"{_code(info.default_weight)}"]
    weights += [
        f"{_code(weight)} with {_code(option)}: {_code(value)}"
        for (option, value), weight in info.default_weight_when.items()
    ]
    facts = [f"- students: {serves(info)}; needs {', '.join(f'`{need}`' for need in needs)}"]
    facts += [f"- equal in teacher and student: {', '.join(equal)}"] if equal else []
    facts += [f"- `weight`: {', '.join(weights)}"]
    for family, values in info.defaults_for.items():
        whose = " (measured here, in no paper)" if family in info.measured_for else ""
        said = ", ".join(f"`{name}` {_code(value)}" for name, value in values.items())
        facts.append(f"- for students of `{family}`{whose}: {said}")
    options = options_table(info.options, options_explained(info.doc)) if info.options else ""
    source = re.search(r"^Source:.*", info.doc, re.MULTILINE | re.DOTALL)
    said = " ".join(source[0].split()).replace(" Differs:", "\n\nDiffers:") if source else ""
    more = f"[How it computes that](methods/{where.name})." if where else ""
    parts = (f"## `{info.key}`", info.summary, _before_args(info.doc), "\n".join(facts), options, said, more)
    return "\n\n".join(filter(None, parts))


def _heads(page: Path) -> str:
    return " ".join(re.findall(r"^#+ .*", page.read_text(encoding="utf-8"), re.MULTILINE))


def built_in() -> str:
    """Page of the detectors, backbones, datasets, executors and recipes that come with kdlab."""
    detectors = catalog.detectors().values()
    backbones = catalog.backbones().values()
    return _page(
        "What comes with kdlab",
        "What `kdlab ls` lists. [Plugins](plugins.md) add to it.",
        "## Detectors",
        table(
            ("`detector:`", "is", "strides"),
            [(_code(one.key), one.summary, _code(one.strides)) for one in detectors],
        ),
        "Besides them any [mmdet config](detectors.md), by path or by its name in mmdet.",
        "## Backbones",
        table(
            ("`backbone:`", "width", "is"),
            [(_code(one.key), _code(one.width), one.summary) for one in backbones],
        ),
        "## Datasets",
        *(
            f"### `{key}`\n\n{info.summary}\n\n{_options_of(info)}"
            for key, info in catalog.datasets().items()
        ),
        "## Executors",
        table(
            ("`--executor`", "is"), [(_code(one.key), one.summary) for one in catalog.executors().values()]
        ),
        "## Trackers",
        table(
            ("`resources.trackers`", "is"),
            [(_code(one.key), one.summary) for one in catalog.trackers().values()],
        ),
        "## Recipes",
        table(("`kdlab run`", "is"), [(_code(one.name), one.summary) for one in catalog.recipes().values()]),
    )


def command_line() -> str:
    """Page of all verbs: what their --help prints."""
    parts = []
    for name, verb in app.command().commands.items():
        context = verb.context_class(verb, info_name=f"kdlab {name}", terminal_width=80, max_content_width=80)
        parts.append(f"## `kdlab {name}`\n\n```text\n{verb.get_help(context)}\n```")
    return _page("Command line", "What `kdlab VERB --help` prints.", *parts)


def _options_of(info: PluginInfo, name: str = "prepare") -> str:
    """Options of a plugin with the docstring of its function or class."""
    body = ast.parse(info.path.read_bytes()).body
    classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name == name]
    node = classes[0] if classes else function_in(body, name)
    return options_table(info.options, options_explained((node and ast.get_docstring(node)) or ""))


def _before_args(doc: str) -> str:
    return re.split(r"^(?:Args|Source|Raises):", doc, maxsplit=1, flags=re.MULTILINE)[0].strip()


def _steps(preset: Iterable[Mapping[str, Any]]) -> str:
    steps = []
    for one in preset:
        options = ", ".join(f"{key}: {_code(value)[1:-1]}" for key, value in one.items() if key != "step")
        steps.append(f"`{one['step']}: {{{options}}}`" if options else f"`{one['step']}`")
    return ", ".join(steps) or "none"


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", *parts)) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "recipe-keys.md": recipe_keys,
    "method-options.md": method_options,
    "command-line.md": command_line,
    "built-in.md": built_in,
}
"""Pages of the site that no file holds, by name."""
