"""One search: what it simulates and where, its lock, its progress and its pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from moesim.cli.points import echo_repeated
from moesim.cli.progress import progress
from moesim.files import clean_up
from moesim.locks import exclusive

if TYPE_CHECKING:
    from moesim.cli.outputs import Output
    from moesim.cli.progress import Show
    from moesim.search.grid import Grid
    from moesim.search.metrics import Condition
    from moesim.search.optimum import Goal
    from moesim.search.page import Finding, Page
    from moesim.sweep import Backend, Cluster, Point

__all__ = ["SearchJob"]

_START_S: Final = 2.0  # worker processes import moesim anew for each batch


@dataclass(slots=True)
class SearchJob:
    """A search of a grid, whose runs are simulated by a backend.

    The backend is entered at the first run that is missing, and left at the end. `made` counts the
    runs that this command simulated, which took `wall_s` seconds; `done` also counts those that it
    read.
    """

    grid: Grid
    output: Output
    backend: AbstractContextManager[Backend | Cluster]
    force: bool
    made: int = 0
    done: int = 0
    planned: int = 0
    wall_s: float = 0.0
    show: Show | None = None
    _place: Backend | Cluster | None = None
    _left: ExitStack = field(default_factory=ExitStack)

    def page(
        self,
        asked: Condition | Goal,
        named: Sequence[str],
        probes: int,
        tolerance: float,
        command: str,
    ) -> Page:
        """Search, write the page into the grid's folder, and return it."""
        from moesim.search.optimum import JOURNAL
        from moesim.search.page import Page, write_page
        from moesim.sweep import check_points

        folder = self.grid.folder
        with progress("checking the points"):
            search = self._search(asked, named, probes, tolerance)
            # A mistake in the last value, or a read-only folder, must show before hours of
            # simulation.
            check_points([p for at in self.grid.one_by_one() for p in self.grid.points[at]])
            self.output.check()
            self.output.fetch_file(JOURNAL)
        with exclusive(folder, inside=True):
            self._clean_up()
            try:
                with self._left, progress() as self.show:
                    page = Page(self.grid, search(), command)
            except KeyboardInterrupt:
                typer.echo(
                    f"{self.made} runs were made and are kept; the same command continues from "
                    "there",
                    err=True,
                )
                raise
            finally:
                self._clean_up()  # a worker that was killed could not do this itself
            with progress("page"):
                write_page(page)
        self.output.save_rest()
        if self._place is not None:
            echo_repeated(self._place)
        return page

    def _search(
        self, asked: Condition | Goal, named: Sequence[str], probes: int, tolerance: float
    ) -> Callable[[], Finding]:
        """Return the search that is asked for, ready to start. Raise UsageError."""
        from moesim.search.metrics import Condition
        from moesim.search.optimum import find_optimum
        from moesim.search.optimum_page import optimum_finding
        from moesim.search.threshold_page import threshold_finding
        from moesim.search.thresholds import find_thresholds, most_points, searched_key
        from moesim.search.tried import Trier

        grid, trier = self.grid, Trier(self.grid, self._simulate, self.output.fetch, self.force)
        seeds = max(1, len(grid.seeds))
        if isinstance(asked, Condition):
            key = searched_key(grid, named)
            self.planned = seeds * most_points(grid, key, probes)
            return lambda: threshold_finding(
                grid,
                find_thresholds(grid, key, asked, trier, probes=probes, tolerance=tolerance),
            )
        self.planned = seeds * min(asked.most, len(grid.points))
        return lambda: optimum_finding(grid, find_optimum(grid, asked, trier, anew=self.force))

    def _simulate(self, points: Sequence[Point], kept: int) -> Mapping[Path, Exception]:
        """Simulate points, and return the errors by folder, as `moesim.search.tried` asks."""
        from moesim.sweep import simulate_all

        self.done += kept
        self.planned = max(self.planned, self.done + len(points))
        if not points:
            return {}
        place = self._at(len(points))
        failures = simulate_all(points, place, force=self.force, ended=self._ended)
        return {point.folder: error for point, error in failures}

    def _ended(self, point: Point, error: Exception | None) -> None:
        """Count a run, keep a whole one, and show how far the search is."""
        self.done += 1
        if error is None:
            self.made += 1
            self.wall_s += _wall_s(point.folder)
            self.output.save_run(point.folder)
        if self.show is not None:
            self.show("runs", self.done, self.planned)

    def _at(self, count: int) -> Backend | Cluster:
        """Return the place for `count` runs; of processes, one where starting more costs more."""
        from moesim.sweep import LocalProcesses

        if self._place is None:
            self._place = self._left.enter_context(self.backend)
        if not isinstance(self._place, LocalProcesses) or not self.made:
            return self._place
        workers = self._place.workers
        saved_s = self.wall_s / self.made * (count - -(-count // workers))
        return self._place if saved_s > _START_S else LocalProcesses(1)

    def _clean_up(self) -> None:
        """Remove what killed writers left in the folders of runs."""
        folder = self.grid.folder
        for runs in (folder / "runs", *sorted((folder / "prefix").glob("requests=*"))):
            clean_up(runs)


def _wall_s(folder: Path) -> float:
    """Return the seconds that a run took; 0 if its manifest does not say."""
    from moesim.inputs import read_json

    wall_s = read_json(folder / "manifest.json").get("wall_s")
    return wall_s if isinstance(wall_s, int | float) else 0.0
