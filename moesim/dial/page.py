"""The results of the dial as files: `dial.csv`, `dial.json`, `dial.md` and the picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.config.units import format_bytes
from moesim.dial.break_even import Border, Cell, Plane, steps_s
from moesim.dial.figure import break_even_chart
from moesim.dial.grid import Link
from moesim.dial.sentence import ahead, main_link, needed, sentence_of
from moesim.report.chart import Chart, save_charts, write_csv, write_whole
from moesim.report.comparison import compare_runs
from moesim.report.embedded import embedded
from moesim.report.statistics import Estimate
from moesim.report.tabular import Table, escaped, markdown

__all__ = ["Page", "write_page"]

_COLUMNS = (
    "link", "depth", "recall", "precision", "seeds", "saved_pct", "saved_low_pct",
    "saved_high_pct", "verdict", "time_in_steps_s", "base_time_in_steps_s", "on_time_hit_rate",
    "prefetch_useful_bytes", "prefetch_late_bytes", "prefetch_wasted_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """What the dial found: its planes, the name of each link, and the command that makes it."""

    name: str
    planes: Sequence[Plane]
    speeds: Mapping[Link, str]
    command: str

    @property
    def sentence(self) -> str:
        """What accuracy a predictor needs to pay on this machine, in one sentence."""
        return sentence_of(self.planes, dict(self.speeds))

    @property
    def main(self) -> Plane:
        """The plane of the scenario's own link at the least depth."""
        return next(plane for plane in self.planes if plane.link == main_link(self.planes))

    @property
    def caption(self) -> str:
        """What was simulated: requests, seeds, trace, model, machine, costs and caveats."""
        return compare_runs(self.main.base).caption()

    @property
    def note(self) -> str:
        """The line inside the figure: requests, seeds, and whose times."""
        return compare_runs(self.main.base).note()

    @property
    def notes(self) -> list[str]:
        """The notes of the runs without prefetch."""
        return list(dict.fromkeys(note for run in self.main.base for note in run.notes))

    def table(self) -> Table:
        """Return what each depth and link needs, and what the perfect predictor saves."""
        table = Table(
            "What each depth and link needs",
            ["link, depth", "perfect saves (%)", "needs", "break-even precision, by recall"],
        )
        for plane in self.planes:
            table.add(
                f"{self.speeds[plane.link]}, {ahead(plane.depth)}",
                _spread(plane.perfect.saved),
                needed(plane) or "pays at no accuracy of the grid",
                "; ".join(map(_in_words, plane.borders)),
            )
        return table

    def as_plain(self) -> dict[str, Any]:
        """Return all results as plain data, undefined numbers as None."""
        plain: dict[str, Any] = _finite(
            {
                "name": self.name,
                "sentence": self.sentence,
                "caption": self.caption,
                "planes": [self._plane(plane) for plane in self.planes],
                "notes": self.notes,
            }
        )
        return plain

    def _plane(self, plane: Plane) -> dict[str, Any]:
        return {
            "link": self.speeds[plane.link],
            "depth": plane.depth,
            "base_time_in_steps_s": _base_s(plane),
            "perfect_saved_pct": 100 * plane.perfect.saved.mean,
            "pays_from": [{"recall": r, "precision": p} for r, p in plane.pays_from],
            "borders": [
                {
                    "recall": border.recall,
                    "fails_at_precision": border.fails_at,
                    "pays_from_precision": border.pays_from,
                    "mean_precision": border.mean,
                    "claimed": border.claimed,
                }
                for border in plane.borders
            ],
            "cells": [
                dict(zip(_COLUMNS[2:], self._row(plane, cell)[2:], strict=True))
                for cell in plane.cells
            ],
        }

    def rows(self) -> list[tuple[Any, ...]]:
        """Return a row of `_COLUMNS` for each accuracy of each plane."""
        return [self._row(plane, cell) for plane in self.planes for cell in plane.cells]

    def _row(self, plane: Plane, cell: Cell) -> tuple[Any, ...]:
        saved = cell.saved
        ends = (None, None) if saved.half is None else (100 * saved.low, 100 * saved.high)
        return (
            self.speeds[plane.link], plane.depth, cell.recall, cell.precision, saved.n,
            100 * saved.mean, *ends, cell.verdict, cell.time_s, _base_s(plane), cell.on_time,
            cell.useful_bytes, cell.late_bytes, cell.wasted_bytes,
        )  # fmt: skip

    def as_markdown(self, charts: Sequence[Chart]) -> str:
        """Return the page in Markdown."""
        main = self.main
        base, best = main.base[0], main.best[0]
        parts = [
            f"# Dial: {escaped(self.name)}",
            f"```sh\n{self.command}\n```",
            f"**{escaped(self.sentence)}**",
            escaped(self.caption),
            "*Recall* is the share of the experts that a layer needs which are predicted; "
            "*precision* is the share of the predicted experts that it needs. Resident experts "
            "count too, and are not copied. *Time saved* is paired with the run without prefetch "
            "of the same seed. A predictor *pays* where the interval of its time saved lies above "
            "zero, there and at every better accuracy of the grid.",
            markdown(self.table()),
            f"Without prefetch ({escaped(self.speeds[main.link])}) a run takes "
            f"{steps_s(base):.4g} s in steps and copies {_size(base.value('h2d_bytes'))}; with "
            f"perfect prediction {ahead(main.depth)} it copies "
            f"{_size(best.value('h2d_bytes'))}, of which {_size(best.value('prefetch_bytes'))} "
            f"ahead.",
        ]
        for chart in charts:
            parts.append(embedded(chart))
            parts.append(f"{escaped(chart.caption)} (dial.csv has all numbers.)")
        if self.notes:
            parts.append("\n".join(f"- {escaped(note)}" for note in self.notes))
        return "\n\n".join(parts) + "\n"


def write_page(page: Page, folder: Path, *, plots: bool = True) -> None:
    """Write `dial.csv`, `dial.json`, `dial.md` and, with `plots`, `plots/` into a folder.

    Raises:
        OutputError: a file cannot be written.
    """
    charts = []
    if plots:
        draw = [lambda: break_even_chart(page.planes, page.speeds, page.caption, page.note)]
        charts = save_charts(folder / "plots", draw)
    write_csv(folder / "dial.csv", _COLUMNS, page.rows())
    text = json.dumps(page.as_plain(), indent=1, allow_nan=False)
    write_whole(folder / "dial.json", f"{text}\n")
    write_whole(folder / "dial.md", page.as_markdown(charts))


def _in_words(border: Border) -> str:
    """Return the precision at which a recall breaks even, and whether it is claimed."""
    recall = f"{border.recall:g}"
    if border.pays_from is None:
        return f"{recall}: none"
    if border.fails_at is None:
        return f"{recall}: below {border.pays_from:g}"
    between = f"{border.fails_at:g} to {border.pays_from:g}"
    mean = "" if border.mean is None else f"{border.mean:.2f}, "
    return f"{recall}: {mean}{'between' if border.claimed else 'not resolved,'} {between}"


def _base_s(plane: Plane) -> float:
    return sum(map(steps_s, plane.base)) / len(plane.base)


def _spread(saved: Estimate) -> str:
    spread = f" ± {100 * saved.half:.2f}" if saved.half else ""
    return f"{100 * saved.mean:+.2f}{spread}"


def _size(nbytes: float) -> str:
    return "nothing" if math.isnan(nbytes) or not nbytes else format_bytes(round(nbytes))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
