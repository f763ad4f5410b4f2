"""The process of one job, or one of its processes: `python -m kdlab.training.job FOLDER`."""

from __future__ import annotations

import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NoReturn

from kdlab import children
from kdlab.errors import JobError, KdlabError, OutOfMemory
from kdlab.jobs.events import EventLog, JobCancelled, JobFailed, JobFinished
from kdlab.jobs.files import DISK_FULL, disk_full, is_disk_full, write_json_once, write_text
from kdlab.jobs.handle import PREEMPTED
from kdlab.jobs.job import Job, read_job
from kdlab.jobs.lease import Lease, LeaseInfo, LeaseLost
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import JobResult
from kdlab.training.attempt import Attempt

STOPPED = 143
PACKAGES = ("kdlab", "torch", "torchvision", "mmdet", "mmengine", "mmcv", "mmcv-lite", "hotcoco", "numpy")


def main(folder: str) -> int:
    """Run the job of a folder.

    Returns:
        The exit code: 0 done, 1 failed, 74 failed for want of room on the disk, 75 its GPU is broken and
        another may do, 143 stopped on request.
    """
    paths = JobPaths(Path(folder))
    # each tensor of a batch from a loader process is an open file, of a large batch more than shells allow
    with suppress(OSError, ValueError):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        return 0 if run_job(paths) else STOPPED
    except Exception as error:
        # the log can be on the disk that is full: then the exit code alone tells
        with suppress(OSError):
            if isinstance(error, KdlabError):
                print(error, file=sys.stderr, flush=True)
            else:
                traceback.print_exc()
        return exit_code(error)


def exit_code(error: Exception) -> int:
    """Exit code of a job that ended with an error; see `main`."""
    if is_disk_full(error):
        return DISK_FULL
    return PREEMPTED if _is_hardware_fault(error) else 1


def _is_hardware_fault(error: Exception) -> bool:
    # before torch was imported nothing has computed on a GPU
    if "torch" not in sys.modules:
        return False
    from kdlab.training.device import is_hardware_fault

    return is_hardware_fault(error)


def run_job(paths: JobPaths) -> JobResult | None:
    """Train or measure what the folder's `job.json` says, going on from its last checkpoint if there is one.

    Returns:
        The result, also in `result.json`; None where the job was asked to stop and left a checkpoint.

    Raises:
        KdlabError: it failed in a known way; any other exception is a bug. Both leave `failure.json`.
    """
    job = read_job(paths)
    # of several processes the first has the lease and writes all but the others' faults
    first = job.resources.ranks == 1 or os.environ.get("RANK", "0") == "0"
    with ExitStack() as stack:
        lease = stack.enter_context(Lease.acquire(paths)) if first else None
        asked = stack.enter_context(_signals(job))
        if done := JobResult.read(paths):
            return done
        attempt = Attempt(job, paths, lambda: bool(asked) or paths.stop_request.exists())
        if lease:
            paths.failure.unlink(missing_ok=True)
            log = stack.enter_context(closing(EventLog(paths.events, job.id, lease.attempt, _say)))
            attempt = replace(attempt, number=lease.attempt, emit=log.write, may_write=lease.check)
        stack.enter_context(_recording(job, paths))
        # torch and mmdet take seconds to import; a lease that is held fails before that
        from kdlab.training import ranks

        with ranks.joined(job):
            return work_on(attempt)


def work_on(attempt: Attempt) -> JobResult | None:
    """Do what the job's kind says; all processes come to the result, the first one writes it."""
    import torch

    from kdlab.training import ranks
    from kdlab.training.checkpoints import TrainingCheckpoints
    from kdlab.training.device import is_out_of_memory, memory_facts, name_of, peak_memory_gb
    from kdlab.training.loop import Stopped
    from kdlab.training.work import Work

    job, paths = attempt.job, attempt.paths
    module, _, name = job.spec.work.partition(".")
    try:
        work: Work = getattr(import_module(f"kdlab.training.{module}"), name)(attempt)
        # now, for the checkout may have moved on when training ends
        made_with = environment(job, name_of(work.device))
        if attempt.number:
            write_text(paths.config, work.config_text)
        found = work.run()
    except Stopped:
        attempt.emit(JobCancelled, iteration=work.iteration)
        return None
    except RuntimeError as error:
        if is_out_of_memory(error):
            place = torch.device("cuda" if job.resources.gpus else "cpu")
            raise OutOfMemory(
                "the GPU is out of memory outside of training",
                where=job.id,
                got=str(error).splitlines()[0][:200],
                fix="take a smaller model or a larger GPU",
                facts=memory_facts(place),
            ) from error
        raise
    result = JobResult(
        id=job.id,
        kind=job.kind,
        arm=job.arm,
        seed=job.seed,
        environment=made_with,
        peak_memory_gb=max(ranks.gathered(peak_memory_gb(work.device)), default=0.0),
        attempts=attempt.number,
        **found,
    )
    if attempt.number:
        attempt.may_write()
        result.write(paths)
        TrainingCheckpoints(paths.checkpoints).clear()
        attempt.emit(JobFinished, metrics=result.metrics, wall_s=result.wall_s)
    return result


def _say(line: str) -> None:
    """Print a line into the job's log, which a full disk may not take."""
    with suppress(OSError):
        print(f"{time.strftime('%F %T')}  {line}", flush=True)


@contextmanager
def _signals(job: Job) -> Iterator[list[int]]:
    """Note SIGTERM and the first Ctrl-C instead of dying of them; a second one kills.

    One of several processes is killed by what started it, which hears of both and passes them on: they may
    come twice.
    """
    asked: list[int] = []
    alone = job.resources.ranks == 1

    def note(number: int, _frame: Any) -> None:
        if asked and alone:
            raise KeyboardInterrupt
        asked.append(number)

    handlers = {signal.SIGTERM: note, signal.SIGINT: note if alone else signal.SIG_IGN}
    if threading.current_thread() is not threading.main_thread():
        # no other thread gets any
        handlers = {}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _recording(job: Job, paths: JobPaths) -> Iterator[None]:
    """Tell of the exception inside why the job failed, if that is for this process to say."""
    started = time.time()
    try:
        yield
    except LeaseLost:
        # the folder belongs to a newer attempt, which tells how it went
        raise
    except Exception as error:
        if job.resources.ranks > 1:
            from kdlab.training import ranks

            if ranks.is_loss_of_peer(error):
                what = "another process of the job has ended, so this one ends"
                raise JobError(what, where=job.id, got=str(error)[:200]) from error
        if _is_hardware_fault(error):
            # no failure of the job's, which goes on from its checkpoint
            raise
        record_failure(job, paths, error, time.time() - started)
        raise


def record_failure(job: Job, paths: JobPaths, error: Exception, after_s: float) -> None:
    """Leave `failure.json` and an event, unless another process has; on a full disk the exit code must do."""
    if isinstance(error, KdlabError):
        fault = vars(error.faults[0])
    elif is_disk_full(error):
        fault = vars(disk_full(paths.folder))
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        fault = {
            "what": f"{type(error).__name__}: {_gist(str(error))[:300]}",
            "where": f"{Path(frame.filename).name}:{frame.lineno}",
        }
        for words, fix in _FIXES.items():
            if words in str(error):
                fault["fix"] = fix
    told = {**fault, "after_s": after_s}
    memory = {"kind": error.kind, **error.facts} if isinstance(error, OutOfMemory) else {}
    try:
        if not write_json_once(paths.failure, {**told, **memory, "traceback": traceback.format_exc()}):
            return
        lease = LeaseInfo.read(paths)
        with closing(EventLog(paths.events, job.id, lease.attempt if lease else 0)) as log:
            log.write(JobFailed, **told, kind=str(memory.get("kind", "")), log=str(paths.log))
    except OSError as full:
        with suppress(OSError):
            print(f"failure.json could not be written: {full}", file=sys.stderr)


def _gist(text: str) -> str:
    """The line of an error that says most."""
    # NCCL tells the place in its source and its version before what it is about
    lines = text.partition("Last error:\n")[2].splitlines() or text.splitlines()
    return lines[0] if lines else ""


_FIXES = {
    "CUDA error": "CUDA tells of faults late: CUDA_LAUNCH_BLOCKING=1 kdlab run ... names the place",
    "NCCL": "NCCL_DEBUG=INFO kdlab run ... tells more; a container needs shared memory: --shm-size=8g",
}


def environment(job: Job, device: str) -> dict[str, Any]:
    """What a table must name to be believed: versions, commit, device."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name.removesuffix("-lite")] = children.version(name)
    return {
        **versions,
        "python": platform.python_version(),
        "commit": commit(),
        "device": device,
        "threads": job.spec.threads,
        "cores": os.cpu_count(),
        **(_cuda() if device.startswith("cuda") else {}),
    }


def _cuda() -> dict[str, Any]:
    """What a GPU computes with: versions, and where it rounds fp32 to TF32."""
    import torch

    places = {
        "convolutions": torch.backends.cudnn.allow_tf32,
        "products": torch.backends.cuda.matmul.allow_tf32,
    }
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": ", ".join(name for name, on in places.items() if on) or "nowhere",
    }


@cache
def commit() -> str:
    """The commit of the checkout that kdlab runs from, "+dirty" where files differ; "" outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    dirty = "+dirty" if git("status", "--porcelain", "kdlab") else ""
    return git("rev-parse", "--short=12", "HEAD") + dirty


def leave(code: int) -> NoReturn:
    """End this process; at once where it failed among others, for torch could wait for them."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        # on a full disk Python would try again and make 120 of the code
        os._exit(code)
    if code in (1, DISK_FULL, PREEMPTED) and "RANK" in os.environ:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1]))
