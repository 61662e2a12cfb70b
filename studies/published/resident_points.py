"""Table `resident`: llama.cpp with all weights on the card, batches of one to 512 tokens.

The rows are those of three threads in `throughput.json`. `moesim.measured` predicts them with the
shipped profile of llama.cpp. The profile may be formed with the RTX 3090, so its rows count as
fitted. The RTX 4090 forms no figure of it, so its rows are predictions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from published_rows import Kind, Row

from moesim.measured.answers import Answered, answer_rows
from moesim.measured.rows import read_measured
from moesim.measured.simulated import Simulated

__all__ = ["resident_rows"]

_THREADS: Final = ("#15525", "#20586", "#15631")
_EXAM: Final = ("RTX 4090",)


def resident_rows(shared: Path) -> list[Row]:
    """Return the points of the three threads."""
    read = read_measured(shared / "data/measured/throughput.json")
    chosen = [each for each in read if each.row.source.endswith(_THREADS)]
    return [_row(each) for each in answer_rows(chosen, Simulated().predict)]


def _kind(answered: Answered, exam: bool) -> Kind:
    if answered.prediction is None:
        return "missing"
    return "predicted" if exam else "fitted"


def _row(answered: Answered) -> Row:
    row = answered.reading.row
    tokens = row.prompt or 1
    exam = row.gpu.startswith(_EXAM)
    return Row(
        table="resident",
        source=row.source,
        what=f"{row.gpu}, {row.model} {row.quant}, batch of {tokens}",
        unit="tok/s",
        published=answered.value if answered.value is not None else float("nan"),
        ours=None if answered.prediction is None else answered.prediction.value,
        kind=_kind(answered, exam),
        note=answered.reason or "",
        group=row.gpu,
    )
