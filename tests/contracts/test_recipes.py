"""What every recipe for COCO and VOC must do where its data is not at hand: plan on a stand-in for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdlab import catalog
from kdlab.devices import Machine
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.planning import build as plan
from kdlab.planning import facts
from kdlab.recipe import loader as recipe

XML = """<annotation><size><width>50</width><height>40</height></size><object><name>cat</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""
NAMES = [name for name in catalog.recipes() if name.startswith(("coco/", "voc/"))]
PAPER = [name for name in NAMES if "li2022" in name]


def header(name: str) -> str:
    """The comments of a recipe, without line breaks."""
    text = catalog.recipes()[name].path.read_text()
    return " ".join(re.findall(r"^# (.*)", text, re.MULTILINE))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (50, 40)).save(path)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The smallest folders that pass for COCO 2017 and for the PASCAL VOC devkit."""
    coco, voc = (tmp_path_factory.mktemp(name) for name in ("coco", "voc"))
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    image = {"id": 1, "file_name": "1.jpg", "width": 50, "height": 40}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8]}
    for split in ("train", "val"):
        picture(coco / f"{split}2017" / "1.jpg")
        labels = {"images": [image], "annotations": [box], "categories": categories}
        write(coco / "annotations" / f"instances_{split}2017.json", json.dumps(labels))
    for year, split in (("VOC2007", "trainval"), ("VOC2007", "test"), ("VOC2012", "trainval")):
        stem = f"{year}_{split}"
        write(voc / year / "ImageSets" / "Main" / f"{split}.txt", stem)
        picture(voc / year / "JPEGImages" / f"{stem}.jpg")
        write(voc / year / "Annotations" / f"{stem}.xml", XML)
    return {"coco": coco, "voc": voc}


@pytest.fixture(scope="module")
def planned(
    torch_: Any, roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], plan.Plan]]:
    """`planned(name)`: the plan, of the real models, which start from nothing where weights would be fetched.

    The probe answers in this process and counts no FLOPs: a process a pair would take minutes.
    """
    from kdlab.training import probe

    def answers(requests: list[dict[str, Any]]) -> Any:
        return json.loads(json.dumps([probe.answer(request) for request in requests]))

    @cache
    def planned(name: str) -> plan.Plan:
        root = roots[name.partition("/")[0]]
        changes = [f"dataset.root={root}", "teacher.checkpoint=null"]
        if recipe.load(name).student.init.startswith("https:"):
            changes.append("student.init=none")
        wanted = recipe.load(name, changes)
        return plan.prepare(wanted, Runs(root / "runs"), Machine((0,)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(facts, "_ask", answers)
        patch.setattr(probe, "flops", lambda model, shape: 1)
        yield planned


def students(made: plan.Plan) -> list[Job]:
    return [planned.job for planned in made.jobs if planned.job.kind == "student"]


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_can_be_planned(name: str, planned: Callable[[str], plan.Plan]) -> None:
    settings = planned(name).recipe
    wanted = {(arm, seed) for arm in settings["arms"] for seed in settings["seeds"]}
    assert {(job.arm, job.seed) for job in students(planned(name))} == wanted


@pytest.mark.parametrize("name", PAPER)
def test_header_counts_students(name: str) -> None:
    settings = recipe.load(name)
    told = re.search(r"(\d+) students of (\d+) epochs \((\d+) arms, (\d+) seeds\)", header(name))
    arms, seeds = len(settings.arms), len(settings.seeds)
    assert told is not None
    assert [int(number) for number in told.groups()] == [arms * seeds, settings.schedule.epochs, arms, seeds]


SHARED = {
    name: found.groups()
    for name in PAPER
    if (found := re.search(r"(\d+|all)(?: of them)? also those of ([\w/]+)", header(name)))
}


@pytest.mark.parametrize("name", SHARED)
def test_header_counts_students_of_another_recipe(name: str, planned: Callable[[str], plan.Plan]) -> None:
    count, other = SHARED[name]
    own, others = ({job.id for job in students(planned(one))} for one in (name, other))
    assert len(own & others) == (len(own) if count == "all" else int(count))


def test_teacher_of_two_pairs_is_trained_once(planned: Callable[[str], plan.Plan]) -> None:
    first, second = (planned(f"coco/li2022_table3/r152_r{depth}").jobs[0].job for depth in (18, 50))
    assert (first.kind, first.id) == ("teacher", second.id)
