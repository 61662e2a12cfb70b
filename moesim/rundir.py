"""The run directory: written under a temporary name, renamed when whole, `manifest.json` last.

Running the same thing again (same resolved scenario, trace, moesim code and sources of policies) is
a no-op, so that sweeps resume. Everything but the manifest's wall time is the same bytes each time.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moesim import __version__
from moesim.errors import OutputError, UsageError
from moesim.files import output_errors, sha256, whole_folder, write_json
from moesim.policies import find
from moesim.policies.blame import is_foreign
from moesim.policies.sources import source_hash
from moesim.progress import Progress
from moesim.result import Result
from moesim.scenario import Scenario

MANIFEST = "manifest.json"
SUMMARY = "summary.json"
TABLES = ("requests", "steps", "layers", "timeline")
_DECIDES_NOTHING = ("cli", "models", "record", "report", "sweep", "__pycache__")
_FAMILIES = {
    "cache": "eviction",
    "prefetch": "prefetch",
    "batching": "batching",
    "placement": "placement",
}
_VERSIONS = ("simpy", "numpy", "pyarrow")


def fingerprint(scenario: Scenario) -> str:
    """SHA-256 of everything that decides the outcome: scenario, trace, code, policies."""
    parts = {
        "scenario": scenario.resolved(lambda key, _: key),
        "trace": trace_hash(scenario),
        "inputs": _input_hashes(scenario),
        "code": code_hash(),
        "policies": policy_hashes(scenario),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def default_path(scenario: Scenario) -> Path:
    """Where a run goes that is told no place: a folder of its own under `runs/`."""
    return Path("runs") / f"{scenario.name}-{fingerprint(scenario)[:10]}"


def trace_hash(scenario: Scenario) -> str:
    """Hash of the trace's header, which lists the hash of every other file."""
    header = scenario.trace_path / "trace.json"
    return sha256(header) if header.is_file() else "absent"


def _input_hashes(scenario: Scenario) -> dict[str, str]:
    """Other files that a scenario reads, by the key that names them, with their hashes.

    A folder is that of a trace, whose header lists the hashes of its files. Any option of a policy
    may name a file or a trace, whatever its type.
    """
    named = {key: path for key, path in scenario.paths().items() if key != "trace"}
    for section in _FAMILIES:
        for option, value in getattr(scenario, section).options.items():
            if value and isinstance(value, str):
                named.setdefault(f"{section}.options.{option}", scenario.path(value))
    read = {key: path / "trace.json" if path.is_dir() else path for key, path in named.items()}
    return {key: sha256(path) for key, path in read.items() if path.is_file()}


def policy_hashes(scenario: Scenario) -> dict[str, str]:
    """Return the hashes of the sources of policies that are not moesim's own, by section.

    Names of no policy are left out; `prepare` refuses them and says where they stand.
    """
    hashes = {}
    for section, family in _FAMILIES.items():
        try:
            policy = find(family, getattr(scenario, section).policy)
        except UsageError:
            continue
        if is_foreign(policy) and isinstance(policy, type):
            hashes[f"{section}.policy"] = source_hash(policy)
    return hashes


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


def _draw(folder: Path, progress: Progress | None = None) -> None:
    from moesim.report import plots_for_run

    if progress is not None:
        progress("figures", 0, 1)
    plots_for_run(folder)


def reuse(scenario: Scenario, out: Path, *, force: bool, draw: bool = False) -> Result | None:
    """The result in `out` if it is this very run, with its plots drawn if they are missing.

    Raises `OutputError` if it is another one."""
    with output_errors(out):
        if force or not out.exists():
            return None
    try:
        if _fingerprint_in(out) == fingerprint(scenario):
            if draw and not (out / "plots").is_dir():
                _draw(out)
            return _read(scenario, out)
    except (OSError, ValueError, KeyError, TypeError):
        ours = (out / MANIFEST).exists() or (out / SUMMARY).exists()  # all that --force replaces
        way = "pass --force to replace it" if ours else "choose another --out"
        raise OutputError(out, f"exists and is no whole run directory; {way}") from None
    raise OutputError(out, "holds another run; choose another --out, or pass --force to replace it")


def holds(scenario: Scenario, out: Path) -> bool:
    """Whether the folder `out` holds this very run."""
    try:
        return _fingerprint_in(out) == fingerprint(scenario)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fingerprint_in(out: Path) -> str:
    return str(json.loads((out / MANIFEST).read_text(encoding="utf-8"))["fingerprint"])


def _read(scenario: Scenario, out: Path) -> Result:
    import pyarrow.parquet as pq

    summary = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    columns = {name: pq.read_table(out / f"{name}.parquet").to_pydict() for name in TABLES}
    return Result(scenario, summary, columns, out)


def write(
    scenario: Scenario,
    out: Path,
    simulate: Callable[[], Result],
    *,
    force: bool = False,
    draw: bool = False,
    point: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
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
                        **policy_hashes(scenario),
                    },
                    "outputs": {path.name: sha256(path) for path in sorted(folder.iterdir())},
                    "layer_events": result.summary["layer_events"],
                    "simulated_s": result.summary["makespan_s"],
                    "wall_s": round(simulated, 3),
                },
            )
        if draw:
            _draw(folder, progress)
    return Result(result.scenario, result.summary, result.columns, out)


def _write_files(result: Result, folder: Path, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with output_errors(out):
        result.scenario.write(folder / "scenario.yaml", reader=out)
        write_json(folder / SUMMARY, result.summary)
        for name in TABLES:
            pq.write_table(pa.table(dict(result.columns[name])), folder / f"{name}.parquet")
