"""A recipe and what to vary of it -> the recipe of its ablation: all combinations of some methods."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from kdlab import catalog
from kdlab.errors import Fault, UsageError, suggestion
from kdlab.recipe import loader as recipes
from kdlab.recipe.document import Document, KeyPath, dotted, is_option, shortened, shown
from kdlab.recipe.files import shareable
from kdlab.recipe.settings import MethodSettings
from kdlab.recipe.variation import Axis, Request, check_distinct, name_of, of_seeds, text_of, yaml_of
from kdlab.recipe.yaml_writer import dump

BASELINE = "baseline"
BESIDES = ("weight", "warmup_iters", "match")
"""What `--vary` changes of any method, besides its options."""

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
    arms = _arms(request)
    places = {path: place for path, place in document.places.items() if path[:1] != ("arms",)}
    places |= {path: place for _, own in found.values() for path, place in own.items()}
    places |= _places(request, arms)
    data = dict(_sections(document.data, blocks, _effective(arms, blocks, methods)))
    name = name_of(base, request)
    head = _head(catalog.first_comment(document.text) or base, name, base, document, request)
    text = f"{head}\n{dump(data, lines=('methods', 'arms'))}"
    return Derived(name, Document(document.file, text, data, places))


def _head(title: str, name: str, base: str, document: Document, request: Request) -> str:
    """The comment at the top: what it is of, and the commands that make it and run it."""
    varied = [f"{one.key} {', '.join(one.texts)}" for one in request.vary]
    varied += [one for one in reversed(request.overrides) if not of_seeds(one)]
    what = f"ablation of {', '.join(request.losses)}{', one at a time' if request.each else ''}"
    command = request.command(base if base in catalog.recipes() else shareable(document.file))
    lines = ["; ".join([title, what, *varied]), command, f"or kdlab run {name}"]
    return "\n".join(f"# {line if line.isprintable() else ascii(line)}" for line in lines)


def _sections(
    data: Mapping[str, Any], blocks: Mapping[str, Block], arms: Mapping[str, Block]
) -> Iterator[tuple[str, Any]]:
    """The sections of the derived recipe, in the order of the base."""
    methods = {**data.get("methods", {}), **{one: block for one, block in blocks.items() if block}}
    for section, value in data.items():
        if section == "arms":
            if methods:
                yield "methods", methods
            yield "arms", dict(arms)
        elif section != "methods":
            yield section, value


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
            fix = "   ".join(filter(None, [near, "see: kdlab ls methods"]))
            got = dotted((key,))
            faults.append(Fault(f"{got} is not a method", request.said, got, shortened(methods), fix))
    if faults:
        raise UsageError(faults=faults)


def _check_vary(request: Request, methods: recipes.Methods, blocks: Mapping[str, Block]) -> None:
    """What is varied belongs to a method of the request, and takes all of its values."""
    check_distinct(request.vary)
    faults: list[Fault] = []
    for one in request.vary:
        known = [*BESIDES, *methods[one.owner.partition("@")[0]].options] if one.owner in blocks else []
        if one.owner not in blocks:
            got = dotted((one.owner,))
            near = suggestion(one.owner, request.losses) or f"write {request.said},{got}"
            what = f"{got} is not among the methods of the ablation"
            faults.append(Fault(what, one.said, got, ", ".join(request.losses), near))
        elif one.option not in known:
            fix = suggestion(one.option, known) or f"see: kdlab ls methods {one.owner.partition('@')[0]}"
            got = dotted((one.option,))
            what = f"{got} is not an option of {one.owner}"
            faults.append(Fault(what, one.said, got, shortened(known), fix))
        else:
            faults += _unfit(one, methods, blocks[one.owner])
    if faults:
        raise UsageError(faults=faults)


def _unfit(axis: Axis, methods: recipes.Methods, block: Block) -> list[Fault]:
    """The values of an axis that its option does not take."""
    scratch = Document(axis.said, "", places={(): axis.said})
    for value in axis.values:
        settings = recipes.method({**block, axis.option: value}, methods, (axis.owner,), scratch)
        scratch.checked(MethodSettings, settings, (axis.owner,))
    return scratch.faults


def _block(
    document: Document, instance: str, request: Request, methods: recipes.Methods
) -> tuple[Block, dict[KeyPath, str]]:
    """What the recipe says of a method, under `methods:`, else in the arm where it stands alone; its places.

    Raises:
        UsageError: several such arms disagree.
    """
    block: Block = document.data.get("methods", {}).get(instance, {})
    decided = {*block, *(one.option for one in request.vary if one.owner == instance)}
    alone = {
        name: {key: value for key, value in own.items() if key not in decided}
        for name, own in _alone(document.data["arms"], instance)
    }
    if not alone:
        return block, {}
    _check_overrides(document, instance, block)
    scratch = Document(document.file, "", places=document.places)
    settings = {
        name: recipes.method({**own, **block}, methods, ("methods", instance), scratch)
        for name, own in alone.items()
    }
    first = next(iter(alone))
    for name in alone:
        if settings[name] != settings[first]:
            raise _disagreement(instance, {one: alone[one] for one in (first, name)}, document)
    origin = {("methods", instance, key): ("arms", first, instance, key) for key in alone[first]}
    return {**alone[first], **block}, {path: document.places[source] for path, source in origin.items()}


def _alone(arms: Mapping[str, Any], instance: str) -> Iterator[tuple[str, Block]]:
    """The arms that hold this method and nothing else."""
    for name, arm in arms.items():
        if arm.keys() - {recipes.INHERIT} == {instance} and arm.get(recipes.INHERIT) is not True:
            yield name, arm[instance]


def _check_overrides(document: Document, instance: str, block: Block) -> None:
    """No `--set` changes in an arm what `methods:` decides here, for it would change nothing.

    Raises:
        UsageError: one does.
    """
    for name, own in _alone(document.data["arms"], instance):
        for key in own.keys() & block.keys():
            place = document.places["arms", name, instance, key]
            if is_option(place) and own[key] != block[key]:
                value = shlex.quote(f"methods.{instance}.{key}={yaml_of(own[key])}")
                what = f"has no effect in an ablation, where methods.{instance}.{key} decides"
                raise UsageError(what, where=place, got=shown(own[key]), fix=f"--set {value}")


def _disagreement(instance: str, arms: Mapping[str, Block], document: Document) -> UsageError:
    (first, one), (second, other) = arms.items()
    absent = object()
    keys = sorted(key for key in {*one, *other} if one.get(key, absent) != other.get(key, absent))
    said = ", ".join(
        f"{name} {shown({key: own[key] for key in keys if key in own})}" for name, own in arms.items()
    )
    key, value = next((key, own[key]) for key in keys for own in (one, other) if key in own)
    return UsageError(
        f"arms.{first} and arms.{second} disagree about {instance}: {', '.join(keys)}",
        where=document.places["arms", second],
        got=said,
        fix=f"say it under methods: --set {shlex.quote(f'methods.{instance}.{key}={yaml_of(value)}')}",
    )


def _arms(request: Request) -> dict[str, Block]:
    """The arms, the baseline first, then one method at a time, then two, and so on.

    Raises:
        UsageError: two combinations have one name.
    """
    arms: dict[str, Block] = {BASELINE: {}}
    for size in range(1, 2 if request.each else len(request.losses) + 1):
        for chosen in combinations(request.losses, size):
            for options in product(*(_variants(one, request.vary) for one in chosen)):
                arm = dict(zip(chosen, options, strict=True))
                name = "+".join(_label(one, own) for one, own in arm.items())
                if name in arms:
                    fix = "give the instances other names"
                    raise UsageError(f"two combinations are called {name}", where=request.said, fix=fix)
                arms[name] = arm
    return arms


def _effective(
    arms: Mapping[str, Block], blocks: Mapping[str, Block], methods: recipes.Methods
) -> dict[str, Block]:
    """The arms, in each of which what the recipe says and a varied value makes idle has its default again.

    With `methods: {rm: {score: logit}}` the arm of `rank: loc` has no use for a score, which a recipe may not
    say then.
    """
    return {
        name: {one: own | _idle(one, own, blocks[one], methods) for one, own in arm.items()}
        for name, arm in arms.items()
    }


def _idle(instance: str, own: Block, block: Block, methods: recipes.Methods) -> Block:
    """Defaults of the options of `block` that change nothing beside the varied ones in `own`."""
    info = methods[instance.partition("@")[0]]
    scratch = Document("", "", places={(): ""})
    options = recipes.method({**block, **own}, methods, ("methods", instance), scratch)["options"]
    idle = info.unused(options) if own else {}
    return {name: info.options[name].default for name in idle if name not in own and name in block}


def _variants(instance: str, axes: Sequence[Axis]) -> Iterator[Block]:
    own = [one for one in axes if one.owner == instance]
    for chosen in product(*(one.values for one in own)):
        yield {one.option: value for one, value in zip(own, chosen, strict=True)}


def _label(instance: str, options: Block) -> str:
    """ "rm" or "rm[rank=loc,score=logit]"."""
    told = ",".join(f"{name}={text_of(value)}" for name, value in options.items())
    return f"{instance}[{told}]" if told else instance


def _places(request: Request, arms: Mapping[str, Block]) -> dict[KeyPath, str]:
    """The options of the command line that the arms come from."""
    said = {(one.owner, one.option): one.said for one in request.vary}
    places: dict[KeyPath, str] = {("arms",): request.said}
    for name, arm in arms.items():
        varied = {(one, option): said[one, option] for one, options in arm.items() for option in options}
        places["arms", name] = " ".join(dict.fromkeys(varied.values())) or request.said
        places |= {("arms", name, *path): place for path, place in varied.items()}
    return places
