"""Weights from outside are found or fetched once, and what does not fit stops the plan."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from http.client import BadStatusLine, HTTPException, IncompleteRead, LineTooLong
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab import catalog
from kdlab.errors import Fault, MachineError, UsageError
from kdlab.planning import weights as weight_files
from kdlab.planning.weights import WeightFile
from kdlab.recipe import loader as recipe
from kdlab.recipe.loader import Recipe

CONTENT = b"some weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
UNTRAINED = ("teacher.schedule=null",)


def naming(text: str, *more: str) -> Recipe:
    return recipe.load("digits/from_scratch", [*UNTRAINED, f'teacher.checkpoint="{text}"', *more])


def gathered(text: str) -> WeightFile:
    return weight_files.gather(naming(text))["teacher.checkpoint"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def server(tmp_path: Path, asked: list[str]) -> Iterator[str]:
    """The address of a folder with one file."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(str(args[0]))

    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("a.pth", f"a-{DIGEST[:8]}.pth", "a-00000000.pth"):
        (folder / name).write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as serving:
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


@pytest.mark.parametrize("text", ["a.pth", "~/a.pth", "{folder}/a.pth"])
def test_paths_are_of_the_working_directory_or_home(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pth").write_bytes(CONTENT)
    assert gathered(text.format(folder=tmp_path)) == WeightFile(str(tmp_path / "a.pth"), DIGEST)


def test_what_is_not_here_may_come_with_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = catalog.recipes()["digits/quickstart"].path.with_name("teacher.pth")
    assert gathered("digits/teacher.pth").path == str(shipped)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "teacher.pth").write_bytes(CONTENT)
    assert gathered("digits/teacher.pth") == WeightFile(str(tmp_path / "digits" / "teacher.pth"), DIGEST)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    for path, clause in ((tmp_path / "no.pth", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(UsageError, match=clause):
            gathered(str(path))


@pytest.mark.parametrize("name", ["a.pth", f"a-{DIGEST[:8]}.pth"])
def test_a_url_is_fetched_once(name: str, server: str, asked: list[str], cache: Path) -> None:
    said: list[str] = []
    weight_files.gather(naming(f"{server}/{name}"), said.append)
    again = gathered(f"{server}/{name}")
    assert again.sha256 == DIGEST
    assert Path(again.path).is_relative_to(cache)
    assert len(asked) == 1
    assert said == [f"downloading {name}: 0 of 0 MB"]


def test_a_file_url_is_the_file_as_it_is_now(tmp_path: Path) -> None:
    file = tmp_path / "a b.pth"
    file.write_bytes(b"before")
    assert gathered(file.as_uri()).sha256 != DIGEST
    file.write_bytes(CONTENT)
    assert gathered(file.as_uri()).sha256 == DIGEST
    assert gathered(file.as_uri()).path == str(file)


def test_a_name_that_promises_another_content_is_refused(server: str) -> None:
    with pytest.raises(MachineError, match="not the ones that their name promises"):
        gathered(f"{server}/a-00000000.pth")


def test_no_network_names_the_url_and_where_to_put_the_file(server: str, cache: Path) -> None:
    with pytest.raises(MachineError) as raised:
        gathered(f"{server}/absent.pth")
    (fault,) = raised.value.faults
    assert fault.where == f"{server}/absent.pth"
    place = Path(fault.fix.rpartition(" ")[2])
    place.write_bytes(CONTENT)
    assert gathered(f"{server}/absent.pth").sha256 == DIGEST


def test_a_download_that_breaks_leaves_nothing(
    server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        headers = {"Content-Length": "100"}

        def __enter__(self) -> Any:
            answer = iter([b"half", b""])
            self.read1 = lambda _: next(answer)
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Broken())
    with pytest.raises(MachineError, match="after 4 of 100 bytes"):
        gathered(f"{server}/a.pth")
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "error",
    [BadStatusLine("x"), LineTooLong("header line"), IncompleteRead(b"x"), HTTPException("got 101 headers")],
    ids=lambda error: type(error).__name__,
)
def test_an_answer_that_is_no_http_is_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(MachineError, match="cannot be downloaded"):
        gathered("http://host/a.pth")


@pytest.mark.parametrize(
    "url",
    [
        "http://host:abc/x.pth",
        "http://[::1/x.pth",
        "http://",
        "http:///x.pth",
        "http://h/a\\x01b",
        "https://h:99999/x",
    ],
)
def test_what_is_no_url_is_told_with_its_line(url: str) -> None:
    with pytest.raises(UsageError, match="this is no URL") as caught:
        gathered(url)
    assert caught.value.faults[0].where.endswith("teacher.checkpoint")


def test_a_url_with_a_space_is_fetched_as_a_browser_would(server: str, tmp_path: Path) -> None:
    (tmp_path / "served" / "a b.pth").write_bytes(CONTENT)
    assert gathered(f"{server}/a b.pth").sha256 == DIGEST


@pytest.mark.parametrize(
    "page", [b"\n<!DOCTYPE html>login", b'{"error": "token"}', b"version https://git-lfs.x"]
)
def test_a_page_in_place_of_weights_does_not_stay(
    page: bytes, server: str, tmp_path: Path, cache: Path
) -> None:
    served = tmp_path / "served" / "a.pth"
    served.write_bytes(page)
    with pytest.raises(MachineError, match="and no weights"):
        gathered(f"{server}/a.pth")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_download_has_a_largest_size_and_a_longest_time(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_files, "WHOLE_S", -1.0)
    with pytest.raises(MachineError, match="bytes came in"):
        gathered(f"{server}/a.pth")
    monkeypatch.setattr(weight_files, "MOST_BYTES", 5)
    with pytest.raises(MachineError, match="it is larger than"):
        gathered(f"{server}/a.pth")


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "HEADERS_S", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(MachineError, match="no whole answer in"),
    ):
        gathered(f"http://127.0.0.1:{silent.getsockname()[1]}/a.pth")


@pytest.mark.parametrize("text", ["a" * 5000, "b/" * 3000, "file://[::1", "x\\0y"])
def test_what_can_be_no_path_is_told(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        gathered(text)
    assert len(caught.value.faults[0].got) < 200


@settings(deadline=None, derandomize=True, database=None, max_examples=150)
@given(
    st.sampled_from(["", "http://", "https://h/", "http://h:1/", "file:", "~", "FILE://"]),
    st.text(st.characters(codec="utf-8"), max_size=60),
)
def test_any_path_or_url_is_found_or_told(prefix: str, text: str) -> None:
    model = naming("x.pth")
    assert model.teacher is not None
    named = model.model_copy(
        update={"teacher": model.teacher.model_copy(update={"checkpoint": f"{prefix}{text}"})}
    )

    def absent(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    with pytest.MonkeyPatch.context() as patch, pytest.raises((UsageError, MachineError)):
        patch.setattr("urllib.request.urlopen", absent)
        weight_files.gather(named)


def answer(**changes: Any) -> dict[str, Any]:
    found = {
        "key_fault": None,
        "class_fault": None,
        "classes": None,
        "expected": 10,
        "lines": ["1 of 2 loaded"],
    }
    return {"student": {}, "teacher": {"checkpoint": found | changes}}


FILES = {"teacher.checkpoint": WeightFile("/w/a.pth", DIGEST)}
KEYS, CLASSES = asdict(Fault("keys differ", "", "got", fix="x")), asdict(Fault("classes differ"))


def test_faults_name_the_recipe_and_the_file() -> None:
    answers = answer(key_fault=KEYS, class_fault=CLASSES)
    keys, classes = weight_files.faults(naming("/w/a.pth"), FILES, answers)
    assert keys.what == "keys differ"
    assert keys.where == '--set teacher.checkpoint="/w/a.pth"  teacher.checkpoint: /w/a.pth'
    assert classes.what == "classes differ"


@pytest.mark.parametrize(("count", "refused"), [(10, True), (80, False)])
def test_partial_accepts_keys_but_not_classes_in_another_order(count: int, refused: bool) -> None:
    answers = answer(key_fault=KEYS, class_fault=CLASSES, classes=["c"] * count)
    found = list(weight_files.faults(naming("/w/a.pth", "teacher.partial=true"), FILES, answers))
    assert [fault.what for fault in found] == (["classes differ"] if refused else [])


def test_notes_say_what_was_not_loaded() -> None:
    notes = list(weight_files.notes(FILES, answer(key_fault=KEYS)))
    assert "1 of 2 loaded" in notes[0]
    assert "names no classes" in notes[1]


def test_whole_checkpoint_of_the_same_classes_needs_no_note() -> None:
    assert not list(weight_files.notes(FILES, answer(classes=["c"])))
