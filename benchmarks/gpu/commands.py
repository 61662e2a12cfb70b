"""`moesim calibrate` and `moesim validate` on this machine, each with a time limit of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from .bench import Bench

__all__ = ["calibration", "validation"]

_FOLDER: Final = Path(__file__).parent
_ROOT: Final = _FOLDER.parents[1]
_SYNTHETIC: Final = {  # drawn on the spot: no shipped trace has 128 experts
    "qwen3": ("--layers", "48", "--experts", "128", "--top-k", "8", "--requests", "16")
}


def validation(bench: Bench, name: str) -> None:
    """Validate `scenarios/NAME.yaml` and record each number of the summary's first level."""
    if not _ready(bench, name):
        return
    if bench.on_gpu:
        traces(bench.out)
    else:
        name = "tiny"
    folder = bench.out / f"validate-{name}"
    command = (
        *("validate", str(scenario_file(bench.out, name))),
        *("--device", bench.device, "--runs", "3" if bench.on_gpu else "1"),
        *("--no-plots", "--json", "--force", "--out", str(folder)),
    )
    done = _run(bench, name, command)
    summary = _summary(done)
    for key, value in summary.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            bench.recorder.put("validation", value, _unit(key), scenario=name, key=key)


def calibration(bench: Bench) -> None:
    """Calibrate and record the residuals of the fit."""
    if not _ready(bench, "calibration"):
        return
    out = bench.out / "profile.yaml"
    model = "qwen3-30b-a3b"
    budget_s = max(5, round(0.5 * bench.left_s)) if bench.on_gpu else 6
    subject = ("--model", model) if bench.on_gpu else ("--scenario", str(_tiny(bench.out)))
    command = (
        *("calibrate", "--device", bench.device, *subject),
        *("--budget", f"{budget_s}s", "--json", "--force", "--out", str(out)),
    )
    summary = _summary(_run(bench, "calibration", command))
    for kind, residual in summary.get("residuals", {}).items():
        for key, value in residual.items():
            bench.recorder.put("calibration", value, "1", kind=kind, key=key)


def scenario_file(out: Path, name: str) -> Path:
    """Return a copy of a scenario in `out`, whose trace is given by its full path.

    `TRACES/` in it stands for the folder of drawn traces, `SHIPPED/` for that of the repository.
    """
    text = (_FOLDER / "scenarios" / f"{name}.yaml").read_text(encoding="utf-8")
    text = text.replace("TRACES/", f"{(out / 'traces').resolve()}/")
    text = text.replace("SHIPPED/", f"{_ROOT / 'traces'}/")
    file = out / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def traces(out: Path) -> None:
    """Draw the synthetic traces of the scenarios that are not there yet."""
    (out / "traces").mkdir(parents=True, exist_ok=True)
    for name, options in _SYNTHETIC.items():
        folder = out / "traces" / name
        if not folder.exists():
            _moesim("trace", "synth", str(folder), *options, timeout_s=120)


def _tiny(out: Path) -> Path:
    return scenario_file(out, "tiny")


def _ready(bench: Bench, name: str) -> bool:
    """Return whether there is time for a command; record it if not."""
    if bench.left_s >= (25 if bench.on_gpu else 1):
        return True
    bench.recorder.put("left out", 1, "cases", part=name)
    return False


def _run(bench: Bench, name: str, command: tuple[str, ...]) -> str:
    """Run a command of moesim; return what it prints. Record how it ends, and its last errors."""
    log = bench.out / f"{name}.log"
    try:
        # A trial on a busy CPU may take its time.
        done = _moesim(*command, timeout_s=bench.left_s if bench.on_gpu else 300)
        code: int | None = done.returncode
        out, errors = str(done.stdout), str(done.stderr)
    except subprocess.TimeoutExpired as stopped:
        code, out, errors = None, _text(stopped.stdout), _text(stopped.stderr)
    log.write_text(f"{' '.join(command)}\n{out}\n{errors}", encoding="utf-8")
    bench.recorder.put("command", code, "exit code", name=name, errors=errors[-2000:])
    return out


def _moesim(*command: str, timeout_s: float) -> Any:
    # No network: a look-up of a model's name would wait for one.
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    settings["PYTHONPATH"] = os.pathsep.join([str(_ROOT), settings.get("PYTHONPATH", "")])
    return subprocess.run(
        (sys.executable, "-m", "moesim", *command),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=settings,
    )


def _summary(out: str) -> dict[str, Any]:
    try:
        summary = json.loads(out)
    except ValueError:
        return {}
    return summary if isinstance(summary, dict) else {}


def _text(out: str | bytes | None) -> str:
    return out.decode(errors="replace") if isinstance(out, bytes) else out or ""


def _unit(key: str) -> str:
    """Return the unit at the end of a summary's key."""
    units = {"pct": "%", "ms": "ms", "s": "s", "ns": "ns", "bytes": "bytes", "share": "1"}
    return units.get(key.rpartition("_")[2], "1")
