"""examples/first_hour.ipynb, cell by cell, with real trainings of fewer images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.world import ROOT, own_environment

NOTEBOOK = ROOT / "examples" / "first_hour.ipynb"
LAST = """
assert [*frame["arm"]] == ["teacher", "baseline", "rm", "pfi", "rm+pfi"]
assert frame["AP"].notna().all()
assert figures["ap_by_epoch"].axes
assert "torch" not in __import__("sys").modules
"""


def test_a_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.e2e
def test_the_first_hour_runs_from_the_top(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    environment = own_environment(tmp_path, tmp_path / "cache") | {"PYTHONPATH": str(ROOT)}
    script = "\n".join([*code, LAST])
    for many, few in (("train_images=200", "train_images=40"), ("val_images=100", "val_images=20")):
        assert many in script
        script = script.replace(many, few)
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "5 of 5" in run.stdout
