"""Recipe and facts -> jobs: what each of them trains or measures, and the id that follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

from kdlab import catalog
from kdlab.errors import UsageError
from kdlab.jobs.job import ABOVE, TEACHER, Inputs, Job, Resources
from kdlab.jobs.spec import (
    DatasetSpec,
    DiagnoseSpec,
    EvaluateSpec,
    JobSpec,
    PrepareSpec,
    Schedule,
    StudentSpec,
    TeacherSpec,
    TrainingSpec,
    plain,
    read_spec,
)
from kdlab.planning.facts import Facts, model_spec
from kdlab.planning.ids import job_id, with_id
from kdlab.recipe.settings import Recipe, TeacherSettings

PREPARING: dict[str, Any] = {
    "epochs": 1,
    "iterations": None,
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.001,
    "decay": "cosine",
    "milestones": (),
    "warmup_iters": 0,
    "warmup_factor": 1.0,
    "clip_grad": 35.0,
    "decay_norms": True,
    "lr_factors": {},
    "layer_decay": None,
    "accumulate": 1,
    "ema": None,
    "eval_every": 0,
    "keep_best": False,
}
"""Schedule of a preparation: MasKD's learning rate, decay and weight decay."""


def jobs_of(recipe: Recipe, facts: Facts) -> Iterator[Job]:
    """The teacher, if an arm needs one, what methods prepare of it, then the students, seed by seed.

    Of a seed the baseline comes first: a run that is stopped then has gains to show. Before a teacher that is
    an arm of another recipe comes all that this recipe needs for it.

    Raises:
        UsageError: a student is such a teacher itself.
    """
    above: list[Job] = []
    teacher = None
    prepared: dict[tuple[str, str], Job] = {}
    if recipe.teacher and (recipe.inherits or any(recipe.arms.values())):
        *above, teacher = _teachers(recipe, recipe.teacher, facts)
        prepared = _preparations(recipe, facts, teacher)
    students = []
    learning = {arm: bool(methods) or arm in recipe.inherits for arm, methods in recipe.arms.items()}
    for seed in recipe.seeds:
        for arm, learns in sorted(learning.items(), key=lambda pair: pair[1]):
            methods = recipe.arms[arm]
            own = {name: prepared[arm, name].id for name in methods if (arm, name) in prepared}
            students.append(_student(recipe, facts, arm, seed, teacher if learns else None, own))
    left = {job.id: job for job in students}
    if teacher and teacher.id in left:
        free = next(number for number in count() if number not in recipe.seeds)
        what = f"the teacher is {left[teacher.id].label} of this recipe, the very same training"
        fix = f"take another seed of it: --set teacher.seed={free}"
        raise UsageError(what, where=recipe.place("teacher.recipe"), got=teacher.id, fix=fix)
    # a chain of models of one size may begin with what is a baseline here
    yield from [left.pop(job.id, job) for job in above]
    if teacher:
        yield teacher
    yield from {job.id: job for job in prepared.values()}.values()
    yield from (job for job in students if job.id in left)


def scaling(student: Job, arm: str, iterations: int) -> Job:
    """The job that trains like this student for so many steps, only to see how large each loss is."""
    settings = {**plain(student.spec), "kind": "scale", "iterations": iterations}
    # losses are read to the last step, whatever becomes of their weights in a training
    whole = {"stop": None, "decay": "none", "gradient_share": None}
    settings["methods"] = {name: {**told, **whole} for name, told in settings.get("methods", {}).items()}
    return with_id(replace(student, arm=arm, spec=read_spec(settings)))


def diagnosing(student: Job, teacher: Job) -> Job:
    """The job that compares a student, trained by this teacher or alone, with it."""
    assert isinstance(student.spec, TrainingSpec)
    spec = DiagnoseSpec(
        dataset=student.spec.dataset,
        model=student.spec.model,
        seed=student.seed,
        threads=student.spec.threads,
        teacher=teacher.spec.model,
        batch_size=student.spec.images_a_forward or student.spec.batch_size,
    )
    resources = replace(student.resources, gpus=min(1, student.resources.gpus), ranks=1, memory_gb=None)
    modules = tuple(dict.fromkeys([*student.inputs.modules, *teacher.inputs.modules]))
    inputs = replace(student.inputs, init=None, flops_teacher=teacher.inputs.flops, modules=modules)
    parents = teacher.id, student.id
    return Job(job_id(spec, parents), f"diagnose {student.label}", spec, inputs, parents, resources)


def _teachers(recipe: Recipe, teacher: TeacherSettings, facts: Facts) -> list[Job]:
    """The teacher; where it is a student of another recipe, the job of that one behind all that it needs."""
    if not (recipe.stage and facts.stage):
        return [_teacher(recipe, teacher, facts)]
    stage = recipe.stage.model_copy(update={"resources": recipe.resources})
    *above, last = jobs_of(stage, facts.stage)
    inputs = replace(last.inputs, expect_ap=teacher.expect_ap)
    return [*(replace(job, arm=job.arm + ABOVE) for job in above), replace(last, arm=TEACHER, inputs=inputs)]


def _teacher(recipe: Recipe, teacher: TeacherSettings, facts: Facts) -> Job:
    """Trained, or measured where its weights come from a file: how it was trained is in their content."""
    checkpoint = facts.weights.get("teacher.checkpoint")
    if checkpoint is None:
        spec: JobSpec = TeacherSpec(
            model=model_spec(teacher, facts.teacher or {}, facts.weights.get("teacher.init")),
            schedule=_schedule(teacher.schedule),
            **_common(recipe, facts, teacher.schedule, teacher.seed),
        )
        return _job(TEACHER, spec, (), recipe, facts, Inputs(facts.files, expect_ap=teacher.expect_ap))
    common = _common(recipe, facts, recipe.schedule, seed=0)
    untrained = ("flip", "augment", "augment_stop")
    defaults = {name: DatasetSpec.model_fields[name].default for name in untrained}
    reading = common["dataset"].model_copy(update=defaults)
    spec = EvaluateSpec(
        model=model_spec(teacher, facts.teacher or {}),
        checkpoint=checkpoint.sha256,
        ema=teacher.ema,
        pad_divisor=facts.student["pad_divisor"],
        batch_size=recipe.schedule.batch_size,
        **{**common, "dataset": reading},
    )
    inputs = Inputs(facts.files, checkpoint.path, partial=teacher.partial, expect_ap=teacher.expect_ap)
    return _job(TEACHER, spec, (), recipe, facts, inputs)


def _preparations(recipe: Recipe, facts: Facts, teacher: Job) -> dict[tuple[str, str], Job]:
    """The job that prepares what a method instance needs, by (arm, instance); equal ones share an id."""
    instances = {(arm, name): method for arm in recipe.arms for name, method in recipe.arms[arm].items()}
    found = {}
    for place, method in instances.items():
        known = catalog.methods()[method.method]
        if not known.prepares:
            continue
        options = {name: method.options[name] for name in known.prepares}
        spec = PrepareSpec(
            model=teacher.spec.model,
            schedule=_schedule(recipe.schedule).model_copy(update=PREPARING),
            iterations=options["prepare_iters"],
            pad_divisor=facts.student["pad_divisor"],
            method=method.method,
            options=options,
            **_common(recipe, facts, recipe.schedule, seed=0),
        )
        label = f"prepare {method.method}"
        for name, value in options.items():
            if value != known.options[name].default:
                label += f" {name} {value}"
        found[place] = _job(label, spec, (teacher.id,), recipe, facts, Inputs(facts.files))
    return found


def _student(
    recipe: Recipe, facts: Facts, arm: str, seed: int, teacher: Job | None, prepared: Mapping[str, str]
) -> Job:
    files = facts.learned or facts.files
    common = _common(recipe, facts, recipe.schedule, seed)
    spec = StudentSpec(
        model=model_spec(recipe.student, facts.student, facts.weights.get("student.init")),
        schedule=_schedule(recipe.schedule),
        methods=recipe.arms[arm],
        teacher=teacher.spec.model if teacher else None,
        teacher_precision=recipe.teacher.precision if teacher and recipe.teacher else None,
        teacher_compiled=bool(teacher and recipe.teacher and recipe.teacher.compile),
        inherit=arm in recipe.inherits,
        prepared=dict(prepared),
        **{**common, "dataset": common["dataset"].model_copy(update={"fingerprint": files.fingerprint})},
    )
    parents = (teacher.id, *dict.fromkeys(prepared.values())) if teacher else ()
    return _job(arm, spec, parents, recipe, facts, Inputs(files))


def _common(recipe: Recipe, facts: Facts, schedule: Schedule, seed: int) -> dict[str, Any]:
    """Settings of all kinds of jobs: the dataset, the seed and, on the CPU, the number of threads."""
    reading = recipe.dataset.model_dump(exclude={"name", "options"})
    return {
        "dataset": DatasetSpec(name=facts.files.name, fingerprint=facts.files.fingerprint, **reading),
        "seed": seed,
        "threads": schedule.threads if facts.device == "cpu" else None,
    }


def _schedule(schedule: Schedule) -> Schedule:
    """The schedule as jobs have it: a preset is only a way of writing the other keys, threads stand apart."""
    return schedule.model_copy(update={"preset": "custom", "threads": 1})


def _job(arm: str, spec: Any, parents: tuple[str, ...], recipe: Recipe, facts: Facts, inputs: Inputs) -> Job:
    # as it will be read again: the options of methods are JSON values
    spec = read_spec(plain(spec))
    models = {"student": facts.student, "teacher": facts.teacher or {}}
    role = "student" if spec.is_student else "teacher"
    inputs = replace(inputs, flops=models[role]["flops"])
    if spec.is_student and parents:
        inputs = replace(inputs, flops_teacher=models["teacher"]["flops"])
    if inputs.checkpoint is None and f"{role}.init" in facts.weights:
        inputs = replace(inputs, init=facts.weights[f"{role}.init"].path)
    own = [folder for model in models.values() for folder in model.get("modules", ())]
    inputs = replace(inputs, modules=tuple(dict.fromkeys(own)))
    gpus = 0 if facts.device == "cpu" else spec.ranks
    share = recipe.resources.share if gpus == 1 else 1
    asked = recipe.resources.workers
    resources = Resources(
        threads=spec.threads or 1,
        gpus=gpus,
        share=share,
        workers=facts.workers // share if asked is None else asked,
        cache=recipe.resources.cache,
        checkpoint_minutes=recipe.resources.checkpoint_minutes,
        ranks=spec.ranks,
    )
    return Job(job_id(spec, parents), arm, spec, inputs, parents, resources)
