"""Finds methods, detectors, datasets, executors, trackers and recipes by listing folders.

A plugin file is parsed, never imported: names, summaries and options come from its source, so that a
listing or a shell completion needs neither torch nor mmdet, and a broken plugin runs no code here.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from kdlab import plugins
from kdlab.catalog.options import Option
from kdlab.catalog.plugin_files import (
    PluginFile,
    PluginInfo,
    assignments,
    function_in,
    options_of,
    plugin_files,
)
from kdlab.errors import KdlabError

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class DetectorInfo(PluginInfo):
    """A detector family, with the sizes that a recipe need not say.

    Args:
        strides: of its levels in mmdet's own config.
        head_convs: convolutions of each tower there; 0 for a head without towers.
        queries: of a decoder there; None for a family without one.
        layers: of encoder and decoder there.
    """

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    head_convs: int = 4
    queries: int | None = None
    layers: int | None = None


@dataclass(frozen=True)
class BackboneInfo(PluginInfo):
    """A backbone, with the widths that it takes.

    Args:
        width: of its paper, and of torchvision's weights.
        width_step: every width is a multiple of it.
        one_width: whether it comes in that width alone.
    """

    width: int
    width_step: int = 1
    one_width: bool = False

    def width_fault(self, width: Any, init: str) -> str:
        """What is wrong with a width beside `init:`; "" where nothing is."""
        if not isinstance(width, int) or width == self.width:
            return ""
        if self.one_width or init == "imagenet":
            return f"must be {self.width}: {self.key} with init: {init} comes in no other width"
        return f"must be a multiple of {self.width_step} for {self.key}" if width % self.width_step else ""


@dataclass(frozen=True)
class MethodInfo(PluginInfo):
    """A distillation method with what it needs of the two models.

    Args:
        doc: the docstring of its class, which says what each option means.
        needs: names of detector outputs that both models must provide.
        requires_equal: facts in which teacher and student must agree.
        default_weight_when: the weight under an option's value instead, by (option, value).
        needs_when: what is needed besides, by (option, value).
        requires_equal_when: what must be equal besides, by (option, value).
        defaults_for: other defaults of options, and of "weight", by the student's detector family; such a
            weight scales those under options too.
        measured_for: the families whose defaults no paper says: they were measured here.
        unused_when: options that change nothing, by (option, value).
        prepares: options that decide what is learned of the teacher before any student is trained.
    """

    default_weight: float
    doc: str = ""
    needs: tuple[str, ...] = ()
    requires_equal: tuple[str, ...] = ()
    default_weight_when: dict[tuple[str, Any], float] = field(default_factory=dict)
    needs_when: dict[tuple[str, Any], tuple[str, ...]] = field(default_factory=dict)
    requires_equal_when: dict[tuple[str, Any], tuple[str, ...]] = field(default_factory=dict)
    defaults_for: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured_for: tuple[str, ...] = ()
    unused_when: dict[tuple[str, Any], tuple[str, ...]] = field(default_factory=dict)
    prepares: tuple[str, ...] = ()

    def serving(self, detector: str) -> MethodInfo:
        """The same method with the defaults that it has for students of a detector family."""
        own = dict(self.defaults_for.get(detector, {}))
        weight = own.pop("weight", self.default_weight)
        options = {
            name: replace(option, default=own[name]) if name in own else option
            for name, option in self.options.items()
        }
        ratio = weight / self.default_weight if self.default_weight else 1.0
        cases = {case: value * ratio for case, value in self.default_weight_when.items()}
        return replace(self, options=options, default_weight=weight, default_weight_when=cases)

    def unused(self, options: Mapping[str, Any]) -> dict[str, str]:
        """Options that change nothing next to these resolved ones, each with the cause: "form: sigmoid"."""
        return {
            name: f"{option}: {value}"
            for (option, value), names in self.unused_when.items()
            if options[option] == value
            for name in names
        }

    def weight_for(self, options: Mapping[str, Any]) -> float:
        """The weight where a recipe names none, under these resolved options."""
        for (option, value), weight in self.default_weight_when.items():
            if options[option] == value:
                return weight
        return self.default_weight

    def needs_for(self, options: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(needs, requires_equal) of the method under these options; an option left out has its default."""
        values = {name: option.default for name, option in self.options.items()} | dict(options)
        needs, equal = [*self.needs], [*self.requires_equal]
        for all_names, when in ((needs, self.needs_when), (equal, self.requires_equal_when)):
            for (option, value), names in when.items():
                if values[option] == value:
                    all_names += names
        return tuple(dict.fromkeys(needs)), tuple(dict.fromkeys(equal))


@dataclass(frozen=True)
class RecipeInfo:
    """A shipped recipe: its path under `recipes/` without the ending, and its first comment."""

    name: str
    path: Path
    summary: str


Info = TypeVar("Info", bound=PluginInfo)


def listing(
    *place: str,
) -> Callable[[Callable[[Path], dict[str, Info]]], Callable[..., dict[str, Info]]]:
    """Decorator: plugins of this package and of people's, read once; those of another folder each time.

    Raises:
        KdlabError: a person's has the name of one that comes with kdlab, or of another.
    """

    def of(read: Callable[[Path], dict[str, Info]]) -> Callable[..., dict[str, Info]]:
        # ids of thousands of jobs ask for them, and files do not change under a process
        @cache
        def all_of(package: Path) -> dict[str, Info]:
            found = read(package)
            for folder in plugins.of(*place):
                for key, info in read(Path(folder)).items():
                    if key in found:
                        what = f"there is a {place[-1][:-1]} called {key} already"
                        raise KdlabError(what, where=str(info.path), fix="call the file otherwise")
                    found[key] = replace(info, own=True, version=plugins.version(info.path))
            return found

        @wraps(read)
        def listed(folder: Path | None = None) -> dict[str, Info]:
            return dict(all_of(PACKAGE.joinpath(*place)) if folder is None else read(folder))

        return listed

    return of


@listing("methods")
def methods(folder: Path) -> dict[str, MethodInfo]:
    """The distillation methods by key.

    Raises:
        KdlabError: a file has no docstring, not exactly one `Method` class, or what the class says of itself
            cannot be read without running it; names file and line.
    """
    return {file.info.key: _method(file) for file in plugin_files(folder)}


@listing("detectors")
def detectors(folder: Path) -> dict[str, DetectorInfo]:
    """The detector families by key: the files that say `FAMILY = ...`, others there are what they share.

    `STRIDES = ...`, `HEAD_CONVS = ...`, `QUERIES = ...` and `LAYERS = ...` there are the family's own sizes,
    written as literals.

    Raises:
        KdlabError: as `methods` does.
    """
    return {file.info.key: _detector(file) for file in plugin_files(folder) if file.assigned("FAMILY")}


@listing("backbones")
def backbones(folder: Path) -> dict[str, BackboneInfo]:
    """The backbones by name; a file has all of one kind. Raises as `methods` does."""
    return {info.key: info for file in plugin_files(folder) for info in _backbones(file)}


def config_file(name: str) -> Path | None:
    """The mmdet config that a recipe's `detector:` names: a path, or a name of mmdet's own configs.

    "retinanet/retinanet_r50_fpn_1x_coco", with or without its ending or a leading "mmdet::". None where there
    is no such file, or mmdet is not installed.
    """
    found = find_spec("mmdet")
    places = found.submodule_search_locations if found else None
    try:
        if (own := Path(name).expanduser()).suffix == ".py" and own.is_file():
            return own.absolute()
        for place in places or ():
            short = name.removeprefix("mmdet::").removesuffix(".py")
            if (path := Path(place) / ".mim" / "configs" / f"{short}.py").is_file():
                return path
    except (OSError, RuntimeError):
        # too long for a name, or the home of an unknown user
        return None
    return None


@listing("datasets")
def datasets(folder: Path) -> dict[str, PluginInfo]:
    """The datasets by key; raises as `methods` does."""
    found = {}
    for file in plugin_files(folder):
        prepare = function_in(file.tree.body, "prepare")
        if prepare is None:
            file.refuse("has no function `prepare`, whose keyword-only arguments are the dataset's options")
        found[file.info.key] = replace(file.info, options=options_of(file, prepare))
    return found


@listing("running", "executors")
def executors(folder: Path) -> dict[str, PluginInfo]:
    """The executors by key; raises as `methods` does."""
    found = {}
    for file in plugin_files(folder):
        name = file.info.key.title()
        nodes = [node for node in file.tree.body if isinstance(node, ast.ClassDef) and node.name == name]
        if not nodes:
            file.refuse(f"has no class {name}, which starts the jobs")
        init = function_in(nodes[0].body, "__init__")
        options = options_of(file, init) if init else {}
        found[file.info.key] = replace(file.info, options=options)
    return found


def trackers(folder: Path | None = None) -> dict[str, PluginInfo]:
    """The trackers by key."""
    return {file.info.key: file.info for file in plugin_files(folder or PACKAGE / "tracking")}


def recipes(folder: Path | None = None) -> dict[str, RecipeInfo]:
    """The recipes by name ("digits/quickstart"): of the installed package, or of the checkout around it."""
    folder = folder or recipe_folder()
    found = {}
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        with path.open(encoding="utf-8", errors="replace") as stream:
            found[name] = RecipeInfo(name, path, first_comment(stream.read(4096)))
    return found


def recipe_folder() -> Path:
    """The folder of the recipes: inside the package when it was installed, else next to it."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def reference_folder() -> Path:
    """The folder of the published numbers: inside the package when it was installed, else next to it."""
    installed = PACKAGE / "reference"
    return installed if installed.is_dir() else PACKAGE.parent / "results" / "reference"


def first_comment(text: str) -> str:
    """The first line of `text` that is a comment, without its marks; "" where there is none."""
    lines = (line.strip() for line in text.splitlines())
    return next((line.lstrip("#").strip() for line in lines if line.startswith("#")), "")


def _detector(file: PluginFile) -> DetectorInfo:
    sizes = {name: file.assigned(name.upper()) for name in ("strides", "head_convs", "queries", "layers")}
    own = {name: file.literal(value, name.upper()) for name, value in sizes.items() if value}
    return DetectorInfo(**vars(file.info), **own)


def _with_base(name: str, file: PluginFile) -> list[ast.ClassDef]:
    classes = [node for node in file.tree.body if isinstance(node, ast.ClassDef)]
    return [node for node in classes if name in map(ast.unparse, node.bases)]


def _backbones(file: PluginFile) -> list[BackboneInfo]:
    classes = _with_base("Backbone", file)
    if len(classes) != 1:
        file.refuse(f"has {len(classes)} classes with the base `Backbone`; a backbone's file has one")
    written = assignments(classes[0].body)
    own = {name: file.literal(value, name) for name, value in written.items() if name in _BACKBONE_FACTS}
    names = own.pop("names", None)
    width = own.pop("width", None)
    widths = (width,) * len(names or ()) if isinstance(width, int) else width
    if not (isinstance(names, tuple) and isinstance(widths, tuple) and len(widths) == len(names)):
        file.refuse(
            f"class {classes[0].name} must say `names`, a tuple, and `width`, a number or one a name",
            classes[0],
        )
    return [
        BackboneInfo(**{**vars(file.info), "key": name, "width": width}, **own)
        for name, width in zip(names, widths, strict=True)
    ]


_BACKBONE_FACTS = ("names", "width", "width_step", "one_width")


def _method(file: PluginFile) -> MethodInfo:
    classes = _with_base("Method", file)
    if len(classes) != 1:
        file.refuse(f"has {len(classes)} classes with the base `Method`; a method's file has one")
    node = classes[0]
    init = function_in(node.body, "__init__")
    options = options_of(file, init) if init else {}
    for option in options.values():
        if option.required:
            file.refuse(f"option {option.name} has no default; `{file.info.key}: {{}}` must work", init)
    written = assignments(node.body)
    # numbers are from 0 on, unless `limits = {"share": (0.01, 1.0)}` says otherwise
    limits = dict.fromkeys(options, (0.0, math.inf))
    if "limits" in written:
        told = file.literal(written["limits"], "limits")
        if not (
            isinstance(told, dict) and told.keys() <= options.keys() and all(map(_is_range, told.values()))
        ):
            file.refuse("`limits` must be a dict {option: (lowest, highest)}", written["limits"])
        limits |= told
    options = {name: replace(option, limits=limits[name]) for name, option in options.items()}
    for name, option in options.items():
        try:
            option.check(option.default)
        except ValueError as error:
            file.refuse(f"the default of option {name} {error}", init)
    facts = {name: file.literal(value, name) for name, value in written.items() if name in _FORMS}
    for name, value in facts.items():
        words, fits = _FORMS[name]
        try:
            sound = fits(value, options)
        except (AttributeError, KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            file.refuse(f"`{name}` must be {words}", written[name])
    if "default_weight" not in facts:
        file.refuse(f"class {node.name} has no `default_weight`", node)
    doc = ast.get_docstring(node) or ""
    return MethodInfo(**vars(replace(file.info, options=options)), doc=doc, **facts)


Options = Mapping[str, Option]


def _is_range(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_number(one, {}) for one in value)


def _is_number(value: Any, _: Options) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_names(value: Any, _: Options) -> bool:
    return isinstance(value, tuple) and all(isinstance(entry, str) for entry in value)


def _are_options(value: Any, options: Options) -> bool:
    return _are_names(value, options) and set(value) <= options.keys()


def _are_cases(value: Any, options: Options, *, fits: Callable[[Any, Options], bool]) -> bool:
    return all(
        options[option].check(chosen) == chosen and fits(entry, options)
        for (option, chosen), entry in value.items()
    )


def _are_defaults(value: Any, options: Options) -> bool:
    return all(
        _is_number(default, options) if name == "weight" else options[name].check(default) == default
        for defaults in value.values()
        for name, default in defaults.items()
    )


_FORMS: dict[str, tuple[str, Callable[[Any, Options], bool]]] = {
    "default_weight": ("a number", _is_number),
    "default_weight_when": (
        "a dict {(option, one of its values): a number}",
        partial(_are_cases, fits=_is_number),
    ),
    **dict.fromkeys(
        ("needs", "requires_equal", "prepares", "measured_for"), ("a tuple of names", _are_names)
    ),
    **dict.fromkeys(
        ("needs_when", "requires_equal_when"),
        ("a dict {(option, one of its values): tuple of names}", partial(_are_cases, fits=_are_names)),
    ),
    "defaults_for": ('a dict {detector family: {option, or "weight": value}}', _are_defaults),
    "unused_when": (
        "a dict {(option, one of its values): tuple of options}",
        partial(_are_cases, fits=_are_options),
    ),
}
"""Class attributes of a method that `MethodInfo` holds: their form in words, and its check."""
