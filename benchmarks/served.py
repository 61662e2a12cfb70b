"""CPU time of served workloads, by part: loading, workload, batches, routing, the loop, and files.

Two workloads run on 32 MoE layers of Mixtral's shape, with routing from `traces/deep`, LRU in half
of the slots, chunked prefill, all metrics and all files:

- *code*: the Azure code trace (8,819 requests, 2,048 prompt and 28 output tokens in the mean), with
  bounds and plots;
- *conversations*: 1,000 requests of 1,155 prompt and 211 output tokens in the mean, which arrive at
  once, without bounds. Lengths are exponential.

The code trace is public (Azure/AzurePublicDataset, 2023, CC-BY-4.0) and not part of moesim. Its
file is given by the variable AZURE_CODE_CSV, else it is `../shared/data/requests/`. Without the
file, its figures are left out.

    python benchmarks/served.py
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import ROOT, Figure, main
from stopwatches import timed_parts

CODE = "AzureLLMInferenceTrace_code.csv"
PLAIN = "arrival_s,prompt_tokens,output_tokens"
SEED = 0


def scenario(name: str, csv: Path, form: str, *, bounds: bool, requests: int) -> dict[str, Any]:
    """Return a scenario that serves the first requests of a CSV file."""
    return {
        "name": name,
        "trace": str(ROOT / "traces/deep"),
        "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
        "hardware": "rtx-4090",
        "workload": {
            "requests": requests,
            "arrivals": {"kind": "csv", "format": form, "path": str(csv)},
        },
        "cache": {"policy": "lru", "slots": "4/layer"},
        "bounds": bounds,
    }


def write_conversations(file: Path, requests: int) -> None:
    """Write requests of the conversation kind, which all arrive at zero."""
    rng = np.random.default_rng(SEED)
    prompts, outputs = (
        np.maximum(1, np.rint(rng.exponential(mean, requests))).astype(int) for mean in (1155, 211)
    )
    lines = [f"0,{prompt},{output}" for prompt, output in zip(prompts, outputs, strict=True)]
    file.write_text("\n".join([PLAIN, *lines]) + "\n", encoding="utf-8")


def watched() -> list[tuple[Any, str, str]]:
    """Return the functions of each part of a run."""
    from moesim.serving.ledger import Ledger
    from moesim.serving.routing import TraceRouting
    from moesim.serving.server import Server
    from moesim.simulate import build, rundir, simulation

    return [
        (rundir, "fingerprint", "hash"),
        (simulation, "prepare", "plan"),
        (build, "build_workload", "workload"),
        (Server, "_form_steps", "batches"),
        (TraceRouting, "unions", "routing"),
        (simulation, "simulate", "decide and time"),
        (simulation, "hindsight", "bounds"),
        (simulation, "bounds_of", "bounds"),
        (simulation, "summarise", "metrics"),
        (simulation, "request_columns", "metrics"),
        (simulation, "layer_columns", "metrics"),
        (Ledger, "step_columns", "metrics"),
        (Ledger, "timeline_columns", "metrics"),
        (rundir, "_write_files", "files"),
        (rundir, "sha256", "files"),
        (rundir, "_draw", "plots"),
        (simulation, "run", "other"),
    ]


def spent_s(plain: dict[str, Any], folder: Path, *, draw: bool) -> dict[str, float]:
    """Return the CPU seconds of a run by part, and their sum under `all`."""
    import moesim.report  # imports are measured by `files.py`
    from moesim.simulate import rundir, simulation

    assert moesim.report
    assert rundir
    with timed_parts(watched()) as parts:
        start_s = time.process_time()
        simulation.run(plain, out=folder / plain["name"], force=True, draw=draw)
        whole_s = time.process_time() - start_s
    return {"all": whole_s, **dict(sorted(parts.items(), key=lambda pair: -pair[1]))}


def figures_of(name: str, parts: dict[str, float], target: str) -> list[Figure]:
    """Return the figures of one run: the whole, and each part that takes a hundredth of it."""
    result = [Figure.of(name, [parts["all"]], "CPU s", target)]
    return result + [
        Figure.of(f"{name}: {part}", [spent], "CPU s")
        for part, spent in parts.items()
        if part != "all" and spent >= parts["all"] / 100
    ]


def code_csv() -> Path | None:
    """Return the file of the Azure code trace; None where it is absent."""
    named = os.environ.get("AZURE_CODE_CSV")
    file = Path(named) if named else ROOT.parent / "shared/data/requests" / CODE
    return file if file.exists() else None


def measure(quick: bool) -> list[Figure]:
    """Return the figures of both workloads."""
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        requests = 20 if quick else 1000
        write_conversations(folder / "conversations.csv", requests)
        plain = scenario(
            "conversations", folder / "conversations.csv", "plain", bounds=False, requests=requests
        )
        parts = spent_s(plain, folder, draw=False)
        figures += figures_of(f"{requests:,} conversations", parts, "at most 4")
        if (csv := code_csv()) is None:
            print(f"no {CODE}: name it with AZURE_CODE_CSV", file=sys.stderr)
            return figures
        requests = 50 if quick else 8819
        plain = scenario("code", csv, "azure", bounds=True, requests=requests)
        parts = spent_s(plain, folder, draw=True)
        figures += figures_of(f"{requests:,} requests of the Azure code trace", parts, "at most 25")
    return figures


if __name__ == "__main__":
    main(__doc__, measure)
