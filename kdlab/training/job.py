"""The process of one job: `python -m kdlab.training.job FOLDER`."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from kdlab.errors import KdlabError
from kdlab.jobs.events import EventLog, JobCancelled, JobFailed, JobFinished
from kdlab.jobs.files import write_json, write_text
from kdlab.jobs.job import Job, JobPaths, JobResult, read_job
from kdlab.jobs.lease import Lease, LeaseLost

STOPPED = 143
PACKAGES = ("kdlab", "torch", "torchvision", "mmdet", "mmengine", "mmcv", "mmcv-lite", "hotcoco", "numpy")


def main(folder: str) -> int:
    """Run the job of a folder; the exit code is 0 done, 1 failed, 143 stopped on request."""
    paths = JobPaths(Path(folder))
    try:
        return 0 if run_job(paths) else STOPPED
    except KdlabError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def run_job(paths: JobPaths) -> JobResult | None:
    """Train or measure what the folder's `job.json` says, going on from its last checkpoint if there is one.

    Returns:
        The result, also in `result.json`; None where the job was asked to stop and left a checkpoint.

    Raises:
        KdlabError: it failed in a known way; any other exception is a bug. Both leave `failure.json`.
    """
    job = read_job(paths)
    with Lease.acquire(paths) as lease, _signals() as asked:
        if done := JobResult.read(paths):
            return done
        log = EventLog(paths.events, job.id, lease.attempt)
        started = time.time()
        try:
            return _run(job, paths, lease, log, asked)
        except LeaseLost:
            # the folder belongs to a newer attempt, which tells how it went
            raise
        except Exception as error:
            _record_failure(paths, log, error, time.time() - started)
            raise
        finally:
            log.close()


def _run(job: Job, paths: JobPaths, lease: Lease, log: EventLog, asked: list[int]) -> JobResult | None:
    # torch and mmdet take seconds to import; a lease that is held fails before that
    from kdlab.training.checkpoints import TrainingCheckpoints
    from kdlab.training.device import name_of, peak_memory_gb
    from kdlab.training.loop import Stopped
    from kdlab.training.measuring import Measurement
    from kdlab.training.preparing import Preparer
    from kdlab.training.trainer import Trainer

    def should_stop() -> bool:
        return bool(asked) or paths.stop_request.exists()

    kinds = {"evaluate": Measurement, "prepare": Preparer}
    work = kinds.get(job.kind, Trainer)(
        job, paths, emit=log.write, may_write=lease.check, should_stop=should_stop
    )
    # now, for the checkout may have moved on when training ends
    made_with = environment(job, name_of(work.device))
    write_text(paths.config, work.config_text)
    try:
        found = work.run()
    except Stopped:
        log.write(JobCancelled, iteration=work.iteration)
        return None
    result = JobResult(
        id=job.id,
        kind=job.kind,
        arm=job.arm,
        seed=job.seed,
        environment=made_with,
        peak_memory_gb=peak_memory_gb(work.device),
        attempts=lease.attempt,
        **found,
    )
    lease.check()
    result.write(paths)
    TrainingCheckpoints(paths.checkpoints).clear()
    log.write(JobFinished, metrics=result.metrics, wall_s=result.wall_s)
    return result


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Note SIGTERM and the first Ctrl-C instead of dying of them; a second one kills."""
    asked: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _record_failure(paths: JobPaths, log: EventLog, error: Exception, after_s: float) -> None:
    """Leave `failure.json` and an event; where the disk is full, the log line must do."""
    if isinstance(error, KdlabError):
        fault = vars(error.faults[0])
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).splitlines()[0][:300] if str(error) else ""
        fault = {
            "what": f"{type(error).__name__}: {text}",
            "where": f"{Path(frame.filename).name}:{frame.lineno}",
        }
    try:
        log.write(JobFailed, **fault, after_s=after_s, log=str(paths.log))
        write_json(paths.failure, {**fault, "after_s": after_s, "traceback": traceback.format_exc()})
    except OSError as full:
        print(f"failure.json could not be written: {full}", file=sys.stderr)


def environment(job: Job, device: str) -> dict[str, Any]:
    """What a table must name to be believed: versions, commit, device."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name.removesuffix("-lite")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        **versions,
        "python": platform.python_version(),
        "commit": commit(),
        "device": device,
        "threads": job.settings["threads"],
        "cores": os.cpu_count(),
    }


def commit() -> str:
    """The commit of the checkout that kdlab runs from, "+dirty" where files differ; "" outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (
        "+dirty" if git("status", "--porcelain", "kdlab") else ""
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
