"""The text of the scenario that `moesim init` writes, with a comment at each key."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

__all__ = ["Start", "start_text"]

_PLAIN = re.compile(r"[A-Za-z_./][\w./+-]*")  # what YAML reads as this text without quotes


@dataclass(frozen=True, slots=True)
class Start:
    """What the scenario names; `model` and `format` are None where the trace alone decides.

    `routing` are sentences that say what the trace is. `hardware` is YAML. `host` is a size.
    """

    trace: str
    routing: tuple[str, ...]
    model: str | None
    format: str | None
    hardware: str
    host: str
    requests: int


def start_text(start: Start) -> str:
    """Return the scenario as YAML; a path in it starts at the folder of its file."""
    routing = "\n".join(f"# {line}" for line in start.routing)
    return f"""\
# A scenario of moesim. `moesim schema` prints every key, with its meaning, default and unit.
# `moesim list` shows what can be named here. A path starts at the folder of this file.

{routing}
trace: {scalar(start.trace)}

{_model(start)}
# The machine. All shipped figures are assumed from datasheets; `moesim calibrate` measures yours.
# Names: `moesim list gpus`, or {{gpu: NAME, cpu: NAME, memory: TEXT}} from `moesim list cards`.
hardware: {start.hardware}

# One user, who sends the next request when the last answer is complete.
workload: {{requests: {start.requests}, arrivals: {{kind: closed, clients: 1}}}}

# Experts in GPU memory. `rest` takes what weights, KV blocks and activations leave.
# Or say 4/layer, "50%", 8GiB. Policies: `moesim list policies`.
cache: {{policy: lru, slots: rest}}

# Experts that are fetched before a layer asks for them. `oracle` knows them all: a bound.
prefetch: none

# Where a missing expert runs. `copy` copies it to the GPU; others run it on the CPU.
placement: copy

# Costs of an engine. `ideal` wastes no time; `llama.cpp` has its kernels and waits.
engine: ideal

# Host memory for experts. `unlimited` holds all; with a size like 32GiB, the rest is on the disk
# of `hardware`, like {{profile: rtx-4090, disk: {{latency: 100us, bandwidth: 3GB/s}}}} (assumed).
memory: {{host: {start.host}}}

seed: 0

# `moesim compare` runs every point of a sweep, like this one:
# sweep: {{cache.policy: [lru, lfu, sieve], hardware: [rtx-3060-12gb, rtx-4090]}}
"""


def _model(start: Start) -> str:
    if start.model is None:
        return "# The sizes are those of the traced model; `model: NAME` would set others.\n"
    form = "" if start.format is None else f", format: {scalar(start.format)}"
    return (
        "# The sizes that decide times and memory: `moesim list models`, `moesim list formats`.\n"
        f"model: {{shape: {scalar(start.model)}{form}}}\n"
    )


def scalar(text: str) -> str:
    """Return a text as YAML that reads as the same text."""
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    plain = _PLAIN.fullmatch(text) and text.lower() not in words
    return text if plain else json.dumps(text, ensure_ascii=False)
