"""A verb of kdlab called in this process."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from kdlab import session
from kdlab.cli import app
from tests.reporting.conftest import Workbench

Verb = Callable[[str], tuple[int, str, str]]
"""A line of the shell without its first word -> exit code, stdout, stderr."""


@pytest.fixture
def kdlab(bench: Workbench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Verb:
    """Over the jobs of the module's own `bench`, with nobody who follows."""
    monkeypatch.setattr(session, "followers", lambda *_: [])

    def run(line: str) -> tuple[int, str, str]:
        code = app.main(shlex.split(line))
        return code, *capfd.readouterr()

    return run
