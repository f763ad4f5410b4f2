from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def timed_once() -> Iterator[None]:
    """Jobs time a step and an image once at their end: as often as usual is longer than such jobs train."""
    from kdlab.training import bench

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_WARMUP", 0)
        patch.setattr(bench.step_times, "__defaults__", (1,))
        patch.setattr(bench.latencies_s, "__defaults__", (1,))
        yield


@pytest.fixture(autouse=True)
def workers_of_failed_loaders_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives them five seconds."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
