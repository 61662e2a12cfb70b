"""Atomic output: files and folders are written under a temporary name and renamed when done.

All traces and run directories are written this way. After a crash, a full disk or Ctrl-C, what
has its final name is therefore whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from moesim.errors import OutputError, UsageError, shown
from moesim.inputs import check_regular, open_regular
from moesim.locks import abandoned, exclusive

PAGE: Final = ("a page", (".html", ".htm"), b'<meta name="generator" content="moesim ')
"""What `check_may_write` asks of a page of moesim."""

_HEAD_BYTES: Final = 4096
_OLD: Final = ".old"  # ending of a folder that is being replaced, until its successor has its name


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return a user's path with `~` expanded to the home folder.

    Raise `UsageError` for a value that is no path, or holds a NUL character.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise UsageError(f"{shown(path)} is no path: it must be text or a Path") from None
    if "\0" in text:
        raise UsageError(f"{shown(text)} is no path: it holds a NUL character")
    return Path(os.path.expanduser(text))


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system (full disk, read-only folder) into `OutputError`."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        inside = error.filename or path
        raise OutputError(path, f"{inside} is a file, where a folder is needed") from error
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error


@contextmanager
def whole_folder(
    path: Path, *, force: bool = False, ours: Collection[str] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that is renamed to `path` when the block ends.

    On an exception, remove the temporary folder and leave `path` as it was. An existing `path` is
    replaced only with `force`, and only once the new folder is whole. A folder that is replaced
    must hold a file named in `ours`, so that no unrelated folder is deleted; None skips this check.

    Raises:
        OutputError: `path` cannot be written or replaced, or another process is writing it.
    """
    path = Path(path)
    may_replace(path, force, ours)
    with output_errors(path), _partial(path) as partial:
        yield partial
        _publish(partial, path, force=force)


@contextmanager
def _partial(path: Path, *, wait: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, whose lock is held until the folder is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path, wait=wait) as locked:
        if locked:  # without locks, a leftover cannot be told from another writer's folder
            _remove_leftovers(path)
        partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
        try:  # an interrupt may arrive as soon as the folder is there
            partial.mkdir(mode=0o700)
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def clean_up(folder: Path) -> None:
    """Remove the temporary files of killed writers from `folder`, if it exists."""
    for path in abandoned(folder):
        _remove_leftovers(path)


@contextmanager
def without_leftovers(folder: Path) -> Iterator[None]:
    """Clean up `folder` before and after the context, as a killed worker could not do itself."""
    clean_up(folder)
    try:
        yield
    finally:
        clean_up(folder)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of killed writers of `path`; the caller holds its lock."""
    for entry in path.parent.iterdir():
        if not entry.name.startswith(f".{path.name}.partial-"):
            continue
        if entry.name.endswith(_OLD) and not path.exists():
            continue  # the writer was killed between two renames: this is the only whole folder
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def may_replace(path: Path, force: bool, ours: Collection[str] | None) -> None:
    """Raise `OutputError` where `whole_folder` would not replace `path`, if that exists.

    Called by itself, it refuses an output before long work.
    """
    with output_errors(path):
        if not path.exists():
            return
        if not force:
            raise OutputError(path, "already exists; choose another name or pass --force")
        if not path.is_dir():
            raise OutputError(path, "is a file; only a folder is replaced")
        inside = {entry.name for entry in path.iterdir()}
    if ours is not None and inside and inside.isdisjoint(ours):
        raise OutputError(
            path, f"is replaced only where it holds {' or '.join(ours)}; choose another name"
        )


def check_may_write(
    file: Path, option: str, what: str, endings: tuple[str, ...], mark: bytes
) -> None:
    """Raise an error, before any work, where `option` names a file that is not to be written.

    What is made from finished results is replaced without asking, but no other file. `mark` is in
    the first bytes of each file of this kind that moesim writes.

    Raises:
        UsageError: the name of `what` has none of these `endings`, or is that of a folder.
        OutputError: the file exists, and moesim did not write it.
    """
    named = f"{option} {shown(str(file))}"
    if not file.name.lower().endswith(endings):
        raise UsageError(f"{named}: the name of {what} ends in {' or '.join(endings)}")
    if file.is_dir():
        raise UsageError(f"{named}: this is a folder; name a file in it")
    with output_errors(file):
        head = _head_of(file) if file.exists() else b""
    if head and mark not in head:  # an empty file, as `mktemp` makes, may be written
        raise OutputError(file, "exists, and moesim did not write it; choose another name")


def _head_of(file: Path) -> bytes:
    """Return the first bytes of a file, unpacked if gzip has packed them."""
    with open_regular(file) as stream:
        head = stream.read(_HEAD_BYTES)
    with suppress(zlib.error):
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _HEAD_BYTES) or head
    return head


def _publish(partial: Path, path: Path, *, force: bool) -> None:
    """Rename a whole folder to `path`. If that fails, leave the folder that was there."""
    umask = os.umask(0)  # the mask can only be read by setting it
    os.umask(umask)
    partial.chmod(0o777 & ~umask)  # it was made private
    if not path.exists():
        partial.rename(path)
        return
    if not force:
        raise OutputError(path, "was written by another process meanwhile; choose another name")
    old = partial.with_name(partial.name + _OLD)
    try:
        path.rename(old)
        partial.rename(path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        raise
    if old.is_symlink():
        old.unlink()  # the folder that the link points to stays
    else:
        shutil.rmtree(old)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file name; rename the file to `path` when the block ends.

    On an exception, leave `path` as it was. Where another process is writing `path`, wait for it:
    a file takes moments, unlike a folder. Raise `OutputError` where `path` cannot be written, or is
    a folder, a device or a pipe.
    """
    path = Path(path)
    with output_errors(path):
        if path.exists():  # a rename would replace a device, also behind a link like /dev/stdout
            check_regular(path.stat())
        _refuse_an_open_file(path)
    with output_errors(path), _partial(path, wait=True) as folder:
        yield folder / path.name
        (folder / path.name).replace(path)


def _refuse_an_open_file(path: Path) -> None:
    """Raise `OSError` for a link like /dev/stdout: a rename would replace it for all processes."""
    # The standard output may be a regular file, so the kind of the file does not tell.
    if path.is_symlink() and path.readlink().is_relative_to("/proc"):
        raise OSError(errno.EINVAL, "is a link to an open file; name a file of its own")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with an indent, its keys in their order; NaN is a `ValueError`."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns (arrays, lists or Arrow arrays of one length) as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("wb") as file:  # Arrow would read a name like `s3:run` as an address
        pq.write_table(pa.table(dict(columns)), file)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file's bytes, in hexadecimal. Raise `OSError`."""
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
