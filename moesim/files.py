"""Files that are either whole or absent: write under a temporary name, rename when done.

Everything moesim leaves behind (traces, run directories) goes through here, so that a crash, a
full disk or Ctrl-C never leaves something half-written under its final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moesim.errors import OutputError
from moesim.locks import abandoned, exclusive

_OLD = ".old"


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system failure (full disk, read-only folder) into an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error


@contextmanager
def whole_folder(
    path: Path, *, force: bool = False, ours: Collection[str] | None = None
) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that becomes `path` when the block ends well.

    On any exception the temporary folder is removed and `path` is left as it was. An existing
    `path` is refused unless `force` is set, and is only replaced once the new one is whole. Of
    `ours`, one file must be in a folder that is replaced, so that no unrelated folder is deleted;
    None trusts the caller. Raises `OutputError`, also where another process is writing `path`.
    """
    path = Path(path)
    with output_errors(path):
        if path.exists():
            may_replace(path, force, ours)
        with _partial(path) as partial:
            yield partial
            _publish(partial, path, force=force)


@contextmanager
def _partial(path: Path, *, wait: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, whose lock is held until the folder is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path, wait=wait) as locked:
        if locked:
            _remove_leftovers(path)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def clean_up(folder: Path) -> None:
    """Remove what killed writers have left in `folder`, if there is such a folder."""
    for path in abandoned(folder):
        _remove_leftovers(path)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left beside it. The caller holds the lock of `path`."""
    for entry in path.parent.iterdir():
        if not entry.name.startswith(f".{path.name}.partial-"):
            continue
        if entry.name.endswith(_OLD) and not path.exists():
            continue  # killed between two renames: this is the only whole folder there is
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def may_replace(path: Path, force: bool, ours: Collection[str] | None) -> None:
    """Raise `OutputError` where `whole_folder` would not replace what is at `path`."""
    if not force:
        raise OutputError(path, "already exists; choose another name or pass --force")
    if not path.is_dir():
        raise OutputError(path, "is a file, and no folder to replace")
    if ours is not None:
        inside = {entry.name for entry in path.iterdir()}
        if inside and inside.isdisjoint(ours):
            raise OutputError(
                path, f"is replaced only where it holds {' or '.join(ours)}; choose another name"
            )


def _publish(partial: Path, path: Path, *, force: bool) -> None:
    """Give a whole folder its final name; one that was there comes back if that fails."""
    umask = os.umask(0)
    os.umask(umask)
    partial.chmod(0o777 & ~umask)  # mkdtemp made it private
    if not path.exists():
        partial.rename(path)
        return
    if not force:
        raise OutputError(path, "was written by another process meanwhile; choose another name")
    old = partial.with_name(partial.name + _OLD)
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    if old.is_symlink():
        old.unlink()  # what it points to is not ours
    else:
        shutil.rmtree(old)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a file's temporary name to write to; it becomes `path` when the block ends well.

    An exception leaves `path` as it was. Another process that is writing `path` is waited for: a
    file is written in moments, a folder may take hours. Raises `OutputError` where it cannot be
    written.
    """
    path = Path(path)
    with output_errors(path), _partial(path, wait=True) as folder:
        yield folder / path.name
        (folder / path.name).replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as stable, readable JSON (sorted as given, one trailing newline)."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
