from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import optuna
import pytest
from sqlalchemy.exc import OperationalError

from kdlab.errors import MachineError
from kdlab.jobs.paths import Runs
from kdlab.jobs.study import Dimension, Trial
from kdlab.recipe.settings import Pruner, Sampler
from kdlab.tuning.study import OptunaStudy, in_use, storage_of, stored_trials

SPACE = (
    Dimension("rm.weight", 0.1, 100.0, log=True),
    Dimension("rm.rank", choices=("cls", "loc", "both")),
    Dimension("rm.quality", choices=(False, True)),
    Dimension("gid.instances", 1, 40, whole=True),
    Dimension("pfi.temperature", 0.5, 3.0),
)
EPOCHS = 4
Open = Callable[..., OptunaStudy]


@pytest.fixture
def open_study(tmp_path: Path) -> Open:
    def open_study(**changes: Any) -> OptunaStudy:
        usual: dict[str, Any] = {
            "name": "study",
            "objectives": ("AP",),
            "sampler": None,
            "pruner": "none",
            "epochs": EPOCHS,
            "seed": 0,
            "storage": str(tmp_path / "study.log"),
        }
        space = changes.pop("space", SPACE)
        study = OptunaStudy(**usual | changes)
        study.space = space
        return study

    return open_study


def begin(study: OptunaStudy) -> Trial:
    asked = study.ask()
    study.assign(asked.number, f"student-{asked.number:08d}", asked.params)
    return asked


def carry_out(study: OptunaStudy, ap: float, *others: float) -> Trial:
    """One trial, pruned where the study says so."""
    asked = begin(study)
    for epoch in range(1, EPOCHS + 1):
        if study.should_prune(asked.number, epoch, ap * epoch / EPOCHS):
            study.prune(asked.number, 1.0)
            return asked
    study.finish(asked.number, [ap, *others], {EPOCHS: ap}, 1.0)
    return asked


def states(study: OptunaStudy) -> list[str]:
    return [trial.state for trial in study.trials()]


@pytest.mark.parametrize("sampler", get_args(Sampler))
@pytest.mark.parametrize("objectives", [("AP",), ("AP", "latency")])
def test_every_sampler_proposes_what_the_space_allows(
    open_study: Open, sampler: str, objectives: Sequence[str]
) -> None:
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    if sampler in ("cmaes", "gp") and len(objectives) > 1:
        pytest.skip("cmaes knows one objective only, and gp takes long")
    study = open_study(sampler=sampler, objectives=objectives)
    for number in range(12):
        values = carry_out(study, float(number % 5), *[1.0] * (len(objectives) - 1)).params
        assert 0.1 <= values["rm.weight"] <= 100
        assert values["rm.rank"] in ("cls", "loc", "both")
        assert values["rm.quality"] in (False, True)
        assert isinstance(values["gid.instances"], int)
        assert 1 <= values["gid.instances"] <= 40
    assert states(study) == ["finished"] * 12


@pytest.mark.parametrize("pruner", get_args(Pruner))
def test_every_pruner_but_none_ends_what_is_worse(open_study: Open, pruner: str) -> None:
    study = open_study(pruner=pruner)
    for number in range(16):
        carry_out(study, 30.0 - number)
    assert ("pruned" in states(study)) == (pruner != "none")
    assert states(study)[0] == "finished"


def test_several_objectives_end_no_trial(open_study: Open) -> None:
    study = open_study(pruner="median", objectives=("AP", "latency"))
    for number in range(12):
        carry_out(study, 30.0 - number, 1.0)
    assert states(study) == ["finished"] * 12


def test_last_epoch_ends_no_trial(open_study: Open) -> None:
    study = open_study(pruner="median")
    for _ in range(6):
        carry_out(study, 30.0)
    asked = begin(study)
    assert not study.should_prune(asked.number, EPOCHS, 0.0)


def test_unknown_objective_of_two_is_made_small(open_study: Open) -> None:
    study = open_study(objectives=("AP", "latency"))
    carry_out(study, 20.0, 3.0)
    assert study.trials()[0].values == (20.0, 3.0)


@pytest.mark.parametrize("storage", ["study.log", "sqlite"])
def test_reopened_study_goes_on(open_study: Open, tmp_path: Path, storage: str) -> None:
    url = f"sqlite:///{tmp_path}/new/optuna.db" if storage == "sqlite" else str(tmp_path / "new" / storage)
    first = open_study(storage=url)
    done, left = carry_out(first, 20.0), begin(first)
    again = open_study(storage=url)
    assert states(again) == ["finished", "running"]
    assert len(again.trials()) == 2
    told = again.trials()[0]
    assert (told.params, told.values, told.job) == (done.params, (20.0,), "student-00000000")
    assert [(one.number, one.params, one.job) for one in again.resume()] == [
        (left.number, left.params, "student-00000001")
    ]
    again.finish(left.number, [10.0], {1: 5.0, 4: 10.0}, 2.5)
    assert again.trials()[1].curve == {1: 5.0, 4: 10.0}
    assert again.trials()[1].wall_s == 2.5


def test_trial_that_was_killed_before_its_job_was_assigned_has_values_all_the_same(open_study: Open) -> None:
    asked = open_study().ask()
    (left,) = open_study().resume()
    assert (left.number, left.params, left.job) == (asked.number, asked.params, "")


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_reopened_study_draws_what_it_has_not_drawn(open_study: Open, sampler: str) -> None:
    drawn = [carry_out(open_study(sampler=sampler), 20.0).params["rm.weight"] for _ in range(5)]
    assert len(set(drawn)) == 5


def test_equal_seeds_draw_alike(open_study: Open, tmp_path: Path) -> None:
    first, second = (open_study(storage=str(tmp_path / f"{number}.log")) for number in range(2))
    assert [begin(first).params for _ in range(3)] == [begin(second).params for _ in range(3)]


def test_references_come_first_with_their_very_values_and_once(open_study: Open) -> None:
    for _ in range(2):
        study = open_study()
        study.enqueue({}, "no method")
        study.enqueue({"rm.weight": 5000.0, "rm.rank": "loc"}, "published")
    found = [begin(study) for _ in range(3)]
    assert [(one.reference, one.params) for one in found[:2]] == [
        ("no method", {}),
        ("published", {"rm.weight": 5000.0, "rm.rank": "loc"}),
    ]
    assert found[2].reference == ""
    study = open_study()
    study.enqueue({}, "no method")
    assert len(study.trials()) == 3
    assert study.ask().reference == ""


@pytest.mark.parametrize("file", ["study.log", "optuna.db"])
def test_stored_trials_are_told_without_making_anything(open_study: Open, tmp_path: Path, file: str) -> None:
    url = f"sqlite:///{tmp_path}/{file}" if file.endswith("db") else str(tmp_path / file)
    assert stored_trials("study", url) == []
    assert [*tmp_path.iterdir()] == []
    study = open_study(storage=url)
    study.enqueue({}, "no method")
    study.enqueue({}, "published")
    done = carry_out(study, 20.0)
    assert [(one.number, one.state) for one in stored_trials("study", url)] == [(done.number, "finished")]
    assert stored_trials("another", url) == []


def test_pending_trials_have_not_begun(open_study: Open) -> None:
    study = open_study()
    study.enqueue({}, "no method")
    assert study.trials() == []


def test_values_are_told_with_few_digits_and_their_types(open_study: Open) -> None:
    study = open_study()
    values = [carry_out(study, 20.0).params for _ in range(8)]
    assert [trial.params for trial in study.trials()] == values
    assert all(float(f"{one['rm.weight']:.3g}") == one["rm.weight"] for one in values)
    assert {type(one["rm.quality"]) for one in values} == {bool}


def test_each_epoch_is_told_once(open_study: Open) -> None:
    study = open_study(pruner="median")
    asked = begin(study)
    study.should_prune(asked.number, 1, 10.0)
    assert not study.should_prune(asked.number, 1, 99.0)
    study.finish(asked.number, [20.0], {1: 10.0, 4: 20.0}, 1.0)
    assert study.trials()[0].curve == {1: 10.0, 4: 20.0}


def test_failed_trial_says_why(open_study: Open) -> None:
    study = open_study()
    study.fail(begin(study).number, "the loss is not finite", 3.0)
    (told,) = study.trials()
    assert (told.state, told.why, told.wall_s, told.values) == (
        "failed",
        "the loss is not finite",
        3.0,
        (),
    )


def test_importance_is_told_of_ap_once_enough_trials_have_finished(open_study: Open) -> None:
    study = open_study(space=SPACE[:2], sampler="random", objectives=("AP", "latency"))
    for number in range(25):
        asked = begin(study)
        latency = float(("cls", "loc", "both").index(asked.params["rm.rank"]))
        study.finish(asked.number, [10.0 * asked.params["rm.weight"], latency], {}, 1.0)
        if number == 4:
            assert study.importance() is None
    found = study.importance()
    assert found is not None
    assert found["rm.weight"] > 0.9 > 0.1 > found["rm.rank"]
    assert sum(found.values()) == pytest.approx(1.0)


def test_trials_that_ended_alike_have_no_importance(open_study: Open) -> None:
    study = open_study(space=SPACE[:1], sampler="random")
    for _ in range(6):
        carry_out(study, 20.0)
    assert study.importance() is None


@pytest.mark.parametrize(
    "url", ["mysql+nothing://host/db", "no url", "sqlite:///{file}/below.db", "{file}/x.log"]
)
def test_storage_that_cannot_be_opened_is_told(open_study: Open, tmp_path: Path, url: str) -> None:
    (tmp_path / "file").touch()
    url = url.format(file=tmp_path / "file")
    with pytest.raises(MachineError, match=r"storage cannot be opened") as caught:
        open_study(storage=url)
    (fault,) = caught.value.faults
    assert fault.where == url
    assert fault.got
    assert "tune.storage" in fault.fix


def test_database_of_something_else_is_told(open_study: Open, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, and long enough to be read as one" * 9)
    with pytest.raises(MachineError, match="storage cannot be opened"):
        open_study(storage=f"sqlite:///{tmp_path}/text.db")


def test_database_that_another_holds_is_told(
    open_study: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdlab.tuning.study._PATIENCE_S", 0.1)
    study = open_study(storage=f"sqlite:///{tmp_path}/held.db")
    with closing(sqlite3.connect(tmp_path / "held.db", isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(MachineError, match="cannot be read or written") as caught, in_use(study.storage):
            begin(study)
        assert "locked" in caught.value.faults[0].got
    begin(study)


def test_study_is_kept_in_the_runs_folder_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    assert storage_of(None, Runs(tmp_path)) == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_of("postgresql://host/db", Runs(tmp_path)) == "postgresql://host/db"


def test_several_studies_share_a_database(open_study: Open, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    for name in ("a/b-1", "a/b-2"):
        begin(open_study(name=name, storage=url))
    with sqlite3.connect(tmp_path / "optuna.db") as database:
        assert database.execute("select count(*) from studies").fetchone() == (2,)
    assert len(open_study(name="a/b-1", storage=url).trials()) == 1


DAMAGED = {
    "empty object": b"{}\n",
    "list": b"[]\n",
    "text": b"text\n",
    "binary": bytes(range(256)) * 40,
    "another's": b'{"op_code": 99, "worker_id": "a"}\n',
    "no worker": b'{"op_code": 0, "study_name": "digits"}\n',
}


@pytest.mark.parametrize("ending", ["log", "db"])
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_storage_is_named_and_what_to_do(ending: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"tune.{ending}"
    path.write_bytes(content)
    storage = str(path) if ending == "log" else f"sqlite:///{path}"
    with pytest.raises(MachineError, match=re.escape(str(path))) as raised:
        stored_trials("digits", storage)
        OptunaStudy("digits", ["AP"], None, "none", 3, 0, storage)
    assert f"mv {path}" in str(raised.value)


def test_a_damaged_storage_is_moved_by_a_command_for_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "my study.log"
    path.write_bytes(b"[]\n")
    with pytest.raises(MachineError, match=re.escape(f"mv '{path}' '{path}.damaged'")):
        stored_trials("digits", str(path))


LOCKED = OperationalError("insert", {}, sqlite3.OperationalError("database is locked"))


@pytest.mark.parametrize("why", [LOCKED, PermissionError("no"), ImportError("no cmaes")])
def test_a_sound_storage_that_cannot_be_opened_is_not_to_be_moved(
    why: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tune.db").write_bytes(b"")
    monkeypatch.setattr(optuna, "create_study", Mock(side_effect=why))
    with pytest.raises(MachineError, match="see tune") as raised:
        OptunaStudy("digits", ["AP"], None, "none", 3, 0, f"sqlite:///{tmp_path}/tune.db")
    assert "mv " not in str(raised.value)


@pytest.mark.parametrize("ending", ["log", "db"])
def test_a_storage_that_was_cut_is_read_or_named(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"tune.{ending}"
    storage = str(path) if ending == "log" else f"sqlite:///{path}"
    study = OptunaStudy("digits", ["AP"], "random", "none", 3, 0, storage)
    study.space = (Dimension("pfi.weight", 1.0, 10.0),)
    for _ in range(2):
        trial = study.ask()
        study.assign(trial.number, "student-1", {"pfi.weight": 2.0})
        study.finish(trial.number, [1.0], {1: 1.0}, 1.0)
    whole = path.read_bytes()
    for end in range(0, len(whole), max(1, len(whole) // 12)):
        path.write_bytes(whole[:end])
        try:
            OptunaStudy("digits", ["AP"], "random", "none", 3, 0, storage)
        except MachineError as error:
            assert str(path) in str(error)
