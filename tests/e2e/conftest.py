from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.world import Warm


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """The process whose forks are commands and jobs: one for all tests, as its start costs 15 s."""
    warm = Warm(tmp_path_factory.mktemp("warm") / "runs" / "mlflow.db")
    yield warm
    warm.close()
