from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from kdlab import devices
from kdlab.cli import app
from kdlab.cli.verbs import doctor
from kdlab.cli.verbs.doctor import Check
from kdlab.devices import Gpu, Machine
from kdlab.errors import MachineError

GOOD: dict[str, dict[str, Any]] = {
    "torch": {"version": "2.14.1", "cuda": None, "gpus": 0},
    "torchvision": {"version": "0.29.1"},
    "setuptools": {"version": "80.1.0"},
    "mmcv": {"version": "2.1.0", "served": ["nms", "softnms"]},
    "mmdet": {"version": "3.3.0"},
    "kdlab": {"version": "0.1.0", "commit": "0a1b2c3"},
    "hotcoco": {"version": "1.3.0"},
    "mlflow": {"version": "3.17.2"},
}
BROKEN_ABI = {"error": "RuntimeError: operator torchvision::nms does not exist"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Check]]:
    """`machine(...)`: the checks, by name, of a machine that is fit but for what is given."""

    def examined(
        answers: dict[str, dict[str, Any]] | None = None,
        gpus: tuple[Gpu, ...] = (),
        packages: tuple[str, ...] = ("mmcv-lite",),
        without: tuple[str, ...] = (),
    ) -> dict[str, Check]:
        found = {name: answer for name, answer in (GOOD | (answers or {})).items() if name not in without}
        monkeypatch.setattr(doctor, "_probe", lambda: found)
        monkeypatch.setattr(devices, "detect", lambda: Machine((0, 1), gpus))
        monkeypatch.setattr(doctor, "_installed", lambda package: package in packages)
        return {check.name: check for check in doctor.examine()}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=50e9))
    return examined


def test_a_fit_machine_passes_every_check(machine: Any) -> None:
    assert {check.state for check in machine().values()} == {"ok"}


def test_versions_and_what_they_were_built_for_are_shown(machine: Any) -> None:
    checks = machine({"torch": {"version": "2.14.1", "cuda": "13.0", "gpus": 0}})
    assert checks["torch"].what == "2.14.1, built for CUDA 13.0"
    assert checks["kdlab"].what == "0.1.0, commit 0a1b2c3"
    assert checks["mmcv"].what == "2.1.0, lite, kdlab serves 2 of its operators"


def test_the_file_that_mmdet_came_from_is_named(machine: Any) -> None:
    check = machine({"mmdet": {"version": "3.3.0", "file": "/site/mmdet/__init__.py"}})["mmdet"]
    assert (check.state, check.what) == ("ok", "3.3.0, /site/mmdet/__init__.py")
    check = machine({"mmdet": {"version": "3.3.0 from PYTHONPATH", "file": "/x/mmdet/__init__.py"}})["mmdet"]
    assert (check.state, check.what) == ("warn", "3.3.0 from PYTHONPATH, /x/mmdet/__init__.py")
    assert "out of PYTHONPATH" in check.fix


def test_a_compiled_mmcv_serves_itself(machine: Any) -> None:
    assert machine({"mmcv": {"version": "2.1.0", "served": None}})["mmcv"].what.endswith("compiled operators")


def test_a_torchvision_of_another_torch_is_named_and_mended(machine: Any) -> None:
    checks = machine({"torchvision": BROKEN_ABI}, without=("setuptools", "mmcv", "mmdet"))
    assert checks["torchvision"].state == "fail"
    assert "one index" in checks["torchvision"].fix
    assert (checks["mmdet"].state, checks["mmdet"].fix) == ("fail", "")


def test_both_mmcv_packages_in_one_folder_are_a_fault(machine: Any) -> None:
    check = machine(packages=("mmcv", "mmcv-lite"))["mmcv"]
    assert check.state == "fail"
    assert check.fix.startswith("pip uninstall -y mmcv mmcv-lite && pip install")


def test_gpus_that_torch_cannot_use_are_a_fault(machine: Any) -> None:
    assert machine(gpus=(Gpu(0, "GPU-a", 80.0),))["GPUs"].state == "fail"


def test_gpus_that_kdlab_cannot_tell_are_a_fault(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check = machine({"torch": {"version": "2", "cuda": "13.0", "gpus": 1}})["GPUs"]
    assert (check.state, check.what) == ("fail", "none that kdlab can tell, though torch has some")
    fault = MachineError("there is a GPU and nvidia-smi fails", got="exit code 18", fix="repair the driver")
    monkeypatch.setattr(devices, "detect", Mock(side_effect=fault))
    check = {check.name: check for check in doctor.examine()}["GPUs"]
    assert (check.state, check.fix) == ("fail", "repair the driver")
    assert check.what == "there is a GPU and nvidia-smi fails: exit code 18"


def test_gpus_are_listed_with_memory_and_whether_they_are_busy(machine: Any) -> None:
    gpus = (Gpu(0, "GPU-a", 80.0), Gpu(1, "GPU-b", 80.0, busy=True))
    checks = machine({"torch": {"version": "2", "cuda": "13.0", "gpus": 2}}, gpus)
    assert (checks["GPUs"].state, checks["GPUs"].what) == ("ok", "0 (80 GB), 1 (80 GB, busy)")


def test_only_busy_gpus_are_a_warning(machine: Any) -> None:
    answers = {"torch": {"version": "2", "cuda": "13.0", "gpus": 1}}
    assert machine(answers, (Gpu(0, "GPU-a", 80.0, busy=True),))["GPUs"].state == "warn"


@pytest.mark.parametrize(("free", "state"), [(50e9, "ok"), (5e9, "warn"), (1e8, "fail")])
def test_room_on_the_disk_is_judged(
    free: float, state: str, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    check = machine()["runs folder"]
    assert check.state == state
    assert bool(check.fix) == (state != "ok")


@pytest.mark.parametrize(("free", "state"), [(8e9, "ok"), (64e6, "warn"), (256e3, "warn")])
def test_little_shared_memory_is_worth_a_warning(
    free: float, state: str, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    check = machine()["shared memory"]
    assert check.state == state
    assert ("resources.workers=0" in check.fix) == (state == "warn")


def test_a_folder_that_cannot_be_is_a_fault(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "file" / "cache"))
    check = machine()["cache folder"]
    assert check.state == "fail"
    assert "KDLAB_CACHE" in check.fix


def test_a_fault_gives_3_and_shows_its_mend(machine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    machine({"hotcoco": {"error": "ModuleNotFoundError: No module named 'hotcoco'"}})
    assert app.main(["doctor"]) == 3
    out, err = capfd.readouterr()
    assert "fail  hotcoco        ModuleNotFoundError: No module named 'hotcoco'\n" in out
    assert "      fix            pip install 'hotcoco>=1.3'\n" in out
    assert "next" not in err


def test_json_says_whether_the_machine_is_fit(machine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    machine()
    assert app.main(["doctor", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["schema"], found["fit"]) == (1, True)
    assert {check["name"] for check in found["checks"]} >= {*GOOD, "Python", "cores", "GPUs", "runs folder"}


def test_an_installed_package_is_told_from_a_missing_one() -> None:
    assert doctor._installed("typer")
    assert not doctor._installed("mmcv-liter")


class TestProbe:
    @staticmethod
    def probe(monkeypatch: pytest.MonkeyPatch, script: str, *chains: tuple[str, ...]) -> dict[str, Any]:
        loop = doctor._PROBE[doctor._PROBE.index("for name in") :]
        monkeypatch.setattr(doctor, "_PROBE", f"import json, os, sys\n{script}\n{loop}")
        monkeypatch.setattr(doctor, "_CHAINS", chains)
        return doctor._probe()

    def test_what_stands_behind_a_failure_is_not_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = "def a():\n    raise ImportError('no a')\ndef b():\n    return {}"
        found = self.probe(monkeypatch, script, ("a", "b"), ("b",))
        assert found == {"a": {"error": "ImportError: no a"}, "b": {}}

    def test_a_crash_is_told_as_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = "def a():\n    return {'version': '1'}\ndef b():\n    os.abort()"
        found = self.probe(monkeypatch, script, ("a", "b"))
        assert found == {"a": {"version": "1"}, "b": {"error": "the import was killed by SIGABRT"}}

    def test_an_import_that_hangs_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "TIMEOUT_S", 0.5)
        found = self.probe(monkeypatch, "def a():\n    import time; time.sleep(60)", ("a",))
        assert found == {"a": {"error": "the import was still at it after 0.5 s"}}


@pytest.mark.e2e
def test_the_packages_of_this_environment_are_found() -> None:
    found = doctor._probe()
    assert found.keys() == {name for chain in doctor._CHAINS for name in chain}
    assert {name for name, answer in found.items() if "error" in answer} == set()
    assert "nms" in (found["mmcv"]["served"] or ["nms"])
