"""Ultralytics' data.yaml: the names of the classes, and where the images of each split are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from kdlab.datasets._coco_labels import UNPRINTABLE, grouped, is_printable
from kdlab.datasets.base import content_of, first_of
from kdlab.errors import Fault, UsageError

_NOTHING = ("", "~", "null")
_NAMES_FIX = "write names: [cat, dog], in the order of the numbers in the label files"


@dataclass(frozen=True)
class DataYaml:
    """The content of a data.yaml.

    Args:
        names: of the classes, in the order of their numbers.
        path: the folder that it calls the dataset's; "" where it calls none.
        splits: of each split the folders or lists of images, as written.
    """

    names: tuple[str, ...]
    path: str
    splits: dict[str, tuple[str, ...]]


def read(file: Path, parts: Collection[str]) -> DataYaml:
    """Read a data.yaml; every scalar is text, so a class may be called `no`, and nothing else is made of it.

    Args:
        file: the YAML file.
        parts: the splits that it has to name.

    Raises:
        UsageError: it is no YAML, or all that is wrong with its names and splits, at once.
        OSError: it cannot be read.
    """
    keys, faults = _keys(file)
    names = _names(keys.get("names"), file, faults)
    faults += _class_count(keys.get("nc"), names, file)
    if "kpt_shape" in keys:
        fix = "keep the first five numbers of each line, and take kpt_shape out"
        faults.append(Fault("labels of poses cannot be read", where=_at(file, keys["kpt_shape"]), fix=fix))
    splits = {}
    for part in parts:
        texts = _texts(keys.get(part))
        if texts is None:
            fix = f"write {part}: images/{part}, or a list of such folders"
            faults.append(
                Fault(f"{part} is no path and no list of paths", where=_at(file, keys[part]), fix=fix)
            )
        elif not texts:
            fix = f"write {part}: FOLDER, or name it in the recipe: dataset.{part}: [FOLDER]"
            known = first_of([*keys], 12)
            faults.append(Fault(f"this file names no {part}", where=str(file), known=known, fix=fix))
        splits[part] = texts or ()
    if faults:
        raise UsageError(faults=faults)
    return DataYaml(names, "".join((_texts(keys.get("path")) or ())[:1]), splits)


def _keys(file: Path) -> tuple[dict[str, yaml.Node], list[Fault]]:
    """The values by key, and a fault for each key that is given twice.

    Raises:
        UsageError: it is no YAML of keys and values.
    """
    where, fix = str(file), "write the keys names, train and val; paths with / and without quotation marks"
    content = content_of(file)
    try:
        root = yaml.compose(content.decode("utf-8-sig"), yaml.BaseLoader)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            "this file is not UTF-8 text", where=f"{where}:{line}", fix="save it as UTF-8"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where += f":{mark.line + 1}" if mark else ""
        raise UsageError(f"this file is not YAML: {error.problem}", where=where, fix=fix) from error
    except (yaml.YAMLError, RecursionError) as error:
        why = (
            "it is nested too deeply" if isinstance(error, RecursionError) else f"{error}".partition("\n")[0]
        )
        raise UsageError(f"this file is not YAML: {why}", where=where, fix=fix) from error
    if not isinstance(root, yaml.MappingNode):
        raise UsageError("this file is no data.yaml: it holds no keys and values", where=where, fix=fix)
    keys: dict[str, yaml.Node] = {}
    faults = []
    for key, value in root.value:
        if str(key.value) in keys:
            at, fix = _at(file, key), f"keep one {key.value}"
            faults.append(Fault(f"the key {key.value} is given twice", where=at, fix=fix))
        keys[str(key.value)] = value
    return keys, faults


def _at(file: Path, node: yaml.Node) -> str:
    return f"{file}:{node.start_mark.line + 1}"


def _texts(node: yaml.Node | None) -> tuple[str, ...] | None:
    """A text or a list of texts; empty where there is nothing, None where it is something else."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node] if node else []
    if not all(isinstance(one, yaml.ScalarNode) for one in nodes):
        return None
    return tuple(text for one in nodes if (text := one.value.strip()) not in _NOTHING)


def _names(node: yaml.Node | None, file: Path, faults: list[Fault]) -> tuple[str, ...]:
    """The names of a list, or of {number: name}; what is wrong with them is added to `faults`."""
    if node is None or node.value in _NOTHING or not node.value:
        what = "this file names no classes"
        faults.append(Fault(what, where=str(file) if node is None else _at(file, node), fix=_NAMES_FIX))
        return ()
    if isinstance(node, yaml.ScalarNode):
        what = "names is neither a list nor numbers with their names"
        faults.append(Fault(what, where=_at(file, node), got=node.value, fix=_NAMES_FIX))
        return ()
    values = node.value
    if isinstance(node, yaml.MappingNode):
        numbers = [key.value if isinstance(key, yaml.ScalarNode) else "" for key, _ in node.value]
        wanted = {str(number): number for number in range(len(numbers))}
        if set(numbers) != wanted.keys():
            what = "the numbers of names are not 0, 1, 2 and so on"
            got, fix = first_of([f"{number}" for number in numbers], 8), "number them from 0, each once"
            faults.append(Fault(what, where=_at(file, node), got=got, fix=fix))
            return ()
        values = [value for _, value in sorted(node.value, key=lambda pair: wanted[pair[0].value])]
    found = [*grouped(_name_cases(values), str(file))]
    faults += found
    return () if found else tuple(value.value for value in values)


def _name_cases(values: list[yaml.Node]) -> Iterator[tuple[str, str, str]]:
    """Kind, case and fix of each name that no class can have."""
    lines: dict[str, int] = {}
    for number, value in enumerate(values):
        name, line = value.value, value.start_mark.line + 1
        case = f"line {line}: class {number}"
        if not isinstance(name, str):
            yield "names that are not text", case, "write the name of the class"
        elif not name.strip():
            yield "names that are blank", case, "write the name of the class"
        elif not is_printable(name):
            yield f"names whose text {UNPRINTABLE}", f"{case} {name!a}", "take them out of the name"
        elif name in lines:
            yield (
                "names with that of another",
                f"{case} {name}, as in line {lines[name]}",
                "rename one of them",
            )
        else:
            lines[name] = line


def _class_count(node: yaml.Node | None, names: tuple[str, ...], file: Path) -> Iterator[Fault]:
    """The fault of an `nc` that differs from the number of names, where these are right."""
    if node is None or not names or node.value == str(len(names)):
        return
    got = f"nc: {node.value if isinstance(node, yaml.ScalarNode) else '...'}, and {len(names)} names"
    fix = f"write nc: {len(names)}, or the names that lack"
    yield Fault("nc differs from the number of names", where=_at(file, node), got=got, fix=fix)
