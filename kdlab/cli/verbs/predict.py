"""kdlab predict: detections of trained models, drawn side by side."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab import catalog, children
from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import job_names, names_in, plan_names
from kdlab.cli.screen.results import RESULTS, forgiving, results_stem
from kdlab.errors import Fault, MachineError, UsageError, suggestion

if TYPE_CHECKING:
    from kdlab.jobs.job import Job
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.plan import Plan
    from kdlab.reporting.predictions import Predictions

PROCESS = "kdlab.training.predicting"
FOLDER = "predict"
"""Below `results/`."""
IMAGES, THRESHOLD = 8, 0.3
MOST_IMAGES = 200
"""So many fit on one page of HTML."""
MOST_ARMS = 4
"""Columns beside the baseline's where nobody names the arms."""
MODELS = (".onnx", ".pth", ".safetensors")


@dataclass(frozen=True)
class Asked:
    """What is drawn.

    Args:
        title: of the recipe, the job or the file.
        stem: path below `results/predict`.
        models: as `training/predicting.py` takes them; the baseline is the first that is "compared".
        next: the command to type afterwards.
    """

    title: str
    stem: str
    models: list[dict[str, Any]]
    next: str

    @property
    def baseline(self) -> str | None:
        """Name of the model that arms are compared with."""
        return next((model["name"] for model in self.models if model["compared"]), None)


def predicted_names(incomplete: str) -> list[tuple[str, str]]:
    """What can be drawn: recipes that were run, their plans, jobs of the newest one."""
    return [*((name, "") for name in plan_names(incomplete)), *job_names(incomplete)]


def predict(
    screen: Screen,
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|JOB|FILE",
            help="A recipe that was run, a job as `kdlab logs` takes it, or a file of `kdlab export`.",
            show_default=False,
            autocompletion=predicted_names,
        ),
    ],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[IMAGE|FOLDER]...",
            help="Images to draw. Default, of a recipe: validation images in which the arms change most.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            metavar="N",
            min=1,
            max=MOST_IMAGES,
            help=f"How many validation images: half gain most, half lose most. Default: {IMAGES}.",
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", metavar="SCORE", help="Draw boxes from this score on, 0 to 1.")
    ] = THRESHOLD,
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms",
            metavar="A,B",
            help=f"Of a recipe: these arms. Default: the {MOST_ARMS} of the highest AP.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Which seed. Default: the first that finished.")
    ] = None,
) -> None:
    """Draw what trained models find: teacher, baseline and arms of a recipe beside the labelled objects.

    Writes pages of pictures, one HTML page and all detections as COCO results to results/predict/.

    \b
    Examples:
      $ kdlab predict digits/quickstart
      Detections: GFL R18 to a slimmer R18 on handwritten digits: RM and PFI
                                    teacher,  baseline seed 0,  ...
      image       arms   objects       AP               AP  ...
      000044.png  gains        3     80.1             62.5  ...
      ...
      $ kdlab predict 'rm+pfi' photos/ --threshold 0.5 --json
      {"schema": 1, "threshold": 0.5, "models": [{"name": "rm+pfi seed 0", ...
    """
    from kdlab.jobs.paths import Runs

    if not 0 <= threshold <= 1:
        raise UsageError("a score is from 0 to 1", got=f"--threshold {threshold:g}", fix="--threshold 0.3")
    files = image_files(paths or [])
    asked = _asked(screen, Runs.here(), source, seed, arms, named=bool(files))
    if files and images is not None:
        raise UsageError("--images has no effect beside named images", fix="leave one of the two out")
    request = {"models": asked.models, "images": [str(path) for path in files], "count": images or IMAGES}
    with screen.working(f"detecting: {', '.join(model['name'] for model in asked.models)}"):
        told = children.told(PROCESS, request, "the detecting was cut off")
    _tell(screen, asked, told, threshold)


def _tell(screen: Screen, asked: Asked, told: dict[str, Any], threshold: float) -> None:
    """Show the table, write the pictures, and say what is in them."""
    from kdlab.reporting import renderers
    from kdlab.reporting.predictions import Predictions

    names = tuple(model["name"] for model in asked.models)
    found = Predictions.of(
        told, title=asked.title, threshold=threshold, models=names, baseline=asked.baseline
    )
    table = found.table()
    if not screen.json:
        screen.data(renderers.to_terminal(table))
    if told["left_out"]:
        screen.say(f"not drawn, for they cannot be read: {', '.join(told['left_out'])}")
    with screen.working("drawing"):
        files = _written(screen, RESULTS / FOLDER / asked.stem, found)
    if screen.json:
        screen.emit(
            threshold=threshold,
            models=[{key: value for key, value in one.items() if key != "compared"} for one in asked.models],
            table=table.to_dict(),
            files=[str(path) for path in files],
        )
    screen.next(asked.next)


def _written(screen: Screen, folder: Path, found: Predictions) -> list[Path]:
    """The pictures, `index.html` with all of them, and `predictions.json`."""
    from kdlab.datasets._images import decoded
    from kdlab.datasets.base import content_of
    from kdlab.jobs.files import write_text
    from kdlab.reporting.plots import write_detections
    from kdlab.reporting.renderers import html

    files: list[Path] = []
    with forgiving(screen):
        files, pictures = write_detections(
            found,
            lambda image: decoded(content_of(Path(image.path)), image.height, image.width)[..., ::-1],
            folder,
        )
        page, results = folder / "index.html", folder / "predictions.json"
        write_text(page, html.page([html.Section(found.table(), pictures)]))
        write_text(results, found.to_json())
        pages = f"{len(files)} page{'s' * (len(files) != 1)}"
        screen.say(f"written: {page}, the same as {pages} of PNG, and {results}")
        files += [page, results]
    return files


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The images that are named, each once; those of a folder by their names, also in folders inside it.

    In a folder an image is known by its ending; a file that is named is one whatever it is called.

    Raises:
        UsageError: all that are not there, and folders without images; or there are too many.
    """
    from kdlab.datasets.base import IMAGE_SUFFIXES

    found: dict[Path, None] = {}
    faults = []
    for path in paths:
        own = [path]
        if path.is_dir():
            inside = (one for one in sorted(path.rglob("*")) if one.suffix.lower() in IMAGE_SUFFIXES)
            own = [one for one in inside if not one.name.startswith(".") and one.is_file()]
            if not own:
                fix = "name image files: what is named is read whatever its ending"
                known = " ".join(IMAGE_SUFFIXES)
                faults.append(Fault("there are no images in this folder", str(path), known=known, fix=fix))
        elif not path.exists():
            there = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
            fix = suggestion(path.name, there) or "check the path"
            faults.append(Fault("there is no such image or folder", str(path), fix=fix))
        found |= dict.fromkeys(own)
    if faults:
        raise UsageError(faults=faults)
    if len(found) > MOST_IMAGES:
        got, known = f"{len(found)} images", f"up to {MOST_IMAGES}"
        raise UsageError("these are too many for one page", got=got, known=known, fix="name some of them")
    return list(found)


def _asked(
    screen: Screen, runs: Runs, source: str, seed: int | None, arms: str | None, *, named: bool
) -> Asked:
    """What a person means: an exported file, else a recipe that was run or a plan of it, else a job.

    Raises:
        UsageError: nothing fits; it has not finished; or one model is to be drawn on no image.
    """
    from kdlab.datasets.base import IMAGE_SUFFIXES

    is_file = Path(source).suffix in MODELS
    if not is_file and (plan := _plan(runs, source)):
        return _of_plan(screen, runs, plan, seed, arms)
    if Path(source).suffix.lower() in IMAGE_SUFFIXES:
        what = "first comes what detects: a recipe, a job or a file of a model"
        raise UsageError(what, got=source, fix=f"kdlab predict RECIPE {shlex.quote(source)}")
    if arms is not None:
        raise UsageError("--arms chooses among those of a recipe", got=source, fix="leave --arms out")
    if is_file and seed is not None:
        raise UsageError("--seed has no effect beside a file", got=source, fix="leave --seed out")
    found = _of_file(Path(source)) if is_file else _of_job(runs, source, seed)
    if not named:
        what = "one model alone is drawn on images that you name"
        raise UsageError(what, got=source, fix=f"{screen.command()} IMAGE")
    return found


def _of_file(path: Path) -> Asked:
    """An exported file.

    Raises:
        UsageError: it is not there.
        MachineError: it needs a package that is missing.
    """
    if not path.is_file():
        there = [one.name for one in path.parent.glob("*.*")] if path.parent.is_dir() else []
        fix = suggestion(path.name, there) or "kdlab export JOB --onnx writes one"
        raise UsageError("there is no such model file", where=str(path), fix=fix)
    if path.suffix == ".onnx" and util.find_spec("onnxruntime") is None:
        raise MachineError("an ONNX file needs onnxruntime", fix="pip install 'kdlab[onnx]'")
    stem = f"{path.resolve().parent.name}/{path.name}"
    model = {"name": path.name, "file": str(path), "compared": False}
    return Asked(str(path), stem, [model], "kdlab predict --help")


def _of_job(runs: Runs, word: str, seed: int | None) -> Asked:
    """A job of any plan.

    Raises:
        UsageError: there is none, or it has not finished.
    """
    from kdlab.cli.verbs.export import find, finished
    from kdlab.jobs import store

    try:
        store.jobs(runs, word, comparing=True)
    except UsageError:
        names = [*catalog.recipes(), *(plan.recipe["name"] for plan in store.plans(runs))]
        if near := suggestion(word, names):
            what = f"{word} is no recipe that was run here, no job and no file of a model"
            raise UsageError(what, where=str(runs.folder), fix=near) from None
        raise
    job = finished(runs, find(runs, word, seed), "draw with")
    return Asked(f"{job.label} ({job.id})", job.id, [_model(runs, job)], f"kdlab export {job.id}")


def _plan(runs: Runs, word: str) -> Plan | None:
    """The newest plan of a recipe, or the one whose id begins so; None where neither is meant.

    Raises:
        UsageError: the recipe was never run here, or several plans fit.
    """
    from kdlab.jobs import store
    from kdlab.recipe.files import find

    if word in catalog.recipes() or Path(word).suffix in (".yaml", ".yml"):
        name, _ = find(word)
        return store.plan(runs, name, comparing=True, recipes=[name])
    for plan in store.plans(runs):
        if plan.recipe["name"] == word or (len(word) >= store.SHORTEST_ID and plan.id.startswith(word)):
            return store.plan(runs, word, comparing=True)
    return None


def _of_plan(screen: Screen, runs: Runs, plan: Plan, seed: int | None, arms: str | None) -> Asked:
    """Teacher, baseline and arms of a plan, each by its first finished seed; says which are left out.

    Raises:
        UsageError: no student has finished, or an arm is named that the plan does not have.
    """
    from kdlab.jobs.status import State, state_of
    from kdlab.recipe.files import go_on

    recipe, arms_known = plan.recipe, plan.recipe["arms"]
    first: dict[str, Job | None] = {}
    for planned in plan.jobs:
        job = planned.job
        if job.is_teacher or (job.is_student and seed in (None, job.seed)):
            done = state_of(job, runs.job(job.id)) is State.DONE
            first[job.arm] = first.get(job.arm) or (job if done else None)
    found = {arm: job for arm, job in first.items() if job}
    if not found.keys() & arms_known.keys():
        whose = recipe["name"] if seed is None else f"{recipe['name']} with seed {seed}"
        raise UsageError(f"no student of {whose} has finished", where=f"plan {plan.id}", fix=go_on(recipe))
    plain = plan.plain_arms
    baseline = next((arm for arm in plain if arm in found), None)
    always, drawn = {"teacher", *plain[:1]}, _arms(arms_known, arms) - {baseline}
    if missing := [arm for arm in first if arm in always | drawn and arm not in found]:
        screen.say(f"not finished, so left out: {', '.join(missing)}")
    drawn &= found.keys()
    if arms is None and len(drawn) > MOST_ARMS:
        screen.say(f"drawn are the {MOST_ARMS} arms of the highest AP, of {len(drawn)}; --arms names others")
        drawn = {*sorted(drawn, key=lambda arm: -_ap(runs, found[arm]))[:MOST_ARMS]}
    order = dict.fromkeys(arm for arm in ("teacher", baseline, *arms_known) if arm in found)
    models = [
        _model(runs, found[arm], compared=baseline is not None and arm != "teacher")
        for arm in order
        if arm in {"teacher", baseline, *drawn}
    ]
    name, title = recipe["name"], str(recipe.get("title") or recipe["name"])
    return Asked(title, results_stem(plan), models, f"kdlab diagnose {shlex.quote(name)}")


def _arms(known: Collection[str], words: str | None) -> set[str]:
    """The arms that --arms names, or all.

    Raises:
        UsageError: one is unknown.
    """
    named = known if words is None else names_in(words)
    if unknown := [name for name in named if name not in known]:
        fix = suggestion(unknown[0], list(known))
        raise UsageError(f"there is no arm {unknown[0]!r}", got=words or "", known=", ".join(known), fix=fix)
    return {*named}


def _ap(runs: Runs, job: Job) -> float:
    """AP of a finished job after its last epoch."""
    from kdlab.jobs.result import JobResult

    result = JobResult.read(runs.job(job.id))
    return result.metrics.get("AP", 0.0) if result else 0.0


def _model(runs: Runs, job: Job, *, compared: bool = False) -> dict[str, Any]:
    """A job as the other process takes it."""
    return {"name": job.label, "job": str(runs.job(job.id).folder), "compared": compared}
