"""A folder of runs behind an fsspec URL (`s3://bucket/sweep`), of which a local copy is used.

The copy gets finished runs from there. Each new run is copied there as it ends, its manifest last.
So a run without a manifest is unfinished, as in a local folder.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from moesim.errors import MissingExtra, OutputError, UsageError
from moesim.simulate.rundir import MANIFEST

__all__ = ["Store", "is_url"]

_RUNS: Final = ("runs", "prefix")  # the folders that hold run directories
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
        self._found: dict[str, list[str]] | None = None

    def close(self) -> None:
        """Wait for all copies. Raise `OutputError` if one failed."""
        self._pool.shutdown()
        self._check()

    def fetch(self, folder: Path, names: Collection[str]) -> None:
        """Copy the finished runs with these names into the local `folder`.

        A name is like `runs/cache.policy=lru`. What the store held at the first call counts.
        """
        with self._errors():
            if self._found is None:
                self._found = self._listed()
            found = self._found
            wanted = [name for name in names if MANIFEST in found.get(name, ())]
            for name in wanted:
                (folder / name).mkdir(parents=True)
            pairs = [(f"{name}/{file}", folder) for name in wanted for file in found[name]]
            list(self._pool.map(self._get, pairs))

    def fetch_file(self, folder: Path, name: str) -> None:
        """Copy one file into the local `folder`, if it is there."""
        with self._errors():
            if self._files.exists(f"{self._root}/{name}"):
                self._get((name, folder))

    def save_run(self, run: Path, name: str) -> None:
        """Begin to copy a finished run to the store, and return at once; `name` as in `fetch`.

        Raise `OutputError` if an earlier copy failed.
        """
        self._check()
        self._copies.append(self._pool.submit(self._put_run, run, name))

    def save_rest(self, folder: Path) -> None:
        """Copy the files of `folder` that belong to no run: tables and figures."""
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder)
            if file.is_file() and inside.parts[0] not in _RUNS and not file.name.startswith("."):
                self._put(file, inside.as_posix())

    def check_writable(self) -> None:
        """Raise `OutputError` if nothing can be written there."""
        name = f"{self._root}/.moesim-check"
        with self._errors():
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(name, b"")
            self._files.rm_file(name)

    def _listed(self) -> dict[str, list[str]]:
        """Return the files of each folder with runs, by its name."""
        self._files.invalidate_cache()
        files: dict[str, list[str]] = defaultdict(list)
        for top in _RUNS:
            for path in self._files.find(f"{self._root}/{top}"):
                name, _, file = posixpath.relpath(path, self._root).rpartition("/")
                files[name].append(file)
        return files

    def _get(self, pair: tuple[str, Path]) -> None:
        name, folder = pair
        self._files.get_file(f"{self._root}/{name}", str(folder / name))

    def _put_run(self, run: Path, name: str) -> None:
        files = sorted(run.iterdir(), key=lambda file: (file.name == MANIFEST, file.name))
        for file in files:
            self._put(file, f"{name}/{file.name}")

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
