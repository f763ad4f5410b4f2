from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdlab import devices
from kdlab.devices import DeviceLease, Gpu, Machine, detect
from kdlab.errors import MachineError

SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*) printf '0, GPU-aa11, 81559\\n1, GPU-bb22, 81559\\n2, GPU-ab33, 24564\\n' ;;
  --query-compute-apps=*) printf 'GPU-bb22\\n' ;;
esac
"""


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def install_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str = SMI) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


@pytest.fixture
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_smi(tmp_path, monkeypatch)


def uuids(machine: Machine) -> list[str]:
    return [gpu.uuid for gpu in machine.gpus]


def test_machine_without_nvidia_smi_has_cores_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = detect()
    assert machine.gpus == ()
    assert machine.device == "cpu"
    assert len(machine.cores) >= 1


FAILS = "#!/bin/sh\necho 'Driver/library version mismatch'; exit 18\n"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What stands for /dev, with a GPU."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    monkeypatch.setattr(devices, "_DEVICES", tmp_path / "dev")
    return tmp_path / "dev"


def test_driver_that_fails_on_a_machine_with_a_gpu_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: Path
) -> None:
    install_smi(tmp_path, monkeypatch, FAILS)
    with pytest.raises(
        MachineError, match=r"exit code 18: Driver/library version mismatch\n +fix .*CUDA_VISIBLE"
    ):
        detect()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect().device == "cpu"


def test_driver_that_fails_where_there_is_no_gpu_means_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: Path
) -> None:
    install_smi(tmp_path, monkeypatch, FAILS)
    (nodes / "nvidia0").unlink()
    assert detect().device == "cpu"


def test_nvidia_smi_that_does_not_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: Path
) -> None:
    monkeypatch.setattr(devices, "_PATIENCE_S", 0.1)
    install_smi(tmp_path, monkeypatch, "#!/bin/sh\nexec sleep 5\n")
    with pytest.raises(MachineError, match="timed out after"):
        detect()


@pytest.mark.usefixtures("nodes")
def test_gpu_without_nvidia_smi_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"nvidia-smi is missing.*\n +got .*nvidia0"):
        detect()


@pytest.mark.parametrize("memory", ["[N/A]", "[Not Supported]"])
def test_gpu_that_uses_the_memory_of_the_machine_has_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory: str
) -> None:
    rows = f"0, GPU-aa11, {memory}, [N/A]\\n"
    install_smi(tmp_path, monkeypatch, f"#!/bin/sh\ncase $1 in --query-gpu*) printf '{rows}';; esac\n")
    (gpu,) = detect().gpus
    assert gpu.memory_gb == pytest.approx(
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, abs=0.1
    )


SLICED = """#!/bin/sh
case "$1" in
  --query-gpu=*) printf '0, GPU-aa11, 81559, Enabled\\n1, GPU-bb22, 81559, Disabled\\n' ;;
  -L) printf 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aa11)\\n'
      printf '  MIG 3g.40gb     Device  0: (UUID: MIG-c1)\\n  MIG 1g.10gb+me  Device  1: (UUID: MIG-c2)\\n'
      printf 'GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bb22)\\n' ;;
esac
"""


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [Gpu(0, "MIG-c1", 40.0), Gpu(0, "MIG-c2", 10.0), Gpu(1, "GPU-bb22", 79.6)]),
        ("MIG-c2", [Gpu(0, "MIG-c2", 10.0)]),
        ("0", [Gpu(0, "MIG-c1", 40.0)]),
        ("1,MIG-c1", [Gpu(1, "GPU-bb22", 79.6), Gpu(0, "MIG-c1", 40.0)]),
    ],
)
def test_slices_of_a_gpu_are_gpus_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str | None, seen: list[Gpu]
) -> None:
    install_smi(tmp_path, monkeypatch, SLICED)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list(detect().gpus) == seen


def test_the_number_of_a_cut_gpu_names_all_its_slices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_smi(tmp_path, monkeypatch, SLICED)
    assert uuids(detect(only=[0])) == ["MIG-c1", "MIG-c2"]


def test_gpu_that_fell_off_the_bus_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = "0, GPU-aa11, 81559\\n1, [Unknown Error], [Unknown Error]\\n"
    install_smi(tmp_path, monkeypatch, f"#!/bin/sh\ncase $1 in --query-gpu*) printf '{rows}';; esac\n")
    assert uuids(detect()) == ["GPU-aa11"]


@pytest.mark.usefixtures("three_gpus")
def test_gpus_are_told_with_memory_and_strangers() -> None:
    machine = detect()
    assert machine.device == "cuda"
    assert machine.gpus[0] == Gpu(0, "GPU-aa11", 79.6, busy=False)
    assert [gpu.busy for gpu in machine.gpus] == [False, True, False]


@pytest.mark.usefixtures("three_gpus")
def test_gpu_on_which_a_job_of_ours_computes_is_no_strangers() -> None:
    with Machine((), (Gpu(1, "GPU-bb22", 80.0),)).lease("gpu", 1) or pytest.fail("not leased"):
        assert not detect().gpus[1].busy


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        ("2,0", ["GPU-ab33", "GPU-aa11"]),
        ("GPU-bb22", ["GPU-bb22"]),
        ("GPU-b", ["GPU-bb22"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["GPU-aa11"]),
    ],
)
def test_outer_choice_of_gpus_is_honoured_as_cuda_does(
    monkeypatch: pytest.MonkeyPatch, visible: str, seen: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert uuids(detect()) == seen


@pytest.mark.usefixtures("three_gpus")
def test_named_gpu_is_used_although_busy() -> None:
    machine = detect(only=[1])
    assert uuids(machine) == ["GPU-bb22"]
    with machine.lease("gpu", 1) or pytest.fail("not leased") as lease:
        assert lease.ids == ("GPU-bb22",)


@pytest.mark.usefixtures("three_gpus")
def test_named_gpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(MachineError, match=r"got +7\n +known +0, 1, 2"):
        detect(only=[0, 7])


@pytest.mark.usefixtures("three_gpus")
def test_busy_gpu_is_not_leased() -> None:
    machine = detect()
    assert machine.lease("gpu", 3) is None
    with machine.lease("gpu", 2) or pytest.fail("not leased") as lease:
        assert lease.ids == ("GPU-aa11", "GPU-ab33")


def test_lease_is_all_or_nothing() -> None:
    machine = Machine((0, 1, 2))
    with machine.lease("core", 2) or pytest.fail("not leased"):
        assert machine.lease("core", 2) is None
        with machine.lease("core", 1) or pytest.fail("the one left was not given back") as lease:
            assert lease.ids == ("2",)


def test_closed_lease_is_free_again() -> None:
    machine = Machine((0,))
    for _ in range(2):
        with machine.lease("core", 1) or pytest.fail("not leased"):
            assert machine.lease("core", 1) is None


def test_lease_lives_as_long_as_the_process_that_inherited_it() -> None:
    machine = Machine((0,))
    with machine.lease("core", 1) or pytest.fail("not leased") as lease:
        job = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lease.files)
    assert machine.lease("core", 1) is None
    job.communicate(b"\n")
    with machine.lease("core", 1) or pytest.fail("not leased"):
        pass


def test_container_may_use_as_many_cores_as_its_quota_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(devices, "_QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    quota.write_text("200000 100000\n")
    assert detect().cores == (0, 1)
    quota.write_text("max 100000\n")
    assert detect().cores == (0, 1, 2, 5)


def test_locks_are_for_this_user_alone_and_the_same_in_every_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDLAB_LOCKS")
    folder = Path(f"/tmp/kdlab-{os.getuid()}")
    with Machine((7001,)).lease("core", 1) or pytest.fail("not leased"):
        assert folder.stat().st_mode & 0o777 == 0o700
        for name in ("XDG_RUNTIME_DIR", "TMPDIR", "TMP"):
            monkeypatch.setenv(name, "/elsewhere")
        assert Machine((7001,)).lease("core", 1) is None


def test_lock_folder_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MachineError, match="device locks"):
        Machine((0,)).lease("core", 1)


TWO = Machine((0,), (Gpu(0, "GPU-aa", 80.0), Gpu(1, "GPU-bb", 80.0)))


def share(parts: int = 2, memory_gb: float | None = None, machine: Machine = TWO) -> DeviceLease:
    return machine.lease_share(parts, memory_gb) or pytest.fail("no place was free")


def test_jobs_that_share_go_to_empty_gpus_first() -> None:
    with share() as one, share() as two, share() as three, share() as four:
        assert sorted([*one.ids, *two.ids]) == ["GPU-aa", "GPU-bb"]
        assert sorted([*three.ids, *four.ids]) == ["GPU-aa", "GPU-bb"]
        assert TWO.lease_share(2, None) is None


def test_place_on_a_gpu_is_free_again_after_its_job() -> None:
    with share(), share(), share():
        with share():
            assert TWO.lease_share(2, None) is None
        share().close()


def test_jobs_that_together_need_too_much_memory_do_not_share() -> None:
    with share(memory_gb=50), share(memory_gb=50):
        assert TWO.lease_share(2, 31.0) is None
        with share(memory_gb=29):
            pass


def test_job_whose_need_is_unknown_counts_as_its_part() -> None:
    one = Machine((0,), TWO.gpus[:1])
    with share(memory_gb=45, machine=one):
        assert one.lease_share(2, None) is None


def test_gpu_that_somebody_has_alone_is_not_shared() -> None:
    with TWO.lease("gpu", 1) or pytest.fail("not leased"), share() as other:
        assert other.ids == ("GPU-bb",)
        assert share().ids == ("GPU-bb",)
        assert TWO.lease("gpu", 1) is None
