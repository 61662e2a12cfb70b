"""The lock of a path: one process at a time writes there.

The lock is a file beside the path, held with `flock`. The kernel frees it when its holder ends,
even by SIGKILL. A free lock is therefore proof that no live process is writing the path.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from moesim.errors import OutputError

try:
    import fcntl
except ImportError:  # pragma: no cover - there is no flock on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["abandoned", "exclusive"]

_SUFFIX: Final = ".moesim-lock"

# A link under this name could point to a file of another program: it is not followed.
_FLAGS: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def exclusive(path: Path, *, wait: bool = False, inside: bool = False) -> Iterator[bool]:
    """Hold the lock of `path` in this block; yield False where the file system has no locks.

    Where another process holds it, wait until that ends if `wait` is set. The lock's file is beside
    `path`; or, with `inside`, in that folder, for one that stays while its contents change.

    Raises:
        OutputError: another process holds the lock (the message says which), or its file cannot
            be written.
    """
    file = path / _SUFFIX if inside else path.with_name(f".{path.name}{_SUFFIX}")
    handle = None if fcntl is None else _acquire(path, file, wait)
    if handle is None:
        yield False
        return
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, _holder().encode(), 0)
        yield True
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)


def abandoned(folder: Path) -> Iterator[Path]:
    """Yield each path in `folder` whose writer was killed, and hold its lock meanwhile.

    A writer that ends in order removes its lock's file, so a file whose lock is free tells of one
    that did not.
    """
    for file in sorted(folder.glob(f".*{_SUFFIX}")):
        name = file.name.removesuffix(_SUFFIX)[1:]
        with suppress(OutputError), exclusive(folder / name) as locked:
            if locked:
                yield folder / name


def _acquire(path: Path, file: Path, wait: bool) -> int | None:
    while True:
        try:
            handle = os.open(file, _FLAGS, 0o666)
        except OSError as error:
            raise OutputError(path, error.strerror or str(error)) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_file(handle, file):
                return handle
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise OutputError(
                path, f"is being written by {holder}; wait for it, or choose another name"
            ) from None
        except OSError:  # a file system without locks
            os.close(handle)
            file.unlink(missing_ok=True)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the holder before has removed the file, which locks nothing now


def _is_file(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _holder() -> str:
    since = datetime.now().isoformat(sep=" ", timespec="seconds")
    return f"process {os.getpid()} on {platform.node()} since {since}"
