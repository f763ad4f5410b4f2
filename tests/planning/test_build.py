from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.errors import KdlabError, UsageError
from kdlab.jobs.job import Job
from kdlab.jobs.result import Evaluation, JobResult
from kdlab.jobs.store import PastJob
from kdlab.planning import build as plan
from kdlab.planning.benching import benching
from kdlab.planning.diagnosis import diagnosis
from kdlab.planning.facts import Facts
from kdlab.planning.jobs import scaling
from kdlab.planning.weights import WeightFile
from kdlab.recipe import loader as recipe
from kdlab.recipe.loader import Recipe
from tests.stubs.jobs import FILES, changed

MODEL: dict[str, Any] = {
    "detector": "gfl",
    "provides": ["feats", "cls_maps", "box_maps", "boxes", "assignment"],
    "num_classes": 10,
    "strides": [8, 16, 32],
    "channels": 32,
    "anchors": 1,
    "head": "h",
    "tower_depth": 1,
    "bins": 17,
    "priors": "p",
    "trains": True,
    "flops": 10,
    "params": 5,
    "pad_divisor": 32,
    "least_divisor": 1,
}
FACTS = Facts(FILES, MODEL, {**MODEL, "flops": 30}, "cpu", {"torch": "2", "mmdet": "3"})


def quickstart(*overrides: str) -> Recipe:
    return recipe.load("digits/from_scratch", overrides)


def build(*overrides: str, facts: Facts = FACTS, past: dict[str, PastJob] | None = None) -> plan.Plan:
    return plan.build(quickstart(*overrides), facts, past or {})


def ids(built: plan.Plan) -> dict[str, str]:
    return {planned.job.label: planned.job.id for planned in built.jobs}


def finished(job: Job, wall_s: float = 60.0, torch: str = "2") -> PastJob:
    environment = {"torch": torch, "mmdet": "3"}
    last = Evaluation({"AP": 20.0})
    result = JobResult(
        job.id, job.kind, job.arm, job.seed, last, environment=environment, wall_s=wall_s, peak_memory_gb=1.0
    )
    return PastJob(job, result)


def test_teacher_is_trained_once_and_comes_first() -> None:
    built = build("seeds=[0,1]")
    assert [planned.job.label for planned in built.jobs][:2] == ["teacher", "baseline seed 0"]
    assert sum(planned.job.kind == "teacher" for planned in built.jobs) == 1
    assert len(built.jobs) == 9


def test_baseline_does_not_wait_for_the_teacher() -> None:
    parents = {planned.job.label: planned.job.parents for planned in build().jobs}
    assert parents["baseline seed 0"] == ()
    assert parents["rm seed 0"] == (ids(build())["teacher"],)


def test_recipe_without_methods_has_no_teacher_job() -> None:
    assert [planned.job.label for planned in build("arms={baseline: {}}").jobs] == ["baseline seed 0"]


@pytest.mark.parametrize(
    "override",
    [
        "resources.workers=2",
        "resources.cache=ram",
        "resources.checkpoint_minutes=1",
        "resources.share=2",
        "resources.on_oom=fail",
        "dataset.cache=/elsewhere",
    ],
)
def test_what_cannot_change_a_result_changes_no_id(override: str) -> None:
    assert ids(build(override)) == ids(build())


@pytest.mark.parametrize(
    "override",
    [
        "schedule.lr=1e-4",
        "schedule.threads=2",
        "dataset.flip=0.5",
        "dataset.broken_images=skip",
        "student.width=12",
        "methods.rm.weight=5",
    ],
)
def test_what_can_change_a_result_changes_the_id(override: str) -> None:
    assert ids(build(override))["rm seed 0"] != ids(build())["rm seed 0"]


def test_job_of_two_gpus_is_two_processes_and_on_the_cpu_takes_the_cores_of_both() -> None:
    (job,) = (planned.job for planned in build("arms={baseline: {}}", "schedule.gpus=2").jobs)
    assert (job.resources.ranks, job.resources.gpus, job.resources.cores) == (2, 0, 2)


def test_number_of_gpus_changes_the_id() -> None:
    assert ids(build("schedule.gpus=2"))["rm seed 0"] != ids(build())["rm seed 0"]


def test_method_settings_leave_the_baseline_alone() -> None:
    assert ids(build("methods.rm.weight=5"))["baseline seed 0"] == ids(build())["baseline seed 0"]


def test_another_teacher_is_another_student_but_the_same_baseline() -> None:
    other = ids(build("teacher.seed=7"))
    assert other["rm seed 0"] != ids(build())["rm seed 0"]
    assert other["baseline seed 0"] == ids(build())["baseline seed 0"]


def test_changed_labels_change_all_ids() -> None:
    facts = replace(FACTS, files=replace(FILES, fingerprint="e" * 16))
    assert not set(ids(build(facts=facts)).values()) & set(ids(build()).values())


def test_of_each_seed_the_baseline_is_planned_before_the_arms() -> None:
    arms = "arms={rm: {rm: {}}, heir: {inherit: true}, plain: {}}"
    labels = [planned.job.label for planned in build(arms, "seeds=[0,1]", facts=sharing("b")).jobs]
    own = [[f"{arm} seed {seed}" for arm in ("plain", "rm", "heir")] for seed in (0, 1)]
    assert labels == ["teacher", *own[0], *own[1]]


@settings(deadline=None)
@given(st.permutations(["rm", "pfi"]))
def test_order_of_methods_in_an_arm_changes_no_id(order: list[str]) -> None:
    arms = f"arms={{both: {{{order[0]}: {{}}, {order[1]}: {{}}}}}}"
    assert ids(build(arms))["both seed 0"] == ids(build())["rm+pfi seed 0"]


def test_finished_job_is_reused() -> None:
    job = build().jobs[0].job
    planned = build(past={job.id: finished(job)}).jobs[0]
    assert planned.done
    assert planned.why == "reused"


def test_reuse_names_the_versions_that_differ() -> None:
    job = build().jobs[0].job
    assert build(past={job.id: finished(job, torch="1")}).jobs[0].why == "reused, made with torch 1"


def test_new_job_names_the_first_key_that_differs_from_the_nearest() -> None:
    job = build("schedule.lr=1e-4").jobs[1].job
    assert build(past={job.id: finished(job)}).jobs[1].why == f"new: schedule.lr differs from {job.id}"


def test_cost_is_measured_by_the_same_job_under_other_seeds() -> None:
    old = build("seeds=[5]").jobs[1].job
    planned = build(past={old.id: finished(old, wall_s=42.0)}).jobs[1]
    assert (planned.cost_s, planned.cost_source) == (42.0, "measured, n=1")


def test_cost_is_estimated_by_flops_and_epochs() -> None:
    old = build().jobs[1].job
    rm = build("schedule.epochs=12", past={old.id: finished(old, wall_s=60.0)}).jobs[2]
    epochs = old.spec.schedule.epochs
    assert rm.cost_s == pytest.approx(60.0 * (3 * 10 + 30) / (3 * 10) * 12 / epochs)
    assert rm.cost_source == "estimated"


def test_cost_without_results_is_unknown() -> None:
    assert build().jobs[0].cost_s is None


def test_plan_survives_its_own_json() -> None:
    built = build()
    assert plan.Plan.from_dict(built.to_dict()) == built


def test_gpu_jobs_do_not_depend_on_the_thread_count() -> None:
    facts = replace(FACTS, device="cuda")
    assert ids(build("schedule.threads=2", facts=facts)) == ids(build(facts=facts))


def test_rm_refuses_a_pair_with_other_priors_and_names_who_can() -> None:
    facts = replace(FACTS, teacher={**MODEL, "detector": "retinanet", "anchors": 9, "priors": "q"})
    with pytest.raises(UsageError) as refused:
        build("arms={rm: {rm: {}}}", facts=facts)
    text = str(refused.value)
    assert "rm cannot serve this pair: it needs equal priors" in text
    assert "student detector gfl" in text
    assert "teacher detector retinanet" in text


def test_rm_with_quality_refuses_a_head_without_quality() -> None:
    with pytest.raises(UsageError, match="it needs quality_maps"):
        build("arms={rm: {rm: {quality: true}}}")


def test_levels_must_be_strides_of_the_student() -> None:
    with pytest.raises(UsageError, match="levels names strides that the student lacks"):
        build("arms={pfi: {pfi: {levels: [64]}}}")


def test_mixed_precision_is_refused_without_a_gpu() -> None:
    for key in ("schedule", "teacher"):
        with pytest.raises(UsageError, match=f"{key}.precision: fp16 needs a GPU"):
            build(f"{key}.precision=fp16")
        assert build(f"{key}.precision=fp16", facts=replace(FACTS, device="cuda")).jobs
        assert build(f"{key}.precision=bf16").jobs


@pytest.mark.parametrize(
    ("setting", "key", "value", "otherwise"),
    [
        ("teacher.precision=bf16", "teacher_precision", "bf16", None),
        ("teacher.compile=true", "teacher_compiled", True, False),
    ],
)
def test_how_the_teacher_computes_is_a_matter_of_the_students_that_learn_from_it(
    setting: str, key: str, value: object, otherwise: object
) -> None:
    plain, changed = build(), build(setting)
    for before, now in zip(plain.jobs, changed.jobs, strict=True):
        learns = now.job.kind == "student" and bool(now.job.spec.methods)
        assert (now.job.id != before.job.id) is learns
        assert getattr(now.job.spec, key, otherwise) == (value if learns else otherwise)


def test_levels_of_a_method_without_neck_maps_are_refused() -> None:
    with pytest.raises(UsageError, match="levels, match and maps have no effect"):
        build("methods.rm.levels=[8]")


def test_a_detector_without_an_encoder_has_no_memory_to_imitate() -> None:
    with pytest.raises(UsageError, match="fitnet cannot serve this pair: it needs memory"):
        build("arms={fitnet: {fitnet: {maps: memory}}}")


def test_a_method_whose_parts_are_all_turned_off_is_refused() -> None:
    detr = replace(FACTS, student=DETR, teacher=DETR)
    off = "arms={one: {detrdistill: {logits: false, features: false, prior: false}}}"
    with pytest.raises(
        UsageError, match="detrdistill cannot serve this pair: with all of its parts"
    ) as refused:
        build(off, facts=detr)
    assert "'prior': False" in str(refused.value)


def test_what_is_learned_beforehand_is_learned_on_neck_maps() -> None:
    seen = {**MODEL, "provides": [*MODEL["provides"], "memory"]}
    with pytest.raises(UsageError, match="maskd cannot serve this pair: what it learns beforehand"):
        build("arms={maskd: {maskd: {maps: memory}}}", facts=replace(FACTS, student=seen, teacher=seen))


DETR = {**MODEL, "detector": "deformable_detr", "provides": ["feats", "queries", "memory"], "anchors": 0}


def test_queries_that_begin_otherwise_are_told_by_their_kind() -> None:
    pair = {"student": {**DETR, "priors": "points"}, "teacher": {**DETR, "priors": "boxes"}}
    with pytest.raises(UsageError) as refused:
        build("arms={kd_detr: {kd_detr: {}}}", facts=replace(FACTS, **pair))
    assert "it needs equal priors" in str(refused.value)
    assert "priors points; teacher detector deformable_detr priors boxes" in str(refused.value)
    build("arms={logits: {detrdistill: {prior: false}}}", facts=replace(FACTS, **pair))


def test_a_detr_is_not_trained_in_fp16() -> None:
    facts = replace(FACTS, student=DETR, teacher=DETR, device="cuda")
    with pytest.raises(UsageError, match="fp16 cannot match the queries of a DETR"):
        build("arms={baseline: {}}", "schedule.precision=fp16", facts=facts)
    build("arms={baseline: {}}", "schedule.precision=bf16", facts=facts)


TWO_STAGE = {**MODEL, "detector": "faster_rcnn", "provides": ["feats", "roi_outputs"], "anchors": 0}


def test_class_map_methods_refuse_a_two_stage_pair_with_the_reason() -> None:
    with pytest.raises(UsageError) as refused:
        build("arms={both: {rm: {}, pfi: {}}}", facts=replace(FACTS, student=TWO_STAGE, teacher=TWO_STAGE))
    for method in ("rm", "pfi"):
        assert f"{method} cannot serve this pair: it needs cls_maps" in str(refused.value)
    assert "the student, faster_rcnn, has none" in str(refused.value)


def test_a_detector_with_masks_is_not_trained() -> None:
    masked = {**TWO_STAGE, "detector": "mask_rcnn", "trains": False}
    for role in ("student", "teacher"):
        with pytest.raises(UsageError, match=f"{role}.detector cannot be trained: it learns masks"):
            build("arms={baseline: {}}", facts=replace(FACTS, **{role: masked}))


@pytest.mark.parametrize("name", ["backbones", "layer1", "''"])
def test_a_rate_of_an_unknown_part_is_refused_and_the_known_ones_named(name: str) -> None:
    parts = ["backbone", "backbone.layer1", "neck", "bbox_head"]
    facts = replace(FACTS, student={**MODEL, "parts": parts}, teacher={**MODEL, "flops": 30, "parts": parts})
    build("schedule.lr_factors={backbone.layer1: 0.1}", facts=facts)
    with pytest.raises(UsageError) as told:
        build(f"schedule.lr_factors={{{name}: 0.1}}", facts=facts)
    student, teacher = told.value.faults
    assert student.what == "schedule.lr_factors names no part of the student"
    assert teacher.what == "teacher.schedule.lr_factors names no part of the teacher"
    assert (student.got, student.known) == (name.strip("'"), "backbone, neck, bbox_head")
    assert student.where.startswith("--set schedule.lr_factors=")


@pytest.mark.parametrize(("role", "key"), [("student", "schedule"), ("teacher", "teacher.schedule")])
def test_rates_by_layer_need_a_backbone_of_layers(role: str, key: str) -> None:
    models = {"student": {**MODEL, "layers": 13}, "teacher": {**MODEL, "flops": 30, "layers": 13}}
    build("schedule.layer_decay=0.9", facts=replace(FACTS, **models))
    models[role]["layers"] = 0
    with pytest.raises(UsageError, match=f"{role}'s backbone has no blocks in sequence") as told:
        build("schedule.layer_decay=0.9", facts=replace(FACTS, **models))
    (fault,) = told.value.faults
    assert fault.what.startswith(f"{key}.layer_decay: ")
    assert fault.got == "0.9"
    # what the fix says, for this role alone
    teacher = "teacher.schedule.layer_decay=0.9"
    build("schedule.layer_decay=0.9", teacher, f"{key}.layer_decay=null", facts=replace(FACTS, **models))


def test_an_mmdet_config_counts_by_content_and_not_by_name() -> None:
    def student(detector: str, anchors: int) -> Job:
        found = {
            "config": {"bbox_head": {"anchors": anchors}},
            "imports": [],
            "code": {},
            "backbone": "resnet50",
        }
        override = f"student={{detector: {detector}}}"
        built = build(override, "arms={baseline: {}}", facts=replace(FACTS, student={**MODEL, **found}))
        return built.jobs[0].job

    one, renamed = student("gfl/gfl_r50_fpn_1x_coco", 1), student("gfl/gfl_r50_fpn_ms-2x_coco", 1)
    assert one.id == renamed.id
    assert one.spec.model.detector == "gfl"
    assert one.id != student("gfl/gfl_r50_fpn_1x_coco", 2).id


# --- a teacher from a checkpoint ---

FOUND = {
    "key_fault": None,
    "class_fault": None,
    "classes": list("0123456789"),
    "expected": 10,
    "lines": ["1 of 2 loaded"],
}
CHECKPOINT = ("teacher.schedule=null", "teacher.checkpoint=a.pth")


def with_checkpoint(path: str = "/w/a.pth", sha256: str = "a" * 64, **found: Any) -> Facts:
    return replace(
        FACTS,
        student={**MODEL, "pad_divisor": 32},
        teacher={**MODEL, "flops": 30, "checkpoint": FOUND | found},
        weights={"teacher.checkpoint": WeightFile(path, sha256)},
    )


def test_a_checkpoint_is_measured_in_place_of_training() -> None:
    built = build(*CHECKPOINT, facts=with_checkpoint())
    kinds = [planned.job.kind for planned in built.jobs]
    assert kinds == ["evaluate", *["student"] * 4]
    teacher = built.jobs[0].job
    assert teacher.id.startswith("evaluate-")
    assert teacher.label == "teacher"
    assert teacher.inputs.checkpoint == "/w/a.pth"
    assert built.jobs[2].job.parents == (teacher.id,)


def test_where_a_checkpoint_lies_and_what_is_expected_change_no_id() -> None:
    built = build(*CHECKPOINT, facts=with_checkpoint())
    moved = build(*CHECKPOINT, "teacher.expect_ap=30", facts=with_checkpoint("/elsewhere/b.pth"))
    assert ids(moved) == ids(built)
    assert moved.jobs[0].job.inputs.expect_ap == 30


@pytest.mark.parametrize("override", ["schedule.lr=1e-4", "dataset.flip=0.5", "schedule.epochs=9"])
def test_how_students_train_does_not_measure_the_teacher_again(override: str) -> None:
    facts = with_checkpoint()
    assert (
        ids(build(*CHECKPOINT, override, facts=facts))["teacher"]
        == ids(build(*CHECKPOINT, facts=facts))["teacher"]
    )


@pytest.mark.parametrize(
    "override", ["schedule.batch_size=4", "schedule.threads=2", "dataset.scale=[64,64]", "teacher.width=12"]
)
def test_what_can_change_a_measurement_changes_its_id(override: str) -> None:
    facts = with_checkpoint()
    assert (
        ids(build(*CHECKPOINT, override, facts=facts))["teacher"]
        != ids(build(*CHECKPOINT, facts=facts))["teacher"]
    )


def test_another_content_is_another_teacher() -> None:
    one, other = (ids(build(*CHECKPOINT, facts=with_checkpoint(sha256=s * 64))) for s in "ab")
    assert one["rm seed 0"] != other["rm seed 0"]
    assert one["baseline seed 0"] == other["baseline seed 0"]


def test_a_checkpoint_that_does_not_fit_stops_the_plan() -> None:
    fault = {"what": "keys differ", "where": "", "got": "", "known": "", "fix": ""}
    with pytest.raises(UsageError, match="keys differ"):
        build(*CHECKPOINT, facts=with_checkpoint(key_fault=fault))


def test_a_checkpoint_accepted_in_part_is_noted() -> None:
    fault = {"what": "keys differ", "where": "", "got": "", "known": "", "fix": ""}
    built = build(*CHECKPOINT, "teacher.partial=true", facts=with_checkpoint(key_fault=fault))
    assert built.notes == ("teacher.partial: 1 of 2 loaded",)


def test_a_trained_teacher_below_expectation_is_noted() -> None:
    job = build().jobs[0].job
    built = build("teacher.expect_ap=30", past={job.id: finished(job)})
    assert built.jobs[0].done
    assert "AP 20.0, and teacher.expect_ap is 30.0" in built.notes[0]


# --- first weights from a file ---


def starting_from(path: str = "/w/r18.pth", sha256: str = "a" * 64, **beside: int) -> Facts:
    found = FOUND | {"report": {"loaded": {"conv1": 1, "layer1": 2}, "beside": beside}}
    return replace(
        FACTS,
        student={**MODEL, "init": found},
        weights={"student.init": WeightFile(path, sha256)},
    )


INIT = ("student.width=64", "student.init=r18.pth")


def test_first_weights_count_by_content_and_not_by_place() -> None:
    built = build(*INIT, facts=starting_from())
    student = built.jobs[1].job
    assert student.spec.model.init == f"sha256:{'a' * 64}"
    assert student.inputs.init == "/w/r18.pth"
    assert ids(build(*INIT, facts=starting_from("/elsewhere.pth"))) == ids(built)
    other = ids(build(*INIT, facts=starting_from(sha256="b" * 64)))
    assert other["baseline seed 0"] != ids(built)["baseline seed 0"]
    assert other["teacher"] == ids(built)["teacher"]


def test_what_is_left_aside_of_first_weights_is_said() -> None:
    built = build(*INIT, facts=starting_from(fc=2))
    assert built.notes == ("student.init: 3 tensors of the backbone; left aside: fc (2)",)


# --- arms that inherit ---

ARMS = "arms={baseline: {}, pfi: {pfi: {}}, pfi+: {pfi: {}, inherit: true}, alone: {inherit: true}}"


def sharing(*names: str, shape: tuple[int, ...] = (1, 2)) -> Facts:
    student, teacher = (
        {"neck_and_head": {name: list(shape) for name in each}} for each in (["a", "b"], names)
    )
    return replace(FACTS, student={**MODEL, **student}, teacher={**MODEL, "flops": 30, **teacher})


def test_an_arm_that_inherits_has_the_teacher_as_parent_and_an_id_of_its_own() -> None:
    built = build(ARMS, facts=sharing("b"))
    jobs = {planned.job.arm: planned.job for planned in built.jobs}
    assert jobs["alone"].parents == jobs["pfi"].parents == (jobs["teacher"].id,)
    assert jobs["baseline"].parents == ()
    assert len({job.id for job in jobs.values()}) == 5
    assert jobs["pfi"].id == ids(build())["pfi seed 0"]
    assert built.recipe["inherits"] == ["pfi+", "alone"]


def test_a_teacher_whose_neck_halves_images_needs_them_padded() -> None:
    halving = {**MODEL, "flops": 30, "least_divisor": 32}
    build(facts=replace(FACTS, teacher=halving))
    with pytest.raises(KdlabError, match=r"(?s)the teacher's neck .* multiples of 32.*pad_size_divisor: 32"):
        build(facts=replace(FACTS, student={**MODEL, "pad_divisor": 1}, teacher=halving))
    alone = replace(FACTS, student={**halving, "pad_divisor": 1}, teacher=None)
    with pytest.raises(KdlabError, match="the student's neck") as caught:
        build("arms={baseline: {}}", "teacher=null", facts=alone)
    assert len(caught.value.faults) == 1


def test_inheriting_nothing_but_biases_is_refused() -> None:
    for facts in (sharing("c"), sharing("b", shape=(2,))):
        with pytest.raises(UsageError, match="nothing to take over"):
            build(ARMS, facts=facts)
    build("arms={pfi: {pfi: {}}}", facts=sharing("c"))


MASKD = (
    "arms={baseline: {}, maskd: {maskd: {}}, later: {maskd: {narrow_after: 5}}, two: {maskd@a: {tokens: 2}}}"
)


def test_what_a_method_prepares_is_one_job_for_all_arms_and_seeds() -> None:
    built = build(MASKD, "seeds=[0,1]")
    prepares = [planned.job for planned in built.jobs if planned.job.kind == "prepare"]
    assert [job.label for job in prepares] == ["prepare maskd", "prepare maskd tokens 2"]
    assert [job.spec.options["tokens"] for job in prepares] == [6, 2]
    assert all(job.parents == (built.jobs[0].job.id,) for job in prepares)
    parents = {planned.job.label: planned.job.parents for planned in built.jobs}
    for label in ("maskd seed 0", "maskd seed 1", "later seed 0"):
        assert parents[label] == (built.jobs[0].job.id, prepares[0].id)
    assert parents["two seed 1"] == (built.jobs[0].job.id, prepares[1].id)
    places = [planned.job.kind for planned in built.jobs]
    assert places.index("student") > places.index("prepare")


def test_what_is_prepared_depends_on_the_teacher_and_not_on_the_student() -> None:
    def prepared(*overrides: str) -> str:
        return next(p.job.id for p in build(MASKD, *overrides).jobs if p.job.kind == "prepare")

    assert prepared("student.width=12") == prepared()
    assert prepared("teacher.seed=7") != prepared()
    assert prepared("schedule.batch_size=4") != prepared()


def test_methods_that_learn_from_the_teachers_loss_refuse_one_that_cannot_have_it() -> None:
    facts = replace(FACTS, teacher={**MODEL, "detector": "mask_rcnn", "trains": False})
    with pytest.raises(
        UsageError, match="maskd cannot serve this pair: it learns from the teacher's own loss"
    ):
        build(MASKD, "teacher.checkpoint=x.pth", "teacher.schedule=null", facts=facts)


def test_a_config_that_turns_out_to_be_of_a_family_is_told_its_defaults() -> None:
    config = "student={detector: gfl/gfl_r50_fpn_1x_coco}"
    pkd = "arms={baseline: {}, pkd: {pkd: {}}}"
    (note,) = [note for note in build(config, pkd).notes if "other defaults" in note]
    assert note.startswith("pkd has other defaults for gfl: weight 6")
    assert not [note for note in build(pkd).notes if "other defaults" in note]


def test_a_plan_says_that_a_config_of_ones_own_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    notes = build(f"student={{detector: {tmp_path}/mine.py}}").notes
    assert f"student.detector: {tmp_path}/mine.py is Python, which this plan and every job of it run" in notes
    assert not [note for note in build().notes if "Python" in note]


def test_distributions_over_other_bins_are_no_pair_for_ld() -> None:
    provides = [*MODEL["provides"], "box_distributions", "anchor_boxes"]
    both = {"student": {**MODEL, "provides": provides}, "teacher": {**MODEL, "provides": provides}}
    arms = "arms={ld: {ld: {}}}"
    assert build(arms, facts=replace(FACTS, **both)).jobs
    other = {**both, "teacher": {**both["teacher"], "bins": 9}}
    with pytest.raises(UsageError, match="ld cannot serve this pair: it needs equal bins"):
        build(arms, facts=replace(FACTS, **other))


def test_job_that_ran_out_of_memory_is_planned_in_smaller_parts_unless_the_recipe_says_fail() -> None:
    failed = ids(build())["rm seed 0"]
    full = {failed: {"kind": "oom", "peak_gb": 8, "total_gb": 8, "micro_batch": 8, "batchnorm": False}}
    built = plan.build(quickstart(), FACTS, {}, full)
    assert ids(built)["rm seed 0"] != failed
    assert built.notes == ("rm seed 0 ran out of GPU memory: 4 images a forward pass, the batch as it was",)
    kept = plan.build(quickstart("resources.on_oom=fail"), FACTS, {}, full)
    assert ids(kept)["rm seed 0"] == failed


def test_jobs_of_one_gpu_share_it_where_the_recipe_says_so_and_know_their_memory() -> None:
    gpu = replace(FACTS, device="cuda")
    (job,) = (one.job for one in build("arms={b: {}}", "resources.share=2", facts=gpu).jobs)
    assert (job.resources.gpus, job.resources.share, job.resources.memory_gb) == (1, 2, None)
    past = {"x": finished(replace(job, id="x", spec=changed(job, seed=9)))}
    (job,) = (one.job for one in build("arms={b: {}}", "resources.share=2", facts=gpu, past=past).jobs)
    assert job.resources.memory_gb == 2.2
    (wide,) = build("arms={b: {}}", "resources.share=2", "schedule.gpus=2", facts=gpu).jobs
    assert wide.job.resources.share == 1


# --- diagnosis of finished students ---

VERSIONS = {"torch": "2", "mmdet": "3"}


def past_of(built: plan.Plan, *labels: str) -> dict[str, PastJob]:
    """The jobs of these labels, finished."""
    jobs = [planned.job for planned in built.jobs]
    return {job.id: finished(job) for job in jobs if job.label in labels}


def test_each_finished_student_is_compared_with_the_teacher() -> None:
    built = build("seeds=[0,1]")
    past = past_of(built, "teacher", "baseline seed 0", "rm seed 1")
    made, missing = diagnosis(built, past, VERSIONS)
    labels = [planned.job.label for planned in made.jobs]
    assert labels == [
        *("teacher", "baseline seed 0", "rm seed 1"),
        *("diagnose baseline seed 0", "diagnose rm seed 1"),
    ]
    own = ids(built)
    for one in made.jobs[3:]:
        student = one.job.label.removeprefix("diagnose ")
        assert one.job.parents == (own["teacher"], own[student])
        assert one.job.id.startswith("diagnose-")
        assert not one.done
        assert one.job.seed == int(student[-1])
    assert len(missing) == 6
    assert all(planned.done for planned in made.jobs[:3])
    assert made.id != built.id
    assert not made.compares
    assert plan.Plan.from_dict(made.to_dict()) == made


def test_a_finished_diagnosis_is_reused_and_depends_on_student_and_teacher() -> None:
    built = build()
    past = past_of(built, "teacher", "baseline seed 0")
    (job,) = [one.job for one in diagnosis(built, past, VERSIONS)[0].jobs if one.job.kind == "diagnose"]
    again = diagnosis(built, {**past, job.id: finished(job)}, VERSIONS)[0].jobs[-1]
    assert (again.job.id, again.done) == (job.id, True)
    other = build("teacher.seed=5")
    past = past_of(other, "teacher", "baseline seed 0")
    assert diagnosis(other, past, VERSIONS)[0].jobs[-1].job.id != job.id
    assert diagnosis(other, past, VERSIONS)[0].jobs[1].job.id == ids(built)["baseline seed 0"]


def test_a_teacher_from_a_checkpoint_is_a_parent_like_another() -> None:
    built = build(*CHECKPOINT, facts=with_checkpoint())
    made, _ = diagnosis(built, past_of(built, "teacher", "rm seed 0"), VERSIONS)
    assert made.jobs[-1].job.parents[0].startswith("evaluate-")
    assert made.jobs[-1].job.inputs.checkpoint is None


@pytest.mark.parametrize(
    ("finished", "words"),
    [((), "no student"), (("teacher",), "no student"), (("baseline seed 0",), "no teacher")],
)
def test_nothing_finished_is_told_with_the_command_that_trains(finished: Any, words: str) -> None:
    built = build()
    with pytest.raises(UsageError, match=f"nothing to diagnose: {words}") as told:
        diagnosis(built, past_of(built, *finished), VERSIONS)
    assert told.value.faults[0].fix.startswith("kdlab run digits/from_scratch")


def test_a_recipe_without_a_teacher_has_nothing_to_compare_with() -> None:
    built = build("arms={baseline: {}}")
    with pytest.raises(UsageError, match="has no teacher"):
        diagnosis(built, past_of(built, "baseline seed 0"), VERSIONS)


@pytest.mark.parametrize(
    ("overrides", "workers"),
    [((), 6), (("resources.share=2",), 3), (("resources.workers=1",), 1), (("resources.workers=0",), 0)],
)
def test_jobs_on_gpus_share_the_cores_among_their_loader_processes(
    overrides: tuple[str, ...], workers: int
) -> None:
    made = build(*overrides, facts=replace(FACTS, device="cuda", workers=6))
    assert {planned.job.resources.workers for planned in made.jobs} == {workers}


def test_the_job_that_measures_losses_reads_them_to_its_end() -> None:
    made = build("methods.rm.stop=0.5", "methods.rm.decay=linear")
    student = next(one.job for one in made.jobs if one.job.arm == "rm")
    assert student.spec.methods["rm"].stop == 0.5
    settings = scaling(student, "rm", 100).spec.methods["rm"]
    assert (settings.stop, settings.decay, settings.weight) == (
        None,
        "none",
        student.spec.methods["rm"].weight,
    )


def test_bench_times_the_first_student_of_each_arm_anew() -> None:
    made = build("seeds=[3, 4]")
    timed = benching(made, "2026-12-01 10:00:00", 20)
    assert [one.job.arm for one in timed.jobs] == [*made.recipe["arms"]]
    assert {one.job.seed for one in timed.jobs} == {3}
    students = [one.job.id for one in made.jobs if one.job.is_student and one.job.seed == 3]
    assert [one.job.spec.student for one in timed.jobs] == students
    assert {(one.job.parents, one.done) for one in timed.jobs} == {((), False)}
    assert timed.about == "benches"
    assert not timed.compares
    again = benching(made, "2026-12-01 10:00:01", 20)
    assert not {one.job.id for one in timed.jobs} & {one.job.id for one in again.jobs}
