"""The command line: finds the verbs, and turns whatever ends one into a message and an exit code."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup
from typer.main import get_command

import kdlab
from kdlab import plugins
from kdlab.cli import verbs as package
from kdlab.cli.screen import options
from kdlab.cli.screen.console import Screen, show_error
from kdlab.errors import Fault, KdlabError, MachineError, UsageError, fixes, suggestion

BUG, INTERRUPTED, PIPE_CLOSED, TERMINATED = 70, 130, 141, 143
LISTED = {"RECIPE": "kdlab ls recipes", "JOB": "kdlab status"}
"""What lists the words that an argument takes."""
AGAIN_S = 0.05
"""After so long a signal is raised again that Python swallowed."""
_ENVIRONMENT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_PLACES = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO, errno.EEXIST)
_SHARED = {"json": options.Json, "quiet": options.Quiet, "verbose": options.Verbose, "debug": options.Debug}

# Newer versions of typer carry a copy of click: this is the base of all usage errors with either.
_BadUsage: Any = typer.BadParameter.__bases__[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: what follows `kdlab`; by default what was typed.

    Returns:
        The exit code: 0 good, 1 a job failed, 2 usage or recipe, 3 the environment is not fit, 70 a bug in
        kdlab, 130 Ctrl-C, 143 SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        with _not_swallowed():
            return int(command(argv).main(argv, prog_name="kdlab", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        text, code = _told(error)
        show_error(text)
        if "--debug" in argv:
            show_error(traceback.format_exc())
        return code
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _not_swallowed() -> Iterator[None]:
    """Let no signal be lost that arrives in a destructor or a weak reference's callback.

    Python ignores what is raised there, and the command would go on to its end: it is raised again a moment
    later.
    """
    before = sys.unraisablehook
    lost: list[BaseException] = []

    def note(told: Any) -> None:
        if not isinstance(told.exc_value, SystemExit | KeyboardInterrupt):
            before(told)
            return
        lost.append(told.exc_value)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)

    def again(*_: object) -> None:
        raise lost.pop()

    sys.unraisablehook, alarm = note, signal.signal(signal.SIGALRM, again)
    try:
        yield
        if lost:
            raise lost.pop()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        sys.unraisablehook = before


def command(argv: Sequence[str] = ()) -> Any:
    """The whole command line as click sees it; `argv` is what error messages repeat."""
    app = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
    app.callback(cls=_Verbs, invoke_without_command=True)(_root)
    for name, function in verbs(argv[:1]).items():
        # told as such it is not cut
        summary = inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0]
        app.command(name, short_help=summary)(_with_screen(function, argv))
    return get_command(app)


def verbs(wanted: Sequence[str] = ()) -> dict[str, Callable[..., int | None]]:
    """The verbs: of each file in `cli/verbs/` the function that is called like it.

    Where `wanted` names some of them, those alone: to import all takes a quarter of a quick command.
    """
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    names = [name for name in names if name in wanted] or names
    return {name: getattr(importlib.import_module(f"{package.__name__}.{name}"), name) for name in names}


class _Verbs(TyperGroup):
    """Answers an unknown verb with the nearest one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise UsageError(
                f"{args[0]} is not a verb of kdlab",
                known=", ".join(known),
                fix=suggestion(args[0], known) or "kdlab --help",
            )
        return super().resolve_command(ctx, args)


def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Distil object detectors on mmdet: a recipe goes in, a comparison table comes out.

    Start here: kdlab run digits/quickstart
    """
    if version:
        print(f"kdlab {kdlab.__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def _with_screen(function: Callable[..., int | None], argv: Sequence[str]) -> Callable[..., int | None]:
    """The verb as typer takes it: instead of a screen it has the flags that make one."""

    @wraps(function)
    def verb(*, json: bool, quiet: bool, verbose: bool, debug: bool, **own: Any) -> int | None:
        screen = Screen(argv, json=json, quiet=quiet, verbose=verbose)
        try:
            code = function(screen, **own)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python would complain when it flushes stdout at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_CLOSED
        return code

    hints = get_type_hints(function, include_extras=True)
    _, *own = inspect.signature(function).parameters.values()
    flags = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False) for name in _SHARED]
    verb.__annotations__ = {parameter.name: hints[parameter.name] for parameter in own} | _SHARED
    verb.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            parameter.replace(annotation=verb.__annotations__[parameter.name], kind=parameter.KEYWORD_ONLY)
            for parameter in (*own, *flags)
        ]
    )
    return verb


def _told(error: Exception) -> tuple[str, int]:
    """Message and exit code of an error."""
    if isinstance(error, KdlabError):
        return str(error), error.exit_code
    if isinstance(error, _BadUsage):
        return str(_usage_fault(error)), UsageError.exit_code
    if isinstance(error, OSError) and error.errno in (*_ENVIRONMENT, *_PLACES):
        room = error.errno in _ENVIRONMENT
        fix = "make room or get permission there" if room else "move it away, or name another place"
        fault = Fault(str(error.strerror), where=str(error.filename or ""), fix=fix)
        return str(fault), MachineError.exit_code
    where, plugin, ours = "", "", Path(kdlab.__file__).parent
    for frame in traceback.extract_tb(error.__traceback__):
        place = f"{frame.filename}:{frame.lineno}"
        if Path(frame.filename).is_relative_to(ours):
            where = place
        elif any(Path(frame.filename).is_relative_to(folder) for folder in plugins.folders()):
            plugin = place
    what = f"{type(error).__name__}: {error}".partition("\n")[0]
    if plugin:
        fix = "mend this file of yours, or move it out of that folder; --debug shows the whole traceback"
        return str(Fault(what, where=plugin, fix=fix)), UsageError.exit_code
    fix = "a bug in kdlab; please report what the same command says with --debug"
    return str(Fault(what, where=where, fix=fix)), BUG


def _usage_fault(error: Any) -> Fault:
    """A mistake on the command line, as click found it."""
    verb = error.ctx.command_path if error.ctx else "kdlab"
    near, what = "", error.format_message().rstrip(".").replace("Value error, ", "")
    if hasattr(error, "possibilities"):
        known = [name for parameter in error.ctx.command.params for name in parameter.opts]
        near = suggestion(error.option_name, [name for name in known if name.startswith("--")])
        what = f"there is no option {error.option_name}"
    if listed := LISTED.get(getattr(getattr(error, "param", None), "metavar", None) or ""):
        near = f"see: {listed}"
    return Fault(what[:1].lower() + what[1:], where=verb, fix=fixes(near, f"see: {verb} --help"))
