"""Starts `kdlab run` or `tune` and its jobs as forks of one process that has imported everything.

A start then costs milliseconds and not the seconds that torch, mmdet and mlflow take to import. All code
that runs is the real one; starts alone are others: a fork in a session of its own stands for the `Popen` of
the process out of which kdlab starts jobs, or of a job's launcher, one in that one's for the `Popen` of each
of a job's several processes, and one for the probe. Steps are not measured before a run, and jobs time a
step and an image once at their end, since as often as usual is longer than such jobs train. Takes a line of
JSON a request and answers with one:

  {"do": "start", "argv": [...], "cwd": "...", "env": {...}, "out": "..."}   -> the number of the process
  {"do": "launch", "folder": "...", "env": {...}, "out": "..."}   -> the same, of a job of several processes
  {"do": "poll", "pid": 7}   -> its exit code as `Popen.returncode`, null while it runs
  {"do": "left"}             -> the numbers of all processes below this one that run
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import IO, Any, NoReturn

_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.02


class Fork:
    """What is needed of `Popen`, for a process that is a fork of this one."""

    DEVNULL, STDOUT = -3, -2

    def __init__(self, work: Callable[[], int], **place: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(work, **place)

    def poll(self) -> int | None:
        """As `Popen.poll`."""
        return self.returncode if self.returncode is not None else self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        """As `Popen.wait`."""
        return self.returncode if self.returncode is not None else self._wait(0)

    def kill(self) -> None:
        """As `Popen.kill`."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """As `Popen.send_signal`."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _wait(self, options: int) -> int | None:
        pid, status = os.waitpid(self.pid, options)
        self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def start_job(
    command: Sequence[str],
    *,
    stdin: int,
    stdout: IO[bytes],
    stderr: int,
    env: Mapping[str, str],
    start_new_session: bool,
    pass_fds: Sequence[int],
) -> Fork:
    """What `Local` asks of `Popen`: a job's only process, or the launcher of its several."""
    work = {"kdlab.training.job": _job, "kdlab.training.launch": _launch}[command[-2]]
    return Fork(lambda: work(command[-1]), out=stdout.fileno(), keep=pass_fds, env=env)


def start_rank(
    command: Sequence[str], *, env: Mapping[str, str], stdout: int | None, close_fds: bool
) -> Fork:
    """What the launcher asks of `Popen`: one of a job's processes, of its group and with all files."""
    out = 1 if stdout is None else os.open(os.devnull, os.O_WRONLY)
    return Fork(lambda: _job(command[-1]), out=out, err=2, keep=None, env=env, session=False)


def start_warm(command: Sequence[str], *, pass_fds: Sequence[int], env: Mapping[str, str], **_: Any) -> Fork:
    """What kdlab asks of `Popen`: the process out of which it starts jobs, whose imports are here already."""
    null = os.open(os.devnull, os.O_WRONLY)
    return Fork(lambda: _warm(command[-1]), out=null, keep=pass_fds, env=env)


def run_asked(command: Sequence[str], *, input: str, **_: Any) -> subprocess.CompletedProcess[str]:
    """What `children` asks of `subprocess.run`: answers about models."""
    if command[-2] == "kdlab.training.pacing":
        # seconds for each recipe, to tell what it costs: the cost stays unknown
        return subprocess.CompletedProcess([], 1, "", "")
    with TemporaryFile("w+") as asked, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        asked.write(input), asked.seek(0)
        place = {"given": asked.fileno(), "out": out.fileno(), "err": err.fileno()}
        code = Fork(_probe, keep=(), env=dict(os.environ), **place).wait()
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess([], code or 0, out.read(), err.read())


def _become(
    work: Callable[[], int],
    *,
    out: int,
    keep: Sequence[int] | None,
    env: Mapping[str, str],
    err: int | None = None,
    given: int | None = None,
    session: bool = True,
) -> NoReturn:
    """Be, in a new fork, what `exec` would have made of it; never returns.

    Args:
        work: what it does; its answer is the exit code.
        out: file that is its standard output.
        keep: files that stay open; None for all.
        env: its environment.
        err: file that is its standard error, if not `out`.
        given: file that is its standard input, if it has one.
        session: whether in a session of its own.
    """
    code = 70
    try:
        if session:
            os.setsid()
        # what the process before has open is closed below its objects: they must never close it again
        gc.freeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY) if given is None else given, 0)
        os.dup2(out if err is None else err, 2), os.dup2(out, 1)
        for entry in list(Path("/proc/self/fd").iterdir()) if keep is not None else ():
            if (file := int(entry.name)) > 2 and file not in keep:
                _close(file)
        os.environ.clear()
        os.environ.update(env)
        code = work()
        sys.stdout.flush(), sys.stderr.flush()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _close(file: int) -> None:
    try:
        os.close(file)
    except OSError:
        # the one through which the folder was listed
        return


def _job(folder: str) -> int:
    from kdlab.training.job import main

    return main(folder)


def _warm(descriptor: str) -> int:
    from kdlab.training.warm import main

    return main(descriptor)


def _launch(folder: str) -> int:
    from kdlab.training import launch

    launch.subprocess = SimpleNamespace(Popen=start_rank, DEVNULL=Fork.DEVNULL)  # type: ignore[attr-defined]
    launch.leave(launch.main(folder))
    return 0


def _probe() -> int:
    from kdlab.training.probe import main

    # it has no parent to end with
    del sys.argv[1:]
    return main()


def _command(argv: Sequence[str], cwd: str) -> int:
    from kdlab import children
    from kdlab.cli.app import main
    from kdlab.running import warm
    from kdlab.running.executors import local

    os.chdir(cwd)
    jobs = SimpleNamespace(Popen=start_job, DEVNULL=Fork.DEVNULL, STDOUT=Fork.STDOUT)
    local.subprocess = jobs  # type: ignore[attr-defined]
    warm.subprocess = SimpleNamespace(Popen=start_warm, DEVNULL=Fork.DEVNULL)  # type: ignore[attr-defined]
    children.subprocess = SimpleNamespace(run=run_asked)  # type: ignore[attr-defined]
    return main(argv)


class Server:
    """Answers requests and takes in all processes whose parents have died."""

    def __init__(self) -> None:
        self._codes: dict[int, int] = {}

    def answer(self, do: str, **told: Any) -> Any:
        """The answer to one request."""
        return getattr(self, do)(**told)

    def start(self, argv: Sequence[str], cwd: str, env: Mapping[str, str], out: str) -> int:
        """See above."""
        return self._fork(lambda: _command(argv, cwd), env, out)

    def launch(self, folder: str, env: Mapping[str, str], out: str) -> int:
        """See above."""
        return self._fork(lambda: _launch(folder), env, out)

    def _fork(self, work: Callable[[], int], env: Mapping[str, str], out: str) -> int:
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        pid = os.fork()
        if pid == 0:
            _become(work, out=file, keep=(), env=env)
        os.close(file)
        return pid

    def poll(self, pid: int) -> int | None:
        """See above."""
        return self._codes.get(pid)

    def left(self) -> list[int]:
        """See above."""
        return _below(os.getpid())

    def reap(self) -> None:
        """Note the codes of those that ended."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            return


def _below(pid: int) -> list[int]:
    """All that descend from a process and have not ended."""
    found = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
            found += [*([child] if state not in "ZX" else []), *_below(child)]
        except FileNotFoundError:
            continue
    return found


def import_all(database: Path) -> None:
    """Import what commands and jobs import, and make an empty MLflow database."""
    for name in ("kdlab.cli.verbs.run", "kdlab.cli.verbs.tune", "kdlab.tuning.study", "kdlab.session"):
        import_module(name)
    for name in ("kdlab.training.job", "kdlab.training.trainer", "kdlab.training.probe", "mlflow"):
        import_module(name)
    for name in ("evaluating", "preparing", "scaling", "diagnosing"):
        import_module(f"kdlab.training.{name}")
    for name in ("matplotlib.pyplot", "pandas", "sklearn.metrics", "torch._dynamo", "torch.distributed.fsdp"):
        import_module(name)
    bench = import_module("kdlab.training.bench")
    bench.step_times.__defaults__ = bench.latencies_s.__defaults__ = (1,)
    from kdlab.jobs.paths import Runs
    from kdlab.tracking.mlflow import Mlflow

    pid = os.fork()
    if pid == 0:
        database.parent.mkdir(parents=True)
        Mlflow(Runs(database.parent)).client  # noqa: B018
        os._exit(0)
    os.waitpid(pid, 0)


def main(database: str) -> None:
    """Serve until the input ends, then end what is left."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    import_all(Path(database))
    server = Server()
    print(json.dumps("ready"), flush=True)
    while True:
        server.reap()
        if select.select([0], [], [], _POLL_S)[0]:
            # not through a buffer, which `select` would not see
            line = b""
            while not line.endswith(b"\n"):
                if not (part := os.read(0, 1)):
                    break
                line += part
            if not line:
                break
            print(json.dumps(server.answer(**json.loads(line))), flush=True)
    for pid in server.left():
        os.kill(pid, signal.SIGKILL)
    # all that was imported would take seconds to end in order
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
