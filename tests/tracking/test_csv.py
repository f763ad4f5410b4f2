from __future__ import annotations

import pytest

from kdlab.tracking.base import Follower
from kdlab.tracking.csv import Csv


@pytest.mark.parametrize("name", ["settings.csv", "training.csv"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]\n3,4,5\n", bytes(range(256)), b"mark,job\nx"])
def test_a_damaged_file_keeps_nothing_from_being_told(bench, name: str, content: bytes) -> None:
    plan = bench.plan([job := bench.job("rm")])
    bench.train(job)
    assert Follower("csv", Csv(bench.runs), plan, bench.runs).close() is None
    path = bench.runs.folder / "csv" / plan.id / job.id / name
    whole = path.read_bytes()
    path.write_bytes(content)
    (path.parent / "settings.csv").write_bytes(content)
    assert Follower("csv", Csv(bench.runs), plan, bench.runs).close() is None
    assert path.read_bytes() == whole
