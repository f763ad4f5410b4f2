"""What starts over and over: a job's process up to its first iteration, the command line, a completion."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections import defaultdict

ROOMS = ("torch", "torchvision", "mmengine", "mmdet", "mmcv", "numpy", "scipy", "kdlab")
COMPLETE = {"_KDLAB_COMPLETE": "complete_bash", "COMP_WORDS": "kdlab logs st", "COMP_CWORD": "2"}


def cpu_s(command: list[str], **environment: str) -> float:
    """Processor seconds of a command, the better of two."""
    found = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=os.environ | environment, stdout=subprocess.DEVNULL, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(found)


def imports(module: str) -> dict[str, float]:
    """Seconds that the modules of each package took by themselves while `module` was imported."""
    command = [sys.executable, "-X", "importtime", "-W", "ignore", "-c", f"import {module}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spent: dict[str, float] = defaultdict(float)
    for own_us, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", told):
        package = name.partition(".")[0]
        spent[package if package in ROOMS else "others"] += int(own_us) / 1e6
    return dict(spent)


def main() -> None:
    """Print a line each."""
    spent = imports("kdlab.training.job")
    parts = ", ".join(f"{name} {spent[name]:.2f}" for name in sorted(spent, key=spent.__getitem__)[::-1])
    print(f"import kdlab.training.job: {sum(spent.values()):.2f} s ({parts})")
    program = [sys.executable, "-m", "kdlab"]
    print(f"python -c pass: {cpu_s([sys.executable, '-c', 'pass']):.3f} s of a core")
    print(f"import typer: {cpu_s([sys.executable, '-c', 'import typer']):.3f} s of a core")
    print(f"kdlab --help: {cpu_s([*program, '--help']):.3f} s of a core")
    print(f"kdlab logs <Tab>: {cpu_s(program, **COMPLETE):.3f} s of a core (target 0.15)")


if __name__ == "__main__":
    main()
