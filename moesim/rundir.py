"""The run directory: written under a temporary name, renamed when whole, `manifest.json` last.

Running the same thing again (same resolved scenario, trace and moesim code) is a no-op, so that
sweeps resume. Everything but the manifest's wall time is the same bytes each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moesim import __version__
from moesim.errors import DamagedRun, OutputError
from moesim.files import output_errors, sha256, whole_folder, write_json, write_parquet
from moesim.inputs import read_json
from moesim.result import Result
from moesim.scenario import Scenario

MANIFEST = "manifest.json"
SUMMARY = "summary.json"
TABLES = ("requests", "steps", "layers", "timeline")
_DECIDES_NOTHING = ("cli", "models", "record", "report", "sweep", "__pycache__")
_VERSIONS = ("simpy", "numpy", "pyarrow")


def fingerprint(scenario: Scenario) -> str:
    """SHA-256 of everything that decides the outcome: scenario, trace, code."""
    parts = {
        "scenario": {**scenario.resolved(), "trace": None},
        "trace": trace_hash(scenario),
        "inputs": _input_hashes(scenario),
        "code": code_hash(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def default_path(scenario: Scenario) -> Path:
    """Where a run goes that is told no place: a folder of its own under `runs/`."""
    return Path("runs") / f"{scenario.name}-{fingerprint(scenario)[:10]}"


def trace_hash(scenario: Scenario) -> str:
    """Hash of the trace's header, which lists the hash of every other file."""
    header = scenario.trace_path / "trace.json"
    return sha256(header) if os.path.isfile(header) else "absent"


def _input_hashes(scenario: Scenario) -> dict[str, str]:
    """Other files that a scenario reads, by the key that names them, with their hashes."""
    named = {
        "workload.arrivals": getattr(scenario.workload.arrivals, "path", ""),
        "hardware": scenario.hardware.profile,
        "model": scenario.model.shape,
        "cache.options.profile": f"{scenario.cache.options.get('profile', '')}/trace.json",
    }
    paths = {key: scenario.path(text) for key, text in named.items() if text}
    return {key: sha256(path) for key, path in paths.items() if os.path.isfile(path)}


@cache
def code_hash() -> str:
    """SHA-256 over those of moesim's own source and data files that can change a result."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).parts
        if path.suffix in (".py", ".yaml") and inside[0] not in _DECIDES_NOTHING:
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _draw(folder: Path) -> None:
    from moesim.report import plots_for_run

    plots_for_run(folder)


def reuse(scenario: Scenario, out: Path, *, force: bool, draw: bool = False) -> Result | None:
    """The result in `out` if it is this very run, with its plots drawn if they are missing.

    Raises `OutputError` if it is another one."""
    with output_errors(out):
        if force or not out.exists():
            return None
    try:
        manifest = read_json(out / MANIFEST)
        if manifest["fingerprint"] == fingerprint(scenario):
            found = _read(scenario, out)
            if draw and not (out / "plots").is_dir():
                _draw(out)
            return found
    except (OSError, ValueError, KeyError, TypeError, DamagedRun):
        ours = (out / MANIFEST).exists() or (out / SUMMARY).exists()  # all that --force replaces
        way = "pass --force to replace it" if ours else "choose another --out"
        raise OutputError(out, f"exists and is no whole run directory; {way}") from None
    raise OutputError(out, "holds another run; choose another --out, or pass --force to replace it")


def _read(scenario: Scenario, out: Path) -> Result:
    from moesim.report.runs import load_run

    run = load_run(out)
    columns = {name: run.arrow(name).to_pydict() for name in TABLES}
    return Result(scenario, dict(run.summary), columns, out)


def write(
    scenario: Scenario,
    out: Path,
    simulate: Callable[[], Result],
    *,
    force: bool = False,
    draw: bool = False,
    point: Mapping[str, Any] | None = None,
) -> Result:
    """Simulate and write; `out` appears when everything is in it, plots included."""
    print_of_run = fingerprint(scenario)
    with whole_folder(out, force=force, ours=(MANIFEST, SUMMARY)) as folder:
        started = time.perf_counter()
        result = simulate()
        simulated = time.perf_counter() - started
        _write_files(result, folder, out)
        with output_errors(out):
            write_json(
                folder / MANIFEST,
                {
                    "fingerprint": print_of_run,
                    "point": dict(point or {}),
                    "seed": scenario.seed,
                    "versions": {
                        "moesim": __version__,
                        "python": platform.python_version(),
                        **{name: version(name) for name in _VERSIONS},
                    },
                    "inputs": {
                        "trace": trace_hash(scenario),
                        "code": code_hash(),
                        **_input_hashes(scenario),
                    },
                    "outputs": {path.name: sha256(path) for path in sorted(folder.iterdir())},
                    "layer_events": result.summary["layer_events"],
                    "simulated_s": result.summary["makespan_s"],
                    "wall_s": round(simulated, 3),
                },
            )
        if draw:
            _draw(folder)
    return Result(result.scenario, result.summary, result.columns, out)


def _write_files(result: Result, folder: Path, out: Path) -> None:
    import yaml

    with output_errors(out):
        # Unlike `Path.resolve`, `realpath` takes a loop of links as it is.
        resolved = result.scenario.resolved(relative_to=Path(os.path.realpath(out)))
        text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
        (folder / "scenario.yaml").write_text(text, encoding="utf-8")
        write_json(folder / SUMMARY, result.summary)
        for name in TABLES:
            write_parquet(folder / f"{name}.parquet", result.columns[name])
