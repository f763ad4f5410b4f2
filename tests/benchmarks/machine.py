"""A machine of many GPUs for benchmarks: one that nvidia-smi tells of and nothing computes on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def simulated(gpus: int = 8) -> Iterator[Path]:
    """Change this process's environment to one with `gpus` GPUs and locks of its own; an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = "".join(f"{number}, GPU-{number:02d}, 81920\\n" for number in range(gpus))
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncase $1 in --query-gpu*) printf '{rows}';; esac\n")
        program.chmod(0o755)
        os.environ |= {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "KDLAB_LOCKS": name}
        os.environ |= {"HOME": name, "XDG_CACHE_HOME": str(folder / "cache")}
        for variable in ("CUDA_VISIBLE_DEVICES", "MLFLOW_TRACKING_URI", "KDLAB_RUNS"):
            os.environ.pop(variable, None)
        yield folder
