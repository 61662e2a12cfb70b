"""The folder of a validation: raw rows as Parquet and CSV, the summary, the profile, the figures.

Two measurements are never equal, so a finished validation is not reused. Its manifest says what was
measured, when and where.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim import __version__
from moesim.files import output_errors, sha256, write_json, write_parquet
from moesim.report.chart import write_csv
from moesim.simulate.rundir import MANIFEST, SUMMARY, all_hashes

if TYPE_CHECKING:
    from moesim.validate.comparison import Comparison
    from moesim.validate.observation import Columns
    from moesim.validate.validation import Validation

__all__ = ["OURS", "default_folder", "write_validation"]

OURS = (MANIFEST, SUMMARY)
"""A folder may be replaced only if it holds one of these files."""


def default_folder(name: str) -> Path:
    """Return the default output folder: a dated folder under `runs/`."""
    return Path("runs") / f"{name}-validate-{datetime.now():%Y%m%d-%H%M%S}"


def write_validation(
    validation: Validation,
    folder: Path,
    out: Path,
    *,
    draw: bool,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write everything into `folder`, which becomes `out`; `facts` are added to the manifest.

    Raises:
        OutputError: something cannot be written.
    """
    scenario = validation.plan.scenario
    with output_errors(out):
        scenario.write(folder / "scenario.yaml", reader=out)
        write_json(folder / SUMMARY, validation.summary)
        write_json(folder / "differences.json", validation.comparison.differences)
        write_tables(validation.comparison, folder)
    if draw:
        from moesim.report.validation import plots_for_validation

        plots_for_validation(folder)
    with output_errors(out):
        # After the plots, so that the manifest has their hashes too.
        outputs = sorted(path for path in folder.rglob("*") if path.is_file())
        write_json(
            folder / MANIFEST,
            {
                "kind": "validation",
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "device": validation.device,
                "versions": {"moesim": __version__, "python": platform.python_version()},
                "inputs": all_hashes(scenario),
                **(facts or {}),
                "outputs": {p.relative_to(folder).as_posix(): sha256(p) for p in outputs},
            },
        )


def write_tables(comparison: Comparison, folder: Path) -> None:
    """Write each table as Parquet and as CSV."""
    for name, columns in comparison.tables.items():
        write_parquet(folder / f"{name}.parquet", columns)
        write_csv(folder / f"{name}.csv", list(columns), _rows(columns))


def _rows(columns: Columns) -> list[tuple[Any, ...]]:
    return list(zip(*(column.tolist() for column in columns.values()), strict=True))
