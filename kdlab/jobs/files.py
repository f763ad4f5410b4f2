"""Writes that another process may be reading: whole or not at all."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from kdlab.errors import Fault
from kdlab.redaction import holds_secret

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Whole = TypeVar("Whole")

DISK_FULL = 74
"""Exit code of a job that could not write for want of room; Unix calls it EX_IOERR."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_FORMULA = re.compile(r"[=+\-@＝＋－＠\t\r\n].", re.DOTALL)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; on leaving it is flushed to disk and renamed onto `path`.

    An exception inside leaves the old file as it was and removes the temporary one.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # `tempfile` would make it readable by its owner alone, and runs are often shared.
    with temporary.open("xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`; what holds a secret is for its owner alone to read."""
    with replacing(path) as file:
        if holds_secret(text):
            os.fchmod(file.fileno(), 0o600)
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace the content of `path` by `value` as indented JSON; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_json_once(path: Path, value: Any) -> bool:
    """As `write_json` where there is no file yet, whoever else tries at the same time; whether it did."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    write_json(temporary, value)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _made(path, temporary.read_bytes())
    finally:
        temporary.unlink()
    return True


def _made(path: Path, content: bytes) -> bool:
    """Whether a file was made, where a disk has no links: for an instant it can be read in part."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def read_bytes(path: Path) -> bytes:
    """Content of a file, in half the time that `Path.read_bytes` takes: of ten thousand jobs that counts.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a folder, or a link to itself.
    """
    try:
        with FileIO(path, opener=_at_once) as file:
            return file.readall() or b""
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ELOOP):
            raise ValueError(f"no file: {error.strerror}") from error
        raise


def _at_once(path: str, flags: int) -> int:
    # a named pipe would wait for somebody who writes
    return os.open(path, flags | os.O_NONBLOCK)


def parsed(text: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or nested deeper than any file of kdlab.
    """
    # here, for pydantic is slow to import; of ten thousand results it reads three where `json` reads one
    from pydantic_core import from_json

    try:
        return from_json(text)
    except ValueError:
        # a path that is no UTF-8 is written with surrogates, which it does not know
        try:
            return json.loads(text)
        except RecursionError as error:
            raise ValueError("nested deeper than any file of kdlab") from error


def read_json(path: Path) -> Any | None:
    """The value in a JSON file, or None where there is no such file; raises as `parsed` does."""
    try:
        return parsed(read_bytes(path))
    except FileNotFoundError:
        return None


def csv_text(rows: Iterable[Sequence[Any]], notes: Iterable[str] = ()) -> str:
    """Rows as CSV below notes in `#` lines; no text in it is a formula to a spreadsheet."""
    text = io.StringIO()
    text.writelines(f"# {' '.join(note.splitlines())}\n" for note in notes)
    csv.writer(text, lineterminator="\n").writerows([csv_cell(value) for value in row] for row in rows)
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """A value for CSV, with an apostrophe before a text that a spreadsheet would run as a formula."""
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def read_as(path: Path, kind: type[Whole]) -> Whole | None:
    """The value in a JSON file, its parts of the types that `kind` says, or None where there is no such file.

    Raises:
        ValueError: the file is damaged: cut, empty, or holds something else.
    """
    try:
        return as_kind(parsed(read_bytes(path)), kind)
    except FileNotFoundError:
        return None


def as_kind(data: Any, kind: type[Whole]) -> Whole:
    """Plain data as a dataclass or the like.

    Raises:
        ValueError: it is none; says in one line where it differs first.
    """
    from pydantic import ValidationError

    try:
        return cast(Whole, _adapter(cast(Any, kind)).validate_python(data))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error


def read_if_whole(path: Path, kind: type[Whole]) -> Whole | None:
    """As `read_as`, where a damaged file counts as absent: it is made again, or others tell as much."""
    try:
        return read_as(path, kind)
    except ValueError:
        return None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # not at the top: quick verbs do without pydantic
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or what led to it, is for want of room on a disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full(folder: Path) -> Fault:
    """The fault of a disk without room."""
    fix = "make room; the same command goes on from the last checkpoint"
    return Fault("the disk is full", where=str(folder), got=os.strerror(errno.ENOSPC), fix=fix)
