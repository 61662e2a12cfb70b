"""The run directory: the files of one run, with `manifest.json` that says what it was made from.

It is written under a temporary name and renamed when complete; `manifest.json` is written last.
A run with the same fingerprint (resolved scenario, trace, moesim code, sources of policies) is not
simulated again, so that sweeps resume. A repeated run writes the same bytes, except for the
manifest's wall time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moesim import __version__
from moesim.errors import DamagedRun, OutputError, PolicyViolation, UsageError
from moesim.files import output_errors, sha256, whole_folder, write_json, write_parquet
from moesim.inputs import read_json
from moesim.policies import find
from moesim.policies.blame import is_foreign
from moesim.policies.guard import inputs_of
from moesim.policies.sources import source_hash
from moesim.progress import Progress
from moesim.report.result import Result, StoredTables
from moesim.scenario import Scenario
from moesim.scenario.policies import FAMILIES
from moesim.simulate.checks import policy_of

MANIFEST = "manifest.json"
SUMMARY = "summary.json"
TABLES = ("requests", "steps", "layers", "timeline")
# Packages that cannot change a result: editing them must not invalidate finished runs.
_PACKAGE = Path(__file__).parents[1]
_DECIDES_NOTHING = (
    "advice", "cli", "dial", "doctor", "measured", "record", "report", "search", "sweep",
    "training", "twin",
)  # fmt: skip
_VERSIONS = ("simpy", "numpy", "pyarrow")


def fingerprint(scenario: Scenario) -> str:
    """Return the SHA-256 of all that decides a result: scenario, trace, code and policies."""
    parts = {
        # Without paths: a file counts by its content, not by the folder that holds it.
        "scenario": scenario.resolved(lambda key, _: key),
        "trace": trace_hash(scenario),
        "inputs": input_hashes(scenario),
        "code": code_hash(),
        "policies": policy_hashes(scenario),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def default_path(scenario: Scenario) -> Path:
    """Return the default run directory: `runs/NAME-FINGERPRINT`."""
    return Path("runs") / f"{scenario.name}-{fingerprint(scenario)[:10]}"


def all_hashes(scenario: Scenario) -> dict[str, str]:
    """Return the hashes of all inputs of a run, as `inputs` of its manifest."""
    return {
        "trace": trace_hash(scenario),
        "code": code_hash(),
        **input_hashes(scenario),
        **policy_hashes(scenario),
    }


def trace_hash(scenario: Scenario) -> str:
    """Return the hash of the trace's header, which lists the hash of every other file."""
    header = scenario.trace_path / "trace.json"
    return sha256(header) if os.path.isfile(header) else "absent"


def input_hashes(scenario: Scenario) -> dict[str, str]:
    """Return the hashes of a scenario's other inputs, by the key that names each.

    A trace folder counts by its header. The inputs that policies name count. So does every text in
    an option of a policy that names an existing file or trace, whatever its type and depth.
    """
    named = {key: path for key, path in named_paths(scenario).items() if key != "trace"}
    hashes = {key: hash_of(path) for key, path in named.items()}
    hashes |= {key: hash_of(path, whole=True) for key, path in policy_inputs(scenario)}
    return {key: text for key, text in hashes.items() if text is not None}


def named_paths(scenario: Scenario) -> dict[str, Path]:
    """Return the paths of a scenario by key: also texts of policies' options, which may be none."""
    named = scenario.paths()
    for section in FAMILIES:
        options = getattr(scenario, section).options
        for key, text in _texts(f"{section}.options", options):
            named.setdefault(key, scenario.path(text))
    return named


def policy_inputs(scenario: Scenario) -> Iterator[tuple[str, Path]]:
    """Yield the files and folders that policies name as inputs, each with a key of its own.

    Policies that do not exist or refuse their options have none; `prepare` refuses them.
    """
    for section in FAMILIES:
        try:
            policy, options = policy_of(scenario, section)
        except (UsageError, PolicyViolation):
            continue
        for number, given in enumerate(inputs_of(policy, options)):
            # No path: the same content in another place is the same run.
            name = f"options.{given.option}" if given.option else f"policy.inputs.{number}"
            if given.path is not None:
                yield f"{section}.{name}", given.path


def hash_of(path: Path, *, whole: bool = False) -> str | None:
    """Return the hash of a file or trace; None if there is none.

    With `whole`, a folder that is no trace counts by the content of all its files.
    """
    if os.path.isfile(path):
        return sha256(path)
    if os.path.isfile(path / "trace.json"):
        return sha256(path / "trace.json")
    if not (whole and os.path.isdir(path)):
        return None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    parts = [f"{file.relative_to(path).as_posix()}={sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield every text inside a value, with the key that leads to it."""
    if isinstance(value, str):
        if value:
            yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(f"{key}.{name}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _texts(f"{key}.{index}", inner)


def policy_hashes(scenario: Scenario) -> dict[str, str]:
    """Return the hashes of the sources of policies that are not moesim's own, by section.

    Unknown names are left out; `prepare` refuses them with file and line.
    """
    hashes = {}
    for section, family in FAMILIES.items():
        try:
            policy = find(family, getattr(scenario, section).policy)
        except UsageError:
            continue
        if is_foreign(policy) and isinstance(policy, type):
            hashes[f"{section}.policy"] = source_hash(policy)
    return hashes


@cache
def code_hash() -> str:
    """Return the SHA-256 of those source and data files of moesim that can change a result."""
    digest = hashlib.sha256()
    for path in deciding_files():
        # The name too: moving code to another file changes the hash.
        digest.update(path.relative_to(_PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def deciding_files() -> list[Path]:
    """Return the source and data files of moesim that can change a result, sorted."""
    return [
        path
        for path in sorted(_PACKAGE.rglob("*"))
        if path.suffix in (".py", ".yaml")
        and path.relative_to(_PACKAGE).parts[0] not in _DECIDES_NOTHING
    ]


def _draw(folder: Path, out: Path, progress: Progress | None = None) -> None:
    """Draw the plots of the run in `folder`, which is or will be `out`."""
    from moesim.report import plots_for_run
    from moesim.report.drawing import commanded

    if progress is not None:
        progress("figures", 0, 1)
    with commanded(shlex.join(["moesim", "report", str(out)])):
        plots_for_run(folder)


def reuse(scenario: Scenario, out: Path, *, force: bool, draw: bool = False) -> Result | None:
    """Return the result in `out` if it is a run with the same fingerprint; None if it is free.

    `force` counts every folder as free. `draw` draws missing plots.

    Raises:
        OutputError: `out` holds another run, a damaged one or other files.
    """
    with output_errors(out):
        if force or not out.exists():
            return None
    try:
        if _fingerprint_in(out) == fingerprint(scenario):
            result = _read(scenario, out)
            if draw and not (out / "plots").is_dir():
                _draw(out, out)
            return result
    except (OSError, ValueError, KeyError, TypeError, DamagedRun):
        # --force replaces only folders with one of these, so that no unrelated folder is deleted.
        replaceable = (out / MANIFEST).exists() or (out / SUMMARY).exists()
        remedy = "pass --force to replace it" if replaceable else "choose another --out"
        raise OutputError(out, f"exists and is no whole run directory; {remedy}") from None
    raise OutputError(out, "holds another run; choose another --out, or pass --force to replace it")


def holds(scenario: Scenario, out: Path) -> bool:
    """Return whether the folder `out` holds a run with the scenario's fingerprint."""
    try:
        return _fingerprint_in(out) == fingerprint(scenario)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fingerprint_in(out: Path) -> str:
    return str(read_json(out / MANIFEST)["fingerprint"])


def _read(scenario: Scenario, out: Path) -> Result:
    from moesim.report.runs import load_run

    run = load_run(out)
    columns = {name: run.arrow(name).to_pydict() for name in TABLES}
    simulation = read_json(out / MANIFEST)["simulation"]
    return Result(scenario, dict(run.summary), columns, out, simulation)


def load(path: str | Path) -> Result:
    """Return the result in a run directory, as `moesim run` or `moesim compare` wrote it.

    Tables are read when they are first used. Nothing is simulated, and no input of the run is read.

    Raises:
        UsageError: `path` is no run directory.
        DamagedRun: the run is half-written, or a file is not as it was written.
        ScenarioError: another version of moesim wrote keys that this one does not know.
    """
    from moesim.report.runs import load_run
    from moesim.scenario import load_scenario

    run = load_run(path)
    scenario = load_scenario(run.path / "scenario.yaml")
    simulation = str(run.manifest.get("simulation", "reference"))
    return Result(scenario, dict(run.summary), StoredTables(run, TABLES), run.path, simulation)


def write(
    scenario: Scenario,
    out: Path,
    simulate: Callable[[], Result],
    *,
    force: bool = False,
    draw: bool = False,
    point: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    text: str | None = None,
) -> Result:
    """Simulate and write a run; `out` appears when it is complete, plots included.

    `point` holds the sweep values of the run. `text` is the content of `scenario.yaml`; None makes
    it with paths that start at `out`. `wall_s` in the manifest is the time of `simulate`
    alone.

    Raises:
        OutputError: `out` cannot be written, or exists without `force`.
    """
    # Before the simulation: a file that is edited meanwhile must not count as what was read.
    print_of_run = fingerprint(scenario)
    inputs = all_hashes(scenario)
    # A kill at any time leaves no folder under the name `out`.
    with whole_folder(out, force=force, ours=(MANIFEST, SUMMARY)) as folder:
        started = time.perf_counter()
        result = simulate()
        simulated = time.perf_counter() - started
        _write_files(result, folder, out, text)
        with output_errors(out):
            write_json(
                folder / MANIFEST,
                {
                    "fingerprint": print_of_run,
                    "point": dict(point or {}),
                    "seed": scenario.seed,
                    "simulation": result.simulation,
                    "versions": {
                        "moesim": __version__,
                        "python": platform.python_version(),
                        **{name: version(name) for name in _VERSIONS},
                    },
                    "inputs": inputs,
                    "outputs": {path.name: sha256(path) for path in sorted(folder.iterdir())},
                    "layer_events": result.summary["layer_events"],
                    "simulated_s": result.summary["makespan_s"],
                    "wall_s": round(simulated, 3),
                },
            )
        # After the manifest: figures are no outputs of the run, and have no hashes in it.
        if draw:
            _draw(folder, out, progress)
    return replace(result, path=out)


def put(files: Mapping[str, bytes], out: Path, *, force: bool = False) -> None:
    """Make the run directory `out` from the files of a run that another machine wrote.

    Raises:
        OutputError: `out` cannot be written, or exists without `force`.
    """
    with whole_folder(out, force=force, ours=(MANIFEST, SUMMARY)) as folder, output_errors(out):
        for name, content in files.items():
            if Path(name).name != name:
                raise OutputError(out, f"a worker sent a file with the name {name!r}")
            (folder / name).write_bytes(content)


def _write_files(result: Result, folder: Path, out: Path, text: str | None) -> None:
    with output_errors(out):
        text = result.scenario.text_for(out) if text is None else text
        (folder / "scenario.yaml").write_text(text, encoding="utf-8", newline="\n")
        write_json(folder / SUMMARY, result.summary)
        for name in TABLES:
            write_parquet(folder / f"{name}.parquet", result.columns[name])
