from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.jobs.events import JobCancelled, JobCheckpointed, JobEvaluated, JobFailed, JobProgress, JobStarted
from kdlab.jobs.lease import Lease
from kdlab.jobs.paths import Runs
from kdlab.jobs.result import Evaluation
from kdlab.jobs.spec import StudentSpec
from kdlab.tracking.base import Follower
from kdlab.tracking.mlflow import Mlflow, class_keys, key, plan_status, points

FIRST_SYNC = """
import sys
from pathlib import Path
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.tracking.base import Follower
from kdlab.tracking.mlflow import Mlflow
plan, runs = Plan("0", {"name": "digits/first", "arms": {}}, (), "cpu", {}), Runs(Path(sys.argv[1]))
plan.save(runs)
lacking = Follower("mlflow", Mlflow(runs), plan, runs).close()
assert not lacking, lacking
"""


def sync(plan, runs, files=()):
    """What a command without memory does: it tells MLflow all that it lacks, and what it could not."""
    return Follower("mlflow", Mlflow(runs), plan, runs).close(files=files)


@pytest.fixture(scope="module")
def first_sync(tmp_path_factory):
    """A first sync in a process of its own: its folder with the new database, and what it printed."""
    folder = tmp_path_factory.mktemp("first")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    command = [sys.executable, "-c", FIRST_SYNC, str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    return folder, done


@pytest.fixture(autouse=True)
def database(bench, first_sync, monkeypatch):
    """A database without runs of its own for each test; making one takes seconds."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    bench.runs.folder.mkdir()
    shutil.copy(first_sync[0] / "mlflow.db", bench.runs.folder)
    return bench.runs.folder / "mlflow.db"


def curves(database, job):
    """All points of a job's run: key, value, time and step."""
    query = (
        "select m.key, m.value, m.timestamp, m.step from metrics m join tags t using (run_uuid) "
        "where t.key = 'kdlab.job' and t.value = ? order by m.key, m.step, m.timestamp"
    )
    return select(database, query, job.id)


def select(database, query, *values):
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def run_of(database, tag, value):
    """Status, start and end in ms, and tags of the only run with a tag."""
    query = "select run_uuid from tags where key = ? and value = ?"
    [(run,)] = select(database, query, tag, value)
    [row] = select(database, "select status, start_time, end_time from runs where run_uuid = ?", run)
    return row, dict(select(database, "select key, value from tags where run_uuid = ?", run)), run


def progress(job, time, iteration):
    return JobProgress(
        job=job.id, time=time, epoch=1, epochs=2, iteration=iteration, iterations=20,
        losses={"cls": 0.5}, lr=0.01, step_s=0.3, data_s=0.1, eta_s=9.0,
    )  # fmt: skip


def started(job, time, iteration=0):
    return JobStarted(job=job.id, time=time, device="cpu", epochs=2, iterations=20, iteration=iteration)


def checkpointed(job, time, iteration):
    return JobCheckpointed(job=job.id, time=time, iteration=iteration)


def steps(database, job, metric="train/cls"):
    return [step for key, _, _, step in curves(database, job) if key == metric]


def test_first_sync_prints_nothing(first_sync):
    _, done = first_sync
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_tracking_does_not_import_mlflow():
    code = "import sys, kdlab.session, kdlab.tracking.mlflow; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_finished_job_becomes_a_run_below_the_run_of_its_plan(bench, database):
    job = bench.job("rm", seed=1)
    plan = bench.plan([job])
    bench.train(job, start=1000.0)
    assert sync(plan, bench.runs) is None
    child, tags, run = run_of(database, "kdlab.job", job.id)
    parent, _, parent_run = run_of(database, "kdlab.recipe", "digits/quickstart")
    assert child == ("FINISHED", 1_000_000, 1_020_000)
    assert parent[0] == "FINISHED"
    assert (tags["mlflow.parentRunId"], tags["mlflow.runName"]) == (parent_run, "rm seed 1")
    assert tags["kdlab.commit"] == "0a1b2c3"
    params = dict(select(database, "select key, value from params where run_uuid = ?", run))
    assert params.items() >= {"schedule.lr": "0.01", "methods.cwd:neck.weight": "2.0"}.items()
    assert {name.partition(".")[0] for name in params} == StudentSpec.model_fields.keys()
    [(experiment,)] = select(
        database, "select e.name from experiments e join runs using (experiment_id) where run_uuid = ?", run
    )
    assert experiment == "kdlab/digits/quickstart"


def test_job_that_measures_no_detector_has_its_losses_alone(bench, database):
    job = bench.job("scale rm", kind="scale", id="scale-1")
    report = [progress(job, 1000.0 + i, i) for i in (2, 8)]
    bench.log(job, started(job, 1000.0), *report, checkpointed(job, 1009.0, 8))
    bench.finish(job, last=Evaluation(), best=Evaluation())
    assert sync(bench.plan([job]), bench.runs) is None
    assert {key for key, *_ in curves(database, job)} == {"train/cls", "lr", "step_s", "data_s"}
    assert run_of(database, "kdlab.job", job.id)[1]["kdlab.kind"] == "scale"


def test_arm_named_by_its_options_keeps_its_name_in_tags_and_has_a_sound_one_in_params(bench, database):
    arm = "rm[rank=loc,score=logit]+pfi[weight=1.5]"
    job = bench.job(arm)
    plan = bench.plan([job], arms={"baseline": {}, arm: {"rm": {}}})
    bench.train(job, start=1000.0)
    assert sync(plan, bench.runs) is None
    _, tags, _ = run_of(database, "kdlab.job", job.id)
    assert (tags["kdlab.arm"], tags["mlflow.runName"]) == (arm, f"{arm} seed 0")
    _, _, parent = run_of(database, "kdlab.recipe", "digits/quickstart")
    keys = [key for (key,) in select(database, "select key from params where run_uuid = ?", parent)]
    assert "arms.rm_rank_loc_score_logit__pfi_weight_1.5_" in keys


def test_points_carry_the_time_and_iteration_of_their_events(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job, start=1000.0, ap=31.0)
    sync(plan, bench.runs)
    points = curves(database, job)
    assert [point for point in points if point[0] == "val/AP"] == [
        ("val/AP", 31.0, 1_010_000, 10),
        ("val/AP", 31.0, 1_020_000, 20),
    ]
    assert ("val/AP/seven", 41.0, 1_020_000, 20) in points
    assert ("train/cwd:neck", 0.5, 1_004_000, 4) in points


def test_curves_are_thinned_to_the_last_point_of_five_seconds(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    reports = [progress(job, 1000.0 + second, second) for second in range(1, 15)]
    bench.log(job, started(job, 1000.0), *reports, checkpointed(job, 1015.0, 14))
    sync(plan, bench.runs)
    assert steps(database, job) == [4, 9, 14]


def test_files_of_an_ended_job_and_tables_are_attached(bench, tmp_path):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    table = tmp_path / "table.md"
    table.write_text("| AP |\n")
    sync(plan, bench.runs, files=[table])
    kept = bench.runs.folder / "mlartifacts"
    assert sorted(path.name for path in kept.rglob("*.*")) == [
        "config.py",
        "log.txt",
        "result.json",
        "table.md",
    ]


def test_changed_table_is_attached_again(bench, tmp_path):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    table = tmp_path / "table.md"
    for text in ("old", "new"):
        table.write_text(text)
        sync(plan, bench.runs, files=[table])
    [kept] = (bench.runs.folder / "mlartifacts").rglob("table.md")
    assert kept.read_text() == "new"


def test_points_beyond_the_last_checkpoint_are_withheld(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.log(
        job,
        started(job, 1000.0),
        progress(job, 1010.0, 5),
        checkpointed(job, 1011.0, 6),
        progress(job, 1020.0, 9),
    )
    assert sync(plan, bench.runs) is None
    assert steps(database, job) == [5]


def test_all_points_of_a_finished_job_are_sent(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.log(job, started(job, 1000.0), checkpointed(job, 1011.0, 6), progress(job, 1020.0, 9))
    bench.finish(job)
    sync(plan, bench.runs)
    assert steps(database, job) == [9]


def test_resumed_job_shows_every_step_once(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.log(
        job,
        started(job, 1000.0),
        progress(job, 1010.0, 5),
        checkpointed(job, 1011.0, 6),
        progress(job, 1020.0, 8),
    )
    sync(plan, bench.runs)
    bench.log(job, started(job, 2000.0, iteration=6), progress(job, 2010.0, 8), checkpointed(job, 2020.0, 10))
    sync(plan, bench.runs)
    assert steps(database, job) == [5, 8]
    assert [time for key, _, time, _ in curves(database, job) if key == "train/cls"] == [1_010_000, 2_010_000]


def test_evaluation_repeated_after_a_kill_shows_once(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.log(job, started(job, 1000.0), checkpointed(job, 1010.0, 10))
    for moment in (1012.0, 2012.0):
        bench.log(job, JobEvaluated(job=job.id, time=moment, epoch=1, iteration=10, metrics={"AP": 30.0}))
        bench.log(job, started(job, 2000.0, iteration=10))
        sync(plan, bench.runs)
    bench.log(job, checkpointed(job, 2020.0, 20))
    sync(plan, bench.runs)
    assert steps(database, job, "val/AP") == [10]


def test_sync_after_every_event_gives_the_points_of_one_sync(bench, database):
    whole, piecewise = bench.job("rm"), bench.job("pfi")
    plan = bench.plan([whole, piecewise])
    bench.train(whole)
    events = bench.runs.job(whole.id).events.read_bytes().splitlines(keepends=True)
    paths = bench.runs.job(piecewise.id)
    paths.folder.mkdir(parents=True)
    for count in range(0, len(events), 3):
        paths.events.write_bytes(b"".join(events[:count]))
        sync(plan, bench.runs)
    paths.events.write_bytes(b"".join(events))
    bench.finish(piecewise)
    sync(plan, bench.runs)
    assert curves(database, piecewise) == curves(database, whole)


def test_job_of_an_earlier_plan_is_linked_and_not_sent_again(bench, database):
    shared, own = bench.job("baseline"), bench.job("rm")
    bench.train(shared)
    bench.train(own)
    sync(bench.plan([shared], id="aaaa0000"), bench.runs)
    before = curves(database, shared)
    sync(bench.plan([shared, own], id="bbbb0000"), bench.runs)
    assert curves(database, shared) == before
    _, tags, _ = run_of(database, "kdlab.job", shared.id)
    assert tags["kdlab.plan"] == "aaaa0000"
    parents = select(database, "select value from tags where key = 'kdlab.reuses'")
    assert parents == [(shared.id,)]


def test_job_run_afresh_gets_a_run_of_its_own(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job, start=1000.0)
    sync(plan, bench.runs)
    shutil.rmtree(bench.runs.job(job.id).folder)
    bench.train(job, start=5000.0)
    sync(plan, bench.runs)
    query = (
        "select start_time from runs join tags using (run_uuid) where key = 'kdlab.job' order by start_time"
    )
    assert select(database, query) == [(1_000_000,), (5_000_000,)]


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (lambda job: JobFailed(job=job.id, time=1012.0, what="loss is not finite"), "FAILED"),
        (lambda job: JobCancelled(job=job.id, time=1012.0), "KILLED"),
    ],
)
def test_end_of_a_job_is_the_status_of_its_run(bench, database, last, status):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.log(job, started(job, 1000.0), progress(job, 1010.0, 5), last(job))
    sync(plan, bench.runs)
    (found, _, end), _, _ = run_of(database, "kdlab.job", job.id)
    assert (found, end) == (status, 1_012_000)
    assert run_of(database, "kdlab.recipe", "digits/quickstart")[0][0] == status


def test_run_is_running_while_its_process_lives_and_again_when_it_resumes(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.log(job, started(job, 1000.0), progress(job, 1010.0, 5))
    found = []
    for _ in range(2):
        with Lease.acquire(bench.runs.job(job.id)):
            sync(plan, bench.runs)
            found.append(run_of(database, "kdlab.job", job.id)[0][0])
        sync(plan, bench.runs)
        found.append(run_of(database, "kdlab.job", job.id)[0][0])
    assert found == ["RUNNING", "KILLED"] * 2


def test_second_command_finds_nothing_to_do_and_leaves_mlflow_alone(bench, database, tmp_path, monkeypatch):
    jobs = [bench.job("rm"), bench.job("pfi")]
    plan = bench.plan(jobs)
    for job in jobs:
        bench.train(job)
    (table := tmp_path / "table.md").write_text("| AP |")
    sync(plan, bench.runs, files=[table])
    before = select(database, "select * from metrics")
    monkeypatch.setattr(Mlflow, "client", property(lambda self: pytest.fail("mlflow was asked")))
    assert sync(plan, bench.runs, files=[table]) is None
    assert sync(plan, bench.runs) is None
    assert select(database, "select * from metrics") == before


def test_log_sent_again_doubles_nothing(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    sync(plan, bench.runs)
    before = curves(database, job)
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("delete from tags where key = 'kdlab.sent'")
    connection.close()
    assert sync(plan, bench.runs) is None
    assert curves(database, job) == before
    assert len(select(database, "select run_uuid from runs")) == 3  # with the plan of the first sync


@pytest.mark.parametrize("left", [0, 60, 300, 900])
def test_log_that_loses_its_end_doubles_and_loses_nothing_that_was_sent(bench, database, left):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    paths = bench.runs.job(job.id)
    whole = paths.events.read_bytes()
    half = whole.index(b"\n", whole.index(b"JobCheckpointed")) + 1
    paths.events.write_bytes(whole[:half])
    paths.result.rename(result := paths.folder / "later")
    sync(plan, bench.runs)
    assert steps(database, job, "val/AP") == [10]
    # a job that goes on begins a line of its own
    paths.events.write_bytes(whole[:left] + b"\n" + whole[half:])
    sync(plan, bench.runs)
    result.rename(paths.result)
    assert sync(plan, bench.runs) is None
    assert steps(database, job, "val/AP") == [10, 20]
    shown = steps(database, job)
    assert shown == sorted(set(shown))
    assert set(shown) >= {4, 8, 10, 14, 18, 20}
    assert run_of(database, "kdlab.job", job.id)[0] == ("FINISHED", 1_000_000, 1_020_000)


def test_server_that_is_away_loses_nothing_and_its_password_is_not_told(bench, database, monkeypatch):
    job = bench.job("rm")
    bench.train(job)
    plan = bench.plan([job, bench.job("pfi")])
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://name:secret@127.0.0.1:9")
        away = sync(plan, bench.runs)
    assert (away.tracker, away.jobs) == ("mlflow", 1)
    assert "127.0.0.1" in away.why
    assert "secret" not in away.why
    assert sync(plan, bench.runs) is None
    assert steps(database, job) == [4, 8, 10, 14, 18, 20]


def test_another_server_gets_everything_too(bench, database, tmp_path, monkeypatch):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    other = Path(shutil.copy(database, tmp_path / "other.db"))
    sync(plan, bench.runs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    assert sync(plan, bench.runs) is None
    assert curves(other, job) == curves(database, job)


@pytest.mark.parametrize("calls", range(1, 12, 2))
def test_server_that_goes_away_between_two_calls_gets_all_in_the_next_turn(
    bench, database, monkeypatch, calls
):
    from mlflow import MlflowClient

    job, undisturbed = bench.job("rm"), bench.job("pfi")
    for one in (job, undisturbed):
        bench.train(one)
    sync(bench.plan([undisturbed], id="7f3a0002"), bench.runs)
    left = iter(range(calls))

    def answering(do):
        def answer(client, *args, **kwargs):
            if next(left, None) is None:
                raise ConnectionError("gone")
            return do(client, *args, **kwargs)

        return answer

    plan = bench.plan([job])
    follower = Follower("mlflow", Mlflow(bench.runs), plan, bench.runs, every_s=1000)
    with monkeypatch.context() as patch:
        for name in ("create_run", "log_batch", "set_tag", "log_artifact", "set_terminated"):
            patch.setattr(MlflowClient, name, answering(getattr(MlflowClient, name)))
        follower._turn()
    assert follower._why == "gone"
    assert follower.close() is None
    assert curves(database, job) == curves(database, undisturbed)
    assert len(select(database, "select value from tags where key = 'kdlab.job'")) == 2


def test_long_settings_are_cut_to_what_mlflow_takes(bench, database):
    job = bench.job("rm", settings={"model": {"overrides": {"model.classes": ["seven"] * 2000}}})
    plan = bench.plan([job])
    bench.train(job)
    assert sync(plan, bench.runs) is None
    _, _, run = run_of(database, "kdlab.job", job.id)
    assert select(database, "select max(length(value)) from params where run_uuid = ?", run) == [(6000,)]


def test_a_deleted_experiment_is_told_with_the_command_that_restores_it(bench, database):
    plan = bench.plan([job := bench.job("rm")])
    bench.train(job)
    sync(plan, bench.runs)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name(f"kdlab/{plan.recipe['name']}").experiment_id
    client.delete_experiment(experiment)
    lacking = sync(plan, bench.runs)
    assert lacking.why == f"its experiment kdlab/{plan.recipe['name']} was deleted"
    assert f"mlflow experiments restore -x {experiment}, then" in lacking.fix
    assert "next kdlab run" not in lacking.fix


@pytest.mark.parametrize("name", ["a%20b", "a?b"])
def test_a_folder_that_no_address_can_name_is_told_at_once(bench, tmp_path, name):
    plan = bench.plan([job := bench.job("rm")])
    bench.train(job)
    runs = Runs(tmp_path / name)
    shutil.copytree(bench.runs.folder, runs.folder)
    lacking = sync(plan, runs)
    assert lacking.why.startswith("no database of MLflow can lie below a folder with % or ?")
    assert lacking.fix == "set KDLAB_RUNS or MLFLOW_TRACKING_URI to a place without them"


def test_run_deleted_by_hand_does_not_stop_the_others(bench, database):
    from mlflow import MlflowClient

    deleted, other = bench.job("rm"), bench.job("pfi")
    for job in (deleted, other):
        bench.log(job, started(job, 1000.0), progress(job, 1010.0, 5), checkpointed(job, 1011.0, 6))
    follower = Follower("mlflow", Mlflow(bench.runs), bench.plan([deleted, other]), bench.runs, every_s=1000)
    follower._turn()
    MlflowClient(f"sqlite:///{database}").delete_run(run_of(database, "kdlab.job", deleted.id)[2])
    for job in (deleted, other):
        bench.log(job, progress(job, 1020.0, 9), made := checkpointed(job, 1021.0, 10))
        follower(made)
    follower._turn()
    assert "deleted" in follower._why
    assert steps(database, other) == [5, 9]
    assert follower.close() is None
    assert [step for _, step in select(database, NEWEST, "kdlab.job", deleted.id)] == [5, 9]


NEWEST = """
select m.timestamp, m.step from metrics m join tags t using (run_uuid) join runs r using (run_uuid)
where t.key = ? and t.value = ? and m.key = 'train/cls' and r.lifecycle_stage = 'active' order by m.step
"""


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["done", "done"], "FINISHED"),
        (["done", "running", "failed"], "RUNNING"),
        (["done", "pending"], "RUNNING"),
        (["skipped", "failed", "done"], "FAILED"),
        (["done", "interrupted"], "KILLED"),
    ],
)
def test_status_of_a_plan_is_that_of_its_worst_job(states, status):
    assert plan_status(states) == status


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 60))
def test_points_are_the_same_read_at_once_or_in_parts_between_checkpoints(kinds, number):
    job, events = type("J", (), {"id": "a"}), []
    for iteration, kind in enumerate(kinds, 1):
        events.append(
            checkpointed(job, 1000.0 + iteration, iteration)
            if kind == 0
            else progress(job, 1000.0 + iteration, iteration)
        )
    ends = [index + 1 for index, event in enumerate(events) if isinstance(event, JobCheckpointed)]
    cut = ends[number % len(ends)] if ends else 0
    assert points(events[:cut]) + points(events[cut:]) == points(events)


def test_instance_of_a_method_stays_readable():
    assert key("train/cwd@neck") == "train/cwd:neck"


@given(name=st.text(min_size=1))
def test_any_name_becomes_a_key_that_mlflow_takes(name):
    assert re.fullmatch(r"[/\w.\- :]{1,250}", key(name))


# the first one imports mlflow
@settings(deadline=None)
@given(names=st.lists(st.text("+=#@./a", min_size=1), min_size=1, unique=True))
def test_any_classes_become_keys_that_mlflow_takes_and_tells_apart(names):
    from mlflow.utils.validation import _validate_metric_name

    keys = class_keys(names)
    assert len(set(keys)) == len(names)
    for one in keys:
        _validate_metric_name(f"val/AP/{one}")


def test_usual_names_of_classes_stay_as_they_are():
    assert class_keys(["traffic light", "sports-ball"]) == ["traffic light", "sports-ball"]
