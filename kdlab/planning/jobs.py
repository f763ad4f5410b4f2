"""Recipe and facts -> jobs: what each of them trains or measures, and the id that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kdlab import catalog
from kdlab.jobs.job import NUMERICS, Job, Kind, Resources
from kdlab.planning.facts import Facts, model_settings
from kdlab.recipe.settings import MethodSettings, Recipe, Schedule

PREPARING = {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.001, "decay": "cosine", "warmup_iters": 0,
             "warmup_factor": 1.0, "clip_grad": 35.0, "eval_every": 0, "keep_best": False}  # fmt: skip
"""How what methods prepare is learned: MasKD's learning rate, decay and weight decay."""


def jobs_of(recipe: Recipe, facts: Facts) -> Iterator[Job]:
    """The teacher, if an arm needs one, what methods prepare of it, then the students, seed by seed."""
    teacher = _teacher(recipe, facts) if recipe.inherits or any(recipe.arms.values()) else None
    prepared = _preparations(recipe, facts, teacher) if teacher else {}
    if teacher is not None:
        yield teacher
        yield from {job.id: job for job in prepared.values()}.values()
    for seed in recipe.seeds:
        for arm, methods in recipe.arms.items():
            learns = methods or arm in recipe.inherits
            own = {name: prepared[arm, name].id for name in methods if (arm, name) in prepared}
            yield _student(recipe, facts, arm, seed, teacher if learns else None, own)


def _teacher(recipe: Recipe, facts: Facts) -> Job:
    assert recipe.teacher is not None
    inputs = _init_path(facts, "teacher")
    if recipe.teacher.expect_ap is not None:
        inputs["expect_ap"] = recipe.teacher.expect_ap
    if checkpoint := facts.weights.get("teacher.checkpoint"):
        inputs |= {"checkpoint": checkpoint.path, "partial": recipe.teacher.partial}
        return _job("evaluate", "teacher", _measured(recipe, facts), (), recipe, facts, inputs)
    settings = _settings(recipe, facts, recipe.teacher.schedule, recipe.teacher.seed)
    settings["model"] = model_settings(recipe.teacher, facts.teacher or {}, facts.weights.get("teacher.init"))
    return _job("teacher", "teacher", settings, (), recipe, facts, inputs)


def _init_path(facts: Facts, role: str) -> dict[str, Any]:
    """Where the first weights of a model's backbone lie, if they are a file of the user's."""
    file = facts.weights.get(f"{role}.init")
    return {"init": file.path} if file else {}


def _measured(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    """What can change the AP of a checkpoint: how it was trained is in its content."""
    assert recipe.teacher is not None
    common = _settings(recipe, facts, recipe.schedule, seed=0)
    reading = {key: value for key, value in common["dataset"].items() if key != "flip"}
    return common | {
        "dataset": reading,
        "model": model_settings(recipe.teacher, facts.teacher or {}),
        "checkpoint": facts.weights["teacher.checkpoint"].sha256,
        # images of a batch are padded to one size, which a convolution sees at their edges
        "pad_divisor": facts.student["pad_divisor"],
        "schedule": {"batch_size": recipe.schedule.batch_size, "gpus": recipe.schedule.gpus},
    }


def _preparations(recipe: Recipe, facts: Facts, teacher: Job) -> dict[tuple[str, str], Job]:
    """The job that prepares what a method instance needs, by (arm, instance); equal ones share an id."""
    known = catalog.methods()
    return {
        (arm, name): _prepare(recipe, facts, teacher, method, known[method.method])
        for arm, methods in recipe.arms.items()
        for name, method in methods.items()
        if known[method.method].prepares
    }


def _prepare(
    recipe: Recipe, facts: Facts, teacher: Job, method: MethodSettings, known: catalog.MethodInfo
) -> Job:
    settings = _settings(recipe, facts, recipe.schedule, seed=0)
    schedule = {
        key: settings["schedule"][key] for key in ("batch_size", "gpus", "precision", "channels_last")
    }
    options = {name: method.options[name] for name in known.prepares}
    settings |= {
        "schedule": schedule | PREPARING | {"iterations": options["prepare_iters"]},
        "model": teacher.settings["model"],
        "pad_divisor": facts.student["pad_divisor"],
        "prepare": {"method": method.method, "options": options},
    }
    unusual = [f"{name} {value}" for name, value in options.items() if value != known.options[name].default]
    label = " ".join(["prepare", method.method, *unusual])
    return _job("prepare", label, settings, (teacher.id,), recipe, facts, {})


def _student(
    recipe: Recipe, facts: Facts, arm: str, seed: int, teacher: Job | None, prepared: Mapping[str, str]
) -> Job:
    methods = recipe.arms[arm]
    settings = _settings(recipe, facts, recipe.schedule, seed)
    files = facts.learned or facts.files
    settings["dataset"]["fingerprint"] = files.fingerprint
    settings["model"] = model_settings(recipe.student, facts.student, facts.weights.get("student.init"))
    settings["methods"] = {name: method.model_dump(mode="json") for name, method in methods.items()}
    settings["teacher"] = teacher.settings["model"] if teacher else None
    if arm in recipe.inherits:
        settings["inherit"] = True
    if prepared:
        settings["prepared"] = dict(prepared)
    parents = (teacher.id, *dict.fromkeys(prepared.values())) if teacher else ()
    inputs = {"dataset": files.to_dict(), **_init_path(facts, "student")}
    return _job("student", arm, settings, parents, recipe, facts, inputs)


def scaling(student: Job, arm: str, iterations: int) -> Job:
    """The job that trains like this student for so many steps, only to see how large each loss is."""
    schedule = {key: value for key, value in student.settings["schedule"].items() if key != "epochs"}
    settings = {**student.settings, "schedule": {**schedule, "iterations": iterations}}
    return replace(
        student, id=job_id("scale", settings, student.parents), kind="scale", arm=arm, settings=settings
    )


def _settings(recipe: Recipe, facts: Facts, schedule: Schedule, seed: int) -> dict[str, Any]:
    """What can change a result and is common to all kinds of job."""
    on_cpu = facts.device == "cpu"
    return {
        "numerics": NUMERICS,
        "dataset": {
            "name": facts.files.name,
            "fingerprint": facts.files.fingerprint,
            "scale": recipe.dataset.scale and list(recipe.dataset.scale),
            "flip": recipe.dataset.flip,
            "broken_images": recipe.dataset.broken_images,
        },
        # a preset is only a way of writing the other keys, and threads count on the CPU alone
        "schedule": schedule.model_dump(mode="json", exclude={"preset", "threads"}),
        "threads": schedule.threads if on_cpu else None,
        "methods": {},
        "teacher": None,
        "seed": seed,
    }


def _job(
    kind: Kind,
    arm: str,
    settings: dict[str, Any],
    parents: tuple[str, ...],
    recipe: Recipe,
    facts: Facts,
    inputs: dict[str, Any],
) -> Job:
    threads = settings["threads"] or 1
    # a measurement has no steps to share
    ranks = 1 if kind == "evaluate" else settings["schedule"]["gpus"]
    gpus = 0 if facts.device == "cpu" else ranks
    own, of_teacher = (facts.student, facts.teacher or {}) if kind == "student" else (facts.teacher or {}, {})
    return Job(
        id=job_id(kind, settings, parents),
        kind=kind,
        arm=arm,
        seed=settings["seed"],
        settings=settings,
        parents=parents,
        inputs={
            "dataset": facts.files.to_dict(),
            "flops": {"student": own["flops"], "teacher": of_teacher.get("flops", 0) if parents else 0},
            **inputs,
        },
        resources=Resources(
            threads=threads,
            gpus=gpus,
            share=recipe.resources.share if gpus == 1 else 1,
            workers=recipe.resources.workers,
            checkpoint_minutes=recipe.resources.checkpoint_minutes,
            ranks=ranks,
        ),
    )


def job_id(kind: Kind, settings: dict[str, Any], parents: tuple[str, ...]) -> str:
    """`<kind>-<8 hex>`, a hash of everything that can change the result."""
    key = json.dumps([kind, settings, parents], sort_keys=True)
    return f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
