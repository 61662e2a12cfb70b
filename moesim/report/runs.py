"""Run directories, read back: the files that one simulation wrote.

`manifest.json` is written last, so a folder without it is no finished run. Tables are read only
when they are needed. An undefined number is `null` in `summary.json` and NaN here.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.config.spelling import entries
from moesim.config.units import (
    format_bytes,
    format_duration_ns,
    parse_bytes,
    parse_duration_ns,
)
from moesim.errors import DamagedRun, ScenarioError, UsageError
from moesim.files import as_path, sha256
from moesim.inputs import read_bytes, read_json, read_table
from moesim.results.short import in_short

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Column = NDArray[np.generic]

__all__ = ["Run", "engine_in_words", "load_run", "load_runs"]

MANIFEST: Final = "manifest.json"
SUMMARY: Final = "summary.json"
SCENARIO: Final = "scenario.yaml"
_TEXTS: Final = frozenset({"domain", "status", "lane", "kind"})
_LISTS: Final = frozenset({"token_ns"})
_REPAIR: Final = "run its scenario again with --force"
IDEAL: Final = "ideal"
MOST_IDLE: Final = 0.1
"""The largest share of time without a request at which throughput still measures the machine."""
RUNS: Final = "runs.csv"
"""The file in a comparison's folder that lists its runs, in the order of the sweep."""


def engine_in_words(summary: Mapping[str, Any]) -> str:
    """Return the engine of a summary in words; "" if an older version wrote it.

    No engine is as fast as the ideal one, so its text says what it leaves out.
    """
    name, changes = summary.get("engine"), summary.get("engine_changes")
    if not isinstance(name, str):
        return ""
    kind, interface = summary.get("engine_kind"), summary.get("engine_interface")
    changed = f" with {changes}" if changes else ""
    if name != IDEAL:
        kernels = f", {interface}" if isinstance(interface, str) else ""
        return f"{name}{kernels}{changed} ({kind} figures)"
    if kind == "measured":
        return "ideal with measured operations"
    host = "" if changes else "no host time, "
    return (
        f"ideal{changed} (no engine is that fast: {host}one overlap of traffic and arithmetic per "
        "operation)"
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run: its folder, `summary.json`, `manifest.json` and resolved scenario."""

    path: Path
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    scenario: Mapping[str, Any]
    held: Mapping[str, Mapping[str, Any]] | None = None
    """The tables, by name and column, of a run that is in memory; None: they are files."""

    def __repr__(self) -> str:
        return f"<Run {in_short(self.summary)}; {self.path}>"

    def value(self, key: str) -> float:
        """Return a number of the summary; NaN if it is null, absent or no number.

        >>> run.value("ttft_p95_ms")  # doctest: +SKIP
        812.4
        """
        value = self.summary.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return math.nan
        # Larger numbers come from no run; charts and sums of them would overflow.
        return float(value) if -1e30 < value < 1e30 else math.nan

    def text(self, key: str) -> str:
        """Return a value of the summary as text; "unknown" if it is null or absent."""
        value = self.summary.get(key)
        return "unknown" if value is None else str(value)

    @property
    def trace(self) -> str:
        """Return the name of the trace's folder, or else of the model that it was recorded from."""
        trace = self.scenario.get("trace")
        return Path(trace).name if isinstance(trace, str) else self.text("trace")

    @property
    def hardware(self) -> str:
        """Return the hardware profile with the scenario's changes: `t4 with vram 10GiB`."""
        changes = self.summary.get("hardware_changes")
        return self.text("hardware") + (f" with {changes}" if changes else "")

    @property
    def engine(self) -> str:
        """Return the engine in words: `llama.cpp, cuda (fitted figures)`; "" for an older run."""
        return engine_in_words(self.summary)

    @property
    def arrivals(self) -> str:
        """Return when requests arrive: `all at once`, `poisson 0.2/s`; "" if nothing says so."""
        workload = self.scenario.get("workload")
        section = workload.get("arrivals") if isinstance(workload, Mapping) else None
        if not isinstance(section, Mapping):
            return ""
        parts = [str(section.get("kind", "all_at_once")).replace("_", " ")]
        if "path" in section:
            parts.append(Path(str(section["path"])).name)
        if section.get("times") == "all_at_once":
            parts.append("all at once")
        drawn = section.get("times", "gamma") == "gamma"  # a file may have times of its own
        if drawn and "rate_per_s" in section:
            parts.append(f"{section['rate_per_s']:g}/s")
        if drawn and "burstiness" in section:
            parts.append(f"(burstiness {section['burstiness']:g})")
        if section.get("time_scale", 1) != 1:
            parts.append(f"(times × {section['time_scale']:g})")
        if "clients" in section:
            parts.append(_clients(section["clients"], section.get("think")))
        return " ".join(parts)

    @property
    def prompts(self) -> str:
        """Return `prompts not cut` if the run had no chunked prefill; "" otherwise."""
        batching = self.scenario.get("batching")
        section = batching if isinstance(batching, Mapping) else {}
        return "prompts not cut" if section.get("chunked_prefill") is False else ""

    @property
    def placement(self) -> str:
        """Return the placement with its options: `cpu_layers (layers 8)`; "" for `copy`."""
        placement = self.scenario.get("placement")
        section = placement if isinstance(placement, Mapping) else {}
        policy, options = section.get("policy", "copy"), section.get("options")
        if policy == "copy":
            return ""
        return (
            f"{policy} ({entries(options)})"
            if isinstance(options, Mapping) and options
            else (str(policy))
        )

    @property
    def host_memory(self) -> str:
        """Return the size of host memory and what leaves it first; "" if it is unlimited."""
        memory = self.scenario.get("memory")
        section = memory if isinstance(memory, Mapping) else {}
        size = section.get("host", "unlimited")
        if size == "unlimited":
            return ""
        with suppress(ValueError):  # a file that was edited by hand
            size = format_bytes(parse_bytes(size))
        return f"{size} (a cache of {section.get('host_cache')}s)"

    @property
    def idle_share(self) -> float:
        """Return the share of the window without a request to serve; NaN if it is undefined."""
        return self.value("idle_s") / (self.window_s or math.nan)

    @property
    def window_s(self) -> float:
        """Return the length of the part of the run that the numbers are of."""
        length = self.value("window_s")
        return self.value("makespan_s") if math.isnan(length) else length

    @property
    def windowed(self) -> bool:
        """Return whether the numbers are of a part of the run; bounds are of the whole run."""
        return self.window_s < self.value("makespan_s")

    @property
    def limited_by_arrivals(self) -> bool:
        """Return whether arrivals limit the throughput: the GPU often has no request to serve."""
        return self.idle_share > MOST_IDLE

    @property
    def world(self) -> dict[str, Any]:
        """Return the resolved scenario in a form that two runs can be compared by.

        Paths are absolute, and the trace is its hash if the manifest has one.
        """
        world: dict[str, Any] = self.with_absolute_paths(self.scenario)
        world["trace"] = self.trace_identity[1] or world.get("trace")
        world["engine"] = _engine_section(world.get("engine"))
        return world

    @property
    def trace_identity(self) -> tuple[str, str]:
        """Return the trace's absolute path, and its hash, or "" if the manifest has none."""
        path = self.with_absolute_paths(self.scenario.get("trace"))
        inputs = self.manifest.get("inputs")
        content = inputs.get("trace") if isinstance(inputs, Mapping) else None
        return str(path), str(content or "")

    def with_absolute_paths(self, value: Any) -> Any:
        """Return a value of the scenario with every relative path made absolute."""
        return _with_absolute_paths(value, self.path)

    @property
    def seed(self) -> int | None:
        """Return the seed, or None if the summary has none."""
        value = self.summary.get("seed")
        return value if isinstance(value, int) else None

    @property
    def cache_options(self) -> Mapping[str, Any]:
        """Return the options of the eviction policy; {} if the scenario has none."""
        cache = self.scenario.get("cache")
        options = cache.get("options") if isinstance(cache, Mapping) else None
        return options if isinstance(options, Mapping) else {}

    @property
    def point(self) -> Mapping[str, Any]:
        """Return the values of the sweep at this run's point; {} outside a sweep."""
        point: Mapping[str, Any] = self.manifest.get("point", {})
        return point

    @property
    def notes(self) -> list[str]:
        """Return the notes of the summary, for example which model its trace was costed as."""
        notes = self.summary.get("notes")
        return [str(note) for note in notes] if isinstance(notes, list) else []

    @property
    def caveats(self) -> list[str]:
        """Return the short forms of the run's caveats (`moesim.simulate.caveats`)."""
        caveats = self.summary.get("caveats")
        return [str(caveat) for caveat in caveats] if isinstance(caveats, list) else []

    def table(self, name: str, columns: Iterable[str]) -> dict[str, Column]:
        """Return columns of `name`.parquet as arrays, one entry per row.

        A column of lists is an object array of arrays. Units are in the names of the columns.

        Raises:
            DamagedRun: the file is missing, is not as it was written or lacks a column.
        """
        arrow = self.arrow(name, list(columns))
        table = {column: arrow[column].to_numpy() for column in arrow.column_names}
        for column, values in table.items():
            if wrong := _wrong_values(column, values):
                raise DamagedRun(self.path / f"{name}.parquet", f"column {column} {wrong}")
        return table

    def arrow(self, name: str, columns: list[str] | None = None) -> Any:
        """Return columns (default: all) of `name`.parquet as an Arrow table.

        Raises:
            DamagedRun: the file is missing, is not as it was written or lacks a column.
        """
        if self.held is not None:
            import pyarrow as pa

            table = pa.table(dict(self.held[name]))
            return table if columns is None else table.select(columns)
        return _read_parquet(self.path / f"{name}.parquet", columns, self.manifest)


def load_run(path: str | Path) -> Run:
    """Read a run directory.

    Raises:
        UsageError: there is no such folder, or it is not a run directory.
        DamagedRun: the run is half-written, or a file is not as it was written.
    """
    folder = as_path(path)
    # Three messages for three mistakes: a wrong path, a file in the folder, an unfinished run.
    if not os.path.exists(folder):
        raise UsageError(f"{folder}: there is no such run directory")
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give the run directory that `moesim run` printed")
    if not (folder / MANIFEST).exists():
        _refuse_unfinished(folder)
    manifest = _read_manifest(folder / MANIFEST)
    return Run(
        folder,
        _read_json(folder / SUMMARY, manifest),
        manifest,
        _read_scenario(folder / SCENARIO, manifest),
    )


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read several run directories in the order of `paths`, each once.

    A folder of `moesim compare` stands for all runs in it.

    Raises:
        UsageError: there are no paths, or one is not a run directory.
        DamagedRun: a run is half-written, or a file is not as it was written.
    """
    # By real path, so that links and repeated arguments do not count a run twice.
    folders: dict[Path, Path] = {}
    for path in map(as_path, paths):
        for folder in _runs_inside(path):
            folders.setdefault(Path(os.path.realpath(folder)), folder)
    if not folders:
        raise UsageError("no run directories to report on; name at least one")
    return [load_run(folder) for folder in folders.values()]


def _runs_inside(path: Path) -> list[Path]:
    """Return the run directories of a path: itself, or those of a comparison in its order."""
    inner = path / "runs"
    if os.path.exists(path / MANIFEST) or not os.path.isdir(inner):
        return [path]
    places: dict[str, int] = {}
    # An interrupted `compare` has runs but no list of them; then names give the order.
    with suppress(OSError, csv.Error, UnicodeDecodeError):
        lines = read_bytes(path / RUNS).decode().splitlines()
        for place, row in enumerate(csv.DictReader(lines)):
            places[row.get("run") or ""] = place
    # A hidden folder is a run that is being written: it may vanish, or get its own name.
    visible = (folder for folder in inner.iterdir() if not folder.name.startswith("."))
    runs = [folder for folder in visible if (folder / MANIFEST).is_file()]
    return sorted(runs, key=lambda run: (places.get(f"runs/{run.name}", len(places)), run.name))


def _engine_section(section: Any) -> Any:
    """Return the section `engine` of a scenario; older runs wrote all times of the ideal engine."""
    if section is None:
        return {"profile": IDEAL}
    if not isinstance(section, Mapping) or "profile" in section:
        return section
    unset = {"launch": "0ns", "copy_launch": "0ns", "layer_event": "0ns", "sorting": "host"}
    kept = {key: value for key, value in section.items() if unset.get(key) != value}
    return {"profile": IDEAL, **kept}


def _with_absolute_paths(value: Any, base: Path) -> Any:
    """Return a copy in which every text that is a relative path is absolute."""
    # Inputs lie outside the run directory, so their relative paths start with a dot.
    if isinstance(value, Mapping):
        return {key: _with_absolute_paths(inner, base) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith(("../", "./")):
        return os.path.realpath(base / value)
    return value


def _refuse_unfinished(folder: Path) -> None:
    # The files that are written before the manifest tell a half-written run from another folder.
    if (folder / SUMMARY).exists() or (folder / SCENARIO).exists():
        raise DamagedRun(
            folder / MANIFEST,
            "is missing, so the run was interrupted or has not ended; run its scenario again",
        )
    if inside := [run for run in _runs_inside(folder) if run != folder]:
        raise UsageError(f"{folder}: holds {len(inside)} runs; name one of them, like {inside[0]}")
    raise UsageError(
        f"{folder}: is not a run directory (no {MANIFEST}); "
        "give one that `moesim run` or `moesim compare` made"
    )


def _read_manifest(file: Path) -> dict[str, Any]:
    """Return the manifest, whose hashes show whether the other files are as they were written."""
    # Without a manifest to check it against: a manifest cannot hold its own hash.
    manifest = _read_json(file, {})
    for key in ("point", "inputs", "outputs"):
        if not isinstance(manifest.get(key, {}), dict):
            raise DamagedRun(file, f"{key} must be a JSON object; {_REPAIR}")
    return manifest


def _read_json(file: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    with _damage(file, manifest):
        try:
            value = read_json(file)
        except ValueError as error:
            raise ValueError(f"is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError(f"must be a JSON object, not {type(value).__name__}")
        return value


def _read_scenario(file: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    from moesim.config.yaml_document import parse_document

    with _damage(file, manifest):
        text = read_bytes(file).decode()
        try:
            return parse_document(text, str(file)).data
        except ScenarioError as error:
            # The user did not write this file: it is damage, not a mistake in a scenario.
            place, _, reason = error.problems[0].removeprefix(str(file)).partition(": ")
            raise DamagedRun(f"{file}{place}", f"{reason}; {_REPAIR}") from None


def _read_parquet(file: Path, columns: list[str] | None, manifest: Mapping[str, Any]) -> Any:
    """Return an Arrow table of these columns; of all if None."""
    with _damage(file, manifest):
        return read_table(file, columns)


@contextmanager
def _damage(file: Path, manifest: Mapping[str, Any]) -> Iterator[None]:
    """Check a file against its hash, then turn errors of reading it into `DamagedRun`.

    Manifests of tests and of other tools may have no hashes. Then only the content is checked.
    """
    expected = manifest.get("outputs", {}).get(file.name)
    try:
        if expected is not None and sha256(file) != expected:
            raise DamagedRun(
                file, f"was changed after the run (its SHA-256 is not the manifest's); {_REPAIR}"
            )
        yield
    except FileNotFoundError:
        raise DamagedRun(file, "is missing, so the run directory is damaged") from None
    except KeyError as error:
        raise DamagedRun(file, f"has no column {error.args[0]}") from None
    except OSError as error:
        raise DamagedRun(file, f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DamagedRun(file, f"{error}; {_REPAIR}") from None


def _clients(clients: object, think: object) -> str:
    """Return closed clients in words: `(8 clients, think exponential 2 s)`."""
    text = f"{clients} client" if clients == 1 else f"{clients} clients"
    section = think if isinstance(think, Mapping) else {}
    mean_ns = parse_duration_ns(section.get("mean", 0))
    if mean_ns:
        drawn = "exponential " if section.get("distribution") == "exponential" else ""
        text += f", think {drawn}{format_duration_ns(mean_ns)}"
    return f"({text})"


def _wrong_values(column: str, values: Column) -> str | None:
    """Return what is wrong with the values of a column; None if they have its type."""
    import numpy as np

    if not len(values):
        return None  # an empty column has lost its type
    if column in _LISTS:
        lists = [times for times in values if times is not None]
        numeric = all(isinstance(t, np.ndarray) and t.dtype.kind in "iu" for t in lists)
        return None if numeric else "must hold lists of whole numbers"
    if column in _TEXTS:
        return None if all(isinstance(text, str) for text in values) else "must hold text"
    if values.dtype.kind not in "iuf":
        return f"must hold numbers, not {values.dtype}"
    # Times are written as 64-bit integers, and charts cannot draw infinity.
    if not (np.abs(values.astype(float)) < 2.0**63).all():
        return "must hold finite numbers below 2**63"
    return None
