"""A job's process without torch: tells what it was told, ends as `steering(job)["ends"]` of its rank says."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from kdlab.jobs.files import write_json
from kdlab.jobs.job import read_job
from kdlab.jobs.paths import JobPaths
from tests.stubs.jobs import steering


def main(folder: Path) -> int:
    rank, begins = os.environ["RANK"], ("LOCAL_", "WORLD", "KDLAB")
    asked: list[int] = []
    end = steering(read_job(JobPaths(folder)))["ends"][int(rank)]
    signal.signal(signal.SIGTERM, signal.SIG_IGN if end == "deaf" else lambda number, _: asked.append(number))
    told = {name: value for name, value in os.environ.items() if name.startswith(begins)}
    write_json(folder / f"{rank}.json", {"pid": os.getpid(), "pgid": os.getpgid(0), **told})
    print(f"rank {rank}", flush=True)
    match end:
        case "finish":
            return 0
        case "fail":
            return 1
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not asked and time.monotonic() < deadline:
        time.sleep(0.02)
    return 143


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
