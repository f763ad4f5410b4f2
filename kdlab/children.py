"""Pythons that kdlab starts. None sees the working folder: files there would shadow what is installed.

A folder `mmdet` or a file `queue.py` where somebody types `kdlab` is none of a job's modules. What an mmdet
config needs of its own has a path of its own, in `Inputs.modules`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from kdlab import plugins
from kdlab.errors import Fault, JobError, KdlabError, MachineError, UsageError

ROOT = str(Path(__file__).parents[1])
"""Where this kdlab was found."""
PARENT_EVERY_S = 0.5


def python(*words: str) -> list[str]:
    """Command of this Python, without the working folder among its modules."""
    return [sys.executable, "-P", *words]


def environment() -> dict[str, str]:
    """Variables by which children find this kdlab and people's plugins, and nothing else that lies here."""
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [part for part in parts if Path(part).is_absolute()]
    if ROOT not in sys.path:
        named.append(ROOT)
    found = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(named)}
    # of a working folder that is not theirs
    return found | ({plugins.VARIABLE: os.pathsep.join(plugins.folders())} if plugins.folders() else {})


def version(package: str) -> str:
    """Version of an installed package; says so where modules of its name in PYTHONPATH come before it.

    Raises:
        metadata.PackageNotFoundError: it is not installed.
    """
    found, module = metadata.version(package), package.removesuffix("-lite")
    named = {*environment()["PYTHONPATH"].split(os.pathsep)} - {"", ROOT}
    other = any(Path(place, module, "__init__.py").is_file() for place in named)
    return f"{found} from PYTHONPATH" if other else found


def ask(module: str, request: Any, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a module of kdlab that reads and writes JSON; it ends with this process, however that ends."""
    return subprocess.run(
        python("-W", "ignore", "-m", module, str(os.getpid())),
        input=json.dumps(request),
        env=os.environ | environment() | env,
        capture_output=True,
        text=True,
        check=False,
    )


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """In the process that `ask` started: do what the request says, and write what comes of it; the exit code.

    What kdlab refuses is answered as "faults".
    """
    for parent in sys.argv[1:]:
        end_with_parent(int(parent))
    request, code = json.load(sys.stdin), 0
    # mmengine talks on standard output
    with contextlib.redirect_stdout(sys.stderr):
        try:
            told = work(request)
        except KdlabError as error:
            told, code = {"faults": [vars(fault) for fault in error.faults]}, error.exit_code
    json.dump(told, sys.stdout)
    return code


def told(module: str, request: dict[str, Any], cut_off: str, **env: str) -> dict[str, Any]:
    """What a module that ends in `answer` says to a request.

    Args:
        module: of kdlab.
        request: plain data.
        cut_off: what is told where it says nothing.
        **env: variables of its environment, besides ours.

    Raises:
        KdlabError: its faults, as the kind that they were there.
        MachineError: it was cut off.
    """
    done = ask(module, request, **env)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = "\n         ".join(done.stderr.strip().splitlines()[-15:])
        raise MachineError(cut_off, got=last, fix="kdlab doctor") from None
    if faults := found.get("faults"):
        kinds: dict[int, type[KdlabError]] = {2: UsageError, 3: MachineError}
        raise kinds.get(done.returncode, JobError)(faults=[Fault(**fault) for fault in faults])
    return found


def end_with_parent(pid: int) -> None:
    """End this process once its parent is gone: what it builds for nobody could fill the memory."""

    def watch() -> None:
        while os.getppid() == pid:
            time.sleep(PARENT_EVERY_S)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()
