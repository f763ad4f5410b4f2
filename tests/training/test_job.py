from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdlab.datasets import digits
from kdlab.datasets._tuning_split import tuning_split
from kdlab.datasets.base import DatasetFiles
from kdlab.errors import JobError
from kdlab.jobs.events import Event, EventLog, JobEvaluated, JobFailed, JobFinished, JobStarted, read_from
from kdlab.jobs.files import DISK_FULL, write_json
from kdlab.jobs.handle import PREEMPTED
from kdlab.jobs.job import Inputs, Job, Resources, read_job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.resampled import Resampled
from kdlab.jobs.result import Curves, JobResult
from kdlab.training.job import _signals, environment, main, run_job
from tests.stubs.jobs import MODEL, SCHEDULE, changed, make, method


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DatasetFiles:
    cache = str(tmp_path_factory.mktemp("cache"))
    return digits.prepare(image_px=64, train_images=12, val_images=6, cache=cache)


@pytest.fixture(scope="module")
def teacher(files: DatasetFiles) -> Job:
    return make("teacher-1", "teacher", inputs={"dataset": files}, dataset={"flip": 0.0})


def student(teacher: Job, **settings: Any) -> Job:
    given: dict[str, Any] = {"methods": {"rm": method("rm", weight=4.0)}, "teacher": MODEL, **settings}
    spec = changed(teacher, kind="student", **given)
    return replace(teacher, id="student-1", arm="rm", parents=(teacher.id,), spec=spec)


def lay(folder: Path, job: Job) -> JobPaths:
    paths = JobPaths(folder / job.id)
    paths.folder.mkdir()
    write_json(paths.job, job.to_dict())
    return paths


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, teacher: Job) -> JobPaths:
    """The teacher after its run."""
    paths = lay(tmp_path_factory.mktemp("jobs"), teacher)
    run_job(paths)
    return paths


@pytest.fixture
def taught(tmp_path: Path, trained: JobPaths) -> JobPaths:
    """The finished teacher among the jobs of one test."""
    shutil.copytree(trained.folder, tmp_path / trained.folder.name)
    return JobPaths(tmp_path / trained.folder.name)


def test_teacher_then_student_leave_complete_results(tmp_path: Path, taught: JobPaths, teacher: Job) -> None:
    paths = lay(tmp_path, student(teacher))
    result = run_job(paths)
    assert result == JobResult.read(paths)
    assert result is not None
    assert set(result.metrics) >= {"AP", "AP50", "AP75"}
    curves = Curves.read(paths)
    assert result.last == curves.evaluations[-1]
    assert (result.last.epoch, result.last.iteration) == (1, 3)
    assert {"student_step_s", "teacher_forward_s", "distill_step_s"} <= result.timing.keys()
    assert 0 < result.timing["latency_s"] < result.wall_s
    assert {"loss_rm", "raw_rm", "loss_cls"} <= curves.losses[-1].keys()
    assert result.model["trained_parts"] == {"rm": 0}
    assert result.data["images"] == 12
    assert result.environment["device"].startswith("cpu: ")
    assert result.peak_memory_gb < 3
    assert [path.name for path in paths.checkpoints.iterdir()] == ["weights.pth"]
    resampled = Resampled.read(paths.resampled)
    assert resampled is not None
    assert resampled.images == 6
    assert np.nanmin(resampled.ap) <= result.metrics["AP"] <= np.nanmax(resampled.ap)
    kinds = [type(event) for event in read_from(paths.events).events]
    assert kinds[0] is JobStarted
    assert kinds[-1] is JobFinished


def test_job_learns_from_a_tuning_split_and_is_measured_on_what_was_cut(
    tmp_path: Path, teacher: Job, files: DatasetFiles
) -> None:
    split = tuning_split(files, 0.5, tmp_path)
    images = shutil.copytree(split.train.images, tmp_path / "images")
    split = replace(split, train=replace(split.train, images=images), val=replace(split.val, images=images))
    shown = [json.loads(part.labels.read_text())["images"] for part in (split.train, split.val)]
    for part in shown:
        (images / part[0]["file_name"]).write_bytes(b"broken")
    # all of them in one batch, so that the broken ones are among those read
    schedule = {"batch_size": 6}
    reading = {"flip": 0.0, "broken_images": "skip"}
    paths = lay(tmp_path, make("teacher-1", inputs={"dataset": split}, dataset=reading, schedule=schedule))
    result = run_job(paths)
    resampled = Resampled.read(paths.resampled)
    assert result is not None
    assert resampled is not None
    assert result.data["images"] == 6
    assert result.data["broken_names"] == sorted(str(images / part[0]["file_name"]) for part in shown)
    # of the six, one is broken
    assert resampled.images == 5
    assert 0 <= result.metrics["AP"] <= 100


def test_student_config_builds_with_mmdet_alone(trained: JobPaths) -> None:
    from mmdet.registry import MODELS
    from mmengine.config import Config

    from kdlab.training import checkpoints

    model = MODELS.build(Config.fromfile(trained.config).model)
    model.load_state_dict(checkpoints.load(trained.weights)["state_dict"])


def test_exploding_loss_fails_with_the_term_and_keeps_no_result(tmp_path: Path, teacher: Job) -> None:
    exploding = SCHEDULE | {"lr": 1e20, "warmup_iters": 0, "clip_grad": None, "epochs": 3}
    paths = lay(tmp_path, replace(teacher, spec=changed(teacher, schedule=exploding)))
    with pytest.raises(JobError, match="is not finite"):
        run_job(paths)
    failure = json.loads(paths.failure.read_text())
    assert "iteration" in failure["where"]
    assert "weight" in failure["fix"]
    assert not paths.result.exists()
    assert isinstance(read_from(paths.events).events[-1], JobFailed)


def test_full_gpu_fails_with_what_one_needs_to_choose_smaller_steps(
    tmp_path: Path, teacher: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from kdlab.training.distiller import Distiller

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Distiller, "parse_losses", full)
    paths = lay(tmp_path, replace(teacher, spec=changed(teacher, micro_batch=3)))
    with pytest.raises(JobError, match="the GPU is out of memory"):
        run_job(paths)
    failure = json.loads(paths.failure.read_text())
    assert {"kind": "oom", "micro_batch": 3, "batchnorm": True}.items() <= failure.items()
    assert 0 < failure["peak_gb"] < failure["total_gb"]
    event = read_from(paths.events).events[-1]
    assert isinstance(event, JobFailed)
    assert (event.kind, event.what) == ("oom", "the GPU is out of memory")


def test_full_disk_ends_the_job_with_that_as_cause_and_keeps_its_last_state(
    tmp_path: Path, teacher: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = EventLog.write

    def write_while_there_is_room(log: EventLog, kind: type[Event], /, **fields: Any) -> None:
        if kind is JobEvaluated:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(log, kind, **fields)

    monkeypatch.setattr(EventLog, "write", write_while_there_is_room)
    paths = lay(tmp_path, teacher)
    assert main(str(paths.folder)) == DISK_FULL
    failure = json.loads(paths.failure.read_text())
    assert (failure["what"], failure["where"]) == ("the disk is full", str(paths.folder))
    assert "make room" in failure["fix"]
    assert [path.name[:9] for path in paths.checkpoints.glob("*.pth")] == ["000000003"]


def test_disk_too_full_for_any_word_ends_the_job_with_its_code(
    tmp_path: Path, teacher: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kdlab.training.job.write_json_once", full)
    monkeypatch.setattr("kdlab.training.job.traceback.print_exc", full)
    monkeypatch.setattr(EventLog, "write", full)
    paths = lay(tmp_path, teacher)
    assert main(str(paths.folder)) == DISK_FULL
    assert not paths.failure.exists()


def test_words_that_a_full_disk_does_not_take_leave_the_exit_code_alone() -> None:
    code = "print('words'); from kdlab.training.job import leave; leave(74)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run([sys.executable, "-c", code], stdout=full, env=buffered, check=False)
    assert ended.returncode == 74


def test_one_of_several_processes_survives_signals_that_come_twice(teacher: Job) -> None:
    with _signals(replace(teacher, resources=Resources(ranks=2))) as asked:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert asked == [signal.SIGTERM] * 2


def test_a_process_alone_dies_of_the_second_signal(teacher: Job) -> None:
    with pytest.raises(KeyboardInterrupt), _signals(teacher):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)


def test_micro_batches_train_to_a_result_after_an_earlier_failure(tmp_path: Path, teacher: Job) -> None:
    paths = lay(tmp_path, replace(teacher, spec=changed(teacher, micro_batch=3)))
    write_json(paths.failure, {"what": "of an earlier attempt"})
    result = run_job(paths)
    assert not paths.failure.exists()
    assert result is not None
    assert result.last.iteration == 3
    assert result.timing["student_step_s"] > 0


def test_teacher_whose_weights_changed_is_refused(tmp_path: Path, taught: JobPaths, teacher: Job) -> None:
    data = bytearray(taught.weights.read_bytes())
    data[len(data) // 2] ^= 1
    taught.weights.write_bytes(data)
    with pytest.raises(JobError, match="missing or not the ones that the job's result names"):
        run_job(lay(tmp_path, student(teacher)))


def test_labels_that_changed_under_a_plan_are_refused(tmp_path: Path, teacher: Job) -> None:
    files, path = teacher.inputs.dataset, tmp_path / "labels.json"
    shutil.copy(files.train.labels, path)
    planned = replace(
        teacher, inputs=Inputs(replace(files, train=replace(files.train, labels=path).sealed()))
    )
    paths = lay(tmp_path, planned)
    assert read_job(paths) == planned
    labels = json.loads(path.read_text())
    labels["annotations"].pop()
    path.write_text(json.dumps(labels))
    with pytest.raises(JobError, match="the labels have changed since this was planned"):
        run_job(paths)


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_image_is_told_with_its_name(tmp_path: Path, teacher: Job, workers: int) -> None:
    files = teacher.inputs.dataset
    labels = json.loads(files.train.labels.read_text())
    labels["images"][3]["file_name"] = "gone.png"
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    inputs = Inputs(replace(files, train=replace(files.train, labels=path)))
    paths = lay(tmp_path, replace(teacher, inputs=inputs, resources=Resources(workers=workers)))
    with pytest.raises(JobError, match="an image cannot be read"):
        run_job(paths)
    assert json.loads(paths.failure.read_text())["where"].endswith("gone.png")


def test_broken_images_that_are_skipped_are_counted_and_named(
    tmp_path: Path, teacher: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    files = teacher.inputs.dataset
    splits = {}
    for part in ("train", "val"):
        labels = json.loads(getattr(files, part).labels.read_text())
        labels["images"][2]["file_name"] = f"gone_{part}.png"
        (tmp_path / f"{part}.json").write_text(json.dumps(labels))
        splits[part] = replace(getattr(files, part), labels=tmp_path / f"{part}.json")
    reading = {"flip": 0.0, "broken_images": "skip"}
    job = make("teacher-1", "teacher", inputs={"dataset": replace(files, **splits)}, dataset=reading)
    result = run_job(lay(tmp_path, job))
    assert result is not None
    assert result.data["broken_images"] == 2
    assert [Path(name).name for name in result.data["broken_names"]] == ["gone_train.png", "gone_val.png"]
    log = capsys.readouterr().out
    assert "training on 12 images" in log
    assert log.count("gone_train.png") == 1


def test_gpu_job_without_a_gpu_says_how_to_go_on(tmp_path: Path, teacher: Job) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    paths = lay(tmp_path, replace(teacher, resources=Resources(gpus=1)))
    with pytest.raises(Exception, match="torch sees none"):
        run_job(paths)


def test_best_weights_are_kept_where_asked(tmp_path: Path, teacher: Job) -> None:
    asked = SCHEDULE | {"keep_best": True}
    paths = lay(tmp_path, replace(teacher, spec=changed(teacher, schedule=asked)))
    run_job(paths)
    assert sorted(path.name for path in paths.checkpoints.iterdir()) == ["best.pth", "weights.pth"]


def test_finished_job_is_not_trained_again(trained: JobPaths) -> None:
    first, when = JobResult.read(trained), trained.weights.stat().st_mtime_ns
    assert run_job(trained) == first
    assert trained.weights.stat().st_mtime_ns == when


def test_an_arm_may_inherit_without_methods(tmp_path: Path, taught: JobPaths, teacher: Job) -> None:
    result = run_job(lay(tmp_path, student(teacher, methods={}, inherit=True)))
    assert result is not None
    inherited = result.model["inherited"]
    assert 0 < inherited["tensors"] == inherited["of"]
    assert result.model["trained_parts"] == {}


def test_a_backbone_starts_from_a_file(tmp_path: Path, trained: JobPaths, teacher: Job) -> None:
    from kdlab.training import checkpoints

    weights = trained.weights
    model = {**MODEL, "init": f"sha256:{checkpoints.sha256(weights)}"}
    spec = changed(teacher, kind="student", model=model)
    inputs = replace(teacher.inputs, init=str(weights))
    begun = replace(teacher, id="student-1", spec=spec, inputs=inputs)
    assert run_job(lay(tmp_path, begun)) is not None
    frozen = checkpoints.load(tmp_path / begun.id / "ckpt" / "weights.pth")["state_dict"]
    assert frozen["backbone.conv1.weight"].equal(
        checkpoints.load(weights)["state_dict"]["backbone.conv1.weight"]
    )


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("NCCL error: ... Cuda failure 2 'out of memory'", True),
        ("GET was unable to find an engine to execute this computation", False),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_full_gpu_is_known_by_the_words_of_cuda_s_libraries(text: str, full: bool) -> None:
    from kdlab.training import device

    assert device.is_out_of_memory(RuntimeError(text)) is full
    assert not device.is_out_of_memory(ValueError(text))


def test_missing_engine_means_a_full_gpu_where_it_is_nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from kdlab.training import device

    error = RuntimeError("GET was unable to find an engine to execute this computation")
    for free, full in ((1, True), (50, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 100))
        assert device.is_out_of_memory(error) is full


def test_model_that_does_not_fit_the_gpu_fails_as_that_and_not_for_its_batch(
    tmp_path: Path, teacher: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdlab.training.distiller import Distiller

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(Distiller, "to", full)
    paths = lay(tmp_path, teacher)
    with pytest.raises(JobError, match="the GPU is out of memory outside of training"):
        run_job(paths)
    failure = json.loads(paths.failure.read_text())
    assert (failure["kind"], failure["got"]) == ("oom", "CUDA error: out of memory")
    assert "micro_batch" not in failure


def test_training_is_not_lost_where_what_a_step_costs_does_not_fit_the_gpu(
    tmp_path: Path, teacher: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from kdlab.training import bench

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(bench, "step_times", full)
    result = run_job(lay(tmp_path, teacher))
    assert result is not None
    assert "student_step_s" not in result.timing
    assert result.timing["latency_s"] > 0
    assert "what a step or an image costs is not told" in capsys.readouterr().out


def fail_with(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training end with an error that says this."""
    from kdlab.training.distiller import Distiller

    def fails(*_: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(Distiller, "parse_losses", fails)


def test_broken_gpu_ends_the_job_as_one_to_try_elsewhere(
    tmp_path: Path, teacher: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with("CUDA error: uncorrectable ECC error encountered", monkeypatch)
    paths = lay(tmp_path, teacher)
    assert main(str(paths.folder)) == PREEMPTED
    assert not paths.failure.exists()


ASSERT = "CUDA error: device-side assert triggered\nmore of it"
SHARED = "NCCL error in: x.cpp:94, unhandled system error\nLast error:\nno room in /dev/shm\n"


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (ASSERT, "device-side assert triggered", "CUDA_LAUNCH_BLOCKING=1"),
        (SHARED, "no room in /dev/shm", "--shm-size"),
    ],
)
def test_errors_of_cuda_s_libraries_say_what_helps(
    tmp_path: Path, teacher: Job, monkeypatch: pytest.MonkeyPatch, text: str, what: str, fix: str
) -> None:
    fail_with(text, monkeypatch)
    paths = lay(tmp_path, teacher)
    assert main(str(paths.folder)) == 1
    failure = json.loads(paths.failure.read_text())
    assert failure["what"].endswith(what)
    assert fix in failure["fix"]


@pytest.mark.parametrize(("allowed", "where"), [(True, "convolutions"), (False, "nowhere")])
def test_environment_on_a_gpu_says_where_fp32_is_rounded(teacher: Job, allowed: bool, where: str) -> None:
    import torch

    with torch.backends.cudnn.flags(allow_tf32=allowed):
        assert environment(teacher, "cuda: NVIDIA H200")["tf32"] == where
        assert "tf32" not in environment(teacher, "cpu: EPYC")
