"""kdlab export: a trained detector as files that need no kdlab."""

from __future__ import annotations

import re
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab import children
from kdlab.cli.screen.console import Screen, grid
from kdlab.cli.screen.options import job_names
from kdlab.errors import MachineError, UsageError

if TYPE_CHECKING:
    from kdlab.jobs.job import Job
    from kdlab.jobs.paths import Runs

PROCESS = "kdlab.training.export"
EXPORTS = Path("exports")
_ABOUT = {
    ".safetensors": "weights under mmdet's names",
    ".pth": "the same with class names, for mmdet",
    ".py": "one mmdet config: model, classes, test pipeline",
    ".onnx": "images in, boxes and scores out",
}


def exported_names(incomplete: str) -> list[tuple[str, str]]:
    """Arms and jobs of the newest plan."""
    arms = {about.partition(" seed ")[0]: "" for name, about in job_names("") if " seed " in about}
    return [*((arm, "an arm") for arm in arms if arm.startswith(incomplete)), *job_names(incomplete)]


def export(
    screen: Screen,
    job: Annotated[
        str,
        typer.Argument(
            metavar="JOB",
            help="An arm of the newest plan (rm+pfi), a label ('rm+pfi seed 1'), or the beginning of an id.",
            show_default=False,
            autocompletion=exported_names,
        ),
    ],
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Which seed of an arm. Default: the first.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Where to. Default: exports/<job id>.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file as well.")] = False,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="Fix the ONNX input: 800x1344. Default: any size."),
    ] = None,
    nms: Annotated[
        bool, typer.Option("--nms", help="The ONNX file also gives detections after NMS.")
    ] = False,
) -> None:
    """Write the student alone: weights and one mmdet config, and ONNX if asked.

    They load without kdlab; where mmcv is not compiled, kdlab.mmcv_ops lends its operators.

    \b
    Examples:
      $ kdlab export rm+pfi
      exports/student-...
        student.safetensors ...  weights under mmdet's names
        student.pth         ...  the same with class names, for mmdet
        student.py          ...  one mmdet config: model, classes, test pipeline
      ...
      $ kdlab export rm+pfi --onnx --json --to deploy
      {"schema": 1, "job": "student-...", "folder": "deploy", "files": [...
    """
    from kdlab.jobs.paths import Runs

    wish = _wish(onnx, size, nms)
    runs = Runs.here()
    chosen = finished(runs, find(runs, job, seed), "export")
    folder = to or EXPORTS / chosen.id
    request = {"job": str(runs.job(chosen.id).folder), "to": str(folder), "force": force, "onnx": wish}
    with screen.working(f"exporting {chosen.label} ({chosen.id})"):
        done = children.told(PROCESS, request, "the export was cut off")
    if screen.json:
        screen.emit(**done)
    else:
        _show(screen, done)
    screen.next("kdlab report --table")


def find(runs: Runs, name: str, seed: int | None = None) -> Job:
    """The job that a person means; of an arm with several seeds the first, unless one is named.

    Raises:
        UsageError: no job fits, or several do.
    """
    from kdlab.jobs import store

    found = store.jobs(runs, name, comparing=True)
    if any(job.arm != name for job in found):
        return store.job(runs, name, comparing=True)
    for job in found:
        if seed in (None, job.seed):
            return job
    seeds = ", ".join(str(job.seed) for job in found)
    what = f"{name} has no seed {seed} in the newest plan"
    raise UsageError(what, known=seeds, fix=f"--seed {found[0].seed}")


def finished(runs: Runs, job: Job, purpose: str) -> Job:
    """The job, if it is done; `purpose` is what its weights are for: "export".

    Raises:
        UsageError: it is not, with the command that finishes it; or it makes no detector.
    """
    from kdlab.jobs import store
    from kdlab.jobs.status import State, state_of
    from kdlab.recipe.files import go_on

    if why := job.spec.instead:
        raise UsageError(f"{job.label} {why}, so there is nothing to {purpose}", where=job.id)
    state = state_of(job, runs.job(job.id))
    if state is State.DONE:
        return job
    plans = (plan for plan in store.plans(runs) if any(each.job.id == job.id for each in plan.jobs))
    recipe = next((plan.recipe for plan in plans), {"name": "RECIPE"})
    raise UsageError(
        f"{job.label} is {state}, so there are no weights to {purpose}",
        where=job.id,
        fix=go_on(recipe),
    )


def _wish(onnx: bool, size: str | None, nms: bool) -> dict[str, Any] | None:
    """What the ONNX file should be, None for none.

    Raises:
        UsageError: the size is no size, or there is no ONNX file for it.
        MachineError: the packages are missing.
    """
    if not onnx:
        if size or nms:
            flag = "--size" if size else "--nms"
            raise UsageError(f"{flag} shapes the ONNX file, and none was asked for", fix="add --onnx")
        return None
    if missing := [name for name in ("onnx", "onnxruntime") if util.find_spec(name) is None]:
        what = f"--onnx needs {' and '.join(missing)}"
        raise MachineError(what, fix="pip install 'kdlab[onnx]'")
    if not size:
        return {"size": None, "nms": nms}
    if not (found := re.fullmatch(r"(\d+)x(\d+)", size)):
        raise UsageError("--size must be height and width", got=size, fix="--size 800x1344")
    return {"size": [int(found[1]), int(found[2])], "nms": nms}


def _show(screen: Screen, done: dict[str, Any]) -> None:
    """What was written, what was compared, and how to load it."""
    rows, loaded = [], {}
    for file in done["files"]:
        kilo, path = file["bytes"] / 1e3, Path(done["folder"]) / file["name"]
        size = f"{kilo / 1e3:.1f} MB" if kilo >= 1e3 else f"{kilo:.1f} kB"
        rows.append((f"  {path.name}", size, _ABOUT[path.suffix]))
        loaded[path.suffix] = str(path)
    screen.data(done["folder"])
    screen.data(grid(rows, wrap=range(3), right=[1]))
    for check in done["checks"]:
        height, width = check["size"]
        screen.data(
            f"  ONNX Runtime against torch at {height}x{width}: boxes {check['boxes_px']:.1e} px, "
            f"scores {check['scores']:.1e} apart at most"
        )
    screen.data("load it:")
    screen.data("  import kdlab.mmcv_ops  # only where mmcv is not compiled")
    screen.data("  from mmdet.apis import inference_detector, init_detector")
    screen.data(f'  model = init_detector("{loaded[".py"]}", "{loaded[".pth"]}", device="cpu")')
    screen.data('  print(inference_detector(model, "image.jpg").pred_instances)')
