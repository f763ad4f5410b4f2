"""kdlab init: from a folder of images and labels to a recipe that runs."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab.cli.screen.console import Screen, grid
from kdlab.errors import UsageError

if TYPE_CHECKING:
    from kdlab.datasets.base import DatasetFiles
    from kdlab.drafting.choices import Choice, Cost, Facts
    from kdlab.drafting.layout import Layout

_TOLD = {"error": "stops a job", "warn": "warning"}
_SMALLER = 4
"""So often smaller images are tried where the time allows too few steps."""


def init(
    screen: Screen,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images and their labels.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The recipe to write; by default called as the folder."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", metavar="N", min=1, help="What all trainings may take together on this machine."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="WEIGHTS",
            help="First weights of the backbones: imagenet (fetched once; the default), none, or a file.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the split, where one is cut.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a recipe and a split that are there.")
    ] = False,
) -> int:
    """Write a recipe for a folder of images with labels, and say why it is as it is.

    COCO JSON, PASCAL VOC XML, YOLO with a data.yaml, CVAT XML and LabelMe JSON are known. Where the folder
    has no split, one is cut by image, with equal shares of each class and near-duplicates together, and
    written beside the recipe; nothing is ever written into the folder. Image size, levels, batch, epochs and
    the pair follow from the boxes, the machine and the minutes, with a few measured steps.

    \b
    Examples:
      $ kdlab init photographs --minutes 30
      ...
      next: kdlab run photographs.yaml
      $ kdlab init cells --init mobilenet_v2.pth -o cells.yaml
      ...
    """
    from kdlab.drafting import layout, walk

    to = _recipe_file(folder, out, force)
    minutes, weights = _asked(screen, minutes, weights)
    with screen.working(f"looking into {folder}"):
        found = layout.find(walk.tree(folder))
    split_told = "as the folder has it"
    section = dict(found.dataset)
    with ExitStack() as undone:
        if found.labels is not None:
            place = _place_of_split(folder, to, force)
            if not place.exists():
                undone.callback(shutil.rmtree, place, ignore_errors=True)
            with screen.working("reading the labels and cutting a split"):
                section, split_told = _own_split(found, folder, place, seed)
        section = {"name": section.pop("name"), "root": str(folder), **section}
        files, checks = _checked(screen, section)
        facts = _facts(files, minutes, weights)
        choice = _written(screen, to, section, found, facts, split_told)
        undone.pop_all()
    if screen.json:
        told = {"recipe": str(to), "format": found.kind, "notes": list(found.told), "dataset": section}
        screen.emit(**told, **_plain(choice), **checks)
    else:
        _tell(screen, found, files, choice, checks, split_told, to)
    screen.next(shlex.join(["kdlab", "run", str(to)]))
    return 0


def _recipe_file(folder: Path, out: Path | None, force: bool) -> Path:
    """The recipe to write.

    Raises:
        UsageError: there is no such folder, there is a recipe, or something would lie among the data.
    """
    if not folder.is_dir():
        raise UsageError(
            "there is no such folder", got=str(folder), fix="name the folder of images and labels"
        )
    to = out or Path(f"{_slug(folder)}.yaml")
    if to.exists() and not force:
        raise UsageError(
            "there is a recipe of this name", where=str(to), fix="--force writes over it, -o names another"
        )
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UsageError(
            "this shell is in the folder, and what is run here would lie among the data",
            where=str(folder.resolve()),
            fix=shlex.join(["cd", str(folder.resolve().parent)])
            + "   and "
            + shlex.join(["kdlab", "init", folder.resolve().name]),
        )
    if to.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            "the recipe would lie among the data, and nothing is written there",
            where=str(to),
            fix=f"-o {Path('..') / to.name}, or type it elsewhere",
        )
    return to


def _asked(screen: Screen, minutes: float | None, weights: str | None) -> tuple[float | None, str]:
    """Of a person at a terminal what was not said."""
    if screen.live and sys.stdin.isatty():
        if minutes is None:
            told = typer.prompt(
                "minutes for all trainings, Enter for no limit", default="", show_default=False, err=True
            )
            try:
                minutes = float(told) if told else None
            except ValueError:
                raise UsageError("minutes are a number", got=told, fix="--minutes 30") from None
        if weights is None:
            weights = typer.prompt("first weights: imagenet, none or a file", default="imagenet", err=True)
    weights = weights or "imagenet"
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise UsageError(
            "there is no such file of weights", got=weights, fix="--init imagenet, none or a file"
        )
    return minutes, weights


def _place_of_split(folder: Path, to: Path, force: bool) -> Path:
    """The folder beside the recipe for the labels of both parts.

    Raises:
        UsageError: it lies among the data, or another recipe may need what is there.
    """
    place = to.with_name(f"{to.stem}-split")
    if place.resolve().is_relative_to(folder.resolve()):
        what, fix = (
            "the split would lie among the data, and nothing is written there",
            "-o names another recipe",
        )
        raise UsageError(what, where=str(place), fix=fix)
    if place.exists() and not force:
        what = "there is a split of this name, which another recipe may need"
        raise UsageError(what, where=str(place), fix="-o names another recipe, --force writes over both")
    return place


def _own_split(found: Layout, folder: Path, place: Path, seed: int) -> tuple[dict[str, Any], str]:
    """Write the labels of both parts into a folder; the dataset that reads them."""
    from kdlab.drafting import splitting

    assert found.labels is not None
    train, val, how = splitting.cut(found.labels(), folder, seed)
    for name, part in (("train", train), ("val", val)):
        if not part["annotations"]:
            raise UsageError(
                "a part of the split would hold no object",
                where=str(folder),
                got=f"{len(part['images'])} images for {name}",
                fix="label more images",
            )
    place.mkdir(parents=True, exist_ok=True)
    section: dict[str, Any] = {"name": "coco", "train_images": ".", "val_images": "."}
    for name, part in (("train", train), ("val", val)):
        path = place / f"{name}.json"
        path.write_text(json.dumps(part))
        there = (
            path.absolute()
            if folder.is_absolute()
            else Path(os.path.relpath(path.resolve(), folder.resolve()))
        )
        section[f"{name}_labels"] = there.as_posix()
    return section, how


def _checked(screen: Screen, section: dict[str, Any]) -> tuple[DatasetFiles, dict[str, Any]]:
    """The dataset's files, and what the doctor finds.

    Raises:
        UsageError: its labels cannot be used.
    """
    from kdlab.cli.screen import data_report
    from kdlab.inspection import examine as inspection

    module = importlib.import_module(f"kdlab.datasets.{section['name']}")
    options = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in section.items()
        if key != "name"
    }
    files: DatasetFiles = module.prepare(**options)
    with data_report.counting(screen) as progress:
        told = inspection.examine(files, progress)
    return files, {"usable": told.usable, "defects": [defect.to_dict() for defect in told.defects]}


def _facts(files: DatasetFiles, minutes: float | None, weights: str) -> Facts:
    import numpy as np

    from kdlab import devices
    from kdlab.datasets.coco import load_labels
    from kdlab.drafting.choices import Facts

    data = load_labels(files.train.labels)
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    boxes = [box for box in data["annotations"] if not box["iscrowd"] and min(box["bbox"][2:]) > 0]
    machine = devices.detect()
    memory = min((gpu.memory_gb for gpu in machine.gpus), default=0.0)
    return Facts(
        images=np.array(list(sizes.values()), dtype=float),
        boxes=np.array([box["bbox"][2:] for box in boxes], dtype=float),
        fit=np.array([max(sizes[box["image_id"]]) for box in boxes], dtype=float),
        slots=len(machine.gpus) or len(machine.cores),
        gpu_gb=memory,
        minutes=minutes,
        init=weights,
    )


def _written(
    screen: Screen, to: Path, section: dict[str, Any], found: Layout, facts: Facts, split: str
) -> Choice:
    """Measure the steps of a draft, and write the recipe with what follows from them."""
    from kdlab.drafting import choices, text
    from kdlab.jobs.files import write_text

    about = f"{found.kind} in {section['root']}: GFL to a smaller GFL, RM and PFI"

    def write(file: Path, choice: Choice) -> None:
        write_text(file, text.recipe(str(to), about, section, choice, facts.init, split))

    choice = choices.sized(facts)
    to.parent.mkdir(parents=True, exist_ok=True)
    # beside it, for its paths may be relative
    descriptor, name = tempfile.mkstemp(".yaml", f".{to.stem}-", to.parent)
    os.close(descriptor)
    draft = Path(name)
    try:
        for _ in range(_SMALLER):
            write(draft, choice)
            with screen.working(f"measuring a few steps at {choice.scale[0]}x{choice.scale[1]}"):
                cost = _measured(draft)
            timed = choices.timed(choice, facts, cost)
            smaller = choices.sized(facts, max(choice.scale) - 1)
            if choices.enough(timed, facts) or smaller.scale == choice.scale:
                break
            choice = smaller
    finally:
        draft.unlink(missing_ok=True)
    write(to, timed)
    return timed


def _measured(recipe: Path) -> Cost:
    """Seconds of the recipe's steps, of models with random weights."""
    from kdlab import devices
    from kdlab.drafting.choices import Cost
    from kdlab.jobs.paths import Runs
    from kdlab.planning import build as planning
    from kdlab.planning import pace
    from kdlab.recipe import loader

    machine = devices.detect()
    # a broken image is told by the checks, and by the first job
    made = planning.prepare(loader.load(str(recipe), ["dataset.broken_images=skip"]), Runs.here(), machine)
    steps = pace.measured([one.job for one in made.jobs if one.job.arm == "rm+pfi"], machine)
    return Cost(steps["student"], steps["distilled"], steps["teacher"])


def _tell(
    screen: Screen,
    found: Layout,
    files: DatasetFiles,
    choice: Choice,
    checks: dict[str, Any],
    split: str,
    to: Path,
) -> None:
    """What was found and chosen, on a few lines."""
    counts = [len(json.loads(part.labels.read_bytes())["images"]) for part in (files.train, files.val)]
    rows = [
        ("labels", f"{found.kind}, {len(files.classes)} classes: {', '.join(files.classes[:8])}", ""),
        ("split", f"{counts[0]} to learn from, {counts[1]} to measure on", split),
        ("images", f"{choice.scale[0]}x{choice.scale[1]}", choice.why["scale"]),
        ("levels", ", ".join(map(str, choice.strides)), choice.why["strides"]),
        ("pair", f"{_named(choice.teacher)} to {_named(choice.student)}", choice.why["pair"]),
        ("batch", str(choice.batch), choice.why["batch_size"]),
        ("epochs", str(choice.epochs), choice.why["epochs"]),
        ("arms", ", ".join(choice.arms), choice.why.get("arms", "each with three seeds")),
    ]
    if choice.minutes is not None:
        minutes = ceil(choice.minutes)
        rows.append(("time", f"about {minutes} minute{'s' * (minutes != 1)}", "by a few measured steps"))
    screen.data(grid(rows, wrap=[1, 2]))
    for told in found.told:
        screen.say(f"note: {told}")
    serious = [defect for defect in checks["defects"] if defect["severity"] in ("error", "warn")]
    for defect in serious[:6]:
        screen.say(f"{_TOLD[defect['severity']]}: {defect['what']}")
    if serious:
        screen.say(f"see: kdlab doctor --data {to}")
    screen.say(f"written: {to}")


def _named(model: dict[str, Any]) -> str:
    return f"{model['backbone']} with a neck of {model['neck_channels']}"


def _plain(choice: Choice) -> dict[str, Any]:
    kept = ("scale", "strides", "batch", "epochs", "arms", "teacher", "student", "why", "minutes")
    return {key: getattr(choice, key) for key in kept}


def _slug(folder: Path) -> str:
    return re.sub(r"[^\w-]+", "-", folder.resolve().name).strip("-") or "recipe"
