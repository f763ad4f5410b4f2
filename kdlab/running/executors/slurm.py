"""One batch job of Slurm a job, on any node that sees this folder and this environment."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import time
from collections.abc import Collection, Mapping, Sequence

from kdlab.devices import Machine
from kdlab.errors import MachineError, UsageError
from kdlab.jobs.handle import PREEMPTED, Handle
from kdlab.jobs.job import Job
from kdlab.jobs.lease import Process
from kdlab.jobs.paths import JobPaths
from kdlab.running.executors import _slurm, base
from kdlab.running.executors.base import Node

_STOPPED = 128 + signal.SIGTERM
_WARNED_S = 120
_PREEMPTED = ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
_BUSY = ("unable to contact", "timed out", "temporarily", "zero bytes", "connection refused")
_SCRIPT = """\
#!/bin/sh
echo "$(date '+%F %T') starting on $(hostname), Slurm job $SLURM_JOB_ID"
exec {}
"""


class Slurm:
    """Submits a batch job for each job that is started; Slurm decides when and where it runs.

    Args:
        gpus: must be None, for Slurm chooses the GPUs.
        command: what trains, the job's folder is appended; None for `base.command`.
        look_every_s: seconds between two looks at Slurm's queue, however often `poll` is called.
        partition: where to submit; None for the cluster's default.
        time_limit_minutes: how long one attempt may take; None for the partition's default.
        account: whom to charge; None for the user's default.
        sbatch: more words for sbatch ("--mem=32G"), after ours, so that they win.

    Raises:
        MachineError: there is no Slurm here.
    """

    def __init__(
        self,
        gpus: Collection[int] | None = None,
        command: Sequence[str] | None = None,
        look_every_s: float = 10.0,
        *,
        partition: str | None = None,
        time_limit_minutes: int | None = None,
        account: str | None = None,
        sbatch: tuple[str, ...] = (),
    ) -> None:
        base.refuse_gpus(
            gpus,
            "Slurm",
            "leave --gpus out; to choose a kind of GPU: --set 'resources.slurm.sbatch=[--constraint=a100]'",
        )
        if strays := [word for word in sbatch if not word.startswith("-") or word.startswith("--wr")]:
            raise UsageError(
                "resources.slurm.sbatch holds options alone: a script or --wrap would run in the job's place",
                got=strays[0],
                fix="write each option as one word: --mem=32G",
            )
        if shutil.which("sbatch") is None:
            raise MachineError(
                "there is no Slurm here: sbatch is not found",
                where="--executor slurm",
                fix="run this where sbatch works, or train on this machine: --executor local",
            )
        self._command, self._look_every_s, self._partition = command, look_every_s, partition
        told = {"partition": partition, "time": time_limit_minutes, "account": account}
        self._words = [f"--{name}={value}" for name, value in told.items() if value is not None]
        # a quarter of a short limit, for a warning that comes with the start would end the job at once
        warned_s = min(_WARNED_S, 15 * (time_limit_minutes or _WARNED_S))
        self._words += [f"--signal=B:TERM@{warned_s}", *sbatch]
        self._nodes: list[Node] = []
        self._known: dict[str, _slurm.State] = {}
        self._fresh: set[str] = set()
        self._look_at = self._submit_at = 0.0
        self._kill_at: dict[str, float] = {}
        self._killed: dict[str, float] = {}

    @property
    def machine(self) -> Machine:
        """See `Executor.machine`; all nodes of the partition that are up."""
        return base.machine_of(self._cluster())

    def slots(self, job: Job) -> int:
        """See `Executor.slots`; a job needs all its GPUs in one node."""
        return base.slots_on(self._cluster(), self._cores_for(job), job.resources.gpus)

    def start(self, job: Job, paths: JobPaths) -> Handle | None:
        """See `Executor.start`; None where Slurm cannot take a job just now.

        Raises:
            MachineError: Slurm refuses the job.
        """
        if time.monotonic() < self._submit_at:
            return None
        words = ["sbatch", "--nodes=1", "--ntasks=1", f"--cpus-per-task={self._cores_for(job)}"]
        if job.resources.gpus:
            words.append(f"--gres=gpu:{job.resources.gpus}")
        log = str(paths.log.absolute()).replace("%", "%%")
        words += [f"--job-name=kdlab {job.label}", f"--output={log}", "--open-mode=append"]
        # the scheduler starts it again, not Slurm
        words += ["--parsable", "--export=ALL", "--no-requeue", *self._words]
        script = _SCRIPT.format(shlex.join(base.command(job, paths, self._command)))
        # the GPUs that a job sees are Slurm's to say
        mine = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        done = _slurm.run(words, script, mine | base.environment(job))
        if done.returncode and self._passes(done.stderr.lower()):
            self._submit_at = time.monotonic() + self._look_every_s
            return None
        if done.returncode:
            fix = "see sinfo for partitions and limits, and resources.slurm in docs/slurm.md"
            raise MachineError("Slurm refuses the job", where=job.label, got=_slurm.words_of(done), fix=fix)
        ref = done.stdout.split(";")[0].strip()
        handle = Handle("slurm", ref=ref, starter=Process.current())
        self._fresh.add(handle.ref)
        try:
            handle.write(paths)
        except OSError:
            _slurm.run(["scancel", handle.ref])
            raise
        return handle

    def waits_for(self, job: Job) -> str:
        """See `Executor.waits_for`; the cluster's queue tells."""
        return ""

    def poll(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        """See `Executor.poll`.

        Raises:
            MachineError: Slurm does not answer when it is asked about a job for the first time.
        """
        refs = {job: handle.ref for job, handle in handles.items()}
        for ref in refs.values():
            self._kill_overdue(ref)
        # a job that another command submitted can be newer than the last look
        unheard = set(refs.values()) - self._known.keys() - self._fresh
        if unheard or time.monotonic() >= self._look_at:
            self._look(refs.values(), unheard)
        states = {job: self._known[ref] for job, ref in refs.items() if ref in self._known}
        return {job: self._code(refs[job], state) for job, state in states.items() if state.ended}

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """See `Executor.cancel`; what still waits in Slurm's queue leaves it at once."""
        ref, now = handle.ref, time.monotonic()
        if grace_s > 0 and ref not in self._kill_at:
            _slurm.run(["scancel", "--state=PENDING", ref])
            # the leader alone: loader processes that die of it would fail the step before the checkpoint
            _slurm.run(["scancel", "--signal=TERM", "--batch", ref])
        self._kill_at[ref] = min(now + grace_s, self._kill_at.get(ref, float("inf")))
        self._kill_overdue(ref)

    def _passes(self, refusal: str) -> bool:
        """Whether Slurm may take the job later; it has one message for too many jobs and too large ones."""
        if "submit limit" in refusal:
            return bool(self._fresh) or not all(state.ended for state in self._known.values())
        return any(word in refusal for word in _BUSY)

    def _cluster(self) -> list[Node]:
        self._nodes = self._nodes or _slurm.nodes(self._partition)
        return self._nodes

    def _cores_for(self, job: Job) -> int:
        """Cores of one node for a job: Slurm confines it to them, so those that feed a GPU count."""
        gpus, threads = job.resources.gpus, job.resources.threads
        wanted = gpus * (threads + job.resources.workers) if gpus else job.resources.cores
        return base.cores_on(self._cluster(), job, wanted)

    def _look(self, refs: Collection[str], unheard: Collection[str]) -> None:
        """Ask for all jobs together; a controller that is busy or restarts leaves them as they were."""
        self._look_at = time.monotonic() + self._look_every_s
        queue = _slurm.queue()
        if queue is None and unheard:
            fix = "try again once squeue works; until then nobody knows whether the job still runs"
            raise MachineError("Slurm does not answer", where=f"job {', '.join(sorted(unheard))}", fix=fix)
        if queue is None:
            return
        self._fresh.clear()
        ended = {ref: state for ref, state in self._known.items() if state.ended}
        gone = set(refs) - queue.keys() - ended.keys()
        # the accounting can lag behind, but a job that the controller forgot does not run
        lost = dict.fromkeys(gone, _slurm.State(""))
        if gone:
            lost |= {ref: state for ref, state in _slurm.accounted(gone).items() if state.ended}
        self._known = ended | queue | lost

    def _code(self, ref: str, state: _slurm.State) -> int | None:
        """The exit code that `poll` tells of a job that has ended."""
        if state.word in _PREEMPTED:
            return PREEMPTED
        if state.word == "OUT_OF_MEMORY" or (state.word == "CANCELLED" and ref in self._killed):
            return -signal.SIGKILL
        if state.word == "CANCELLED":
            # by a person with scancel
            return _STOPPED
        if state.code in (_STOPPED, -signal.SIGTERM) and ref not in self._kill_at:
            # nobody asked but Slurm, before a time limit or a preemption; of a stop.request the caller knows
            return PREEMPTED
        return state.code

    def _kill_overdue(self, ref: str) -> None:
        now = time.monotonic()
        again_at = self._killed.get(ref, -float("inf")) + self._look_every_s
        if now < max(self._kill_at.get(ref, float("inf")), again_at):
            return
        self._killed[ref] = now
        # scancel alone would wait for the cluster's KillWait between TERM and KILL
        _slurm.run(["scancel", "--signal=KILL", "--batch", ref])
        _slurm.run(["scancel", ref])
