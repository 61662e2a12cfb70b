"""The folder that a sweep writes: a local one, or a copy of one behind a URL."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.cli.points import check_writable

if TYPE_CHECKING:
    from moesim.sweep import Point
    from moesim.sweep.store import Store

__all__ = ["Output", "opened", "path_or_url"]


@dataclass(frozen=True, slots=True)
class Output:
    """An output folder on this machine, and the store of which it is a copy, if any."""

    folder: Path
    store: Store | None = None

    @property
    def shown(self) -> str:
        """The folder or URL for a message."""
        return str(self.folder) if self.store is None else self.store.url

    @property
    def copied(self) -> bool:
        """Whether the folder is a copy of one elsewhere."""
        return self.store is not None

    def fetch(self, points: Sequence[Point]) -> None:
        """Copy finished runs of these points from the store."""
        if self.store is not None:
            self.store.fetch(self.folder, {self._name(point.folder) for point in points})

    def fetch_file(self, name: str) -> None:
        """Copy one file from the store, if it is there."""
        if self.store is not None:
            self.store.fetch_file(self.folder, name)

    def check(self) -> None:
        """Raise `OutputError` where nothing can be written."""
        check_writable(self.folder / "runs")
        if self.store is not None:
            self.store.check_writable()

    def save_run(self, run: Path) -> None:
        """Copy a run that ended to the store."""
        if self.store is not None:
            self.store.save_run(run, self._name(run))

    def save_rest(self) -> None:
        """Copy tables and figures to the store."""
        if self.store is not None:
            self.store.save_rest(self.folder)

    def _name(self, run: Path) -> str:
        return run.relative_to(self.folder).as_posix()


@contextmanager
def opened(out: Path | str) -> Iterator[Output]:
    """Yield the output folder of a path or URL; wait at the end for copies to its store."""
    if isinstance(out, Path):
        yield Output(out)
        return
    from moesim.sweep.store import Store

    store = Store(out)
    with tempfile.TemporaryDirectory(prefix="moesim-") as folder:
        try:
            yield Output(Path(folder), store)
        finally:
            store.close()


def path_or_url(text: str) -> Path | str:
    """Return a URL as text, and anything else as a path."""
    from moesim.sweep.store import is_url

    return text if is_url(text) else Path(text)
