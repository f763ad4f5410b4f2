"""kdlab diagnose: why the arms of a recipe gained or did not: its students beside their teacher."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import DryRun, ExecutorName, Gpus, Jobs, Overrides, RecipeName, Yes
from kdlab.cli.screen.results import RESULTS, forgiving, results_stem
from kdlab.cli.verbs.plan import prepare, show
from kdlab.cli.verbs.run import carry, confirm_cost
from kdlab.errors import MachineError
from kdlab.prepared import Prepared

if TYPE_CHECKING:
    from kdlab.reporting.diagnosis import Diagnoses
    from kdlab.reporting.tables import Table

FIGURES = 3
"""Images that are drawn where nobody says how many."""


def diagnose(
    screen: Screen,
    recipe: RecipeName,
    images: Annotated[
        str,
        typer.Option(
            "--images",
            metavar="N|NAMES",
            help="Draw the N images in which the arms change most, 0 for none; or these: a.png,b.png.",
        ),
    ] = str(FIGURES),
    overrides: Overrides = None,
    executor: ExecutorName = "local",
    jobs: Jobs = None,
    gpus: Gpus = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Tell why the arms of a recipe gained or did not: its finished students beside their teacher.

    How far they rank an object's boxes alike, whether the same prior stands behind the box they keep, where
    predictions and features differ, and which objects the gain comes from. Trains nothing.

    \b
    Examples:
      $ kdlab diagnose digits/quickstart
      GFL R18 to a slimmer R18 on handwritten digits: RM and PFI: agreement with the teacher
                       tau,  tau,  tau,  ...
      arm         AP  score   IoU  both  ...
      teacher   76.6                     ...
      baseline  53.6  ...
      ...
      $ kdlab diagnose digits/quickstart --images 0 --json
      {"schema": 1, "tables": [{"schema": 1, "title": ...
    """
    own = prepare(screen, recipe, overrides or [], executor, gpus, priced=False)
    made = _compared(screen, own)
    if dry_run:
        show(screen, made)
        screen.next(screen.command("--dry-run"))
        return 0
    code = 0
    if not all(planned.done for planned in made.plan.jobs):
        if not yes:
            confirm_cost(screen, made.plan)
        code = carry(screen, made, jobs, live=executor != "inline")
    # what is finished is told also where one of the jobs failed
    return code if code > 1 else _tell(screen, own, images) or code


def _compared(screen: Screen, own: Prepared) -> Prepared:
    """The plan that compares the finished students of a recipe's plan; says which are left out."""
    from kdlab.jobs import store
    from kdlab.planning import facts
    from kdlab.planning.diagnosis import diagnosis

    plan, missing = diagnosis(own.plan, store.past_jobs(own.runs), facts.versions())
    if missing:
        screen.say(f"not finished, so left out: {', '.join(job.label for job in missing)}")
    return replace(own, plan=plan)


def _tell(screen: Screen, own: Prepared, images: str) -> int:
    """Show the tables, write them and the figures."""
    from kdlab.reporting import diagnosis, diagnosis_table, renderers

    with screen.working("reading diagnoses"):
        found = diagnosis.of_plan(own.plan, own.runs)
        if not found.arms:
            what, fix = "the diagnoses hold no numbers", "remove their folders and diagnose again"
            raise MachineError(what, where=str(own.runs.folder / "jobs/diagnose-*"), fix=fix)
        agreement = diagnosis_table.agreement(found)
        gains = diagnosis_table.gains(found)
    if not screen.json:
        screen.data(renderers.to_terminal(agreement.usual()))
        if gains:
            screen.data("")
            screen.data(renderers.to_terminal(gains))
    files = _written(screen, own, found, agreement)
    files += _drawn(screen, own, found, _images(found, images))
    if screen.json:
        tables = [agreement, *_all_gains(found)]
        screen.emit(tables=[one.to_dict() for one in tables], files=[str(path) for path in files])
    screen.next(f"kdlab report --cols AP,dAP,tau,top-1 {shlex.quote(own.plan.recipe['name'])}")
    return 0


def _all_gains(found: Diagnoses) -> list[Table]:
    """The groups of objects with all classes, by each measure."""
    from kdlab.reporting import diagnosis_table

    tables = [diagnosis_table.gains(found, measure, all_classes=True) for measure in diagnosis_table.MEASURES]
    return [one for one in tables if one]


def _written(screen: Screen, own: Prepared, found: Diagnoses, agreement: Table) -> list[Path]:
    """The tables below `results/`."""
    from kdlab.reporting import renderers

    files: list[Path] = []
    with forgiving(screen):
        stem = f"{results_stem(own.plan)}-diagnosis"
        files += renderers.write(agreement, RESULTS, stem)
        for name, one in zip(("gains", "recall"), _all_gains(found), strict=False):
            files += renderers.write(one, RESULTS, f"{stem}-{name}")
        screen.say(f"written: {', '.join(map(str, files))}")
    return files


def _images(found: Diagnoses, words: str) -> list[int]:
    """The images that are meant by --images.

    Raises:
        UsageError: none is called like that.
    """
    from kdlab.reporting import diagnosis

    if words == "0" or (words.isascii() and words.isdigit() and not words.startswith("0")):
        return diagnosis.most_changed(found, int(words))
    return diagnosis.named(found, words)


def _drawn(screen: Screen, own: Prepared, found: Diagnoses, images: list[int]) -> list[Path]:
    """The figures of some images, below `results/`; says which cannot be drawn."""
    if not images:
        return []
    from kdlab.reporting import diagnosis, plots

    written: list[Path] = []
    stems = _stems([str(name) for name in found.any.rows.files])
    with forgiving(screen), screen.working("drawing") as progress:
        for image in images:
            name = str(found.any.rows.files[image])
            progress(f"drawing {name}")
            pixels = _pixels(own, found, image)
            if pixels is None:
                screen.say(f"not drawn, for it cannot be read: {name}")
                continue
            scene = diagnosis.scene(found, image, pixels)
            written += plots.write_scene(scene, RESULTS, f"{results_stem(own.plan)}-diagnosis-{stems[image]}")
            if not any(scene.maps.values()):
                screen.say(f"no maps of P and F were kept of {name}")
        pictures = [str(path) for path in written if path.suffix == ".png"]
        if pictures:
            screen.say(f"written, each with .pdf and .csv: {', '.join(pictures)}")
    return written


def _stems(names: list[str]) -> list[str]:
    """Names for files about images, without suffix; with the image's number where two would share one."""
    plain = ["-".join(PurePath(name).with_suffix("").parts) for name in names]
    count = Counter(plain)
    return [one if count[one] == 1 else f"{one}-{number}" for number, one in enumerate(plain)]


def _pixels(own: Prepared, found: Diagnoses, image: int) -> Any | None:
    """(H, W, 3) RGB of a validation image; None where it cannot be read."""
    from kdlab.datasets._images import UnreadableError, decoded
    from kdlab.datasets.base import content_of

    rows, folder = found.any.rows, own.plan.jobs[0].job.inputs.dataset.val.images
    try:
        content = content_of(folder / str(rows.files[image]))
        return decoded(content, *rows.sizes[image].tolist())[..., ::-1]
    except (OSError, ValueError, UnreadableError):
        return None
