"""Loads a recipe: YAML and overrides in, resolved settings out, or all that is wrong at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kdlab import catalog
from kdlab.catalog.plugin_files import PluginInfo
from kdlab.errors import UsageError, fixes, suggestion
from kdlab.jobs.job import TEACHER
from kdlab.jobs.settings import Settings
from kdlab.jobs.spec import MethodSettings, ModelSettings, Schedule
from kdlab.recipe import chain
from kdlab.recipe.document import MOST_FAULTS, Document, KeyPath, dotted, shown
from kdlab.recipe.files import command_of, find, told
from kdlab.recipe.settings import DatasetSettings, Recipe, Resources, TeacherSettings, TuneSettings
from kdlab.recipe.yaml_reader import read
from kdlab.redaction import ADDRESS_START

__all__ = [
    "DatasetSettings",
    "MethodSettings",
    "ModelSettings",
    "Recipe",
    "Resources",
    "Schedule",
    "TeacherSettings",
    "load",
]

SECTIONS = ("dataset", "teacher", "student", "schedule", "methods", "arms", "seeds", "resources", "tune")
MADE_ELSEWHERE = (("dataset",), ("teacher",), ("student",), ("schedule",))
"""Sections in which only another process may find a fault, so that their places go with the recipe."""
INHERIT = "inherit"
RESERVED = (TEACHER, "class", "detection", "error", "group", "object", "objects")
LENGTHS = {"epochs", "iterations"}
"""Keys of a schedule of which one says how long it is."""
NAME = re.compile(r"[\w+@\[\]=,.-]+")
LABEL = re.compile(r"[\w+@-]+")

_FIXED: dict[str, type[Settings]] = {
    "teacher": TeacherSettings,
    "student": ModelSettings,
    "schedule": Schedule,
    "tune": TuneSettings,
}

Info = TypeVar("Info", bound=PluginInfo)
Methods = Mapping[str, catalog.MethodInfo]


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, resolve and check a recipe.

    Args:
        name_or_path: an existing file, or a name of the catalog ("digits/quickstart").
        overrides: "a.b=value" each, the value as in YAML; later ones win.

    Raises:
        UsageError: there is no such recipe, or it holds faults: all of them, each with its line.
        KdlabError: a plugin's file cannot be read.
    """
    name, document = opened(name_or_path, overrides)
    recipe = resolve(document, name)
    return recipe.model_copy(update={"command": command_of(name, document, overrides)})


def opened(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[str, Document]:
    """The name of a recipe and what stands in it, with overrides; not yet checked. Raises as `load` does."""
    name, path = find(name_or_path)
    return name, read(path, told(path), overrides)


def resolve(document: Document, name: str, below: Sequence[Path] = ()) -> Recipe:
    """The recipe that a document holds.

    Args:
        document: read, and not yet checked.
        name: of the recipe.
        below: files of the recipes whose teachers come from this one, the lowest first.

    Raises:
        UsageError: all its faults, each with its place.
    """
    data = _resolved(document, below)
    head = {
        "name": name,
        "path": document.file,
        "title": catalog.first_comment(document.text),
        "command": command_of(name, document),
        "places": {
            dotted(path): place for path, place in document.places.items() if path[:1] in MADE_ELSEWHERE
        },
    }
    recipe = document.checked(Recipe, head | data)
    if recipe is None or document.faults:
        raise document.error()
    return recipe


def _above(name: str, below: Sequence[Path]) -> Recipe:
    """The recipe that a teacher comes from.

    Raises:
        UsageError: as `load`, or it is one of those `below`.
    """
    name, document = opened(name)
    path = Path(document.file).resolve()
    if path in below:
        files = [*below[below.index(path) :], path]
        what = "the teacher would be trained by its own student"
        fix = "name a recipe whose teacher does not come from this one"
        raise UsageError(what, got=" -> ".join(told(file) for file in files), fix=fix)
    return resolve(document, name, below)


def _resolved(document: Document, below: Sequence[Path]) -> dict[str, Any]:
    """The data with every option named and every method in its arm; other values are checked after this."""
    data: dict[str, Any] = _known_only(document.data, SECTIONS, (), "a section of a recipe", document)
    for section, model in _FIXED.items():
        if section in data:
            what = f"a key of {section}"
            data[section] = _known_only(data[section], model.model_fields, (section,), what, document)
    if isinstance(data.get("resources"), dict):
        data["resources"] = _resources(data["resources"], document)
    schedule = data.setdefault("schedule", {})
    detectors, has_teacher = catalog.detectors(), data.get("teacher") is not None
    if chain.is_chained(data.get("teacher")):
        files = [*below, Path(document.file).resolve()]
        stage = chain.stage_of(data["teacher"], document, lambda name: _above(name, files))
        data |= {"stage": stage, "teacher": stage and chain.completed(data["teacher"], stage, document)}
    for section in ("teacher", "student"):
        if isinstance(data.get(section), dict) and not chain.is_chained(data[section]):
            _check_overrides(data[section].get("overrides"), section, document)
            data[section] = _model(data[section], detectors, section, document)
            if section == "teacher":
                _complete_teacher(data[section], schedule, document)
    if isinstance(dataset := data.get("dataset"), dict):
        path, known = ("dataset", "name"), catalog.datasets()
        plugin = _look_up(dataset.get("name"), known, path, "names no dataset", document)
        data["dataset"] = _with_options(dataset, DatasetSettings, plugin, ("dataset",), document)
        for key, value in data["dataset"]["options"].items():
            if isinstance(value, str) and (scheme := ADDRESS_START.match(value)):
                fix = "fetch the dataset, and name its files and folders"
                document.fault(("dataset", key), "is an address", got=f"{scheme[1]}://...", fix=fix)
    methods = methods_for(data.get("student"))
    blocks = _method_blocks(data.pop("methods", {}), methods, document)
    if isinstance(data.get("arms"), dict):
        data["arms"], data["inherits"] = _arms(data["arms"], blocks, methods, document)
        _check_arms(data["arms"], data["inherits"], document, has_teacher=has_teacher)
    return data


def _resources(raw: dict[str, Any], document: Document) -> dict[str, Any]:
    """`resources:` with what is for one executor apart and complete."""
    executors = {key: info for key, info in catalog.executors().items() if info.options}
    fields = Resources.model_fields.keys() - {"executors"}
    known = _known_only(raw, [*fields, *executors], ("resources",), "a key of resources", document)
    named = known.get("trackers")
    for number, name in enumerate(named if isinstance(named, list) else ()):
        _look_up(name, catalog.trackers(), ("resources", "trackers", number), "is not a tracker", document)
    blocks: dict[str, Any] = {}
    for key in [key for key in known if key in executors]:
        block, path = known.pop(key), ("resources", key)
        if isinstance(block, dict):
            blocks[key] = _options_of(block, executors[key], path, document)
        else:
            document.fault(path, "must hold keys and values", got=shown(block))
    return {**known, "executors": blocks}


SIZES = ("backbone", "width", "neck_channels", "head_convs", "strides", "queries", "layers")


def _model(
    raw: dict[str, Any], detectors: Mapping[str, catalog.DetectorInfo], section: str, document: Document
) -> dict[str, Any]:
    """`teacher:` or `student:` with its family's sizes; an mmdet config says its own."""
    detector = raw.get("detector")
    if isinstance(detector, str) and detector not in detectors and catalog.config_file(detector):
        for key in raw.keys() & set(SIZES):
            fix = f"change keys of {catalog.config_file(detector)} by overrides: {{model....: ...}}"
            document.fault((section, key), "has no effect beside an mmdet config", got=detector, fix=fix)
        return raw
    info = _look_up(detector, detectors, (section, "detector"), "names no detector", document)
    name = raw.get("backbone", "resnet50")
    backbone = _look_up(name, catalog.backbones(), (section, "backbone"), "names no backbone", document)
    if info is None or backbone is None:
        return raw
    if info.head_convs == 0 and raw.get("head_convs"):
        document.fault((section, "head_convs"), f"has no effect: {info.key} has no towers")
    for key in raw.keys() & {"queries", "layers"} if info.queries is None else ():
        document.fault((section, key), f"has no effect: {info.key} has no decoder")
    usual = {"width": backbone.width, "neck_channels": 256, "head_convs": info.head_convs}
    usual |= {"queries": info.queries, "layers": info.layers} if info.queries and info.layers else {}
    settings = {"backbone": name, "strides": info.strides, **usual} | raw
    if fault := backbone.width_fault(settings["width"], raw.get("init", "none")):
        document.fault((section, "width"), fault, got=shown(settings["width"]))
    return settings


def _check_overrides(overrides: Any, section: str, document: Document) -> None:
    """Every override is below `model`: elsewhere it would change nothing."""
    for key in overrides if isinstance(overrides, dict) else ():
        if not key.startswith("model."):
            fix = f"write model.{key}" if key != "model" else "name its keys: {model.neck.out_channels: 128}"
            document.fault((section, "overrides", key), "must begin with model.", got=key, fix=fix)


def _complete_teacher(teacher: dict[str, Any], schedule: Any, document: Document) -> None:
    """`teacher:` with its whole schedule: its own keys over those of the recipe.

    A preset of its own starts afresh. What trains a teacher has no place next to a checkpoint; null takes a
    recipe's value back.
    """
    is_trained = teacher.get("checkpoint") is None
    for key in () if is_trained else ("schedule", "seed", "init"):
        if teacher.get(key) not in (None, "none"):
            clause = "has no effect: the teacher is not trained, it comes from teacher.checkpoint"
            fix = f"remove it, or --set teacher.{key}=null"
            document.fault(("teacher", key), clause, got=shown(teacher[key]), fix=fix)
        teacher.pop(key, None)
    path = ("teacher", "schedule")
    own = _known_only(teacher.get("schedule", {}), Schedule.model_fields, path, "a key of schedule", document)
    if isinstance(own, dict) and isinstance(schedule, dict) and "preset" not in own:
        without = {"milestones"} if own.get("decay", "step") != "step" else set()
        if own.keys() & LENGTHS:
            # a length of its own takes the place of the recipe's
            without |= LENGTHS
        own = {key: value for key, value in schedule.items() if key not in without} | own
    teacher["schedule"] = own


def methods_for(student: Any) -> dict[str, catalog.MethodInfo]:
    """All methods, with the defaults that they have for the student's family."""
    detector = student.get("detector") if isinstance(student, dict) else None
    return {key: info.serving(str(detector)) for key, info in catalog.methods().items()}


def _method_blocks(raw: Any, methods: Methods, document: Document) -> dict[str, dict[str, Any]]:
    """`methods:`, each entry checked even where no arm uses it."""
    if not isinstance(raw, dict):
        document.fault(("methods",), "must hold keys and values", got=shown(raw))
        return {}
    for instance, block in raw.items():
        path = ("methods", instance)
        document.checked(MethodSettings, method(block, methods, path, document), path)
    return {instance: block for instance, block in raw.items() if isinstance(block, dict)}


def _arms(
    raw: dict[str, Any], blocks: dict[str, dict[str, Any]], methods: Methods, document: Document
) -> tuple[dict[str, Any], list[str]]:
    """`arms:` with each method over its entry in `methods:`; the arms that say `inherit: true`.

    No method may be called `inherit`.
    """
    arms, inherits = dict(raw), []
    for name, arm in raw.items():
        if not isinstance(arm, dict):
            continue
        inherit = arm.get(INHERIT, False)
        if not isinstance(inherit, bool):
            document.fault(("arms", name, INHERIT), "must be true or false", got=shown(inherit))
        if inherit is True:
            inherits.append(name)
        arms[name] = {}
        for instance in [key for key in arm if key != INHERIT]:
            own = arm[instance]
            block = {**blocks.get(instance, {}), **own} if isinstance(own, dict) else own
            arms[name][instance] = method(block, methods, ("arms", name, instance), document)
    return arms, inherits


def _check_arms(arms: dict[str, Any], inherits: list[str], document: Document, *, has_teacher: bool) -> None:
    """Every arm has a sound name, differs from all others, and what learns from a teacher has one."""
    seen: dict[str, tuple[Any, bool]] = {}
    for name, arm in arms.items():
        if not NAME.fullmatch(name):
            known = "letters, digits and _ + - @ . , = [ ]"
            document.fault(("arms", name), "is not a name for an arm", known=[known])
        if name in RESERVED:
            document.fault(("arms", name), "is a word of tables, no name for an arm", fix="rename it")
        content = (arm, name in inherits)
        twin = next((earlier for earlier, other in seen.items() if other == content), "")
        if isinstance(arm, dict) and twin:
            document.fault(("arms", name), f"is the same as arms.{twin}", fix=f"remove {name}")
        seen[name] = content
    learning = next((name for name, content in seen.items() if any(content)), None)
    if learning is not None and not has_teacher:
        fix = "add teacher: {detector: ..., backbone: ...}"
        what = "has methods" if arms[learning] else "inherits"
        document.fault(("arms", learning), f"{what}, but the recipe has no teacher", fix=fix)


def method(raw: Any, methods: Methods, path: KeyPath, document: Document) -> Any:
    """A method's entry, whose instance ("cwd@neck") ends `path`, with its options apart and complete."""
    key, at, label = str(path[-1]).partition("@")
    info = _look_up(key, methods, path, "is not a method", document)
    if at and not LABEL.fullmatch(label):
        document.fault(path, "is not a name for an instance", known=[f"{key}@NAME"])
    if not isinstance(raw, dict):
        return raw
    settings = _with_options(raw, MethodSettings, info, path, document)
    if info is None:
        return {"weight": 0.0, **settings, "method": key}
    # an entry of `methods:` may hold what only some arms can use
    unused = info.unused(settings["options"]) if path[0] == "arms" else {}
    for name, why in unused.items():
        if settings["options"][name] != info.options[name].default:
            fix = f"remove it, or choose another value than {why}"
            document.fault((*path, name), f"has no effect with {why}", got=shown(raw[name]), fix=fix)
    return {"weight": info.weight_for(settings["options"]), **settings, "method": key}


def _with_options(
    raw: dict[str, Any],
    model: type[Settings],
    info: PluginInfo | None,
    path: KeyPath,
    document: Document,
) -> dict[str, Any]:
    """`raw` in the form of `model`: what belongs to the plugin moves to `options`, and defaults join it."""
    fields = model.model_fields.keys() - {"options", "method"}
    resolved: dict[str, Any] = {key: value for key, value in raw.items() if key in fields} | {"options": {}}
    if info is not None:
        resolved["options"] = _options_of(raw, info, path, document, besides=fields)
    return resolved


def _options_of(
    raw: dict[str, Any],
    info: PluginInfo,
    path: KeyPath,
    document: Document,
    besides: Iterable[str] = (),
) -> dict[str, Any]:
    """All options of a plugin: those that `raw` gives, which may hold keys `besides` them, and defaults."""
    _known_only(raw, [*besides, *info.options], path, f"an option of {info.key}", document)
    options = {}
    for name, option in info.options.items():
        value = options[name] = raw.get(name, option.default)
        if name in raw:
            try:
                options[name] = option.check(value)
            except ValueError as error:
                near = suggestion(str(value), [str(choice) for choice in option.type.choices])
                document.fault((*path, name), str(error), got=shown(value), fix=near)
        elif option.required:
            document.fault((*path, name), "is missing", fix=f"add {name}: ...")
    return options


def _look_up(
    word: Any, infos: Mapping[str, Info], path: KeyPath, clause: str, document: Document
) -> Info | None:
    """The plugin that `word` names; a fault where it names none, but not where it is no word at all.

    `clause` ends with the kind of plugin: "is not a method".
    """
    if not isinstance(word, str):
        return None
    if word not in infos:
        fix = fixes(nearest(word, infos), f"see: kdlab ls {clause.rpartition(' ')[2]}s")
        document.fault(path, clause, got=word, known=infos, fix=fix)
    return infos.get(word)


def nearest(word: str, infos: Mapping[str, PluginInfo]) -> str:
    """The nearest plugin by its key, or by the name before the colon of its summary: "rank_mimic" is `rm`."""
    names = {info.summary.partition(":")[0].lower().replace(" ", "_"): key for key, info in infos.items()}
    names |= {key: key for key in infos}
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5)
    return f"did you mean {names[near[0]]}?" if near else ""


def _known_only(raw: Any, known: Iterable[str], path: KeyPath, what: str, document: Document) -> Any:
    """`raw` without its unknown keys, each of which is a fault."""
    if not isinstance(raw, dict):
        return raw
    strays = [key for key in raw if key not in known]
    for key in strays[:MOST_FAULTS]:
        fix = fixes(suggestion(key, list(known)), "see: kdlab plan digits/quickstart --json")
        if key.isdecimal():
            # in braces YAML reads "lr: 0,001" as two keys
            fix = "write decimals with a point: 0.001"
        document.fault((*path, key), f"is not {what}", got=key, known=known, fix=fix)
    if more := strays[MOST_FAULTS:]:
        document.fault((*path, more[0]), f"and {len(more) - 1} more keys are not {what} either")
    return {key: value for key, value in raw.items() if key in known}
