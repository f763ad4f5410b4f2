"""What Slurm is told and what its words mean, against a stand-in with real processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdlab.errors import MachineError, UsageError
from kdlab.jobs.events import Event, JobCancelled, JobFinished, JobRetried, JobStarted
from kdlab.jobs.files import write_json
from kdlab.jobs.handle import PREEMPTED, Handle
from kdlab.jobs.job import Job, Resources
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.result import JobResult
from kdlab.running import scheduler
from kdlab.running.executors import _slurm
from kdlab.running.executors.base import load
from kdlab.running.executors.slurm import Slurm
from tests.stubs import stub_slurm
from tests.stubs.stub_job import COMMAND, make_job, make_plan, prepared
from tests.stubs.stub_slurm import Cluster


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in stub_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(tmp_path / "slurm")
    yield cluster
    cluster.end()


def slurm(**options: object) -> Slurm:
    return Slurm(command=COMMAND, look_every_s=0.1, **options)  # type: ignore[arg-type]


def start(executor: Slurm, tmp_path: Path, job: Job) -> tuple[str, JobPaths]:
    paths = prepared(Runs(tmp_path), job)
    handle = executor.start(job, paths)
    assert handle is not None
    return handle.ref, paths


def end_of(executor: Slurm, ref: str) -> int | None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if ended := executor.poll({"a": Handle("slurm", ref=ref)}):
            return ended["a"]
        time.sleep(0.05)
    pytest.fail("the job did not end")


def wait_until_running(cluster: Cluster, ref: str) -> None:
    deadline = time.monotonic() + 15
    while cluster.job(ref)["word"] == "PENDING":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_machine_is_all_nodes_of_the_default_partition_that_are_up(cluster: Cluster) -> None:
    (cluster.folder / "nodes").write_text(
        "main*|mix-|n1|8|gpu:a100:2(S:0-1),gpu:t4:1\nmain*|idle~|n2|16|(null)\nmain*|idle*|n3|16|(null)\n"
        "main*|drng|n4|16|(null)\nfat|idle|n5|64|gpu:8\n"
    )
    machine = slurm().machine
    assert len(machine.cores) == 24
    assert [gpu.uuid for gpu in machine.gpus] == ["n1:0", "n1:1", "n1:2"]
    assert slurm(partition="fat").machine.device == "cuda"


def test_node_of_two_partitions_counts_once(cluster: Cluster) -> None:
    (cluster.folder / "nodes").write_text("a|idle|n1|8|(null)\nb|idle|n1|8|(null)\n")
    assert len(slurm(partition="a,b").machine.cores) == 8


def test_partition_without_a_node_that_is_up_is_refused(cluster: Cluster) -> None:
    with pytest.raises(MachineError, match=r"partition nope(.|\n)*partitions main"):
        _ = slurm(partition="nope").machine


def test_slots_count_only_what_fits_in_one_node(cluster: Cluster) -> None:
    (cluster.folder / "nodes").write_text("main*|idle|n1|8|gpu:4\nmain*|idle|n2|64|gpu:2\n")
    executor = slurm()
    assert executor.slots(make_job(resources=Resources(gpus=4))) == 1
    assert executor.slots(make_job(resources=Resources(gpus=6))) == 0
    assert executor.slots(make_job(resources=Resources(gpus=1, workers=3))) == 2 + 2
    assert executor.slots(make_job(resources=Resources(threads=100))) == 1


def test_job_asks_for_its_resources_and_leaves_restarting_to_the_scheduler(
    cluster: Cluster, tmp_path: Path
) -> None:
    (cluster.folder / "nodes").write_text("main*|idle|n1|8|gpu:4\n")
    executor = slurm(time_limit_minutes=240, account="vision", sbatch=("--mem=8G",))
    ref, paths = start(executor, tmp_path, make_job(resources=Resources(gpus=2, workers=1)))
    words = cluster.job(ref)["words"]
    assert {"--nodes=1", "--cpus-per-task=4", "--gres=gpu:2", "--time=240", "--account=vision"} <= {*words}
    assert {"--no-requeue", "--signal=B:TERM@120", "--job-name=kdlab a seed 0"} <= {*words}
    assert f"--output={paths.log}" in words
    assert words[-1] == "--mem=8G"


def test_job_name_holds_the_arm_as_it_is_and_the_job_is_found_again(cluster: Cluster, tmp_path: Path) -> None:
    executor = slurm()
    ref, _ = start(executor, tmp_path, make_job("rm[rank=loc,score=logit]+pfi[weight=1.5]"))
    assert "--job-name=kdlab rm[rank=loc,score=logit]+pfi[weight=1.5] seed 0" in cluster.job(ref)["words"]
    assert end_of(executor, ref) == 0


def test_short_limit_is_warned_of_in_its_last_quarter(cluster: Cluster, tmp_path: Path) -> None:
    ref, _ = start(slurm(time_limit_minutes=2), tmp_path, make_job())
    assert "--signal=B:TERM@30" in cluster.job(ref)["words"]


@pytest.mark.parametrize(("gpus", "seen"), [(0, "[]"), (1, "[here]")])
def test_job_without_gpus_sees_none_and_others_what_slurm_says(
    gpus: int, seen: str, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cluster.folder / "nodes").write_text("main*|idle|n1|4|gpu:1\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    executor = Slurm(command=["sh", "-c", 'echo "[${CUDA_VISIBLE_DEVICES-here}]"'], look_every_s=0.1)
    ref, paths = start(executor, tmp_path, make_job(resources=Resources(gpus=gpus)))
    assert end_of(executor, ref) == 0
    assert paths.log.read_text().splitlines()[-1] == seen


def test_log_of_a_folder_with_a_percent_sign_keeps_all_attempts(cluster: Cluster, tmp_path: Path) -> None:
    executor = Slurm(command=["sh", "-c", "echo here"], look_every_s=0.1)
    for _ in range(2):
        ref, paths = start(executor, tmp_path / "at 50%j", make_job())
        assert end_of(executor, ref) == 0
    lines = paths.log.read_text().splitlines()
    assert lines.count("here") == 2
    assert lines[-2].endswith(f"Slurm job {ref}")


@pytest.mark.parametrize("word", ["PREEMPTED", "NODE_FAIL", "TIMEOUT"])
def test_job_that_the_cluster_took_is_told_as_taken(word: str, cluster: Cluster, tmp_path: Path) -> None:
    executor = slurm()
    ref, _ = start(executor, tmp_path, make_job(steps=1000))
    wait_until_running(cluster, ref)
    cluster.take(ref, word)
    assert end_of(executor, ref) == PREEMPTED


def test_job_that_stopped_at_the_warning_of_its_limit_is_told_as_taken(
    cluster: Cluster, tmp_path: Path
) -> None:
    executor = slurm(sbatch=("--time=0.05", "--signal=B:TERM@1"))
    ref, _ = start(executor, tmp_path, make_job(steps=1000))
    assert end_of(executor, ref) == PREEMPTED
    assert cluster.job(ref)["word"] == "FAILED"


def test_job_that_a_person_cancelled_in_slurm_is_told_as_stopped(cluster: Cluster, tmp_path: Path) -> None:
    executor = slurm()
    ref, _ = start(executor, tmp_path, make_job(steps=1000))
    wait_until_running(cluster, ref)
    _slurm.run(["scancel", ref])
    assert end_of(executor, ref) == 143


def test_job_that_still_waits_in_the_queue_is_cancelled_at_once(cluster: Cluster, tmp_path: Path) -> None:
    executor = slurm()
    running, _ = start(executor, tmp_path, make_job(steps=1000, resources=Resources(threads=4)))
    wait_until_running(cluster, running)
    waiting, paths = start(executor, tmp_path, make_job("b"))
    executor.cancel(Handle("slurm", ref=waiting), grace_s=60)
    assert end_of(executor, waiting) == 143
    assert not paths.events.exists()
    executor.cancel(Handle("slurm", ref=running), grace_s=0)
    assert end_of(executor, running) == -9


def test_queue_is_asked_once_for_all_jobs_and_not_at_every_poll(cluster: Cluster, tmp_path: Path) -> None:
    executor = Slurm(command=COMMAND, look_every_s=60)
    handles = {
        name: Handle("slurm", ref=start(executor, tmp_path, make_job(name, steps=1000))[0])
        for name in ("a", "b", "c")
    }
    for _ in range(5):
        assert executor.poll(handles) == {}
    assert cluster.calls("squeue") == 1


def test_job_of_another_command_is_looked_for_at_once(cluster: Cluster, tmp_path: Path) -> None:
    executor = Slurm(command=COMMAND, look_every_s=60)
    ref, _ = start(executor, tmp_path, make_job())
    executor.poll({"a": Handle("slurm", ref=ref)})
    newer, _ = start(slurm(), tmp_path, make_job("b", steps=1000))
    assert executor.poll({"b": Handle("slurm", ref=newer)}) == {}
    assert executor.poll({"x": Handle("slurm", ref="999")}) == {"x": None}


def test_controller_that_does_not_answer_ends_no_job(cluster: Cluster, tmp_path: Path) -> None:
    executor = slurm()
    ref, _ = start(executor, tmp_path, make_job())
    (cluster.folder / "down").touch()
    time.sleep(1)
    for _ in range(3):
        assert executor.poll({"a": Handle("slurm", ref=ref)}) == {}
        time.sleep(0.1)
    assert executor.start(make_job("b"), prepared(Runs(tmp_path), make_job("b"))) is None
    (cluster.folder / "down").unlink()
    assert end_of(executor, ref) == 0


def test_unheard_job_is_not_taken_for_dead_while_the_controller_is_silent(cluster: Cluster) -> None:
    (cluster.folder / "down").touch()
    with pytest.raises(MachineError, match="Slurm does not answer"):
        slurm().poll({"a": Handle("slurm", ref="7")})


@pytest.mark.parametrize(("accounting", "code"), [(True, 1), (False, None)])
def test_job_that_the_controller_forgot_is_looked_up_in_the_accounting(
    accounting: bool, code: int | None, cluster: Cluster, tmp_path: Path
) -> None:
    executor = slurm()
    ref, _ = start(executor, tmp_path, make_job(end="exit"))
    assert end_of(executor, ref) == 1
    cluster.forget(ref)
    if accounting:
        (cluster.folder / "accounting").touch()
    assert end_of(slurm(), ref) == code


def test_refused_job_is_told_in_slurms_words(cluster: Cluster, tmp_path: Path) -> None:
    executor = slurm(sbatch=("--partition=nope",))
    with pytest.raises(MachineError, match="Invalid partition name specified"):
        start(executor, tmp_path, make_job())


@pytest.mark.parametrize("word", ["--wrap=true", "--wra=true", "evil.sh"])
def test_a_recipe_gives_sbatch_options_and_no_command(cluster: Cluster, word: str) -> None:
    with pytest.raises(UsageError, match="holds options alone") as caught:
        slurm(sbatch=("--mem=8G", word))
    assert caught.value.faults[0].got == word


def test_limit_of_jobs_lets_wait_while_others_are_in_the_queue(cluster: Cluster, tmp_path: Path) -> None:
    words = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)"
    executor, paths = slurm(), prepared(Runs(tmp_path), make_job("b"))
    ref, _ = start(executor, tmp_path, make_job())
    (cluster.folder / "refuse").write_text(words)
    assert executor.start(make_job("b"), paths) is None
    assert end_of(executor, ref) == 0
    with pytest.raises(MachineError, match="job submit limit"):
        executor.start(make_job("b"), paths)


def test_without_sbatch_it_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="--executor local"):
        load("slurm")


def test_gpus_by_number_are_refused(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match="Slurm chooses"):
        load("slurm", gpus=[0, 2])


def test_preempted_job_goes_on_from_its_checkpoint_in_another_batch_job(
    cluster: Cluster, tmp_path: Path
) -> None:
    runs, job = Runs(tmp_path), make_job(steps=40, step_s=0.05)
    events = []
    for event in scheduler.run(make_plan(job), slurm(), runs, poll_s=0.05):
        events.append(event)
        if isinstance(event, JobStarted) and event.attempt == 1:
            time.sleep(0.3)
            cluster.take("1", "PREEMPTED")
    starts = [event for event in events if isinstance(event, JobStarted)]
    assert [event.why for event in events if isinstance(event, JobRetried)] == [
        "the process lost its machine or its GPU"
    ]
    assert starts[1].iteration > 0
    assert isinstance(events[-1], JobFinished)
    result = JobResult.read(runs.job(job.id))
    assert result is not None and result.attempts == 2


@pytest.mark.parametrize(("word", "end"), [("NODE_FAIL", JobFinished), ("CANCELLED", JobCancelled)])
def test_job_that_failed_of_being_ended_from_outside_has_not_failed(
    word: str, end: type[Event], cluster: Cluster, tmp_path: Path
) -> None:
    runs, job = Runs(tmp_path), make_job(steps=40, step_s=0.05)
    events = []
    for event in scheduler.run(make_plan(job), slurm(), runs, poll_s=0.05):
        events.append(event)
        if isinstance(event, JobStarted) and event.attempt == 1:
            write_json(runs.job(job.id).failure, {"what": "a loader process was killed"})
            cluster.take("1", word)
    assert isinstance(events[-1], end)
