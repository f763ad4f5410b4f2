"""Recipe and request -> the recipe of an ablation: all combinations of some methods."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from kdlab import catalog
from kdlab.errors import Fault, UsageError, fixes, suggestion
from kdlab.jobs.spec import MethodSettings
from kdlab.recipe import loader as recipes
from kdlab.recipe.document import Document, KeyPath, dotted, is_option, printable, shortened, shown
from kdlab.recipe.files import shareable
from kdlab.recipe.variation import Request, check_distinct, name_of, of_seeds, text_of, yaml_of
from kdlab.recipe.yaml_writer import dump

BASELINE = "baseline"
BESIDES = ("weight", "warmup_iters", "decay", "stop", "match", "maps")
"""Settings of any method that `--vary` changes next to its options."""

Block = dict[str, Any]


@dataclass(frozen=True)
class Derived:
    """The recipe of an ablation.

    Args:
        name: under which it is found: "ablate/digits/quickstart--rm+pfi".
        document: its data and its text, which say the same; places are in the base recipe, or options.
    """

    name: str
    document: Document


def derive(document: Document, base: str, request: Request) -> Derived:
    """The recipe of an ablation: the base recipe with other arms.

    Args:
        document: the base recipe with the overrides of the request in it, free of faults.
        base: its name.
        request: what to vary of it.

    Raises:
        UsageError: a method or an option is not known, a value does not fit, or the recipe does not say which
            options a method has.
    """
    methods = recipes.methods_for(document.data.get("student"))
    _check_losses(request, methods)
    found = {one: _block(document, one, request, methods) for one in request.losses}
    blocks = {one: block for one, (block, _) in found.items()}
    _check_vary(request, methods, blocks)
    arms, varied = _arms(request)
    places = {path: place for path, place in document.places.items() if path[:1] != ("arms",)}
    for _, origins in found.values():
        places |= origins
    told = {**document.data.get("methods", {}), **{one: block for one, block in blocks.items() if block}}
    data: Block = {}
    for section, value in document.data.items():
        if section == "arms":
            data |= {"methods": told} if told else {}
            data["arms"] = _effective(arms, blocks, methods)
        elif section != "methods":
            data[section] = value
    name = name_of(base, request)
    head = "\n".join(f"# {printable(line)}" for line in _head(name, base, document, request))
    text = f"{head}\n{dump(data, lines=('methods', 'arms'))}"
    return Derived(name, Document(document.file, text, data, places | varied))


def _head(name: str, base: str, document: Document, request: Request) -> list[str]:
    """The comment at the top: the title, and the commands that make it and run it."""
    what = f"ablation of {', '.join(request.losses)}{', one at a time' if request.each else ''}"
    title = [catalog.first_comment(document.text) or base, what]
    title += [f"{one.key} {', '.join(one.texts)}" for one in request.vary]
    title += [one for one in reversed(request.overrides) if not of_seeds(one)]
    command = request.command(base if base in catalog.recipes() else shareable(document.file))
    return ["; ".join(title), command, f"or kdlab run {shlex.quote(name)}"]


def _check_losses(request: Request, methods: recipes.Methods) -> None:
    """Some methods are named, each known and each once."""
    if not all(request.losses):
        raise UsageError("names no method", where=request.said, fix="write --loss rm,pfi")
    faults = []
    for place, instance in enumerate(request.losses):
        key = instance.partition("@")[0]
        if instance in request.losses[:place]:
            faults.append(Fault(f"{instance} is named twice", request.said, fix="name it once"))
        if key not in methods:
            near = f"write {instance.replace('+', ',')}" if "+" in instance else recipes.nearest(key, methods)
            fix, got = fixes(near, "see: kdlab ls methods"), dotted((key,))
            faults.append(Fault(f"{got} is not a method", request.said, got, shortened(methods), fix))
    if faults:
        raise UsageError(faults=faults)


def _check_vary(request: Request, methods: recipes.Methods, blocks: Mapping[str, Block]) -> None:
    """Each axis belongs to a method of the request, which takes all of its values."""
    check_distinct(request.vary)
    faults: list[Fault] = []
    for one in request.vary:
        if one.owner not in blocks:
            got = dotted((one.owner,))
            near = suggestion(one.owner, request.losses) or f"write {request.said},{got}"
            what = f"{got} is not among the methods of the ablation"
            faults.append(Fault(what, one.said, got, ", ".join(request.losses), near))
            continue
        key = one.owner.partition("@")[0]
        known = [*BESIDES, *methods[key].options]
        if one.option not in known:
            fix = suggestion(one.option, known) or f"see: kdlab ls methods {key}"
            got = dotted((one.option,))
            what = f"{got} is not an option of {one.owner}"
            faults.append(Fault(what, one.said, got, shortened(known), fix))
            continue
        scratch = Document(one.said, "", places={(): one.said})
        for value in one.values:
            block = {**blocks[one.owner], one.option: value}
            settings = recipes.method(block, methods, (one.owner,), scratch)
            scratch.checked(MethodSettings, settings, (one.owner,))
        faults += scratch.faults
    if faults:
        raise UsageError(faults=faults)


def _block(
    document: Document, instance: str, request: Request, methods: recipes.Methods
) -> tuple[Block, dict[KeyPath, str]]:
    """Settings of a method under `methods:`, else in the arm where it stands alone; their places.

    Raises:
        UsageError: several such arms disagree, or `--set` changes in one what `methods:` decides.
    """
    block: Block = document.data.get("methods", {}).get(instance, {})
    decided = {*block, *(one.option for one in request.vary if one.owner == instance)}
    scratch = Document(document.file, "", places=document.places)
    alone: dict[str, Block] = {}
    settings = {}
    for name, arm in document.data["arms"].items():
        if arm.keys() - {recipes.INHERIT} != {instance} or arm.get(recipes.INHERIT) is True:
            continue
        for key in arm[instance].keys() & block.keys():
            _check_override(document, ("arms", name, instance, key), arm[instance][key], block[key])
        alone[name] = {key: value for key, value in arm[instance].items() if key not in decided}
        path = ("methods", instance)
        settings[name] = recipes.method({**alone[name], **block}, methods, path, scratch)
    if not alone:
        return block, {}
    first = next(iter(alone))
    for name, own in alone.items():
        if settings[name] != settings[first]:
            raise _disagreement(instance, {first: alone[first], name: own}, document)
    places: dict[KeyPath, str] = {}
    for key in alone[first]:
        places["methods", instance, key] = document.places["arms", first, instance, key]
    return {**alone[first], **block}, places


def _check_override(document: Document, path: KeyPath, value: Any, decided: Any) -> None:
    """No `--set` changes in an arm what `methods:` decides here, for it would change nothing.

    Raises:
        UsageError: this one does.
    """
    place, option = document.places[path], dotted(("methods", *path[2:]))
    if is_option(place) and value != decided:
        what = f"has no effect in an ablation, where {option} decides"
        fix = f"--set {shlex.quote(f'{option}={yaml_of(value)}')}"
        raise UsageError(what, where=place, got=shown(value), fix=fix)


def _disagreement(instance: str, arms: Mapping[str, Block], document: Document) -> UsageError:
    (first, one), (second, other) = arms.items()
    absent = object()
    keys = sorted(key for key in {*one, *other} if one.get(key, absent) != other.get(key, absent))
    said = [f"{name} {shown({key: own[key] for key in keys if key in own})}" for name, own in arms.items()]
    key = keys[0]
    value = one[key] if key in one else other[key]
    return UsageError(
        f"arms.{first} and arms.{second} disagree about {instance}: {', '.join(keys)}",
        where=document.places["arms", second],
        got=", ".join(said),
        fix=f"say it under methods: --set {shlex.quote(f'methods.{instance}.{key}={yaml_of(value)}')}",
    )


def _arms(request: Request) -> tuple[dict[str, dict[str, Block]], dict[KeyPath, str]]:
    """The arms with the varied options alone, and the options of the command line that they come from.

    The baseline first, then one method at a time, then two, and so on.

    Raises:
        UsageError: two combinations have one name.
    """
    arms: dict[str, dict[str, Block]] = {BASELINE: {}}
    places: dict[KeyPath, str] = {("arms",): request.said, ("arms", BASELINE): request.said}
    sizes = range(1, 2 if request.each else len(request.losses) + 1)
    for chosen in (chosen for size in sizes for chosen in combinations(request.losses, size)):
        axes = [axis for one in chosen for axis in request.vary if axis.owner == one]
        for values in product(*(axis.values for axis in axes)):
            arm: dict[str, Block] = {one: {} for one in chosen}
            for axis, value in zip(axes, values, strict=True):
                arm[axis.owner][axis.option] = value
            labels = {
                one: [f"{key}={text_of(value)}" for key, value in own.items()] for one, own in arm.items()
            }
            name = "+".join(f"{one}[{','.join(said)}]" if said else one for one, said in labels.items())
            if name in arms:
                fix = "give the instances other names"
                raise UsageError(f"two combinations are called {name}", where=request.said, fix=fix)
            arms[name] = arm
            places["arms", name] = " ".join(dict.fromkeys(axis.said for axis in axes)) or request.said
            places |= {("arms", name, axis.owner, axis.option): axis.said for axis in axes}
    return arms, places


def _effective(
    arms: Mapping[str, Mapping[str, Block]], blocks: Mapping[str, Block], methods: recipes.Methods
) -> dict[str, dict[str, Block]]:
    """The arms, in each of which what the recipe says and a varied value makes idle has its default again.

    With `methods: {rm: {score: logit}}` the arm of `rank: loc` has no use for a score, which a recipe may not
    say then.
    """
    effective: dict[str, dict[str, Block]] = {}
    scratch = Document("", "", places={(): ""})
    for name, arm in arms.items():
        effective[name] = {}
        for one, own in arm.items():
            info, block = methods[one.partition("@")[0]], blocks[one]
            settings = recipes.method({**block, **own}, methods, ("methods", one), scratch)
            idle = info.unused(settings["options"]) if own else {}
            defaults = {key: info.options[key].default for key in idle if key in block and key not in own}
            effective[name][one] = own | defaults
    return effective
