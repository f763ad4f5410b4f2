"""Facts of data and models, which a plan needs besides the recipe and earlier jobs."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from kdlab import catalog, children
from kdlab.datasets._coco_labels import is_size
from kdlab.datasets.base import DatasetFiles, cache_dir
from kdlab.datasets.coco import first_image, parsed
from kdlab.devices import Machine
from kdlab.errors import Fault, MachineError, UsageError
from kdlab.jobs.files import read_if_whole, write_json
from kdlab.jobs.spec import ModelSettings, ModelSpec
from kdlab.planning import weights as weight_files
from kdlab.planning.weights import WeightFile
from kdlab.recipe.settings import Recipe
from kdlab.redaction import holds_secret

PROBE = "kdlab.training.probe"
FROM_CONFIG = ("detector", "backbone", "code", "config", "imports")
"""Facts of the model in an mmdet config that are settings of a job."""


SMALL_BYTES, FEW_IMAGES, FEW_OBJECTS, SHOWN = 2_000_000, 100, 10, 6
"""Labels of up to so many bytes are looked into; what is few to measure on; so many classes are named."""
MOST_WORKERS = 8
"""Loader processes that a GPU gets where nobody says how many."""


@dataclass(frozen=True)
class Facts:
    """Handed to `plan.build`, which looks at nothing itself.

    Args:
        files: the dataset, on disk.
        student: what `training.probe` found of the student.
        teacher: the same of the teacher; None without one.
        device: "cpu" or "cuda".
        gpu_gb: memory of the smallest GPU; None without one.
        versions: of the packages that decide numbers.
        weights: files that the recipe names, by their key in it; `student` and `teacher` say what they hold.
        notes: what to know of the data.
        workers: loader processes for each process of a job, where the recipe does not say.
        learned: what students learn from and are measured on, where that is not `files`.
        stage: the same of the recipe that the teacher comes from; None without one.
    """

    files: DatasetFiles
    student: dict[str, Any]
    teacher: dict[str, Any] | None
    device: str
    versions: dict[str, str]
    weights: Mapping[str, WeightFile] = field(default_factory=dict)
    gpu_gb: float | None = None
    learned: DatasetFiles | None = None
    stage: Facts | None = None
    notes: tuple[str, ...] = ()
    workers: int = 0


def gather(recipe: Recipe, machine: Machine, progress: Callable[[str], None] = lambda text: None) -> Facts:
    """Make or find the data, probe the models; first of the recipe that the teacher comes from.

    Raises:
        KdlabError: the data or a file of weights is missing, or a folder cannot be written; or that recipe
            has another dataset.
        MachineError: the models cannot be built here.
    """
    stage = gather(recipe.stage, machine, progress) if recipe.stage else None
    weights = weight_files.gather(recipe, progress)
    progress(f"dataset {recipe.dataset.name}")
    files = _dataset(recipe)
    if stage:
        _check_same(files, stage.files, recipe)
    notes = (*_looked_at(files, stops=recipe.dataset.broken_images == "stop"), *_thin(files.val.labels))
    # FLOPs are counted on the recipe's scale, else on the first image's
    scale = recipe.dataset.scale
    if scale is None:
        image = first_image(files.val.labels)
        if not (is_size(image.get("width")) and is_size(image.get("height"))):
            what = "the labels name no image size"
            raise UsageError(what, where=str(files.val.labels), fix="set dataset.scale")
        scale = image["width"], image["height"]
    requests = {}
    for role, settings in weight_files.models_of(recipe).items():
        model = model_spec(settings, {}, weights.get(f"{role}.init"))
        requests[role] = {
            "model": model.model_dump(mode="json"),
            "num_classes": len(files.classes),
            "input": [scale[1], scale[0]],
            **weight_files.request(recipe, weights, role, files.classes),
        }
        if model.detector not in catalog.detectors():
            requests[role]["file"] = str(catalog.config_file(model.detector))
    answers = _probe([*requests.values()], progress)
    if faults := [
        _placed(Fault(**fault), recipe, role)
        for role, answer in zip(requests, answers, strict=True)
        for fault in answer.get("unreadable", ())
    ]:
        raise UsageError(faults=faults)
    found = dict(zip(requests, answers, strict=True))
    gpu_gb = min((gpu.memory_gb for gpu in machine.gpus), default=None)
    student, teacher = found["student"], found.get("teacher")
    # a core is left to each job's own process
    spare = len(machine.cores) // len(machine.gpus) - 1 if machine.gpus else 0
    workers = max(0, min(MOST_WORKERS, spare))
    models = student, teacher
    known = files, *models, machine.device, versions(), weights, gpu_gb
    return Facts(*known, stage=stage, notes=notes, workers=workers)


def _check_same(own: DatasetFiles, theirs: DatasetFiles, recipe: Recipe) -> None:
    """See that a teacher from another recipe learned from this dataset and was measured on it.

    Other images with the same classes could be learned from, but its AP beside the students' would be of
    those, and so would be the gap to it.

    Raises:
        UsageError: it has another one.
    """
    if (theirs.classes, theirs.fingerprint) == (own.classes, own.fingerprint):
        return
    assert recipe.stage
    where, name = recipe.place("teacher.recipe"), recipe.stage.name
    what = f"teacher.recipe: {name} has other images or labels, so no AP of its arms compares with one here"
    got, known = (f"{files.name} {files.fingerprint}" for files in (theirs, own))
    if theirs.classes != own.classes:
        what = f"teacher.recipe: {name} has other classes, or the same in another order"
        same = [mine == other for mine, other in zip(own.classes, theirs.classes, strict=False)]
        got, known = (f"{len(files.classes)} classes" for files in (theirs, own))
        if False in same:
            label = same.index(False)
            got, known = (f"label {label} is {files.classes[label]}" for files in (theirs, own))
    fix = "name a recipe of the same dataset; --set changes that of this recipe alone"
    raise UsageError(what, where=where, got=got, known=known, fix=fix)


def _dataset(recipe: Recipe) -> DatasetFiles:
    """The data on disk; a fault that names an option of it gets the line of that."""
    module = importlib.import_module(f"kdlab.datasets.{recipe.dataset.name}")
    try:
        files: DatasetFiles = module.prepare(**recipe.dataset.options)
    except UsageError as error:
        words = [fault.what.partition(" ")[0].removeprefix("dataset.") for fault in error.faults]
        places = [recipe.place(f"dataset.{word}") for word in words]
        faults = zip(error.faults, places, strict=True)
        raise UsageError(
            faults=[replace(fault, where=fault.where or place) for fault, place in faults]
        ) from error
    return files


def _looked_at(files: DatasetFiles, *, stops: bool) -> tuple[str, ...]:
    """Notes on the first image of each split, for what is wrong with all of them shows in one.

    Raises:
        UsageError: a job would stop at it.
    """
    from kdlab.datasets import _images  # OpenCV takes its time

    looks = [_images.first_look(split) for split in (files.train, files.val)]
    if stops and (faults := [fault for fault, _ in looks if fault]):
        raise UsageError(faults=faults)
    return tuple(note for _, note in looks if note)


def _thin(labels: Path) -> Iterator[str]:
    """Notes on a validation set that is too small for what will be said of it."""
    if labels.stat().st_size > SMALL_BYTES:
        return
    data = parsed(labels)
    if (images := len(data["images"])) < FEW_IMAGES:
        plural = "s" * (images > 1)
        yield f"{images} image{plural} to measure on: others can move AP by more than a method does"
    names = {one["id"]: one["name"] for one in data["categories"]}
    counts = Counter(one["category_id"] for one in data["annotations"] if not one.get("iscrowd"))
    few = {names[key]: counts[key] for key in names if counts[key] < FEW_OBJECTS}
    if few:
        told = ", ".join(f"{name} {count}" for name, count in [*few.items()][:SHOWN])
        more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
        yield f"classes with fewer than {FEW_OBJECTS} objects to measure on: {told}{more}; their AP is luck"


def model_spec(model: ModelSettings, facts: Mapping[str, Any], init: WeightFile | None = None) -> ModelSpec:
    """The detector of a job, a teacher's without its training; what is in files by content, not by place.

    Args:
        model: as the recipe has it.
        facts: what the probe read of it; of an mmdet config they hold its content.
        init: the file of its backbone's first weights.

    Raises:
        UsageError: something in it is a secret.
    """
    settings = {name: getattr(model, name) for name in ModelSettings.model_fields}
    if "config" in facts:
        settings |= {name: facts[name] for name in FROM_CONFIG}
    if holds_secret([settings["overrides"], settings.get("config")]):
        # jobs keep them as they are, and so do MLflow and whoever gets the folder
        what = "the model's settings hold an address with a password or a query"
        fix = "take it out: weights are named in teacher.checkpoint or init, which jobs know by content"
        raise UsageError(what, where=model.detector, got="an address in overrides or the config", fix=fix)
    if init:
        settings["init"] = f"sha256:{init.sha256}"
    return ModelSpec(**settings)


def versions() -> dict[str, str]:
    """Installed versions of what decides numbers, without importing it."""
    found = {}
    for name in ("torch", "torchvision", "mmdet"):
        try:
            found[name] = children.version(name)
        except metadata.PackageNotFoundError as error:
            raise MachineError(f"{name} is not installed", fix="kdlab doctor") from error
    return found


def _probe(requests: list[dict[str, Any]], progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Facts of the models, from the cache or from one short process that builds them."""
    cached = [_cache(request) for request in requests]
    known: list[Any] = [read_if_whole(path, dict) for path in cached]
    # a damaged file of the cache is made again
    missing = [place for place, facts in enumerate(known) if not facts or "flops" not in facts]
    if missing:
        progress("building the models once, to look at them")
        for place, facts in zip(missing, _ask([requests[place] for place in missing]), strict=True):
            known[place] = facts
            # a config of the user's own may change unseen, and others that it builds on
            if "unreadable" not in facts and ".mim" in Path(requests[place].get("file", ".mim")).parts:
                cached[place].parent.mkdir(parents=True, exist_ok=True)
                write_json(cached[place], facts)
    return known


def _ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = children.ask(PROBE, requests)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-15:]
        raise MachineError("the models cannot be built", got="\n         ".join(last), fix="kdlab doctor")
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def _placed(fault: Fault, recipe: Recipe, role: str) -> Fault:
    """A probe's fault with its line: one of the settings names their path below the model, and no file."""
    if fault.where and not fault.where.startswith("overrides"):
        return fault
    dot = "." if fault.where else " "
    return replace(fault, what=f"{role}{dot}{fault.what}", where=recipe.place(f"{role}.{fault.where}"))


def _cache(request: dict[str, Any]) -> Path:
    """File of the facts of a request: named by its content, mmdet's version and the code that answers.

    Files of weights count by their content, which the request names too, and never by where they lie.
    """
    rooms = ("backbones/*.py", "detectors/*.py", "training/weights/*.py", "training/probe.py")
    sources = [path for room in rooms for path in sorted(catalog.PACKAGE.glob(room))]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    asked = {name: value for name, value in request.items() if name != "files"}
    key = json.dumps([asked, versions(), code], sort_keys=True)
    return cache_dir() / "probe" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
