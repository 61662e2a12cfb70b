"""Closed clients of a decoupled model on one card: one run of a setting, kept as JSON.

Each client sends its next request when its last one has ended. Then no step depends on how long
steps take: the same steps are formed at any prices. This has two uses. Unique experts are counted
in one layer, because a token takes the same expert in all layers. And one run gives the latency at
any linear price of a step, from each request's number of steps and sum of unique experts.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rotating import NAME as ROTATING
from rotating import RotatingPrefillFirst

from moesim.errors import UsageError
from moesim.files import output_errors, write_json
from moesim.report.result import Result
from moesim.scenario import Scenario
from moesim.simulate import prepare, result_from, result_of, simulate
from moesim.trace import DecoupledKnobs, Trace, synthesize_decoupled
from moesim.workload.request_file import Reading, read_requests

ONE_LAYER: Final = Path(__file__).parents[2] / "scenarios/shapes/readme-one-layer.json"
ALL_LAYERS: Final = 32
PROMPT, OUTPUT = 64, 124
"""Assumed mean lengths; 124 is the length of the one request that the paper describes."""
CONTEXT: Final = 4096
"""Tokens of Llama-2's context, at which scaled lengths are cut."""
PERSISTENCE: Final = 0.713
ROUTINGS: Final[dict[str, dict[str, Any]]] = {
    "uniform": {},
    "skewed": {"skew": 2.4},
    "domains": {"skew": 2.4, "domains": 7},
}


@dataclass(frozen=True, slots=True)
class Family:
    """Workloads of one kind. `lengths`: fixed, geometric or azure. `chunked`: prompts are cut."""

    routing: str
    lengths: str
    chunked: bool

    def __str__(self) -> str:
        return f"{self.routing}, {self.lengths}, {'chunked' if self.chunked else 'whole'}"


@dataclass(frozen=True, slots=True)
class Setting:
    """A family at a batch cap (tokens a step) and a number of clients.

    `counted`: requests in the window, beside as many as there are clients before and after it.
    `options`: of expert-aware batching.
    """

    family: Family
    cap: int
    clients: int
    counted: int
    layers: int = 1
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def requests(self) -> int:
        """Return the number of requests of a run."""
        return 2 * self.clients + self.counted

    def scenario(self, policy: str, seed: int) -> Scenario:
        """Return the scenario of a policy. The seed changes nothing: it is drawn into the trace."""
        batching = {
            "policy": policy,
            "token_budget": self.cap,
            "max_sequences": self.clients,
            "chunked_prefill": self.family.chunked,
        }
        if policy == "expert_aware":
            batching["options"] = dict(self.options)
        return Scenario.model_validate(
            {
                "trace": "in memory",
                "model": str(ONE_LAYER) if self.layers == 1 else "readme-llama-2-7b",
                "hardware": "a100-80gb",
                "workload": {"arrivals": {"kind": "closed", "clients": self.clients}},
                "batching": batching,
                # All experts fit, and are there from the start.
                "cache": {"policy": "static", "slots": "7/layer"},
                "memory": {"kv": "rest"},
                "metrics": {"window": {"skip_requests": self.clients, "last": self.clients}},
                "bounds": False,
                "timeline": {"steps": 0},
                "seed": seed,
            }
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of one run, of the requests in its window.

    `unique`: mean distinct experts of a step. `mean_ms`, `p95_ms`: normalised latency at the
    roofline's prices. A wait is before a request's first step, a pause between two of its steps.
    `slope_ms`: change of a step's time with its unique experts, by regression on these and tokens.
    `requests`: of each request the steps from its arrival to its end, the sum of their unique
    experts, and its output tokens.
    """

    unique: float
    mean_ms: float
    p95_ms: float
    wait_steps: int
    wait_ms: float
    pause_steps: int
    pause_ms: float
    preemptions: int
    slope_ms: float
    requests: list[list[int]]

    def priced(self, fixed_ms: float, slope_ms: float) -> tuple[float, float]:
        """Return mean and p95 of normalised latency in ms for steps of fixed + slope · unique."""
        steps, experts, tokens = np.array(self.requests, float).T
        latency_ms = (fixed_ms * steps + slope_ms * experts) / tokens
        return float(latency_ms.mean()), float(np.percentile(latency_ms, 95))


def clients_at(ratio: float, cap: int) -> int:
    """Return the number of clients nearest to a ratio N / C."""
    return max(1, round(ratio * cap))


class Runs:
    """Runs of settings, read from a folder if they are there, else simulated and kept in it."""

    def __init__(self, out: Path, azure: Path | None) -> None:
        """Read the Azure trace. Raise `WorkloadError` if it cannot be read."""
        if azure is not None:
            _scaled(azure)
        self.out = out
        self.azure = azure
        self._known: dict[Path, Seen] = {}
        self._made = 0

    def of(self, setting: Setting, policy: str, seeds: Sequence[int]) -> list[Seen]:
        """Return a run for each seed. The same seed gives every policy the same requests."""
        return [self.run(setting, policy, seed) for seed in seeds]

    def run(self, setting: Setting, policy: str, seed: int) -> Seen:
        """Return a run.

        Raises:
            UsageError: the folder holds a run of this name with other settings.
        """
        if policy != "expert_aware" and setting.options:
            raise UsageError("only expert_aware has options")
        file = self.out / _name(setting, policy, seed)
        if file not in self._known:
            self._known[file] = self._kept(file, setting, policy, seed)
        return self._known[file]

    def _kept(self, file: Path, setting: Setting, policy: str, seed: int) -> Seen:
        wanted = {"setting": json.loads(json.dumps(asdict(setting))), "seed": seed}
        if setting.family.lengths == "azure" and self.azure is not None:
            wanted["azure"] = hashlib.sha256(self.azure.read_bytes()).hexdigest()
        if file.exists():
            run = json.loads(file.read_text(encoding="utf-8"))
            if any(run.get(key) != value for key, value in wanted.items()):
                raise UsageError(f"{file} was made with other settings; choose another folder")
            return Seen(**run["seen"])
        self._made += 1
        print(f"\rrun {self._made}: {file.name}", " " * 20, end="", file=sys.stderr, flush=True)
        seen = serve(setting, policy, seed, self.azure)
        partial = file.with_suffix(".partial")
        with output_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(partial, wanted | {"seen": asdict(seen)})
            # Only whole files get the name, so a killed run is done again.
            partial.replace(file)
        return seen


def _name(setting: Setting, policy: str, seed: int) -> str:
    options = "".join(f"-{key}-{value}" for key, value in setting.options)
    family = str(setting.family).replace(", ", "-")
    size = f"C{setting.cap}-N{setting.clients}-{setting.layers}-layers"
    return f"{family}/{policy}-{size}{options}-seed-{seed}.json"


def serve(setting: Setting, policy: str, seed: int, azure: Path | None) -> Seen:
    """Simulate a run."""
    trace = workload(setting.family, setting.requests, setting.layers, seed, azure)
    if policy == ROTATING:
        # Passed as an object, so that the policy needs no entry among those of scenarios.
        plan = prepare(setting.scenario("prefill_first", seed), trace)
        result = result_from(simulate(plan, batching=RotatingPrefillFirst()))
    else:
        result = result_of(prepare(setting.scenario(policy, seed), trace))
    summary = result.summary
    return Seen(
        summary["unique_experts_per_event_mean"],
        summary["normalised_mean_ms"],
        summary["normalised_p95_ms"],
        summary["wait_max_steps"],
        summary["wait_max_ms"],
        summary["pause_max_steps"],
        summary["pause_max_ms"],
        summary["preemptions"],
        _slope_ms(result, setting.layers),
        _work(result, setting),
    )


@cache
def workload(family: Family, requests: int, layers: int, seed: int, azure: Path | None) -> Trace:
    """Return the requests of a seed, the same for all policies, caps and clients."""
    knobs = DecoupledKnobs(
        requests=requests,
        prompt_tokens=PROMPT,
        output_tokens=OUTPUT,
        geometric=family.lengths == "geometric",
        num_layers=layers,
        persistence=PERSISTENCE,
        seed=seed,
        **ROUTINGS[family.routing],
    )
    lengths = azure_lengths(azure, requests, seed) if family.lengths == "azure" else None
    return synthesize_decoupled(knobs, lengths)


def azure_lengths(
    path: Path | None, requests: int, seed: int
) -> npt.NDArray[np.int64]:  # (requests, 2)
    """Return prompt and output lengths drawn from an Azure trace, scaled to the assumed means."""
    if path is None:
        raise UsageError("lengths of Azure's trace need its path")
    scaled = _scaled(path)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0xA2,)))
    return scaled[rng.integers(len(scaled), size=requests)]


@cache
def _scaled(path: Path) -> npt.NDArray[np.int64]:
    rows = read_requests(path, Reading("azure")).requests
    recorded = np.array([[row.prompt_tokens, row.output_tokens] for row in rows], float)
    scaled = np.rint(recorded * (PROMPT, OUTPUT) / recorded.mean(axis=0)).astype(np.int64)
    prompts, outputs = np.maximum(scaled, 1).T
    return np.stack([prompts, np.minimum(outputs, CONTEXT - prompts)], axis=1)


def _slope_ms(result: Result, layers: int) -> float:
    steps = result.columns["steps"]
    unique = np.asarray(steps["accesses"]) / layers
    time_ms = (np.asarray(steps["finish_ns"]) - np.asarray(steps["start_ns"])) / 1e6
    design = np.stack([np.ones(len(unique)), unique, np.asarray(steps["tokens"])], axis=1)
    return float(np.linalg.lstsq(design, time_ms, rcond=None)[0][1])


def _work(result: Result, setting: Setting) -> list[list[int]]:
    """Return steps, sum of unique experts and output tokens of each request in the window."""
    steps, requests = result.columns["steps"], result.columns["requests"]
    ends_ns = np.asarray(steps["finish_ns"])
    unique = np.asarray(steps["accesses"]) // setting.layers
    experts = np.concatenate([[0], np.cumsum(unique)])
    finish_ns = np.asarray(requests["finish_ns"])
    # Requests arrive and end at ends of steps, because clients do not think.
    first, last = (
        np.searchsorted(ends_ns, times_ns, side="right")
        for times_ns in (np.asarray(requests["arrival_ns"]), finish_ns)
    )
    inside = np.argsort(finish_ns, kind="stable")[setting.clients : -setting.clients]
    tokens = np.asarray(requests["output_tokens"])
    columns = (last - first, experts[last] - experts[first], tokens)
    return [[int(column[request]) for column in columns] for request in inside.tolist()]
