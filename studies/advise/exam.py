"""The exam of `moesim advise`: settings of measured rows, and its advice beside measured sweeps.

    python studies/advise/exam.py [ROWS.json]

It prices the setting of each row by the code of `advise`, and compares the price with the
prediction that `studies/measured/scoreboard.py` scores. It asks `advise` about the machine of each
sweep. It writes `reports/advise/exam.json` and the tables of `docs/advise.md`. The default file is
`../shared/data/measured/throughput.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1] / "measured"))

from scoreboard import HALVES, ROWS, half_of, rounded
from sweeps import CLOSE, Advised, advised, choice_of, question_of, sweeps

from moesim.advice.price import Pricer
from moesim.cli.ending import run_to_its_end
from moesim.cli.progress import progress
from moesim.errors import MoesimError
from moesim.files import whole_file, write_json
from moesim.measured.predict import Prediction, Reading, read
from moesim.measured.rows import Measured, Row, read_measured
from moesim.measured.simulated import Simulated
from moesim.model.shapes import named_shape
from moesim.report.tabular import with_tables

ROOT: Final = Path(__file__).resolve().parents[2]
REPORT: Final = ROOT / "reports/advise/exam.json"
DOCUMENT: Final = ROOT / "docs/advise.md"
COMMAND: Final = "python studies/advise/exam.py"
EQUAL: Final = "equal, with the interval"
EQUAL_SPEED: Final = "equal, with another interval"
DIFFERENT: Final = "different"
_FEW: Final = 2


def price_of(reading: Reading, predicted: Prediction) -> str:
    """Return whether `advise` gives a row's setting the predicted speed, or why it has no price."""
    try:
        choice = choice_of(reading, named_shape(reading.row.model))
        if isinstance(choice, str):
            return f"no choice of advise: {choice}"
        question = question_of(reading.row)
        _ = question.machine  # refuses texts with words that it does not know
    except MoesimError as error:
        why = str(error).split(";", maxsplit=1)[0]
        # Without the option that the text stands in.
        return f"refused by advise: {why.partition(': ')[2] if why.startswith('--') else why}"
    row = reading.row
    numbers = (row.depth or 0, row.prompt or 0, row.batch)
    answer = Pricer(question).answer(choice, row.metric, *numbers)
    if not isinstance(answer, Prediction) or answer.value != predicted.value:
        return DIFFERENT
    same = (answer.low, answer.high) == (predicted.low, predicted.high)
    return EQUAL if same else EQUAL_SPEED


def prices(
    rows: Sequence[Measured], show: Callable[[str, int, int], None] | None = None
) -> dict[str, dict[str, int]]:
    """Return how many rows of each half have which outcome of `price_of`."""
    simulated = Simulated()
    counts: dict[str, Counter[str]] = {half: Counter() for half in HALVES}
    for done, measured in enumerate(rows):
        reading = read(measured.row)
        answer = None if reading.reason else simulated.predict(reading)
        if isinstance(answer, Prediction):
            counts[half_of(measured.row)][price_of(reading, answer)] += 1
        else:
            counts[half_of(measured.row)]["not predicted"] += 1
        if show is not None:
            show("rows", done + 1, len(rows))
    return {half: dict(counter.most_common()) for half, counter in counts.items()}


def exam(
    rows: Sequence[Measured], show: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """Return all results as plain data."""
    return {
        "command": COMMAND,
        "prices": prices(rows, show),
        "sweeps": [as_plain(advised(sweep)) for sweep in sweeps(rows)],
    }


def as_plain(found: Advised) -> dict[str, Any]:
    """Return an advised sweep as plain data."""
    row, sweep = found.sweep.row, found.sweep
    numbers = [number for number, _ in sweep.measured]
    return {
        "half": half_of(row),
        "source": row.source,
        "grade": row.grade,
        "machine": machine_of(row),
        "model": f"{row.model} {row.quant}",
        "engine": row.engine,
        "timed": timed(row),
        "layers": "whole" if sweep.whole else "experts",
        "settings": len(numbers),
        "from": numbers[0],
        "to": numbers[-1],
        "best": sweep.best[0],
        "best_tok_s": sweep.best[1],
        "advised": found.layers,
        "advised_tok_s": found.speed,
        "lost_pct": None if found.lost is None else 100 * found.lost,
        "fits": found.fits,
        "reason": found.reason,
    }


def machine_of(row: Row) -> str:
    """Return a machine in some words."""
    return ", ".join(filter(None, (row.gpu, row.cpu.split(",")[0])))


def timed(row: Row) -> str:
    """Return what a row times, and at which depth."""
    what = "prompt" if row.metric.startswith("prefill") else "decode"
    return f"{what} at {row.depth:,}" if row.depth else what


def sweeps_table(found: Iterable[Mapping[str, Any]], half: str) -> str:
    """Return the sweeps of a half as a Markdown table."""
    lines = [
        "| machine | model | timed | layers on the CPU | measured | best | advised | speed there "
        "| lost |",
        "|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        if one["half"] == half:
            lines.append(f"| {' | '.join(_cells(one))} |")
    return "\n".join(lines)


def _cells(one: Mapping[str, Any]) -> Iterable[str]:
    yield from (one["machine"], one["model"], one["timed"], one["layers"])
    yield f"{one['from']} to {one['to']} ({one['settings']})"
    yield f"{one['best']}: {one['best_tok_s']:g}"
    if one["advised"] is None:
        yield from ("–", f"not asked: {one['reason']}", "–")
        return
    outside = "" if one["from"] <= one["advised"] <= one["to"] else " (outside)"
    yield f"{one['advised']}{outside}"
    yield f"{one['advised_tok_s']:.3g}"
    yield f"{one['lost_pct']:.1f} %" if one["fits"] is not False else "would not fit"


def shares_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the shares of sweeps whose advice loses little, as a Markdown table."""
    lines = [
        f"| half | sweeps | asked | within {CLOSE:.0%} of the best | and fit by what is stated "
        "| of those with three settings or more | machines without a miss |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for half in HALVES:
        part = [one for one in found if one["half"] == half]
        asked = [one for one in part if one["advised"] is not None]
        machines = {one["machine"] for one in asked}
        missed = {one["machine"] for one in asked if not _good(one)}
        cells = (
            half,
            str(len(part)),
            str(len(asked)),
            _share([_close(one) for one in asked]),
            _share([_good(one) for one in asked]),
            _share([_good(one) for one in asked if one["settings"] > _FEW]),
            f"{len(machines - missed)} of {len(machines)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(outcomes: Sequence[bool]) -> str:
    number, good = len(outcomes), sum(outcomes)
    return f"{good} of {number} ({good / number:.0%})" if number else "–"


def _close(one: Mapping[str, Any]) -> bool:
    return bool(one["lost_pct"] <= 100 * CLOSE)


def _good(one: Mapping[str, Any]) -> bool:
    return _close(one) and one["fits"] is not False


def prices_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return the outcomes of the comparison of prices as a Markdown table."""
    outcomes = list(dict.fromkeys(name for half in HALVES for name in counts[half]))
    lines = [f"| price by advise | {' | '.join(HALVES)} |", "|---|--:|--:|"]
    numbers = {name: [counts[half].get(name, 0) for half in HALVES] for name in outcomes}
    for name in sorted(outcomes, key=lambda name: -sum(numbers[name])):
        lines.append(f"| {name} | {' | '.join(map(str, numbers[name]))} |")
    return "\n".join(lines)


def tables_of(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of `docs/advise.md` from `exam.json`."""
    found = results["sweeps"]
    return {
        "shares": shares_table(found),
        "exam sweeps": sweeps_table(found, "exam"),
        "forming sweeps": sweeps_table(found, "forming"),
        "prices": prices_table(results["prices"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="?", type=Path, default=ROWS)
    options = parser.parse_args()
    with progress() as show:
        results = rounded(exam(read_measured(options.rows), show))
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    write_json(REPORT, results)
    text = with_tables(DOCUMENT.read_text(encoding="utf-8"), tables_of(results))
    with whole_file(DOCUMENT) as partial:
        partial.write_text(text, encoding="utf-8")
    sys.stdout.write(shares_table(results["sweeps"]) + "\n")


if __name__ == "__main__":
    run_to_its_end(main)
