"""The files of a dataset (`DatasetFiles`), their fingerprint, and the user's cache folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from kdlab.errors import Fault, MachineError, UsageError, suggestion
from kdlab.redaction import ADDRESS_START

PARTS = ("train", "val")
NOT_REGULAR = "no regular file"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Usual endings of image files."""
EXPORTED = re.compile(r"[._-](jpe?g|png|bmp|webp|tiff?)\.rf\..*$|\.rf\.[0-9a-f]{8,}.*$", re.IGNORECASE)
"""The end of a name that an export gave a copy of a photograph: `p_jpg.rf.HASH.jpg` is one of p."""


@dataclass(frozen=True)
class Split:
    """One part of a dataset.

    Args:
        images: folder that the labels' `file_name` entries are relative to.
        labels: COCO JSON file.
        sha256: of the labels, where they are a person's own and can change under a plan; else "".
    """

    images: Path
    labels: Path
    sha256: str = ""

    def sealed(self) -> Self:
        """The same, with the hash of what the labels are now.

        Raises:
            OSError: they cannot be read.
        """
        with self.labels.open("rb") as file:
            return replace(self, sha256=hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class DatasetFiles:
    """A dataset on disk, as plain data that crosses a process boundary.

    Args:
        name: the dataset's key, as in a recipe.
        classes: names in the order of the category ids, so that label k is the k-th lowest id.
        train: what the models learn from.
        val: what they are measured on.
        fingerprint: see `fingerprint`.
        metrics: what it is measured with: "coco", and "voc" where PASCAL VOC's own mAP is wanted besides.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    fingerprint: str
    metrics: tuple[str, ...] = ("coco",)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        data = asdict(self) | {"classes": list(self.classes), "metrics": list(self.metrics)}
        for part in PARTS:
            data[part] = {name: str(path) for name, path in data[part].items()}
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DatasetFiles:
        """Inverse of `to_dict`; jobs written before there was a choice are measured as COCO."""
        train, val = (
            Split(Path(data[part]["images"]), Path(data[part]["labels"]), data[part].get("sha256", ""))
            for part in PARTS
        )
        metrics = tuple(data.get("metrics", ("coco",)))
        return cls(data["name"], tuple(data["classes"]), train, val, data["fingerprint"], metrics)


def fingerprint(splits: Iterable[Split]) -> str:
    """16 hex digits of SHA-256 over the labels by content and the images by name and size.

    Where the dataset lies does not count, the order of the splits does. Hidden files are left out:
    file managers and notebooks leave them behind; so are links that lead nowhere.

    Raises:
        OSError: a labels file or an images folder cannot be read.
    """
    return fingerprint_of((split.labels, sizes_below(split.images)) for split in splits)


def fingerprint_of(parts: Iterable[tuple[Path, Iterable[tuple[str, int]]]]) -> str:
    """The same where not all files of the images folder are images of the split.

    Args:
        parts: of each split the labels file, and the names of its images with their sizes in bytes.

    Raises:
        OSError: a labels file cannot be read.
    """
    digest = hashlib.sha256()
    for labels, images in parts:
        with labels.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        for name, size in sorted(images):
            digest.update(b"%s\0%d\n" % (os.fsencode(name), size))
    return digest.hexdigest()[:16]


def sizes_below(
    folder: Path | str, prefix: str = "", above: tuple[Path, ...] = ()
) -> Iterator[tuple[str, int]]:
    """Name, relative to the first `folder`, and size in bytes of every file below it.

    Hidden files are left out, and links that lead nowhere or back to a folder on the way to them.

    Raises:
        OSError: a folder cannot be read.
    """
    above = (*above, Path(folder).resolve())
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and _leads_nowhere(Path(entry.path), above):
                continue
            if entry.is_dir():
                yield from sizes_below(entry.path, f"{prefix}{entry.name}/", above)
            else:
                yield prefix + entry.name, entry.stat().st_size


def _leads_nowhere(link: Path, above: Sequence[Path]) -> bool:
    """True for a link to nothing, or to a folder that holds one of those above it."""
    if not link.exists():
        return True
    target = link.resolve()
    return any(folder.is_relative_to(target) for folder in above)


def gone_link(path: Path) -> str:
    """ "a link to a.jpg, which is not there"; "" of all else."""
    return (
        f"a link to {path.readlink()}, which is not there" if path.is_symlink() and not path.exists() else ""
    )


def content_of(path: Path) -> bytes:
    """Content of a regular file; a pipe may never be written to, and a device never ends.

    Raises:
        OSError: it cannot be read, or it is no regular file.
        ValueError: no file can have this name.
    """
    if is_odd(path):
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    return path.read_bytes()


def is_odd(path: Path) -> bool:
    """True for what is there and neither a file nor a folder."""
    return not path.is_file() and path.exists() and not path.is_dir()


def first_of(words: Sequence[str], most: int) -> str:
    """ "a, b, c and 4 more"."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def not_there(option: str, path: Path, kind: str, taken: Collection[Path] = ()) -> Fault:
    """The fault of an option of `dataset:` whose file or folder is missing, with what is next to it.

    Args:
        option: its name.
        path: what it names.
        kind: "file" or "folder".
        taken: by other options, so that they are not meant here.
    """
    where = str(path)
    if path.exists():
        other = "a folder" if kind == "file" else "a file"
        fix = f"set dataset.{option} to a {kind}, relative to dataset.root"
        return Fault(
            f"dataset.{option} is not a {kind}",
            where=where,
            got=NOT_REGULAR if is_odd(path) else other,
            fix=fix,
        )
    if got := gone_link(path):
        return Fault(f"dataset.{option} is not a {kind}", where=where, got=got, fix="mend the link")
    # the part of the path at which it leads nowhere
    gone = next((part for part in (path, *path.parents) if part.parent.is_dir()), path)
    wants_file = kind == "file" and gone == path
    siblings = sorted(there for there in gone.parent.iterdir()) if gone.parent.is_dir() else []
    free = [there.name for there in siblings if there not in taken and there.is_file() == wants_file]
    fix = f"put the {kind} there, or set dataset.{option} relative to dataset.root"
    fix = suggestion(gone.name, free) or fix
    known = first_of([there.name for there in siblings], 8)
    return Fault(f"dataset.{option} is not a {kind}", where=where, known=known, fix=fix)


def root_folder(root: str) -> Path:
    """The folder that `dataset.root` names.

    Raises:
        UsageError: it is not there.
    """
    folder = user_path(root)
    if not folder.is_dir():
        fix = "set dataset.root to the folder that holds the images and annotations"
        raise UsageError("dataset.root is not a folder", where=str(folder), fix=fix)
    return folder


def unreadable(error: OSError, folder: Path) -> MachineError:
    """The fault of a part of a dataset that is there and cannot be read."""
    return MachineError(
        f"this part of the dataset cannot be read: {error.strerror or error}",
        where=str(error.filename or folder),
        fix="check its permissions, and that its disk is mounted",
    )


def user_path(text: str) -> Path:
    """A path as a person typed it, `~` included, made absolute because jobs run in other folders.

    Raises:
        UsageError: it is an address.
    """
    if scheme := ADDRESS_START.match(text):
        what, got = "an address stands where a path belongs", f"{scheme[1]}://..."
        raise UsageError(what, got=got, fix="name a file or folder of this machine")
    return Path(os.path.expanduser(text)).absolute()  # noqa: PTH111 - pathlib's raises on an unknown user


def cache_dir() -> Path:
    """The user's cache folder: `$KDLAB_CACHE`, else `$XDG_CACHE_HOME/kdlab`, else `~/.cache/kdlab`.

    It need not exist yet.

    Raises:
        MachineError: nothing is set and the user has no home folder.
    """
    try:
        if chosen := os.environ.get("KDLAB_CACHE"):
            return user_path(chosen)
        # The XDG specification says to ignore a relative path here.
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "kdlab"
    except RuntimeError as error:
        raise MachineError(
            "there is no home folder to keep the cache in", got=str(error), fix="set KDLAB_CACHE to a folder"
        ) from error


def make_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Make `folder` unless it is there, so that it is either whole or absent.

    `build` fills an empty folder next to it, which then gets its name in one step. Of several processes that
    build at once the first to finish wins and the others use its folder; what a killed one leaves is never
    used.

    Raises:
        MachineError: the folder cannot be written or the disk is full.
    """
    try:
        if folder.is_dir():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as private:
            # A folder inside, because a temporary one is closed to everybody else and would stay so.
            made = Path(private) / "made"
            made.mkdir()
            build(made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise MachineError(
            f"this cache folder cannot be filled: {error.strerror or error}",
            where=str(folder),
            fix="set KDLAB_CACHE to a folder that you may write to, with room on its disk",
        ) from error


def labels_hash(folder: Path) -> str:
    """Hash of the labels in a cache folder."""
    return fingerprint_of((folder / f"{part}.json", ()) for part in PARTS)


def write_labels(labels: dict[str, dict[str, Any]], folder: Path, **made: Any) -> None:
    """Write the labels of each part into a cache folder and, last, what `intact` compares them with."""
    for part, content in labels.items():
        (folder / f"{part}.json").write_text(json.dumps(content, sort_keys=True))
    (folder / "made.json").write_text(json.dumps({**made, "labels": labels_hash(folder)}))


def intact(
    folder: Path, what: str, key: str = "labels", seal: Callable[[Path], str] = labels_hash
) -> dict[str, Any]:
    """The content of `made.json` in a finished cache folder.

    Args:
        folder: of `make_once`.
        what: it holds, for a message.
        key: under which `made.json` holds the hash of the files.
        seal: the hash that they have now.

    Raises:
        MachineError: a file was changed or removed.
    """
    try:
        made: dict[str, Any] = json.loads((folder / "made.json").read_text())
        if seal(folder) == made[key]:
            return made
    except (OSError, ValueError, KeyError):
        pass  # A file that is gone or torn is the same to the user as one that was changed.
    fix = f"rm -r {shlex.quote(str(folder))}"
    raise MachineError(f"{what} in the cache were changed or removed", where=str(folder), fix=fix)
