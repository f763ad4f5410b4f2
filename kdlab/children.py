"""Pythons that kdlab starts. None sees the working folder: files there would shadow what is installed.

A folder `mmdet` or a file `queue.py` where somebody types `kdlab` is none of a job's modules. What an mmdet
config needs of its own has a path of its own, in `Inputs.modules`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).parents[1])
"""Where this kdlab was found."""
PARENT_EVERY_S = 0.5


def python(*words: str) -> list[str]:
    """Command of this Python, without the working folder among its modules."""
    return [sys.executable, "-P", *words]


def environment() -> dict[str, str]:
    """Variables by which children and theirs find this kdlab, and nothing in the working folder."""
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [part for part in parts if Path(part).is_absolute()]
    if ROOT not in sys.path:
        named.append(ROOT)
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(named)}


def version(package: str) -> str:
    """Version of an installed package; says so where modules of its name in PYTHONPATH come before it.

    Raises:
        metadata.PackageNotFoundError: it is not installed.
    """
    found, module = metadata.version(package), package.removesuffix("-lite")
    named = {*environment()["PYTHONPATH"].split(os.pathsep)} - {"", ROOT}
    other = any(Path(place, module, "__init__.py").is_file() for place in named)
    return f"{found} from PYTHONPATH" if other else found


def ask(module: str, request: Any) -> subprocess.CompletedProcess[str]:
    """Run a module of kdlab that reads and writes JSON; it ends with this process, however that ends."""
    return subprocess.run(
        python("-W", "ignore", "-m", module, str(os.getpid())),
        input=json.dumps(request),
        env=os.environ | environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def end_with_parent(pid: int) -> None:
    """End this process once its parent is gone: what it builds for nobody could fill the memory."""

    def watch() -> None:
        while os.getppid() == pid:
            time.sleep(PARENT_EVERY_S)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()
