"""kdlab doctor: checks of this machine, or of a dataset, each with its fix."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab import children
from kdlab.cli.screen.console import Screen, grid
from kdlab.cli.screen.options import Overrides, recipe_names
from kdlab.errors import KdlabError, MachineError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from kdlab.datasets.base import DatasetFiles

TIMEOUT_S = 60
LOW_GB, FULL_GB = 10.0, 0.5
SHARED, SHARED_GB = Path("/dev/shm"), 0.5
_LOOKS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Check:
    """One thing that a job needs.

    Args:
        name: what was looked at.
        state: ok, warn or fail.
        what: what was found.
        fix: how to mend it.
    """

    name: str
    state: str
    what: str
    fix: str = ""


def doctor(
    screen: Screen,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="RECIPE",
            help="Check every label and image of a recipe's dataset instead of the machine.",
            autocompletion=recipe_names,
        ),
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Look whether this machine is fit, or with --data a dataset, and say how to mend it.

    Of a dataset it tells what each split holds and what is wrong: as an error what makes a job stop, as a
    warning what harms training or measuring, as a note what is good to know. #3 is the fourth object of its
    image. --json names every place, -v every class and what needs no action.

    \b
    Examples:
      $ kdlab doctor
      ok    Python       3...
      ok    torch        2...
      ...
      $ kdlab doctor --data digits/quickstart
      digits  fingerprint ...
      ...
    """
    if data is not None:
        return _doctor_data(screen, data, overrides or [])
    if overrides:
        raise UsageError(
            "--set changes a recipe, and none is given", fix="kdlab doctor --data RECIPE --set ..."
        )
    with screen.working("importing torch, mmdet and the rest, to see whether they work"):
        checks = list(examine())
    fit = all(check.state != "fail" for check in checks)
    if screen.json:
        screen.emit(fit=fit, checks=[asdict(check) for check in checks])
    else:
        screen.data(_table(checks))
    if fit:
        screen.next("kdlab run digits/quickstart")
    return 0 if fit else MachineError.exit_code


def _doctor_data(screen: Screen, recipe: str, overrides: Sequence[str]) -> int:
    """Look at a dataset.

    Raises:
        UsageError: the recipe is wrong.
        MachineError: the dataset is missing, or its labels cannot be used at all.
    """
    from kdlab.cli.screen import data_report
    from kdlab.inspection import examine as inspection
    from kdlab.recipe import loader as recipes

    dataset = recipes.load(recipe, overrides).dataset
    module = importlib.import_module(f"kdlab.datasets.{dataset.name}")
    with screen.working(f"dataset {dataset.name}"):
        try:
            files: DatasetFiles = module.prepare(**dataset.options)
        except KdlabError as error:
            raise MachineError(faults=error.faults) from error
    with data_report.counting(screen) as progress:
        stops = {"broken_images": dataset.broken_images, "scale": dataset.scale}
        found = inspection.examine(files, progress, **stops)
    if screen.json:
        screen.emit(recipe=recipe, **found.to_dict())
    else:
        data_report.report(screen, files, found, dataset.scale)
    if not found.usable:
        screen.next(screen.command())
        return MachineError.exit_code
    screen.next_plan(recipe, overrides)
    return 0


def examine() -> Iterator[Check]:
    """All checks, the packages by importing them in processes of their own."""
    from kdlab.datasets.base import cache_dir
    from kdlab.jobs.paths import Runs

    found = _probe()
    yield Check("Python", "ok", f"{platform.python_version()} in {sys.prefix}")
    yield _package("kdlab", found)
    yield from (_package(name, found) for name in ("torch", "torchvision", "setuptools"))
    yield _mmcv(found)
    yield from (_package(name, found) for name in ("mmdet", "hotcoco", "mlflow"))
    yield from _devices(found)
    yield from _shared_memory()
    yield _folder("runs folder", Runs.here().folder, "KDLAB_RUNS")
    try:
        yield _folder("cache folder", cache_dir(), "KDLAB_CACHE")
    except KdlabError as error:
        yield Check("cache folder", "fail", error.faults[0].what, error.faults[0].fix)


# Runs apart from this process, so that nothing here imports torch and a crash is told, too.
_PROBE = """
import json, sys, warnings
warnings.simplefilter("ignore")

def torch():
    import torch
    return {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}

def torchvision():
    import torch, torchvision
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        boxes = torch.zeros(1, 4, device=device)
        torchvision.ops.nms(boxes, boxes[:, 0], 0.5)
        maps = torch.nn.functional.conv2d(boxes.view(1, 1, 2, 2), boxes.view(1, 1, 2, 2))
        torchvision.ops.roi_align(maps, [boxes], 1)
    if device == "cuda":
        torch.cuda.synchronize()
    return {"version": torchvision.__version__}

def mmcv():
    from kdlab.mmcv_ops import operators as mmcv_ops
    import mmcv, mmcv.ops
    lite = isinstance(sys.modules["mmcv._ext"], mmcv_ops.StandIn)
    return {"version": mmcv.__version__, "served": mmcv_ops.served() if lite else None}

def kdlab():
    from kdlab import __version__
    from kdlab.training.job import commit
    return {"version": __version__, "commit": commit()}

def other(name):
    import importlib
    from kdlab import children
    importlib.import_module({"setuptools": "pkg_resources", "mmdet": "mmdet.models"}.get(name, name))
    file = sys.modules["mmdet"].__file__ if name == "mmdet" else ""
    return {"version": children.version(name), "file": file}

for name in sys.argv[1:]:
    try:
        answer = globals()[name]() if name in globals() else other(name)
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        if file := getattr(sys.modules.get(name), "__file__", None):
            answer["error"] += f" in {file}"
    print("\\n" + json.dumps([name, answer]), flush=True)
    if "error" in answer:
        break
"""
_CHAINS = (("torch", "torchvision", "setuptools", "mmcv", "mmdet"), ("kdlab", "hotcoco"), ("mlflow",))
_FIXES = {
    "torch": "pip install torch torchvision",
    "torchvision": "torch and torchvision must come from one index: pip install -U torch torchvision",
    "setuptools": "pip install 'setuptools<81'",
    "mmcv": "pip install 'mmcv-lite>=2.1,<2.2'",
    "mmdet": "pip install 'mmdet>=3.3,<3.4'",
    "hotcoco": "pip install 'hotcoco>=1.3'",
    "mlflow": "pip install 'mlflow>=3.1'",
    "kdlab": "install kdlab again",
}


def _probe() -> dict[str, dict[str, Any]]:
    """Answer of each package; one behind a package that failed is not asked."""
    command = children.python("-c", _PROBE)
    environment = os.environ | children.environment()
    processes = [
        subprocess.Popen(
            [*command, *chain], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for chain in _CHAINS
    ]
    found: dict[str, dict[str, Any]] = {}
    for chain, process in zip(_CHAINS, processes, strict=True):
        how = "ended"
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            if process.returncode < 0:
                how = f"killed by {signal.Signals(-process.returncode).name}"
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            how = f"still at it after {TIMEOUT_S} s"
        found |= dict(json.loads(line) for line in output.splitlines() if line.startswith('["'))
        failed = any("error" in found.get(name, {}) for name in chain)
        silent = [name for name in chain if name not in found]
        if silent and not failed:
            found[silent[0]] = {"error": f"the import was {how}"}
    return found


def _package(name: str, found: dict[str, dict[str, Any]]) -> Check:
    answer = found.get(name, {"error": "not looked at: see above"})
    if "error" in answer:
        return Check(name, "fail", answer["error"], _FIXES[name] if name in found else "")
    told = [answer["version"]]
    if name == "torch":
        told.append(f"built for CUDA {answer['cuda']}" if answer["cuda"] else "built for the CPU")
    if answer.get("commit"):
        told.append(f"commit {answer['commit']}")
    if answer.get("file"):
        told.append(answer["file"])
    if "PYTHONPATH" in answer["version"]:
        fix = f"take it out of PYTHONPATH, or install it in place of the other: {_FIXES[name]}"
        return Check(name, "warn", ", ".join(told), fix)
    return Check(name, "ok", ", ".join(told))


def _mmcv(found: dict[str, dict[str, Any]]) -> Check:
    """Two packages install into one folder; with both, whichever came last decides, and neither is whole."""
    if _installed("mmcv") and _installed("mmcv-lite"):
        fix = f"pip uninstall -y mmcv mmcv-lite && {_FIXES['mmcv']}"
        return Check("mmcv", "fail", "mmcv and mmcv-lite are both installed, in one folder", fix)
    check = _package("mmcv", found)
    if check.state == "fail":
        return check
    served = found["mmcv"]["served"]
    how = "compiled operators" if served is None else f"lite, kdlab serves {len(served)} of its operators"
    return Check("mmcv", "ok", f"{check.what}, {how}")


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _devices(found: dict[str, dict[str, Any]]) -> Iterator[Check]:
    from kdlab import devices

    yield Check("cores", "ok", str(len(devices.cores())))
    try:
        machine = devices.detect()
    except MachineError as error:
        fault = error.faults[0]
        yield Check("GPUs", "fail", f"{fault.what}: {fault.got}", fault.fix)
        return
    seen = found.get("torch", {}).get("gpus", 0)
    if not machine.gpus:
        fix = "see what nvidia-smi says of them, or train on the CPU: CUDA_VISIBLE_DEVICES= kdlab ..."
        silent = Check("GPUs", "fail", "none that kdlab can tell, though torch has some", fix)
        yield silent if seen else Check("GPUs", "ok", "none: jobs train on the CPU")
        return
    told = ", ".join(f"{gpu.index} ({gpu.memory_gb:.0f} GB{', busy' * gpu.busy})" for gpu in machine.gpus)
    if seen < len(machine.gpus):
        fix = "install a torch built for your driver (nvidia-smi shows its CUDA version)"
        yield Check("GPUs", "fail", f"{told}, but torch cannot use them all", fix)
    elif all(gpu.busy for gpu in machine.gpus):
        yield Check("GPUs", "warn", told, "wait for the other programs, or name the GPUs: --gpus 0")
    else:
        yield Check("GPUs", "ok", told)


def _shared_memory() -> Iterator[Check]:
    """The check that batches of loader workers find room; containers have 64 MB of it unless told."""
    if not SHARED.is_dir():
        return
    free_gb = shutil.disk_usage(SHARED).free / 1e9
    fix = "docker run --shm-size=2g, or for jobs --set resources.workers=0"
    state, fix = ("ok", "") if free_gb >= SHARED_GB else ("warn", fix)
    what = f"{SHARED}, {free_gb:.2f} GB free" + " for loader workers" * (state == "warn")
    yield Check("shared memory", state, what, fix)


def _folder(name: str, folder: Path, variable: str) -> Check:
    """The check that a folder, there or not, can be written and has room."""
    folder = folder.absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Check(name, "fail", f"{folder} cannot be written", f"set {variable} to a folder that can")
    free_gb = shutil.disk_usage(there).free / 1e9
    what = f"{folder}, {free_gb:.0f} GB free"
    if free_gb >= LOW_GB:
        return Check(name, "ok", what)
    fix = f"make room, or set {variable} to a folder on a larger disk"
    return Check(name, "warn" if free_gb >= FULL_GB else "fail", what, fix)


def _table(checks: Sequence[Check]) -> Table:
    from rich.text import Text

    rows: list[tuple[str | Text, str | Text, str]] = []
    for check in checks:
        rows.append((Text(check.state, style=_LOOKS[check.state]), check.name, check.what))
        if check.fix:
            rows.append(("", Text("fix", style="dim"), check.fix))
    return grid(rows, wrap=[2])
