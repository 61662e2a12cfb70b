"""How well two rows of a sweep predict its other rows, as `moesim twin` learns a machine.

    python studies/measured/two_rows.py [ROWS.json]

A sweep changes one thing: the layers on the CPU. The two numbers are fitted to its first and last
row, and its other rows are predicted. It prints a table in Markdown, which docs/twin.md shows. The
default file is `../shared/data/measured/throughput.json`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from moesim.measured.predict import Prediction
from moesim.measured.rows import Measured, read_measured
from moesim.measured.score import error_pct
from moesim.twin.learn import learn
from moesim.twin.log import Entry
from moesim.twin.model import OpenMachine
from moesim.twin.samples import Options, Sample, samples_of

ROWS: Final = Path(__file__).resolve().parents[3] / "shared/data/measured/throughput.json"
SWEEPS: Final = {
    "forming": (
        (0, 5), (5, 10), (10, 14), (14, 19), (19, 24), (24, 29), (110, 118), (118, 125),
    ),
    "exam": ((30, 41), (42, 55), (57, 60), (64, 67), (72, 77)),
}  # fmt: skip
"""The rows of each sweep, by the halves of machines of docs/measured.md: first, and one past."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep: its name, the errors of rows between its ends, fitted and not, in per cent."""

    name: str
    fitted_pct: tuple[float, ...]
    assumed_pct: tuple[float, ...]


def sweep_of(rows: Sequence[Measured]) -> Sweep:
    """Return the errors of a sweep whose first and last decode row are fitted."""
    entries = [
        Entry(each.row, each.value, None, str(each.row.index))
        for each in rows
        if each.value and each.row.metric == "decode_tok_s"
    ]
    every = samples_of(entries, Options()).used
    model = OpenMachine()
    fit = learn(samples_of([entries[0], entries[-1]], Options()), model).fit
    fitted, assumed = [], []
    for sample in every[1:-1]:
        seconds = model.seconds(sample.reading, fit.read_bandwidth, fit.layer_ns)
        fitted.append(error_pct(1 / seconds, sample.value))
        assumed.append(_assumed_pct(model, sample))
    row = every[0].reading.row
    kind = "whole layers" if "ngl" in row.setting else "experts"
    return Sweep(f"{row.gpu}, {row.model} {row.quant}, {kind}", tuple(fitted), tuple(assumed))


def _assumed_pct(model: OpenMachine, sample: Sample) -> float:
    answer = model.predict(sample.reading)
    assert isinstance(answer, Prediction), answer
    return error_pct(answer.value, sample.value)


def line_of(half: str, sweep: Sweep) -> str:
    """Return the line of a sweep in the table."""
    cells = [half, sweep.name, str(len(sweep.fitted_pct))]
    for errors in (sweep.fitted_pct, sweep.assumed_pct):
        cells += [f"{np.median(np.abs(errors)):.1f} %", f"{max(errors, key=abs):+.1f} %"]
    return "| " + " | ".join(cells) + " |"


def main(path: Path) -> None:
    """Print the table."""
    rows = read_measured(path)
    print("| half | sweep | rows | two rows: median | largest | no fit: median | largest |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for half, sweeps in SWEEPS.items():
        found = [sweep_of(rows[first:end]) for first, end in sweeps]
        for sweep in found:
            print(line_of(half, sweep))
        fitted = [each for sweep in found for each in sweep.fitted_pct]
        assumed = [each for sweep in found for each in sweep.assumed_pct]
        print(line_of(half, Sweep("all", tuple(fitted), tuple(assumed))))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
