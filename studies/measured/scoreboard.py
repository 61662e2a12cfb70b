"""How well moesim predicts the throughputs of `throughput.json`, by halves of its machines.

    python studies/measured/scoreboard.py [ROWS.json]

It predicts all rows, without a fit and with two numbers fitted for each machine. It writes
`reports/measured/` (scores, a figure), the tables of `docs/measured.md`, and the errors by kind of
row that `moesim advise` shows. The default file is `../shared/data/measured/throughput.json`.

The figures of the engine profiles come from rows of the forming half. The other half is the exam.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.cli.ending import run_to_its_end
from moesim.cli.progress import progress
from moesim.files import whole_file, write_json
from moesim.measured.answers import Answered, answer_fitted, answer_rows
from moesim.measured.baseline import decode_tokens_per_s
from moesim.measured.fit import Fitted, machine_of, owned_by
from moesim.measured.rows import Measured, Row, read_measured
from moesim.measured.scatter import draw_scatter
from moesim.measured.score import GROUPS, error_pct, summary
from moesim.measured.simulated import Simulated, case_of
from moesim.report.drawing import Drawing, drawn_as
from moesim.report.tabular import with_tables
from moesim.scenario import Scenario

ROOT: Final = Path(__file__).resolve().parents[2]
ROWS: Final = ROOT.parent / "shared/data/measured/throughput.json"
REPORT: Final = ROOT / "reports/measured"
DOCUMENT: Final = ROOT / "docs/measured.md"
BY_KIND: Final = ROOT / "moesim/advice/scores.json"
COMMAND: Final = "python studies/measured/scoreboard.py"
HALVES: Final = ("exam", "forming")
FITS: Final = ("none", "two")
_FORMING_GPUS: Final = ("A100", "RTX 3090", "RTX 4080", "RTX A6000", "RTX A1000", "Arc B580")
_FORMING_CPUS: Final = ("7773X", "7950X")
_LARGE_PCT: Final = 50
_AIMS: Final = {
    ("none", "decode"): "median 20, 80 % within 40",
    ("none", "prefill"): "median 35",
    ("two", "decode"): "median 8, 90 % within 25",
}


def half_of(row: Row) -> str:
    """Return the half that a row's machine belongs to."""
    if "8060S" in row.gpu:
        return "forming" if "kyuz0" in row.source else "exam"
    if row.gpu == "none":
        return "forming" if any(name in row.cpu for name in _FORMING_CPUS) else "exam"
    named = any(name in row.gpu for name in _FORMING_GPUS) and "Ti" not in row.gpu
    return "forming" if named else "exam"


def half_summary(rows: Iterable[Answered], half: str) -> dict[str, Any]:
    """Return the scores of one half."""
    part = [row for row in rows if half_of(row.reading.row) == half]
    return summary([r.reading for r in part], [r.answer for r in part], [r.value for r in part])


def baseline_errors(rows: Iterable[Answered]) -> dict[str, list[float]]:
    """Return the errors of the ten-line roofline in per cent, on predicted decode rows, by half."""
    errors: dict[str, list[float]] = {half: [] for half in HALVES}
    for row in rows:
        if row.error_pct is not None and row.reading.group == "decode" and row.value:
            error = error_pct(_roofline(row), row.value)
            errors[half_of(row.reading.row)].append(error)
    return errors


def scores_by_kind(rows: Iterable[Answered]) -> list[dict[str, Any]]:
    """Return the errors by engine, backend, placement and group, without any measured value.

    `exam` has the rows of the exam half, `all` those of both halves. An engine "" is any engine.
    """
    parts: dict[tuple[str, str, str, str], list[Answered]] = {}
    for row in rows:
        reading = row.reading
        if row.error_pct is None or reading.group is None or not reading.kind.counted:
            continue
        engine = reading.engine
        for names in ((engine.name, engine.backend), ("", "")):
            key = (*names, reading.kind.name, str(reading.group))
            parts.setdefault(key, []).append(row)
    return [
        {
            **dict(zip(("engine", "backend", "placement", "group"), key, strict=True)),
            "exam": _errors([row for row in part if half_of(row.reading.row) == "exam"]),
            "all": _errors(part),
        }
        for key, part in sorted(parts.items())
    ]


def _errors(rows: Sequence[Answered]) -> dict[str, Any]:
    """Return counts and the median error of rows; None where there are none."""
    errors = [abs(row.error_pct) for row in rows if row.error_pct is not None]
    within = [
        row.prediction.low <= row.value <= row.prediction.high
        for row in rows
        if row.prediction is not None and row.value is not None
    ]
    owners = {(machine_of(row.reading), owned_by(row.reading)[2]) for row in rows}
    return {
        "rows": len(rows),
        "machines": len(owners),
        "median_abs_error_pct": round(float(np.median(errors)), 1) if errors else None,
        "inside": round(float(np.mean(within)), 3) if within else None,
    }


def _roofline(row: Answered) -> float:
    case = case_of(row.reading)
    scenario = Scenario.model_validate(case.scenario)
    shape, hardware = scenario.load_shape(None), case.machine.hardware
    options = scenario.placement.options
    whole = options.get("whole_layers", 0)
    whole = shape.num_layers + 1 if whole == "all" else whole
    on_cpu = max(options.get("layers", 0), sum(layer < whole for layer in shape.moe_layers))
    depth = scenario.workload.lengths.prompt if scenario.workload.lengths else 0
    expert = shape.top_k * shape.expert_bytes
    host = on_cpu * expert + shape.layers_bytes(range(whole))
    here = (len(shape.moe_layers) - on_cpu) * expert
    here += shape.layers_bytes(range(whole, shape.num_layers + 1))
    here += shape.kv_bytes_per_token * int(depth or 0)
    return decode_tokens_per_s(
        gpu_nbytes=here,
        cpu_nbytes=host,
        gpu_bytes_per_s=hardware.memory_bytes_per_s or hardware.host_memory_bytes_per_s or 1,
        cpu_bytes_per_s=hardware.host_memory_bytes_per_s or 1,
        gpu_layers=shape.num_layers - min(whole, shape.num_layers),
        cpu_layers=on_cpu,
    )


def scores_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores of both halves and fits as a Markdown table."""
    lines = [
        "| half | fit | rows | counted | predicted | median error | bias | within 25 % "
        "| within 40 % | in interval | high / low | aim |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for half in HALVES:
        for fit in FITS:
            for group in GROUPS:
                scores = summaries[fit][half]["groups"][group]
                if not scores["compared"]:
                    continue
                aim = _AIMS.get((fit, group), "") if half == "exam" else ""
                cells = (half, fit, group.replace("_", " "), *_cells(scores), aim)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(scores: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(scores["counted"]),
        f"{scores['predicted']} ({scores['coverage']:.0%})",
        f"{scores['median_abs_error_pct']:.1f} %",
        f"{scores['median_error_pct']:+.1f} %",
        f"{scores['within_25_pct']:.0%}",
        f"{scores['within_40_pct']:.0%}",
        f"{scores['inside']:.0%}",
        f"{scores['width']:.2f}",
    )


def split_table(scores: Mapping[str, Any], key: str) -> str:
    """Return the scores of a group by engine, GPU, model, placement or depth."""
    lines = [
        f"| {key} | compared | median error | bias | within 25 % | within 40 % |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, part in scores["by"][key].items():
        if not part["compared"]:
            continue
        error, bias = part["median_abs_error_pct"], part["median_error_pct"]
        shares = f"{part['within_25_pct']:.0%} | {part['within_40_pct']:.0%}"
        lines.append(f"| {name} | {part['compared']} | {error:.1f} % | {bias:+.1f} % | {shares} |")
    return "\n".join(lines)


def misses_table(rows: Iterable[Answered]) -> str:
    """Return the machines and models of rows with an error over 50 %, without a fit."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        of, error = row.reading.row, row.error_pct
        if error is None or abs(error) <= _LARGE_PCT:
            continue
        engine = f"{row.reading.engine.name} {row.reading.engine.backend}"
        group = str(row.reading.group).replace("_", " ")
        key: tuple[str, ...] = (half_of(of), of.gpu, engine, of.model, group)
        groups.setdefault(key, []).append(error)
    lines = [
        "| half | GPU | engine | model | rows | number | errors |",
        "|---|---|---|---|---|--:|--:|",
    ]
    for key, errors in sorted(groups.items()):
        low, high = min(errors), max(errors)
        ends = f"{low:+.0f} %" if low == high else f"{low:+.0f} to {high:+.0f} %"
        lines.append(f"| {' | '.join(key)} | {len(errors)} | {ends} |")
    return "\n".join(lines)


def tables_of(scores: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of `docs/measured.md` from `scores.json`."""
    exam = scores["summaries"]["none"]["exam"]["groups"]
    tables = {"scores": scores_table(scores["summaries"]), "misses": scores["misses"]}
    for group in GROUPS:
        for key in ("engine", "gpu", "model", "depth"):
            if exam[group]["compared"]:
                tables[f"{group} by {key}"] = split_table(exam[group], key)
    tables["roofline"] = roofline_table(scores)
    return tables


def roofline_table(scores: Mapping[str, Any]) -> str:
    """Return the errors of decode rows of the ten-line roofline beside moesim's."""
    lines = ["| half | decode rows | roofline | moesim |", "|---|--:|--:|--:|"]
    for half in HALVES:
        line, ours = scores["roofline"][half], scores["summaries"]["none"][half]["groups"]["decode"]
        lines.append(
            f"| {half} | {line['rows']} | {line['median_abs_error_pct']:.1f} % "
            f"| {ours['median_abs_error_pct']:.1f} % |"
        )
    return "\n".join(lines)


def scoreboard(
    rows: Sequence[Measured], show: Callable[[str, int, int], None] | None = None
) -> tuple[dict[str, Any], list[Answered]]:
    """Return all scores as plain data, and the rows predicted without a fit."""
    model = Simulated()
    plain = answer_rows(rows, model.predict, progress=show)
    fitted, fits = answer_fitted(rows, model, progress=show)
    by_fit: dict[str, list[Answered]] = {"none": plain, "two": fitted}
    summaries = {
        fit: {half: half_summary(answered, half) for half in HALVES}
        for fit, answered in by_fit.items()
    }
    return {
        "command": COMMAND,
        "summaries": summaries,
        "misses": misses_table(plain),
        "roofline": {half: _spread(errors) for half, errors in baseline_errors(plain).items()},
        "fits": [_fit(fit) for fit in fits],
    }, plain


def _spread(errors: Sequence[float]) -> dict[str, float]:
    return {"rows": len(errors), "median_abs_error_pct": float(np.median(np.abs(errors)))}


def _fit(fit: Fitted) -> dict[str, Any]:
    return {
        "machine": fit.machine,
        "engine": fit.engine,
        "read_gbytes_per_s": fit.read_bandwidth / 1e9,
        "layer_us": fit.layer_ns / 1e3,
        "rows": len(fit.rows),
        "note": fit.note,
    }


def rounded(value: Any) -> Any:
    """Return plain data with numbers to four digits."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="?", type=Path, default=ROWS)
    options = parser.parse_args()
    with progress() as show:
        scores, plain = scoreboard(read_measured(options.rows), show)
    scores = rounded(scores)
    with drawn_as(Drawing(formats=("png",))):
        draw_scatter(plain, REPORT)
    (REPORT / "measured.csv").unlink()  # the rows are their authors' to publish
    (REPORT / "measured.md").unlink()
    write_json(REPORT / "scores.json", scores)
    write_json(BY_KIND, {"command": COMMAND, "kinds": scores_by_kind(plain)})
    text = with_tables(DOCUMENT.read_text(encoding="utf-8"), tables_of(scores))
    with whole_file(DOCUMENT) as partial:
        partial.write_text(text, encoding="utf-8")
    sys.stdout.write(scores_table(scores["summaries"]) + "\n")


if __name__ == "__main__":
    run_to_its_end(main)
