"""Writes that another process may be reading: whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, Any

from kdlab.errors import Fault
from kdlab.redaction import holds_secret

DISK_FULL = 74
"""Exit code of a job that could not write for want of room; Unix calls it EX_IOERR."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


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
    finally:
        temporary.unlink()
    return True


def read_bytes(path: Path) -> bytes:
    """Content of a file, in half the time that `Path.read_bytes` takes: of ten thousand jobs that counts."""
    with FileIO(path) as file:
        return file.readall()


def read_json(path: Path) -> Any | None:
    """The value in a JSON file, or None where there is no such file."""
    try:
        return json.loads(read_bytes(path))
    except FileNotFoundError:
        return None


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
