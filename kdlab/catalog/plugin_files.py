"""Plugin files, parsed and never imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from kdlab.catalog.options import Option, option_type
from kdlab.errors import KdlabError


@dataclass(frozen=True)
class PluginInfo:
    """A plugin of a folder.

    Args:
        key: the file's name without its ending.
        path: of the file.
        summary: the first line of the file's docstring.
        options: the keyword-only arguments of what it defines, which a recipe may set.
        version: `VERSION = ...` there, 1 where left out. The commit that moves a number of the plugin raises
            it, and with it the ids of the jobs that use it.
        own: whether it lies in a folder of the person's; then `version` follows from its content.
    """

    key: str
    path: Path
    summary: str
    options: dict[str, Option] = field(default_factory=dict, kw_only=True)
    version: int = field(default=1, kw_only=True)
    own: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class PluginFile:
    """A plugin file as it was parsed."""

    info: PluginInfo
    tree: ast.Module

    def assigned(self, name: str) -> ast.expr | None:
        """The value that the file gives to a name; None where it gives none."""
        return assignments(self.tree.body).get(name)

    def refuse(self, what: str, node: ast.expr | ast.stmt | ast.arg | None = None) -> NoReturn:
        """Raise a fault of the file, with the line of `node` where it is known."""
        where = f"{self.info.path}:{node.lineno}" if node else str(self.info.path)
        raise KdlabError(what, where=where, fix="mend the file, or move it out of that folder")

    def literal(self, node: ast.expr, name: str) -> Any:
        """The value that an expression writes down; refused where it would have to be run."""
        try:
            return ast.literal_eval(node)
        except (TypeError, ValueError):
            self.refuse(f"{name} must be written as a literal: this file is read, not run", node)


def plugin_files(folder: Path) -> Iterator[PluginFile]:
    """The plugins of a folder; files whose name begins with an underscore are parts of them.

    Raises:
        KdlabError: a file is not Python, or has no docstring.
    """
    for path in sorted(folder.glob("*.py")):
        if path.stem == "base" or path.stem.startswith((".", "_")):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError) as error:
            line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            raise KdlabError(f"cannot be read as Python: {error}", where=f"{path}{line}") from error
        summary = (ast.get_docstring(tree) or "").partition("\n")[0].strip()
        source = PluginFile(PluginInfo(path.stem, path, summary), tree)
        if not summary:
            source.refuse("has no docstring; its first line is the summary that people see")
        written = source.assigned("VERSION")
        version = 1 if written is None else source.literal(written, "VERSION")
        if not isinstance(version, int) or version < 1:
            source.refuse("VERSION must be a whole number from 1 on", written)
        yield replace(source, info=replace(source.info, version=version))


def assignments(body: list[ast.stmt]) -> dict[str, ast.expr]:
    """The values that statements give to names."""
    found = {}
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found[name] = value
    return found


def function_in(body: list[ast.stmt], name: str) -> ast.FunctionDef | None:
    """The function of that name; None where there is none."""
    return next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def options_of(file: PluginFile, function: ast.FunctionDef) -> dict[str, Option]:
    """The keyword-only arguments of a function as options.

    Raises:
        KdlabError: one has no type that a recipe could give, or a default that does not fit it.
    """
    options = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        name, kind = argument.arg, option_type(argument.annotation)
        if kind is None:
            known = "int, float, str, bool, Literal[...], tuple[...], X | None"
            file.refuse(f"option {name} must be annotated with one of {known}", argument)
        option = Option(name, kind, required=default is None)
        options[name] = option
        if default is not None:
            value = file.literal(default, f"the default of {name}")
            try:
                options[name] = replace(option, default=option.check(value))
            except ValueError as error:
                file.refuse(f"the default of option {name} {error}", default)
    return options
