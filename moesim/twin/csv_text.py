"""CSV that `llama-bench -o csv` prints: a line of names, then a line for each test."""

from __future__ import annotations

import csv
from typing import Final

from moesim.twin.bench import FIELDS, bench_entry
from moesim.twin.log import Entry, Log

__all__ = ["csv_entries"]

_HEAD: Final = ("build_commit,", '"build_commit",')
_MUST: Final = ("model_type", "n_prompt", "n_gen", "avg_ts")


def csv_entries(log: Log, index: int, gpu: str = "") -> tuple[list[Entry], int] | None:
    """Return the entries of the CSV that begins at a line, and the first line after it.

    Return None where none begins there. `gpu`: the card that the log names before it.

    Raises:
        UsageError: a column that is needed is missing, or a line is not understood.
    """
    if not log.lines[index].startswith(_HEAD):
        return None
    names = _split(log, index)
    missing = [name for name in _MUST if name not in names]
    if missing:
        raise log.refused(index, f"CSV without the column {missing[0]!r} of llama-bench")
    unknown = tuple(f"the column {name!r} is not known" for name in names if name not in FIELDS)
    entries, place = [], index + 1
    while place < len(log.lines) and log.lines[place].lstrip().startswith('"'):
        if log.lines[place].startswith(_HEAD):
            break
        cells = _split(log, place)
        if len(cells) != len(names):
            raise log.refused(place, f"a line of {len(cells)} cells under {len(names)} columns")
        entries.append(bench_entry(dict(zip(names, cells, strict=True)), log, place, gpu, unknown))
        place += 1
    if not entries:
        raise log.refused(index, "CSV without tests")
    return entries, place


def _split(log: Log, index: int) -> list[str]:
    try:
        return next(csv.reader([log.lines[index]], strict=True))
    except (csv.Error, StopIteration) as error:
        raise log.refused(index, f"is no CSV ({error})") from None
