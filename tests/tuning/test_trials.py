from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdlab.errors import KdlabError, MachineError, UsageError
from kdlab.tuning import trials as trials_module
from kdlab.tuning.trials import Trials, Variant, label
from tests.planning.test_build import FACTS
from tests.tuning.test_tuner import LEARNED, make_trials

FULL = {"micro_batch": 8, "batchnorm": False, "total_gb": 80.0}
"""What is known of a job that its GPU was too small for."""
TWO = "tune.student={width: [8, 16]}"


def changed(trials: Trials, **facts: Any) -> Trials:
    """The same with other facts of the models."""
    variants = {
        student: Variant(variant.recipe, replace(variant.facts, **facts))
        for student, variant in trials.variants.items()
    }
    return replace(trials, variants=variants)


class TestKey:
    @pytest.mark.parametrize(
        "override",
        [
            "student.width=16",
            "tune.student={width: [8, 16]}",
            "schedule.lr=1e-4",
            "teacher.seed=1",
            "methods.rm.score=logit",
            "tune.over=[rm.weight]",
            "tune.over=[rm.rank, rm.weight]",
            "tune.space={rm.weight: [1, 2]}",
            "tune.objectives=[AP50]",
            "tune.objectives=[AP, latency]",
            "tune.sampler=random",
            "tune.pruner=none",
            "tune.epochs=3",
            "tune.seed=7",
        ],
    )
    def test_follows_all_that_makes_trials_comparable(self, override: str) -> None:
        assert make_trials(override).key != make_trials().key

    @pytest.mark.parametrize(
        "override",
        [
            "tune.trials=99",
            "resources.workers=2",
            "dataset.cache=/elsewhere",
            "seeds=[5]",
            "tune.storage=a.log",
        ],
    )
    def test_is_blind_to_all_else(self, override: str) -> None:
        assert make_trials(override).key == make_trials().key

    def test_follows_the_images_that_trials_learn_from(self) -> None:
        other = changed(make_trials(), learned=replace(LEARNED, fingerprint="d" * 16))
        assert other.key != make_trials().key

    def test_is_six_hex(self) -> None:
        assert len(make_trials().key) == 6
        assert int(make_trials().key, 16) >= 0


class TestJob:
    def test_same_values_are_the_same_job(self) -> None:
        trials = make_trials("tune.over=[rm.weight, pfi.weight, rm.rank]")
        values = {"rm.weight": 1.0, "pfi.weight": 2.0, "rm.rank": "loc"}
        job = trials.job(values)
        assert trials.job(dict(reversed(values.items()))).id == job.id
        assert trials.job(values | {"rm.weight": 3.0}).id != job.id

    def test_what_the_recipe_says_is_the_same_job_as_its_values(self) -> None:
        trials = make_trials()
        assert trials.usual(()) == {"rm.weight": 4.0, "pfi.weight": 1.5}
        assert trials.job({"rm.weight": 4.0, "pfi.weight": 1.5}).id == trials.job(trials.usual(())).id
        assert trials.job({"rm.weight": 4}).id == trials.job(trials.usual(())).id

    def test_idle_options_make_no_other_job(self) -> None:
        trials = make_trials("tune.over=[rm.rank, rm.quality]")
        idle = [trials.job({"rm.rank": "loc", "rm.quality": quality}).id for quality in (False, True)]
        assert idle[0] == idle[1]

    def test_no_method_is_a_baseline_without_a_teacher(self) -> None:
        job = make_trials().job({})
        assert (job.spec.methods, job.spec.teacher, job.parents) == ({}, None, ())

    def test_seed_and_epochs_are_those_of_tuning(self) -> None:
        job = make_trials("tune.epochs=3", "tune.seed=7").job({})
        assert (job.seed, job.spec.schedule.epochs) == (7, 3)
        assert make_trials().job({}).spec.schedule.epochs == 4

    @pytest.mark.parametrize(("objectives", "every"), [("[AP]", 1), ("[AP, latency]", 0)])
    def test_is_measured_after_each_epoch_where_that_can_end_it(self, objectives: str, every: int) -> None:
        schedule = make_trials(f"tune.objectives={objectives}").job({}).spec.schedule
        assert (schedule.eval_every, schedule.keep_best) == (every, False)

    def test_learns_from_the_tuning_split(self) -> None:
        job = make_trials().job({})
        assert job.spec.dataset.fingerprint == LEARNED.fingerprint
        assert job.inputs.dataset == LEARNED

    def test_each_student_is_its_own(self) -> None:
        trials = make_trials(TWO)
        jobs = [trials.job({"rm.weight": 4.0, "student.width": width}) for width in (8, 16)]
        assert [job.spec.model.width for job in jobs] == [8, 16]
        assert [trials.job({"student.width": width}).spec.methods for width in (8, 16)] == [{}, {}]

    def test_only_a_trial_with_methods_inherits(self) -> None:
        trials = make_trials("arms={a: {rm: {}, inherit: true}}")
        assert trials.job({"rm.weight": 1.0}).spec.inherit is True
        assert trials.job({}).spec.inherit is False

    def test_is_made_smaller_where_it_ran_out_of_memory(self) -> None:
        trials = make_trials()
        job = trials.job(trials.usual(()))
        smaller = trials.job(trials.usual(()), {job.id: FULL})
        assert smaller.spec.micro_batch == 4
        assert trials.job({"rm.weight": 1.0}, {job.id: FULL}).spec.micro_batch is None

    def test_stays_as_it_is_where_the_recipe_wants_it_so(self) -> None:
        trials = make_trials("resources.on_oom=fail")
        job = trials.job(trials.usual(()))
        assert trials.job(trials.usual(()), {job.id: FULL}).id == job.id


class TestPreparation:
    def test_is_a_teacher_and_a_measurement_of_each_student(self) -> None:
        assert [job.kind for job in make_trials(TWO).preparation()] == ["teacher", "scale", "scale"]

    def test_holds_what_methods_prepare_and_each_once(self) -> None:
        jobs = make_trials("arms={a: {maskd: {}}}", TWO).preparation()
        assert [job.kind for job in jobs] == ["teacher", "prepare", "scale", "scale"]
        assert set(jobs[-1].parents) == {job.id for job in jobs[:2]}

    @pytest.mark.parametrize("number", [0, 1])
    def test_is_made_smaller_where_it_ran_out_of_memory(self, number: int) -> None:
        trials = make_trials()
        before = trials.preparation()
        failed = {before[number].id: FULL}
        after = trials.preparation(failed)
        assert after[number].spec.micro_batch == 4
        assert set(trials.job(trials.usual(()), failed).parents) == {after[0].id}
        assert set(after[1].parents) == {after[0].id}

    @pytest.mark.parametrize(
        ("overrides", "count"),
        [
            (["tune.over=[rm.rank]"], 0),
            (["tune.space={rm.weight: [1, 2], pfi.weight: [1, 2]}"], 0),
            (["tune.space={rm.weight: [1, 2]}"], 1),
            (["tune.over=[rm.rank]", "tune.objectives=[AP, latency]"], 1),
        ],
    )
    def test_nothing_is_measured_that_decides_nothing(self, overrides: list[str], count: int) -> None:
        assert len(make_trials(*overrides).scales()) == count


class TestCheck:
    def faults(self, trials: Trials, kind: type[KdlabError] = UsageError) -> list[Any]:
        with pytest.raises(kind) as caught:
            trials.check()
        return list(caught.value.faults)

    def test_passes_what_can_be_tried(self) -> None:
        make_trials("tune.over=[rm.rank, pfi.region]", TWO).check()

    def test_seed_of_the_final_table_is_refused(self) -> None:
        (fault,) = self.faults(make_trials("tune.seed=2"))
        assert fault.got == "2"
        assert fault.fix == "--set tune.seed=1004"

    def test_trials_of_a_schedule_of_iterations_are_told_their_epochs(self) -> None:
        iterations = "schedule.iterations=9", "schedule.epochs=null"
        (fault,) = self.faults(make_trials(*iterations))
        assert fault.what.startswith("tune.epochs is missing")
        trials = make_trials(*iterations, "tune.epochs=3")
        trials.check()
        schedule = trials.job({}).spec.schedule
        assert (schedule.epochs, schedule.iterations) == (3, None)

    def test_value_that_cannot_serve_the_pair_is_told_though_the_recipe_s_own_can(self) -> None:
        (fault,) = self.faults(make_trials("tune.over=[rm.quality, rm.rank]"))
        assert fault.what == "rm cannot serve this pair: it needs quality_maps"
        assert "rm.quality true" in fault.where
        make_trials("tune.over=[rm.quality, rm.rank]", "tune.space={rm.quality: [false, false]}").check()

    def test_each_student_is_looked_at(self) -> None:
        trials = make_trials("arms={a: {mgd: {}}}", TWO)
        (first, second) = trials.variants
        blind = {**FACTS.student, "provides": ["cls_maps"]}
        bad = replace(trials.variants[second], facts=replace(trials.variants[second].facts, student=blind))
        assert self.faults(replace(trials, variants={first: trials.variants[first], second: bad}))

    def test_sampler_without_its_package_is_told_before_anything_is_trained(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trials_module, "find_spec", lambda name: None)
        (fault,) = self.faults(make_trials("tune.sampler=cmaes"), MachineError)
        assert fault.fix == "pip install cmaes"
        make_trials("tune.sampler=gp").check()

    def test_sampler_of_one_objective_is_refused_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trials_module, "find_spec", lambda name: object())
        (fault,) = self.faults(make_trials("tune.sampler=cmaes", "tune.objectives=[AP, latency]", TWO))
        assert fault.got == "AP, latency"
        make_trials("tune.sampler=cmaes").check()

    def test_all_that_the_recipe_says_against_itself_is_told_at_once(self) -> None:
        found = self.faults(make_trials("tune.objectives=[AP, latency]", "tune.seed=2"))
        assert [fault.what.partition(":")[0] for fault in found] == [
            "tune.objectives",
            "tune.seed is among seeds",
        ]


class TestReferences:
    def test_are_no_method_the_papers_values_and_the_recipe_s_own_where_they_differ(self) -> None:
        trials = make_trials("methods.pfi={weight: 10}", TWO)
        assert trials.references(trials.space) == {
            "no method, width 8": {"student.width": 8},
            "published, width 8": {"rm.weight": 4.0, "pfi.weight": 1.5, "student.width": 8},
            "recipe, width 8": {"rm.weight": 4.0, "pfi.weight": 10.0, "student.width": 8},
            "no method, width 16": {"student.width": 16},
            "published, width 16": {"rm.weight": 4.0, "pfi.weight": 1.5, "student.width": 16},
            "recipe, width 16": {"rm.weight": 4.0, "pfi.weight": 10.0, "student.width": 16},
        }
        assert [*make_trials().references(make_trials().space)] == ["no method", "published"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rm.weight": 3.2, "pfi.weight": 41.0}, "rm 3.2 pfi 41"),
        ({"rm.rank": "loc", "student.width": 8}, "rm.rank loc width 8"),
        ({"rm.quality": True}, "rm.quality true"),
        ({"student.width": 8}, "no method width 8"),
        ({}, "no method"),
    ],
)
def test_people_see_a_trial_as_its_values(values: dict[str, Any], expected: str) -> None:
    assert label(values) == expected
