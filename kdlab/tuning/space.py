"""Recipe -> what `kdlab tune` searches: weights on a log scale, numbers in limits, words to choose from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from kdlab import catalog
from kdlab.catalog.options import Option
from kdlab.errors import Fault, UsageError, suggestion
from kdlab.jobs.spec import MethodSettings
from kdlab.jobs.study import STUDENT, WEIGHT, Dimension
from kdlab.recipe.document import shortened
from kdlab.recipe.settings import Recipe

REACH = 30.0
"""How far a weight is searched to both sides of the recipe's, as a factor, before its term was measured."""
MANY_TIMES = 20.0
"""From this ratio of their limits on numbers are searched on a log scale."""


def searched_arm(recipe: Recipe) -> str:
    """The arm whose methods are tuned: `tune.arm`, else the smallest that has all methods of `tune.over`.

    Without `over` it is the first of those with the most methods.

    Raises:
        UsageError: there is none.
    """
    arms, tune = recipe.arms, recipe.tune
    _check_names(recipe)
    owners = {name.rpartition(".")[0] for name in tune.over}
    candidates = [tune.arm] if tune.arm is not None else [*arms]
    if unknown := [name for name in candidates if name not in arms]:
        near = suggestion(unknown[0], [*arms])
        what = "tune.arm is not an arm of the recipe"
        raise UsageError(what, where=recipe.path, got=unknown[0], known=", ".join(arms), fix=near)
    fitting = [name for name in candidates if arms[name] and owners <= arms[name].keys()]
    if not fitting:
        known = shortened(f"{name} ({', '.join(methods)})" for name, methods in arms.items() if methods)
        got, fix = ", ".join(tune.over) or "arms without methods", "add an arm that has them"
        what = f"tune.arm {tune.arm} has not" if tune.arm else "no arm has"
        raise UsageError(f"{what} all that is to be tuned", where=recipe.path, got=got, known=known, fix=fix)
    return (min if tune.over else max)(fitting, key=lambda name: len(arms[name]))


def _check_names(recipe: Recipe) -> None:
    """See that each name of `tune.over` is one of a method's option.

    Raises:
        UsageError: all that are not.
    """
    faults = []
    for name in recipe.tune.over:
        owner, _, key = name.rpartition(".")
        if not owner:
            fix = f"write {name}.{WEIGHT}"
            faults.append(Fault(f"{name} names no option of a method", recipe.path, name, fix=fix))
        elif owner == STUDENT:
            fix = f"--set 'tune.student={{{key}: [...]}}'"
            faults.append(Fault(f"{name} is no option of a method", recipe.path, name, fix=fix))
    if faults:
        raise UsageError(faults=faults)


def dimensions(recipe: Recipe, arm: str) -> tuple[Dimension, ...]:
    """What is searched of an arm, and of the student where the recipe lists some.

    Raises:
        UsageError: something is not an option of a method of the arm, or nobody says its range; all at once.
    """
    methods = recipe.arms[arm]
    names = recipe.tune.over or tuple(f"{instance}.{WEIGHT}" for instance in methods)
    made = [_dimension(name, methods, recipe) for name in dict.fromkeys(names)]
    faults = [one for one in made if isinstance(one, Fault)]
    strays = [name for name in recipe.tune.space if name not in names]
    known, fix = ", ".join(names), "name it with --over too"
    faults += [Fault(f"tune.space.{name} is not searched", recipe.path, name, known, fix) for name in strays]
    if faults:
        raise UsageError(faults=faults)
    students = [
        Dimension(f"{STUDENT}.{key}", choices=tuple(values)) for key, values in recipe.tune.student.items()
    ]
    return (*(one for one in made if isinstance(one, Dimension)), *students)


def _dimension(name: str, methods: Mapping[str, MethodSettings], recipe: Recipe) -> Dimension | Fault:
    owner, _, key = name.rpartition(".")
    if owner not in methods:
        fix = suggestion(owner, [*methods]) or "write METHOD.KEY, as in pfi.weight"
        return Fault(
            f"{name} is of no method of the arm", recipe.path, owner or name, ", ".join(methods), fix
        )
    info = catalog.methods()[methods[owner].method]
    known = [WEIGHT, *info.options]
    if key not in known:
        fix = suggestion(key, known) or f"see: kdlab ls methods {info.key}"
        return Fault(f"{name} is not an option of {info.key}", recipe.path, key, ", ".join(known), fix)
    own = Dimension(name)
    if key == WEIGHT:
        usual = methods[owner].weight
        made = replace(own, low=usual / REACH, high=usual * REACH, log=True) if usual else None
    else:
        made = _declared(own, info.options[key])
    if name in recipe.tune.space:
        return _told(replace(made or own, given=True), recipe.tune.space[name], info.options.get(key), recipe)
    if made is None:
        fix = f"--set 'tune.space={{{name}: [LOWEST, HIGHEST]}}'"
        return Fault(f"{name} has no range to search", recipe.path, "nothing under tune.space", fix=fix)
    return made


def _declared(own: Dimension, option: Option) -> Dimension | None:
    """The range that a method's option has by itself; None for text, lists and numbers without limits."""
    match option.type.kind:
        case "choice":
            return replace(own, choices=option.type.choices)
        case "bool":
            return replace(own, choices=(False, True))
        case "int" | "float" if math.isfinite(option.limits[1]):
            low, high = option.limits
            return replace(own, low=low, high=high, log=_is_wide(low, high), whole=option.type.kind == "int")
    return None


def _told(
    own: Dimension, values: tuple[Any, ...], option: Option | None, recipe: Recipe
) -> Dimension | Fault:
    """The range that `tune.space` gives: two ends of a number, or the values themselves."""

    def fault(what: str, fix: str = "") -> Fault:
        return Fault(f"tune.space.{own.name} {what}", recipe.path, str(list(values)), fix=fix)

    try:
        values = tuple(option.check(value) for value in values) if option else values
    except ValueError as error:
        return fault(str(error))
    if len(values) < 2:
        return fault("must hold two values or more")
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if option is None and not (numbers and min(values) >= 0):
        return fault("must hold numbers from 0 on")
    if not numbers or len(values) != 2:
        return replace(own, choices=tuple(dict.fromkeys(values)))
    low, high = values
    if low == high:
        return fault("must hold two numbers that differ")
    if low > high:
        return fault("must begin with its lowest number", f"write [{high}, {low}]")
    whole = option is not None and option.type.kind == "int"
    return replace(own, low=low, high=high, log=_is_wide(low, high), whole=whole, choices=())


def _is_wide(low: float, high: float) -> bool:
    return low > 0 and high / low >= MANY_TIMES


def methods_with(recipe: Recipe, arm: str, params: Mapping[str, Any]) -> dict[str, MethodSettings]:
    """The methods of an arm with other values: {"pfi.weight": 30.0, "rm.rank": "loc"}.

    A method whose weight the recipe leaves to its options gets the weight of the new ones; an option that
    these make idle has its default, so that what trains alike is one job.
    """
    found = {}
    for instance, method in recipe.arms[arm].items():
        info = _info(recipe, method)
        own = _of(instance, params)
        weight = own.pop(WEIGHT, None)
        options = method.options | own
        options |= {name: info.options[name].default for name in info.unused(options)}
        if weight is None:
            usual = method.weight == info.weight_for(method.options)
            weight = info.weight_for(options) if usual and own else method.weight
        found[instance] = method.model_copy(update={"weight": float(weight), "options": options})
    return found


def with_like_terms(
    recipe: Recipe, arm: str, params: Mapping[str, Any], space: Iterable[Dimension]
) -> dict[str, Any]:
    """The values with weights whose terms are as large as under the options that were measured.

    A method whose term differs in size between options has a default weight for each: 1.5 of PFI by itself,
    a hundredth of that inside objects. A range that the recipe gives is taken as it stands.
    """
    found = dict(params)
    for one in space:
        if one.key != WEIGHT or one.given or one.name not in params:
            continue
        method = recipe.arms[arm][one.owner]
        info = _info(recipe, method)
        options = {key: value for key, value in _of(one.owner, params).items() if key != WEIGHT}
        usual, now = info.weight_for(method.options), info.weight_for(method.options | options)
        if usual:
            found[one.name] = one.rounded(params[one.name] * now / usual)
    return found


def published(recipe: Recipe, arm: str, space: Iterable[Dimension]) -> tuple[str, dict[str, Any]]:
    """The reference from the papers: defaults of what is searched, for the student's detector.

    What else the recipe says of a method stays, and a weight is the one that these options have.

    Returns:
        "published", or "defaults" where no paper says that, because the recipe has other options besides or
        kdlab measured them; and the values by dimension.
    """
    name = "published"
    params: dict[str, Any] = {}
    owners: dict[str, list[str]] = {}
    for one in space:
        if one.owner != STUDENT:
            owners.setdefault(one.owner, []).append(one.key)
    for owner, keys in owners.items():
        method = recipe.arms[arm][owner]
        info = _info(recipe, method)
        defaults = {key: option.default for key, option in info.options.items()}
        options = method.options | {key: defaults[key] for key in keys if key != WEIGHT}
        values = options | {WEIGHT: info.weight_for(options)}
        params |= {f"{owner}.{key}": values[key] for key in keys}
        differ = options | {key: defaults[key] for key in info.unused(options)} != defaults
        if differ or recipe.student.detector in info.measured_for:
            name = "defaults"
    return name, params


def _info(recipe: Recipe, method: MethodSettings) -> catalog.MethodInfo:
    """The method as it is for the students of a recipe."""
    return catalog.methods()[method.method].serving(recipe.student.detector)


def _of(owner: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one instance of a method, by option."""
    return {
        name.rpartition(".")[2]: value for name, value in params.items() if name.rpartition(".")[0] == owner
    }
