"""A run directory as the report sees it: what one simulation left behind, read back.

`manifest.json` is written last, so a folder without it is not a run, or half of one. Everything
else is read when asked for. What is undefined is `null` in `summary.json` and NaN here.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.errors import MoesimError, ScenarioError, UsageError
from moesim.result import in_short

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Column = NDArray[np.generic]

__all__ = ["Run", "inter_token_ns", "latencies_ns", "load_run", "load_runs"]

MANIFEST: Final = "manifest.json"
SUMMARY: Final = "summary.json"
SCENARIO: Final = "scenario.yaml"
RUNS: Final = "runs.csv"
"""In the folder of a comparison: its runs, in the order of the sweep."""


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run: its folder, `summary.json`, `manifest.json` and resolved scenario."""

    path: Path
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    scenario: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<Run {in_short(self.summary)}; {self.path}>"

    def value(self, key: str) -> float:
        """A number of the summary; NaN where it is null, absent or no number.

        >>> run.value("ttft_p95_ms")  # doctest: +SKIP
        812.4
        """
        value = self.summary.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return math.nan
        return float(value)

    def text(self, key: str) -> str:
        """A name of the summary; "unknown" where it is null or absent."""
        value = self.summary.get(key)
        return "unknown" if value is None else str(value)

    @property
    def trace(self) -> str:
        """The name of the trace's folder, or else of the model that it was recorded from."""
        trace = self.scenario.get("trace")
        return Path(trace).name if isinstance(trace, str) else self.text("trace")

    @property
    def world(self) -> dict[str, Any]:
        """The resolved scenario with what must not depend on the folder it lies in: paths are
        absolute, and the trace is its hash where the manifest has one."""
        world: dict[str, Any] = self.with_absolute_paths(self.scenario)
        world["trace"] = self.trace_identity[1] or world.get("trace")
        return world

    @property
    def trace_identity(self) -> tuple[str, str]:
        """The trace's path from the root, and its hash where the manifest has one, or else ""."""
        path = self.with_absolute_paths(self.scenario.get("trace"))
        inputs = self.manifest.get("inputs")
        content = inputs.get("trace") if isinstance(inputs, Mapping) else None
        return str(path), str(content or "")

    def with_absolute_paths(self, value: Any) -> Any:
        """A value of the scenario in which every relative path starts at the root."""
        return _with_absolute_paths(value, self.path)

    @property
    def seed(self) -> int | None:
        """The seed, or None where the summary has none."""
        value = self.summary.get("seed")
        return value if isinstance(value, int) else None

    @property
    def point(self) -> Mapping[str, Any]:
        """The values of the sweep that this run is a point of; empty outside a sweep."""
        point = self.manifest.get("point")
        return point if isinstance(point, Mapping) else {}

    @property
    def notes(self) -> list[str]:
        """What the run says of itself, for example which model its trace was costed as."""
        notes = self.summary.get("notes")
        return [str(note) for note in notes] if isinstance(notes, list) else []

    @property
    def caveats(self) -> list[str]:
        """What was asked for and could not be done, in a few words each."""
        caveats = self.summary.get("caveats")
        return [str(caveat) for caveat in caveats] if isinstance(caveats, list) else []

    def table(self, name: str, columns: Iterable[str]) -> dict[str, Column]:
        """Columns of `name`.parquet as arrays, one entry a row; a column of lists is an object
        array of arrays.

        Raises:
            MoesimError: the file is missing, cannot be read or lacks a column.
        """
        columns = list(columns)
        arrow = _read_parquet(self.path / f"{name}.parquet", columns)
        return {column: arrow[column].to_numpy() for column in columns}


def load_run(path: str | Path) -> Run:
    """Read a run directory.

    Raises:
        UsageError: there is no such folder, or it is not a run directory.
        MoesimError: it is half-written or damaged; the message names the file and the reason.
    """
    folder = Path(path)
    if not folder.exists():
        raise UsageError(f"{folder}: there is no such run directory")
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give the run directory that `moesim run` printed")
    if not (folder / MANIFEST).is_file():
        _refuse_unfinished(folder)
    return Run(
        folder,
        _read_json(folder / SUMMARY),
        _read_json(folder / MANIFEST),
        _read_scenario(folder / SCENARIO),
    )


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read several run directories, in the order given, each once.

    A folder that `moesim compare` made stands for all runs in it. Raises as `load_run`, and
    `UsageError` where there is none.
    """
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        for folder in _runs_inside(path):
            folders.setdefault(folder.resolve(), folder)
    if not folders:
        raise UsageError("no run directories to report on; name at least one")
    return [load_run(folder) for folder in folders.values()]


def latencies_ns(run: Run) -> dict[str, NDArray[np.float64]]:
    """TTFT, TPOT, inter-token and end-to-end latency in nanoseconds.

    One entry for each finished request (each gap between tokens for "itl"); TPOT, the mean gap
    after the first token, only where there are at least two tokens.
    """
    import numpy as np

    columns = ("arrival_ns", "first_token_ns", "finish_ns", "output_tokens")
    table = {key: value.astype(np.int64) for key, value in run.table("requests", columns).items()}
    arrival, first, finish, tokens = (table[column] for column in columns)
    done = (finish >= 0) & (first >= 0)
    many = done & (tokens > 1)
    return {
        "ttft": (first - arrival)[done].astype(np.float64),
        "tpot": (finish - first)[many] / (tokens[many] - 1),
        "itl": inter_token_ns(run),
        "e2e": (finish - arrival)[done].astype(np.float64),
    }


def inter_token_ns(run: Run) -> NDArray[np.float64]:
    """Every gap between two output tokens of a request, in nanoseconds."""
    import numpy as np

    gaps = [
        np.diff(np.asarray(times, np.int64))
        for times in run.table("requests", ["token_ns"])["token_ns"]
        if times is not None
    ]
    return np.concatenate(gaps).astype(np.float64) if gaps else np.empty(0)


def _runs_inside(path: Path) -> list[Path]:
    """The run directories that a path means: itself, or those of a comparison in its order."""
    inner = path / "runs"
    if (path / MANIFEST).exists() or not inner.is_dir():
        return [path]
    known: dict[str, int] = {}
    with suppress(OSError, csv.Error, UnicodeDecodeError), (path / RUNS).open(newline="") as lines:
        for place, row in enumerate(csv.DictReader(lines)):
            known[row.get("run") or ""] = place
    # A hidden folder is a run that is being written: it may vanish, or come under its own name.
    visible = (folder for folder in inner.iterdir() if not folder.name.startswith("."))
    runs = [folder for folder in visible if (folder / MANIFEST).is_file()]
    return sorted(runs, key=lambda run: (known.get(f"runs/{run.name}", len(known)), run.name))


def _with_absolute_paths(value: Any, base: Path) -> Any:
    """A copy in which every text that is a relative path starts at the root."""
    if isinstance(value, Mapping):
        return {key: _with_absolute_paths(inner, base) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith(("../", "./")):
        return str((base / value).resolve())
    return value


def _refuse_unfinished(folder: Path) -> None:
    if (folder / SUMMARY).exists() or (folder / SCENARIO).exists():
        raise MoesimError(
            f"{folder / MANIFEST}: is missing, so the run was interrupted or is still going; "
            "run its scenario again"
        )
    raise UsageError(
        f"{folder}: is not a run directory (no {MANIFEST}); "
        "give one that `moesim run` or `moesim compare` made"
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(file))
    except ValueError as error:
        raise MoesimError(f"{file}: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise MoesimError(f"{file}: must be a JSON object, not {type(value).__name__}")
    return value


def _read_scenario(file: Path) -> dict[str, Any]:
    from moesim.config.yaml_document import load_document

    _read_text(file)
    try:
        return load_document(file).data
    except ScenarioError as error:
        raise MoesimError(str(error)) from None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MoesimError(f"{file}: is missing, so the run directory is damaged") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MoesimError(f"{file}: cannot be read: {error}") from None


def _read_parquet(file: Path, columns: list[str]) -> Any:
    """An Arrow table of these columns."""
    parquet, arrow_error = _arrow()
    try:
        present = set(parquet.read_schema(file).names)
        missing = [column for column in columns if column not in present]
        if missing:
            raise MoesimError(f"{file}: has no column {', '.join(missing)}")
        return parquet.read_table(file, columns=columns, use_threads=False)
    except FileNotFoundError:
        raise MoesimError(f"{file}: is missing, so the run directory is damaged") from None
    except (OSError, arrow_error) as error:
        raise MoesimError(f"{file}: cannot be read: {error}") from None


@cache
def _arrow() -> tuple[Any, type[Exception]]:
    import pyarrow
    import pyarrow.parquet

    return pyarrow.parquet, pyarrow.ArrowException
