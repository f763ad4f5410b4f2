"""Checkpoints are whole or passed over, and nothing in them is run."""

from __future__ import annotations

import pickle
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from kdlab.errors import JobError
from kdlab.training.checkpoints import (
    TrainingCheckpoints,
    load,
    random_state,
    restore_random_state,
    save,
    sha256,
)


@pytest.fixture
def checkpoints(tmp_path: Path) -> TrainingCheckpoints:
    return TrainingCheckpoints(tmp_path / "ckpt")


def state(value: float) -> dict[str, Any]:
    return {"weight": torch.full((100,), value), "plain": [1, "two", {"three": 3.0}]}


def files(checkpoints: TrainingCheckpoints) -> list[Path]:
    """The states by name, oldest first, and nothing else that may lie there."""
    return sorted(checkpoints.folder.iterdir())


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- training states ---


def test_the_newest_state_comes_back(checkpoints: TrainingCheckpoints) -> None:
    for iteration in (9, 10, 1_000_000):
        checkpoints.save(iteration, state(float(iteration)))
    found, broken = checkpoints.newest()
    assert found is not None
    assert torch.equal(found["weight"], torch.full((100,), 1e6))
    assert found["plain"] == [1, "two", {"three": 3.0}]
    assert broken == []


def test_two_states_are_kept(checkpoints: TrainingCheckpoints) -> None:
    for iteration in (1, 2, 3, 4):
        checkpoints.save(iteration, state(iteration))
    assert [path.name[:9] for path in files(checkpoints)] == ["000000003", "000000004"]


def test_no_state_is_no_fault(checkpoints: TrainingCheckpoints) -> None:
    assert checkpoints.newest() == (None, [])


def test_a_state_with_a_flipped_byte_is_passed_over(checkpoints: TrainingCheckpoints) -> None:
    checkpoints.save(1, state(1.0))
    checkpoints.save(2, state(2.0))
    newest = files(checkpoints)[-1]
    flip_a_byte(newest)
    found, broken = checkpoints.newest()
    assert found is not None
    assert found["weight"][0] == 1
    assert broken == [newest]


def test_a_broken_state_makes_room_for_the_next(checkpoints: TrainingCheckpoints) -> None:
    checkpoints.save(1, state(1.0))
    checkpoints.save(4, state(4.0))
    flip_a_byte(files(checkpoints)[-1])
    checkpoints.save(2, state(2.0))
    assert [path.name[:9] for path in files(checkpoints)] == ["000000001", "000000002"]


def test_a_later_state_of_an_iteration_takes_the_place_of_the_first(
    checkpoints: TrainingCheckpoints,
) -> None:
    checkpoints.save(1, state(1.0))
    for value in (2.0, 3.0, 4.0):
        checkpoints.save(2, state(value))
    found, _ = checkpoints.newest()
    assert found is not None
    assert found["weight"][0] == 4
    assert len(files(checkpoints)) == 2


def test_all_broken_is_as_none(checkpoints: TrainingCheckpoints) -> None:
    checkpoints.save(1, state(1.0))
    flip_a_byte(files(checkpoints)[0])
    assert checkpoints.newest() == (None, files(checkpoints))


def test_a_finished_job_keeps_its_weights_alone(checkpoints: TrainingCheckpoints) -> None:
    save(checkpoints.folder / "weights.pth", state(0.0))
    checkpoints.save(1, state(1.0))
    checkpoints.clear()
    assert [path.name for path in files(checkpoints)] == ["weights.pth"]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 20 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("numbers", [5_000, 100_000], ids=["at-the-end", "in-the-middle"])
def test_a_full_disk_is_told_and_leaves_the_old_state(
    checkpoints: TrainingCheckpoints, full_disk: None, numbers: int
) -> None:
    checkpoints.save(1, state(1.0))
    before = files(checkpoints)
    with pytest.raises(JobError, match="cannot be written") as raised:
        checkpoints.save(2, {"weight": torch.zeros(numbers)})
    assert "File too large" in str(raised.value)
    assert files(checkpoints) == before


# --- loading ---


class Code:
    def __reduce__(self) -> Any:
        return print, ("run from a checkpoint",)


class Unpickled:
    pass


@pytest.mark.parametrize("content", [Code(), Unpickled()], ids=["call", "class"])
def test_a_checkpoint_with_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any
) -> None:
    path = tmp_path / "code.pth"
    torch.save({"state_dict": content}, path)
    with pytest.raises(JobError, match="never runs code") as raised:
        load(path)
    assert "weights_only" not in str(raised.value)
    assert "run from a checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize("owner", [HistoryBuffer, np.ndarray])
def test_attributes_that_mmengine_does_not_ask_for_are_refused(tmp_path: Path, owner: type) -> None:
    class Attribute:
        def __reduce__(self) -> Any:
            return getattr, (owner, "__init__")

    torch.save({"meta": Attribute()}, tmp_path / "attribute.pth")
    with pytest.raises(JobError, match="it asks for the attribute __init__"):
        load(tmp_path / "attribute.pth")


def test_mmengines_checkpoints_load(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pth"
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save(
        {
            "meta": {"epoch": 1, "dataset_meta": {"CLASSES": ("a", "b"), "palette": np.arange(3)}},
            "message_hub": {"log_scalars": {"train/loss": history}, "iter": np.int64(7), "x": np.float64(2)},
            "state_dict": {"weight": torch.ones(2)},
        },
        path,
    )
    found = load(path)
    assert found["message_hub"]["log_scalars"]["train/loss"].mean() == 2
    assert found["message_hub"]["iter"] == 7
    assert found["meta"]["dataset_meta"]["palette"].tolist() == [0, 1, 2]


def test_checkpoints_written_under_numpy_1_load(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"array": np.arange(3.0), "number": np.float64(2)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    found = load(path)
    assert (found["array"].tolist(), found["number"]) == ([0, 1, 2], 2)


def test_loading_leaves_torchs_own_safe_list_alone(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    save(tmp_path / "x.pth", state(0.0))
    load(tmp_path / "x.pth")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"a": 1})[:-3]])
def test_what_is_no_checkpoint_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(JobError, match="cannot be read"):
        load(path)


def test_a_checkpoint_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    save(path, state(0.0))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(JobError, match="cannot be read"):
        load(path)


def test_a_missing_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no such checkpoint"):
        load(tmp_path / "nowhere.pth")


def test_saving_returns_the_hash_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    assert save(path, state(0.0)) == sha256(path)


# --- random numbers ---


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(), float(np.random.randn()), float(torch.rand(()))]

    draw()
    save(tmp_path / "x.pth", {"random": random_state()})
    expected = draw()
    draw()
    restore_random_state(load(tmp_path / "x.pth")["random"])
    assert draw() == expected
