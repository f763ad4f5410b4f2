"""Pythons that kdlab starts: what they find, and when they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kdlab
from kdlab import children

PACKAGE = Path(kdlab.__file__).parent
CASES = PACKAGE.parents[1] / "shared" / "cases" / "cwd_shadow"


@pytest.fixture
def shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose files have the names of installed ones."""
    (tmp_path / "queue.py").write_text("raise SystemExit('the working folder was seen')")
    (tmp_path / "mmdet").mkdir()
    (tmp_path / "mmdet" / "__init__.py").write_text("__version__ = '2.28.2'")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def origin_of(module: str) -> str:
    code = f"from importlib.util import find_spec; print(find_spec({module!r}).origin)"
    command, environment = children.python("-c", code), os.environ | children.environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("named", [None, "", ":", ":/nowhere", "/nowhere:"])
def test_a_child_does_not_see_the_working_folder(
    shadowed: Path, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    monkeypatch.setenv("PYTHONPATH", named or "")
    if named is None:
        monkeypatch.delenv("PYTHONPATH")
    assert str(shadowed) not in origin_of("queue")
    assert str(shadowed) not in origin_of("mmdet")


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
@pytest.mark.parametrize("case", ["clone", "fork", "mine"])
def test_no_case_of_cwd_shadow_reaches_a_child(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES / case)
    assert str(CASES) not in origin_of("mmdet") + origin_of("queue")


def test_children_of_a_child_do_not_see_it_either(shadowed: Path) -> None:
    code = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import queue']))"
    environment = os.environ | children.environment()
    assert subprocess.run(children.python("-c", code), env=environment, check=False).returncode == 0


def test_a_child_finds_this_very_kdlab(shadowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != children.ROOT])
    code = "import kdlab; print(kdlab.__file__)"
    command, environment = children.python("-c", code), os.environ | children.environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent == PACKAGE


def test_kdlab_by_m_does_not_see_the_working_folder(shadowed: Path) -> None:
    environment = os.environ | {"PYTHONPATH": children.ROOT}
    command = [sys.executable, "-m", "kdlab", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_file_starts_a_python_by_itself() -> None:
    starts = [path for path in PACKAGE.rglob("*.py") if "sys.executable" in path.read_text()]
    assert starts == [PACKAGE / "children.py"]


def test_modules_that_pythonpath_puts_before_a_package_are_told(
    shadowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    plain = children.version("mmdet")
    monkeypatch.setenv("PYTHONPATH", str(shadowed))
    assert children.version("mmdet") == f"{plain} from PYTHONPATH"


def test_a_process_ends_with_its_parent() -> None:
    child = (
        "import os, sys, time; from kdlab import children; children.end_with_parent(int(sys.argv[1]))\n"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = (
        f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, str(os.getpid())])"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
