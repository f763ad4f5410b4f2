from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def workers_of_failed_loaders_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives them five seconds."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
