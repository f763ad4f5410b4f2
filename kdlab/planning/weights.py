"""Files of weights from outside: found or fetched, known by their SHA-256, refused where they do not fit."""

from __future__ import annotations

import hashlib
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from kdlab import catalog
from kdlab.datasets.base import cache_dir, user_path
from kdlab.deadline import within
from kdlab.errors import Fault, MachineError, UsageError
from kdlab.jobs.files import replacing
from kdlab.jobs.spec import ModelSettings
from kdlab.recipe.document import SHOWN_CHARACTERS, printable, shown
from kdlab.recipe.settings import Recipe
from kdlab.redaction import ADDRESS_START, masked_of

SAID_EVERY_S = 5.0
TIMEOUT_S, HEADERS_S, WHOLE_S = 30.0, 60.0, 7200.0
"""Of a download: silence of the server, time until its answer begins, and all of it."""
MOST_BYTES = 1 << 34
"""A larger download is no detector."""
NAME_CHARACTERS = 120
WORDS = ("none", "imagenet")
"""Values of `init:` that name no file."""
_URL = re.compile(r"https?://", re.IGNORECASE)
_DIGEST = re.compile(r"-([0-9a-f]{8})\.\w+$")
_CHUNK = 1 << 20
_UNSAFE = re.compile(r"[^\w.@+=-]")
_QUOTED = "%/:?#[]@!$&'()*+,;=~"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class WeightFile:
    """A file of weights.

    Args:
        path: where it lies now, absolute.
        sha256: of its content; in a job's id, where `path` is not.
    """

    path: str
    sha256: str


def gather(recipe: Recipe, progress: Progress = lambda text: None) -> dict[str, WeightFile]:
    """The files that a recipe names, by their key in it ("teacher.checkpoint"); URLs are fetched once.

    Raises:
        UsageError: there is no such file.
        MachineError: a URL cannot be fetched.
    """
    named = {f"{role}.init": model.init for role, model in models_of(recipe).items()}
    if recipe.teacher and recipe.teacher.checkpoint is not None:
        named["teacher.checkpoint"] = recipe.teacher.checkpoint
    found = {}
    for key, text in named.items():
        if text in WORDS and key.endswith(".init"):
            continue
        where = f"{recipe.place(key)}  {key}"
        path = _fetched(text, where, progress) if _URL.match(text) else _local(text, where)
        found[key] = WeightFile(str(path), _sha256(path))
    return found


def models_of(recipe: Recipe) -> dict[str, ModelSettings]:
    """The models of a recipe by their role: "student" and, where there is one, "teacher"."""
    models: dict[str, ModelSettings] = {"student": recipe.student}
    if recipe.teacher:
        models["teacher"] = recipe.teacher
    return models


def request(
    recipe: Recipe, files: Mapping[str, WeightFile], role: str, classes: Sequence[str]
) -> dict[str, Any]:
    """The part of a probe's request on the files of "student" or "teacher"; empty where it has none."""
    own = {key.partition(".")[2]: file for key, file in files.items() if key.startswith(f"{role}.")}
    if not own:
        return {}
    ema = recipe.teacher is not None and recipe.teacher.ema and role == "teacher"
    return {
        **({"ema": True} if ema else {}),
        "files": {part: file.path for part, file in own.items()},
        "sha256": {part: file.sha256 for part, file in own.items()},
        "classes": list(classes),
    }


def faults(
    recipe: Recipe, files: Mapping[str, WeightFile], answers: Mapping[str, Mapping[str, Any] | None]
) -> Iterator[Fault]:
    """Faults that keep the files from serving the models of a recipe.

    Args:
        recipe: names the files.
        files: of `gather`.
        answers: what the probe found of "student" and "teacher".
    """
    for key, file in files.items():
        role, _, part = key.partition(".")
        found = (answers[role] or {})[part]
        partial = part == "checkpoint" and recipe.teacher is not None and recipe.teacher.partial
        where = f"{recipe.place(key)}  {key}: {file.path}"
        if found["key_fault"] and not partial:
            yield replace(Fault(**found["key_fault"]), where=where)
        # labels of another number have no layer that could load; those of another order would, silently
        if found["class_fault"] and not (partial and len(found["classes"]) != found["expected"]):
            yield replace(Fault(**found["class_fault"]), where=where)


def notes(files: Mapping[str, WeightFile], answers: Mapping[str, Mapping[str, Any] | None]) -> Iterator[str]:
    """Notes on parts of a backbone's file that were left aside, and on a checkpoint that is not whole."""
    for key in files.keys() & {"student.init", "teacher.init"}:
        report = (answers[key.partition(".")[0]] or {})["init"]["report"]
        aside = ", ".join(f"{part} ({count})" for part, count in sorted(report["beside"].items()))
        loaded = f"{key}: {sum(report['loaded'].values())} tensors of the backbone"
        yield f"{loaded}; left aside: {aside}" if aside else loaded
    if "teacher.checkpoint" not in files:
        return
    found = (answers["teacher"] or {})["checkpoint"]
    if found["key_fault"]:
        yield f"teacher.partial: {'; '.join(found['lines'])}"
    if found.get("also"):
        yield (
            f"teacher.checkpoint holds averaged weights (EMA) too, under {found['also']}: "
            "teacher.ema: true takes them"
        )
    if found["classes"] is None:
        yield "teacher.checkpoint names no classes: their order could not be compared with the dataset's"


def _local(text: str, where: str) -> Path:
    """A path or `file:` URL of this machine; else one of the files that come with kdlab's own recipes."""
    fix = "correct the path or URL"
    if where.endswith("init"):
        fix += f" (or: {', '.join(WORDS)})"
    if (scheme := ADDRESS_START.match(text)) and scheme[1].lower() != "file":
        what = f"weights are fetched from http and https alone, not from {scheme[1]}"
        raise UsageError(
            what, where=where, got=f"{scheme[1]}://...", fix=f"fetch the file, and name it; {fix}"
        )
    try:
        local = url2pathname(urlsplit(text).path) if text.lower().startswith("file:") else text
        path = user_path(local).absolute()
        if path.is_file():
            return path
        if (own := catalog.recipe_folder() / local).is_file() and not path.exists():
            return own
        what = (
            "this is a folder, not a file of weights" if path.is_dir() else "there is no such file of weights"
        )
        got = str(path)
    except (OSError, ValueError) as error:
        what, got = f"this is no path of a file: {getattr(error, 'strerror', None) or error}", text
    raise UsageError(what, where=where, got=printable(got[:SHOWN_CHARACTERS]), fix=fix)


def _fetched(url: str, where: str, progress: Progress) -> Path:
    """The file of a URL in the cache folder, downloaded unless it is there.

    Raises:
        UsageError: it is no URL.
        MachineError: no network, no such file, no room, or not the content that the file's name promises.
    """
    try:
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0 or not url.isprintable():
            raise ValueError("it names no host, or holds control characters")
    except ValueError as error:
        raise UsageError(
            "this is no URL: no host or port can be read", where=where, got=shown(url), fix="correct the URL"
        ) from error
    name = _UNSAFE.sub("_", Path(unquote(parts.path)).name)[-NAME_CHARACTERS:].lstrip(".") or "weights.pth"
    path = cache_dir() / "weights" / hashlib.sha256(url.encode()).hexdigest()[:8] / name
    if not path.exists():
        by_hand = f"fetch it by other means and put it at {path}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(quote(url, safe=_QUOTED), path, progress)
        except (HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            told = masked_of(str(reason), url)
            got = printable(told[:SHOWN_CHARACTERS]) or type(error).__name__
            raise MachineError("the weights cannot be downloaded", where=url, got=got, fix=by_hand) from error
    promised = _DIGEST.search(name)
    if promised and not (found := _sha256(path)).startswith(promised[1]):
        raise MachineError(
            "the downloaded weights are not the ones that their name promises",
            where=str(path),
            got=f"SHA-256 {found[:8]}...",
            known=promised[1],
            fix=f"remove the file and fetch {url} again",
        )
    return path


def _download(url: str, path: Path, progress: Progress) -> None:
    """Fetch a URL; `path` gets the whole file or nothing."""
    began, done = time.monotonic(), 0
    said = began - SAID_EVERY_S
    answering = within(HEADERS_S, lambda: urllib.request.urlopen(url, timeout=TIMEOUT_S))
    with answering as answer, replacing(path) as file:
        total = int(answer.headers.get("Content-Length") or 0)
        while chunk := answer.read1(_CHUNK):
            if not done and (what := _not_weights(chunk)):
                raise ValueError(f"what came is {what}, and no weights")
            file.write(chunk)
            done += len(chunk)
            now = time.monotonic()
            if max(total, done) > MOST_BYTES:
                raise ValueError(f"it is larger than {MOST_BYTES >> 30} GiB")
            if now - began > WHOLE_S:
                raise ValueError(f"only {done} bytes came in {WHOLE_S / 60:.0f} minutes")
            if now - said >= SAID_EVERY_S:
                said = now
                of = f" of {total / 1e6:.0f}" if total else ""
                progress(f"downloading {path.name}: {done / 1e6:.0f}{of} MB")
        if done < total or not done:
            raise OSError(f"the connection ended after {done} of {total} bytes")


def _not_weights(head: bytes) -> str:
    """What a file is that begins like this; "" where it may hold weights."""
    start = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    kinds = {
        b"<": "a web page",
        b"{": "a message in JSON",
        b"version https://git-lfs": "a pointer of Git LFS",
    }
    return next((kind for sign, kind in kinds.items() if start.startswith(sign)), "")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
