"""YAML as a recipe uses it: plain data, and for every value the line that it was written on.

Scalars follow YAML 1.2, so `1e-4` is a number and `no` is a word. Anchors, aliases and tags are refused: what
a recipe says stands in the place where it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kdlab.errors import UsageError, suggestion
from kdlab.recipe.document import Document, KeyPath, dotted, is_option, printable, shown

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 40_000
"""Keys and values of a recipe; one of thousands of arms has fewer."""


def read(path: Path, file: str, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML file whose root is a mapping, with overrides `a.b=value` put in.

    Args:
        path: the file.
        file: how messages name it.
        overrides: the value is YAML again; later ones win; missing mappings on the way are made.

    Returns:
        The data, with the faults that did not hinder reading: duplicate keys, overrides with no place.

    Raises:
        UsageError: the file cannot be read, or is not such YAML.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError("is too large for a recipe", where=file, known="up to 1 MiB")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=file) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError("is not UTF-8 text", where=f"{file}:{line}", fix="save it as UTF-8") from error
    document = Document(file, text, places={(): f"{file}:1"})
    data = _plain(_compose(document.text, file), (), document)
    if not isinstance(data, dict):
        raise UsageError("is not a recipe: it must hold keys and values", where=document.places[()])
    document.data = data
    for override in overrides:
        _override(override, document)
    return document


def values(text: str, said: str) -> list[Any]:
    """The values of "cls, loc, both", each typed as in a recipe.

    Args:
        text: YAML values, a comma between two.
        said: the option that holds them, which messages name: "--vary rm.rank=cls,loc,both".

    Raises:
        UsageError: that is no YAML.
    """
    document = Document(said, text, places={(): said})
    found: list[Any] = _plain(_compose(f"[{text}]", said), (), document)
    if document.faults:
        raise document.error()
    return found


SCALARS = {
    None: [
        (f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{pattern})\Z"))
        for kind, pattern in (
            ("null", r"~|null|Null|NULL|"),
            ("bool", r"true|True|TRUE|false|False|FALSE"),
            ("int", r"[-+]?[0-9]+"),
            ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
        )
    ]
}
"""Patterns of plain scalars, in PyYAML's form."""


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2, without references and tags, and to a bounded depth."""

    yaml_implicit_resolvers = SCALARS

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name
        self.depth = self.nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        problem = ""
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            problem = "a recipe has no anchors, aliases and tags: write the value itself"
        elif self.depth == MAX_DEPTH:
            problem = "nested too deeply"
        elif self.nodes == MAX_NODES:
            problem = f"a recipe has at most {MAX_NODES} keys and values"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        self.nodes += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, name: str) -> yaml.Node | None:
    """The node graph of `text`, None where it holds nothing; `name` is the file or the override.

    Raises:
        UsageError: it is not YAML, or not of the kind that recipes are written in.
    """
    fix = ""
    try:
        return _Loader(text, name).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = _place(mark) if mark else name
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        if mark and mark.buffer and mark.buffer[mark.pointer] == "\t":
            fix = "indent with spaces"
    except yaml.reader.ReaderError as error:
        where = name if is_option(name) else f"{name}:{text.count(chr(10), 0, error.position) + 1}"
        problem = f"character {error.character:#x} is not allowed"
    raise UsageError(f"cannot be read as YAML: {problem}", where=where, fix=fix)


def _place(mark: yaml.Mark) -> str:
    return mark.name if is_option(mark.name) else f"{mark.name}:{mark.line + 1}"


def _plain(node: yaml.Node | None, path: KeyPath, document: Document) -> Any:
    """The node's data; notes where each value below it stands, and duplicate keys."""
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        for index, entry in enumerate(node.value):
            document.places[*path, index] = _place(entry.start_mark)
        return [_plain(entry, (*path, index), document) for index, entry in enumerate(node.value)]
    text: str = "" if node is None else node.value
    match "null" if node is None else node.tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if len(text) < 20:
            return int(text)
        case "float" if math.isfinite(float(text)):
            return float(text)
    return text  # also of a number too large to be held, which fails where a number must be


def _mapping(node: yaml.MappingNode, path: KeyPath, document: Document) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place, key = _place(key_node.start_mark), key_node.value
        if not isinstance(key, str):
            document.fault(path, "has a key that is no word", where=place, fix="write keys as plain words")
            continue
        at = (*path, key)
        if key in data:
            clause = f"is given twice, first at {document.places[at]}"
            document.fault(at, clause, where=place, fix=f"keep one {key}")
            continue
        document.places[at] = place
        data[key] = _plain(value_node, at, document)
    return data


def _override(override: str, document: Document) -> None:
    """Put one `a.b=value` into the data; a fault where that cannot be."""
    name = f"--set {printable(override)}"
    path, equals, text = _split(override, document)
    if not equals or not all(path):
        document.fault((), "is not of the form a.b=value", where=name, fix="write --set schedule.lr=0.01")
        return
    holder = _holder(path, name, document)
    if holder is None:
        return
    for place in [place for place in document.places if place[: len(path)] == path]:
        del document.places[place]
    document.places[path] = name
    try:
        holder[path[-1]] = _plain(_compose(text, name), path, document)
    except UsageError as error:
        document.faults.extend(error.faults)


def _split(override: str, document: Document) -> tuple[tuple[str, ...], str, str]:
    """The keys of the path, the equals sign and the value.

    The name of an arm is one key, dots and equals signs in it included. Below `overrides` dots belong to the
    key, which is mmdet's and dotted itself.
    """
    arms = document.data.get("arms")
    known = arms if isinstance(arms, dict) else {}
    names = [name for name in known if override.startswith((f"arms.{name}.", f"arms.{name}="))]
    new = re.match(r"arms\.((?:\[[^\]]*\]|[^.=\[])+)[.=]", override)
    arm = max(names, key=len, default=new[1] if new else "")
    rest, equals, text = override.removeprefix(f"arms.{arm}" if arm else "").partition("=")
    head, dot, tail = rest.partition(".overrides.")
    keys = (*head.split("."), "overrides", tail) if dot else tuple(head.split("."))
    return (("arms", arm, *keys[1:]) if arm else keys), equals, text


def _holder(path: tuple[str, ...], name: str, document: Document) -> dict[str, Any] | None:
    """The mapping that holds the last key of `path`, made where it is missing; None after a fault.

    Nothing is made below `arms`: any word is a good name there, so a slip would go unseen.
    """
    holder = document.data
    for length, key in enumerate(path[:-1], start=1):
        above = holder
        if path[0] == "arms" and length > 1 and key not in above:
            near = suggestion(key, list(above))
            document.fault(path[:length], "does not exist", where=name, got=key, known=above, fix=near)
            return None
        if above.get(key) is None:
            above[key] = {}
            document.places[path[:length]] = name
        if not isinstance(above[key], dict):
            clause = f"holds no keys, so {path[length]} cannot be set"
            fix = f"set {dotted(path[:length])} as a whole"
            document.fault(path[:length], clause, where=name, got=shown(above[key]), fix=fix)
            return None
        holder = above[key]
    return holder
