from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdlab.datasets.base import (
    DatasetFiles,
    Split,
    cache_dir,
    content_of,
    fingerprint,
    make_once,
    not_there,
    sizes_below,
    user_path,
)
from kdlab.errors import MachineError


def a_split(folder: Path) -> Split:
    (folder / "images" / "sub").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"aaaa")
    (folder / "images" / "sub" / "b.png").write_bytes(b"bb")
    (folder / "labels.json").write_text('{"images": []}')
    return Split(folder / "images", folder / "labels.json")


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return a_split(tmp_path / "one")


def test_dataset_files_survive_json(split: Split) -> None:
    files = DatasetFiles("coco", ("cat", "dog"), split, Split(Path("v"), Path("v.json")), "0" * 16, ("voc",))
    assert DatasetFiles.from_dict(json.loads(json.dumps(files.to_dict()))) == files


def test_files_written_before_metrics_could_be_chosen_are_measured_as_coco(split: Split) -> None:
    old = DatasetFiles("coco", ("cat",), split, split, "0" * 16).to_dict()
    del old["metrics"]
    assert DatasetFiles.from_dict(old).metrics == ("coco",)


def test_fingerprint_does_not_depend_on_the_place(split: Split, tmp_path: Path) -> None:
    copy = Split(tmp_path / "two" / "images", tmp_path / "two" / "labels.json")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert fingerprint([split]) == fingerprint([copy])


def test_folders_that_lead_into_each_other_are_left_after_one_round(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).mkdir()
        (tmp_path / one / f"{one}.jpg").write_bytes(b"1")
        for number in range(3):
            (tmp_path / one / f"to{number}").symlink_to(tmp_path / other)
    names = sorted(name for name, _ in sizes_below(tmp_path / "a"))
    assert names == ["a.jpg", "to0/b.jpg", "to1/b.jpg", "to2/b.jpg"]


def test_fingerprint_is_sixteen_hex_digits(split: Split) -> None:
    assert len(fingerprint([split])) == 16
    assert int(fingerprint([split]), 16) > 0


def test_fingerprint_sees_one_changed_byte_of_the_labels(split: Split) -> None:
    before = fingerprint([split])
    split.labels.write_text('{"imagez": []}')
    assert fingerprint([split]) != before


@pytest.mark.parametrize(
    ("old", "new"), [("a.png", "c.png"), ("sub/b.png", "sub/c.png"), ("sub/b.png", "b.png")]
)
def test_fingerprint_sees_a_renamed_or_moved_image(split: Split, old: str, new: str) -> None:
    before = fingerprint([split])
    (split.images / old).rename(split.images / new)
    assert fingerprint([split]) != before


def test_fingerprint_does_not_depend_on_the_order_in_which_the_disk_lists(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, scandir = fingerprint([split]), os.scandir

    @contextmanager
    def backwards(folder: str) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(folder) as entries:
            yield list(entries)[::-1]

    monkeypatch.setattr(os, "scandir", backwards)
    assert fingerprint([split]) == before


def test_fingerprint_sees_a_changed_image_size_in_a_subfolder(split: Split) -> None:
    before = fingerprint([split])
    (split.images / "sub" / "b.png").write_bytes(b"bbb")
    assert fingerprint([split]) != before


def test_fingerprint_does_not_read_images(split: Split) -> None:
    before = fingerprint([split])
    (split.images / "a.png").write_bytes(b"AAAA")
    assert fingerprint([split]) == before


def test_fingerprint_leaves_out_hidden_files_and_folders(split: Split) -> None:
    before = fingerprint([split])
    (split.images / ".DS_Store").write_bytes(b"x")
    (split.images / ".ipynb_checkpoints").mkdir()
    (split.images / ".ipynb_checkpoints" / "a.png").write_bytes(b"x")
    assert fingerprint([split]) == before


def test_fingerprint_tells_train_from_val(split: Split, tmp_path: Path) -> None:
    other = a_split(tmp_path / "two")
    other.labels.write_text("{}")
    assert fingerprint([split, other]) != fingerprint([other, split])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"KDLAB_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"KDLAB_CACHE": "~/mine"}, "/home/me/mine"),
        ({"KDLAB_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/kdlab"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/kdlab"),
        ({}, "/home/me/.cache/kdlab"),
    ],
)
def test_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("KDLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


def test_user_without_home_is_told_to_set_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KDLAB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(MachineError, match="set KDLAB_CACHE"):
        cache_dir()


def test_path_of_an_unknown_user_is_left_for_the_caller_to_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert user_path("~no-such-user/data") == tmp_path / "~no-such-user" / "data"


def test_folder_is_built_once(tmp_path: Path) -> None:
    builds: list[Path] = []
    for _ in range(2):
        make_once(tmp_path / "new" / "set", lambda made: builds.append(made))
    assert len(builds) == 1
    assert (tmp_path / "new" / "set").is_dir()


def test_folder_appears_only_when_whole(tmp_path: Path) -> None:
    def build(made: Path) -> None:
        assert list(made.iterdir()) == []
        (made / "file").write_text("content")
        assert not (tmp_path / "set").exists()

    make_once(tmp_path / "set", build)
    assert (tmp_path / "set" / "file").read_text() == "content"


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(made: Path) -> None:
        (made / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_once(tmp_path / "set", build)
    assert list(tmp_path.iterdir()) == []


def test_slower_of_two_builders_uses_the_folder_of_the_faster(tmp_path: Path) -> None:
    def build(made: Path) -> None:
        (made / "by").write_text("slower")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "by").write_text("faster")

    make_once(tmp_path / "set", build)
    assert (tmp_path / "set" / "by").read_text() == "faster"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_made_folder_is_as_open_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    make_once(tmp_path / "set", lambda made: None)
    assert (tmp_path / "set").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_folder_that_cannot_be_made_names_place_and_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="set KDLAB_CACHE") as caught:
        make_once(tmp_path / "file" / "set", lambda made: None)
    assert caught.value.faults[0].where == str(tmp_path / "file" / "set")


def test_full_disk_is_a_machine_error_and_leaves_nothing(tmp_path: Path) -> None:
    def build(made: Path) -> None:
        (made / "half").write_text("")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MachineError, match="No space left on device"):
        make_once(tmp_path / "set", build)
    assert list(tmp_path.iterdir()) == []


def test_the_content_of_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/dev/null")
    with pytest.raises(OSError, match="no regular file"):
        content_of(tmp_path / "a")
    assert not_there("val_labels", tmp_path / "a", "file").got == "no regular file"
