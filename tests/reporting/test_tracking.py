from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdlab.jobs.events import JobCancelled, JobCheckpointed, JobEvaluated, JobFailed, JobProgress, JobStarted
from kdlab.jobs.lease import Lease
from kdlab.jobs.paths import Runs
from kdlab.jobs.spec import StudentSpec
from kdlab.reporting import mlflow_store
from kdlab.reporting.follower import Follower
from kdlab.reporting.ledger import Entry, Ledger
from kdlab.reporting.tracking import SyncReport, sync

AWAY = "http://127.0.0.1:9"
FIRST_SYNC = """
import sys
from pathlib import Path
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.reporting.tracking import sync
plan = Plan("0", {"name": "digits/first", "arms": {}}, (), "cpu", {})
report = sync(plan, Runs(Path(sys.argv[1])))
assert not report.error, report.error
"""


@pytest.fixture(scope="module")
def first_sync(tmp_path_factory):
    """A first sync in a process of its own: its folder with the new database, and what it printed."""
    folder = tmp_path_factory.mktemp("first")
    ledger = Ledger(Runs(folder), None)
    ledger.write("student-0", Entry(ledger.store, run_id="of a database that is gone"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    command = [sys.executable, "-c", FIRST_SYNC, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
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


def test_new_database_forgets_what_an_older_one_had(first_sync):
    folder, _ = first_sync
    assert [path.name for path in (folder / "tracking").iterdir()] == ["plan-0.json"]


def test_importing_tracking_does_not_import_mlflow():
    code = "import sys, kdlab.reporting.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_finished_job_becomes_a_run_below_the_run_of_its_plan(bench, database):
    job = bench.job("rm", seed=1)
    plan = bench.plan([job])
    bench.train(job, start=1000.0)
    report = sync(plan, bench.runs)
    assert (report.left, report.error) == (0, "")
    assert report.sent == len(curves(database, job))
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
    bench.finish(job, metrics={}, best={}, history=[], per_class={})
    assert not sync(bench.plan([job]), bench.runs).error
    assert {key for key, *_ in curves(database, job)} == {"train/cls", "lr", "step_s", "data_s"}
    assert run_of(database, "kdlab.job", job.id)[1]["kdlab.kind"] == "scale"


def test_arm_named_by_its_options_keeps_its_name_in_tags_and_has_a_sound_one_in_params(bench, database):
    arm = "rm[rank=loc,score=logit]+pfi[weight=1.5]"
    job = bench.job(arm)
    plan = bench.plan([job], arms={"baseline": {}, arm: {"rm": {}}})
    bench.train(job, start=1000.0)
    assert sync(plan, bench.runs).error == ""
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


def test_second_sync_finds_nothing_to_do_and_leaves_mlflow_alone(bench, database, monkeypatch):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    sync(plan, bench.runs)
    before = curves(database, job)
    monkeypatch.setattr(mlflow_store, "client", lambda ledger: pytest.fail("mlflow was asked"))
    assert sync(plan, bench.runs) == SyncReport()
    assert curves(database, job) == before


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
    assert sync(plan, bench.runs).left == 0
    assert steps(database, job) == [5]


def test_all_points_of_a_finished_job_are_sent(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.log(job, started(job, 1000.0), checkpointed(job, 1011.0, 6), progress(job, 1020.0, 9))
    bench.finish(job)
    sync(plan, bench.runs)
    assert steps(database, job) == [9]


def test_only_what_is_new_is_sent(bench):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.log(job, started(job, 1000.0), progress(job, 1010.0, 5), checkpointed(job, 1011.0, 6))
    assert sync(plan, bench.runs).sent == 4
    bench.log(job, progress(job, 1020.0, 7), progress(job, 1030.0, 8), checkpointed(job, 1031.0, 9))
    assert sync(plan, bench.runs).sent == 8


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
    report = sync(plan, bench.runs)
    assert (report.left, report.error) == (0, "")
    assert steps(database, job, "val/AP") == [10, 20]
    shown = steps(database, job)
    assert shown == sorted(set(shown))
    assert set(shown) >= {4, 8, 10, 14, 18, 20}
    assert run_of(database, "kdlab.job", job.id)[0] == ("FINISHED", 1_000_000, 1_020_000)


def test_lock_that_cannot_be_made_is_told_and_not_raised(bench):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    (bench.runs.folder / "tracking.lock").mkdir()
    report = sync(plan, bench.runs)
    assert "tracking.lock" in report.error
    assert report.left > 0


def test_server_that_is_away_loses_nothing(bench, database):
    job, undisturbed = bench.job("rm"), bench.job("pfi")
    for one in (job, undisturbed):
        bench.train(one)
    away = sync(bench.plan([job]), bench.runs, store=AWAY)
    assert away.sent == 0
    assert away.left > 0
    assert "127.0.0.1" in away.error
    back = sync(bench.plan([job]), bench.runs)
    sync(bench.plan([undisturbed], id="7f3a0002"), bench.runs)
    assert (back.left, back.error) == (0, "")
    assert curves(database, job) == curves(database, undisturbed)


def test_server_that_goes_away_between_two_batches_gets_the_rest_later(bench, database, monkeypatch):
    from mlflow import MlflowClient

    job, undisturbed = bench.job("rm"), bench.job("pfi")
    plan = bench.plan([job])
    for one in (job, undisturbed):
        bench.train(one)
    accept, calls = MlflowClient.log_batch, []

    def answer_at_first(client, run_id, *args, **kwargs):
        calls.append(run_id)
        if len(calls) > 3:
            raise ConnectionError("gone")
        return accept(client, run_id, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", answer_at_first)
        torn = sync(plan, bench.runs)
    assert (torn.sent > 0, torn.left > 0, torn.error) == (True, True, "gone")
    rest = sync(plan, bench.runs)
    sync(bench.plan([undisturbed], id="7f3a0002"), bench.runs)
    assert rest.left == 0
    assert curves(database, job) == curves(database, undisturbed)


def test_forgotten_offsets_double_nothing(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    sync(plan, bench.runs)
    before = curves(database, job)
    shutil.rmtree(bench.runs.folder / "tracking")
    assert sync(plan, bench.runs).error == ""
    assert curves(database, job) == before
    assert len(select(database, "select run_uuid from runs")) == 3  # with the plan of the first sync


def test_deadline_leaves_the_rest_for_later_and_still_gets_on(bench, database):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    sync(plan, bench.runs, store=AWAY)
    hurried = [sync(plan, bench.runs, deadline_s=1e-9)]
    assert hurried[0].left > 0
    while hurried[-1].left and len(hurried) < 9:
        hurried.append(sync(plan, bench.runs, deadline_s=0.001))
    assert sync(plan, bench.runs).left == 0
    assert steps(database, job) == [4, 8, 10, 14, 18, 20]


def test_another_sync_under_way_is_told_and_not_waited_for(bench):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    with (bench.runs.folder / "tracking.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        report = sync(plan, bench.runs)
    assert "another kdlab command" in report.error
    assert report.left > 0


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


def test_run_deleted_by_hand_does_not_stop_the_others(bench, database):
    from mlflow import MlflowClient

    deleted, other = bench.job("rm"), bench.job("pfi")
    plan = bench.plan([deleted, other])
    for job in (deleted, other):
        bench.log(job, started(job, 1000.0), progress(job, 1010.0, 5), checkpointed(job, 1011.0, 6))
    sync(plan, bench.runs)
    MlflowClient(f"sqlite:///{database}").delete_run(run_of(database, "kdlab.job", deleted.id)[2])
    for job in (deleted, other):
        bench.log(job, progress(job, 1020.0, 9), checkpointed(job, 1021.0, 10))
    assert "deleted" in sync(plan, bench.runs).error
    assert steps(database, other) == [5, 9]
    assert sync(plan, bench.runs).error == ""


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


def test_another_server_gets_everything_too(bench, database, tmp_path):
    job = bench.job("rm")
    plan = bench.plan([job])
    bench.train(job)
    other = Path(shutil.copy(database, tmp_path / "other.db"))
    sync(plan, bench.runs)
    assert sync(plan, bench.runs, store=f"sqlite:///{other}").error == ""
    assert curves(other, job) == curves(database, job)


def test_address_in_the_environment_is_honoured(bench, monkeypatch):
    job = bench.job("rm")
    plan = bench.plan([job])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://name:secret@127.0.0.1:9")
    error = sync(plan, bench.runs).error
    assert "127.0.0.1" in error
    assert "secret" not in error
    assert "secret" not in "".join(path.read_text() for path in bench.runs.folder.rglob("*.json"))


def test_long_settings_are_cut_to_what_mlflow_takes(bench, database):
    job = bench.job("rm", settings={"model": {"overrides": {"model.classes": ["seven"] * 2000}}})
    plan = bench.plan([job])
    bench.train(job)
    assert sync(plan, bench.runs).error == ""
    _, _, run = run_of(database, "kdlab.job", job.id)
    assert select(database, "select max(length(value)) from params where run_uuid = ?", run) == [(6000,)]


def test_follower_sends_while_the_plan_runs(bench, database):
    job = bench.job("rm")
    follower = Follower(bench.plan([job]), bench.runs, every_s=0.05)
    bench.train(job)
    patience = time.monotonic() + 10
    while not (database.exists() and steps(database, job)) and time.monotonic() < patience:
        time.sleep(0.05)
    sent = steps(database, job)
    report = follower.close()
    assert sent
    assert (report.left, report.error) == (0, "")


def test_closing_a_follower_sends_the_rest(bench, database):
    job = bench.job("rm")
    follower = Follower(bench.plan([job]), bench.runs, every_s=1000)
    bench.train(job)
    assert follower.close(deadline_s=60).error == ""
    assert steps(database, job)[-1] == 20


def test_closing_a_follower_of_a_server_that_is_away_says_what_is_left(bench):
    job = bench.job("rm")
    bench.train(job)
    report = Follower(bench.plan([job]), bench.runs, store=AWAY).close()
    assert report.left > 0
    assert report.error


def test_closing_a_follower_does_not_wait_for_a_slow_server(bench, monkeypatch):
    job = bench.job("rm")
    bench.train(job)
    closed, answered = threading.Event(), []
    monkeypatch.setattr(mlflow_store, "client", lambda ledger: answered.append(closed.wait(60)))
    report = Follower(bench.plan([job]), bench.runs).close(deadline_s=0.1)
    assert answered == []
    closed.set()
    assert (report.left > 0, report.error) == (True, "MLflow is slow to answer")
