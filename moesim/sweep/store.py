"""A folder of runs behind an fsspec URL (`s3://bucket/sweep`), of which a local copy is used.

The copy starts with the finished runs that are there. Each new run is copied there as it ends, its
manifest last. So a run without a manifest is unfinished, as in a local folder.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from moesim.errors import MissingExtra, OutputError, UsageError
from moesim.simulate.rundir import MANIFEST

__all__ = ["Store", "is_url"]

RUNS: Final = "runs"
_COPIES: Final = 16  # a store takes as long for one small file as for some at a time


def is_url(text: str) -> bool:
    """Return whether a text is a URL, not a path."""
    scheme, colon, _ = text.partition("://")
    return bool(colon) and scheme.replace("+", "").replace("-", "").isalnum()


class Store:
    """The folder of a sweep behind a URL; use it as a context, which waits for its copies.

    Raises:
        MissingExtra: fsspec is not installed.
        UsageError: there is no such kind of URL, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise MissingExtra("ray", "--out with a URL") from None
        self.url = url
        try:
            self._files, self._root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"--out {url}: {error}") from None
        self._pool = ThreadPoolExecutor(_COPIES)
        self._copies: list[Future[None]] = []

    def close(self) -> None:
        """Wait for all copies. Raise `OutputError` if one failed."""
        self._pool.shutdown()
        self._check()

    def fetch(self, folder: Path, names: Collection[str]) -> None:
        """Copy the finished runs with these names into the local `folder`."""
        with self._errors():
            runs = self._listed()
            wanted = [name for name in names if MANIFEST in runs.get(name, ())]
            for name in wanted:
                (folder / RUNS / name).mkdir(parents=True)
            pairs = [(f"{RUNS}/{name}/{file}", folder) for name in wanted for file in runs[name]]
            list(self._pool.map(self._get, pairs))

    def save_run(self, run: Path) -> None:
        """Begin to copy a finished run to the store, and return at once.

        Raise `OutputError` if an earlier copy failed.
        """
        self._check()
        self._copies.append(self._pool.submit(self._put_run, run))

    def save_rest(self, folder: Path) -> None:
        """Copy the files of `folder` that belong to no run: tables and figures."""
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder)
            if file.is_file() and inside.parts[0] != RUNS and not file.name.startswith("."):
                self._put(file, inside.as_posix())

    def check_writable(self) -> None:
        """Raise `OutputError` if nothing can be written there."""
        name = f"{self._root}/.moesim-check"
        with self._errors():
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(name, b"")
            self._files.rm_file(name)

    def _listed(self) -> dict[str, list[str]]:
        """Return the files of each run that is there."""
        top = f"{self._root}/{RUNS}"
        self._files.invalidate_cache()
        runs: dict[str, list[str]] = defaultdict(list)
        for path in self._files.find(top):
            name, _, file = posixpath.relpath(path, top).partition("/")
            if file and "/" not in file:
                runs[name].append(file)
        return runs

    def _get(self, pair: tuple[str, Path]) -> None:
        name, folder = pair
        self._files.get_file(f"{self._root}/{name}", str(folder / name))

    def _put_run(self, run: Path) -> None:
        files = sorted(run.iterdir(), key=lambda file: (file.name == MANIFEST, file.name))
        for file in files:
            self._put(file, f"{RUNS}/{run.name}/{file.name}")

    def _put(self, file: Path, name: str) -> None:
        target = f"{self._root}/{name}"
        with self._errors():
            self._files.makedirs(posixpath.dirname(target), exist_ok=True)
            self._files.put_file(str(file), target)

    def _check(self) -> None:
        """Raise the error of a copy that failed."""
        ended = [copy for copy in self._copies if copy.done()]
        self._copies = [copy for copy in self._copies if not copy.done()]
        for copy in ended:
            copy.result()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        # Each kind of store has exceptions of its own, which have no common base.
        try:
            yield
        except Exception as error:
            raise OutputError(self.url, f"{type(error).__name__}: {error}") from error


Saved = Callable[[Path], Any]
"""What is called with the folder of each run that ends."""
