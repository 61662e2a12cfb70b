"""The folder of a validation: raw rows as Parquet and CSV, the summary, the profile, the figures.

Measurements are never the same twice, so a folder is not found again by what was asked for; it
says in its manifest from what, when and where it was measured.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim import __version__
from moesim.files import output_errors, sha256, write_json
from moesim.report.chart import write_csv
from moesim.rundir import MANIFEST, SUMMARY, code_hash, policy_hashes, trace_hash

if TYPE_CHECKING:
    from moesim.validate.comparison import Comparison
    from moesim.validate.observation import Columns
    from moesim.validate.validation import Validation

__all__ = ["OURS", "default_folder", "write_validation"]

OURS = (MANIFEST, SUMMARY)
"""One of these is in a folder that may be replaced."""


def default_folder(name: str) -> Path:
    """Where a validation goes that is told no place: a dated folder of its own under `runs/`."""
    return Path("runs") / f"{name}-validate-{datetime.now():%Y%m%d-%H%M%S}"


def write_validation(
    made: Validation,
    folder: Path,
    out: Path,
    *,
    draw: bool,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write everything into `folder`, which will be `out`; `facts` join the manifest.

    Raises:
        OutputError: something cannot be written.
    """
    scenario = made.plan.scenario
    with output_errors(out):
        scenario.write(folder / "scenario.yaml", reader=out)
        write_json(folder / SUMMARY, made.summary)
        write_json(folder / "differences.json", made.comparison.differences)
        write_tables(made.comparison, folder)
    if draw:
        from moesim.report.validation import plots_for_validation

        plots_for_validation(folder)
    with output_errors(out):
        outputs = sorted(path for path in folder.rglob("*") if path.is_file())
        write_json(
            folder / MANIFEST,
            {
                "kind": "validation",
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "device": made.device,
                "versions": {"moesim": __version__, "python": platform.python_version()},
                "inputs": {
                    "trace": trace_hash(scenario),
                    "code": code_hash(),
                    **policy_hashes(scenario),
                },
                **(facts or {}),
                "outputs": {p.relative_to(folder).as_posix(): sha256(p) for p in outputs},
            },
        )


def write_tables(comparison: Comparison, folder: Path) -> None:
    """Each table as Parquet and as CSV."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, columns in comparison.tables.items():
        pq.write_table(pa.table(dict(columns)), folder / f"{name}.parquet")
        write_csv(folder / f"{name}.csv", list(columns), _rows(columns))


def _rows(columns: Columns) -> list[tuple[Any, ...]]:
    return list(zip(*(column.tolist() for column in columns.values()), strict=True))
