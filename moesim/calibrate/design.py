"""Designed workloads: calibration serves them to see every kind of operation in all sizes.

Rounds differ in how many sequences and tokens a step may have, in the lengths of prompts, in how
popular experts are, and in how many experts have a slot: all, half, or one a layer. Experts are
drawn at random from all layers, so weights are as cold in the processor's caches as in real runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.cost.roofline import CostModel
from moesim.errors import UsageError
from moesim.hardware.hardware import Hardware, load_hardware
from moesim.hardware.topology import Topology
from moesim.model.hf_config import load_config, load_shape
from moesim.model.shapes import ModelShape
from moesim.scenario import Scenario
from moesim.serving.budget import plan_budget, split_slots
from moesim.serving.experts.host_budget import plan_host
from moesim.simulate.build import Plan
from moesim.simulate.places import Places
from moesim.trace import Trace
from moesim.workload.workload import build_workload

__all__ = ["Design", "Limits", "Subject", "design_plan", "designs", "named_subject"]

_CARD: Final = "a100-80gb"  # only its links' chunks reach a real machine, and they are replaced
_ROOM: Final = 1 << 50  # no limit: the bench checks the machine's real memory
_BATCHES: Final = (1, 8, 2, 32, 4, 16)
STAGING: Final = 2
_LEAST_PROMPT: Final = 4  # tokens of a shortened prompt


@dataclass(frozen=True, slots=True)
class Subject:
    """The model to measure: its sizes, and the Hugging Face configuration to build it from.

    Without a configuration a plain model of these sizes is built.
    """

    shape: ModelShape
    config: Mapping[str, Any] | None = None


def named_subject(name: str, bits: int | None = None) -> Subject:
    """Return a shape of the shipped table, or of a `config.json` by path; `bits` of every weight.

    Raise `UsageError` for an unknown name, or weights of several types.
    """
    shape = load_shape(name)
    config = load_config(name) if name.endswith(".json") else None
    if len({replace(kind, window=None) for kind in shape.kinds if kind.routed}) > 1:
        raise UsageError(
            f"{name} has MoE layers of several kinds, whose times are not measured apart; "
            "use a hardware profile without measured operations for it"
        )
    if bits is not None:
        shape = shape.with_bits(expert_bits=bits, weight_bits=bits)
    return Subject(shape, config)


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest steps to measure, and the expert slots that fit into memory.

    `residencies` are the numbers of slots to try; by default all, half of them, and one a layer.
    If steps wait for copies, the processor sleeps and its caches go cold, so its work takes
    longer. So figures are most accurate near the residency at which they were measured.
    """

    sequences: int = 32
    tokens: int = 256
    context: int = 256
    slots: int = 1 << 40
    residencies: tuple[int, ...] = ()

    def slots_of(self, shape: ModelShape) -> int:
        return max(0, min(self.slots, len(shape.moe_layers) * shape.num_experts))


@dataclass(frozen=True, slots=True)
class Design:
    """One workload: `prompts[i]` and `outputs[i]` tokens of request i; all arrive at once."""

    sequences: int
    token_budget: int
    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    slots: int
    skew: float
    seed: int

    @property
    def rows(self) -> int:
        return sum(self.prompts) + sum(self.outputs) - len(self.prompts)

    @property
    def steps(self) -> int:
        """About how many steps it takes."""
        prefills = -(-sum(self.prompts) // self.token_budget)
        return prefills + -(-sum(self.outputs) // self.sequences)

    def shortened(self, rows: int, steps: int) -> Design:
        """Return the design with about `rows` rows or `steps` steps, whichever allows more.

        Requests go first, but a full batch stays, and two requests. Then prompts become shorter,
        down to a few tokens: a prefill must be seen.
        """
        short, fewest = self, max(2, self.sequences)
        while len(short.prompts) > fewest and short.rows > rows and short.steps > steps:
            short = replace(short, prompts=short.prompts[:-1], outputs=short.outputs[:-1])
        if short.rows > rows and short.steps > steps:
            share = max(0.0, (rows - sum(short.outputs)) / sum(short.prompts))
            prompts = tuple(
                max(min(prompt, _LEAST_PROMPT), int(share * prompt)) for prompt in short.prompts
            )
            short = replace(short, prompts=prompts)
        return short


def designs(shape: ModelShape, limits: Limits, *, seed: int = 0) -> Iterator[Design]:
    """Yield workloads without end; six cover all batch sizes, three cover all residencies."""
    rng = np.random.default_rng(seed)
    slots = limits.slots_of(shape)
    residencies = limits.residencies or (slots, slots // 2, len(shape.moe_layers))
    residencies = tuple(min(slots, number) for number in residencies)
    batches = sorted({min(batch, limits.sequences) for batch in _BATCHES}, key=_order)
    number = 0
    while True:
        for batch in batches:
            requests = batch + max(1, batch // 2)  # the first step of a run counts nowhere
            longest = max(1, limits.context - 8)
            prompts = np.exp(rng.uniform(0, np.log(longest + 1), requests)).astype(int)
            if batch > 4:  # many long prompts would use up the time budget
                prompts = np.minimum(prompts, max(1, longest // 4))
            outputs = rng.integers(3, 9, requests)
            budget = int(np.exp(rng.uniform(np.log(batch + 1), np.log(limits.tokens + 1))))
            yield Design(
                sequences=batch,
                token_budget=max(batch, min(budget, limits.tokens)),
                prompts=tuple(int(n) for n in np.clip(prompts, 1, longest)),
                outputs=tuple(int(n) for n in outputs),
                slots=residencies[number % len(residencies)],
                skew=float(rng.choice([0.0, 0.8, 1.5])),
                seed=int(rng.integers(2**31)),
            )
            number += 1
        if len(residencies) > 1 and len(batches) % len(residencies) == 0:
            number += 1  # otherwise each batch size would always have the same residency


def _order(batch: int) -> int:
    return _BATCHES.index(batch) if batch in _BATCHES else len(_BATCHES)


def design_plan(design: Design, subject: Subject, hardware: Hardware | None = None) -> Plan:
    """Return the workload as a plan, for any machine."""
    shape = subject.shape
    trace = _trace(design, subject)
    # If all experts have a slot, load them before the start, so that no step waits for a copy.
    every = design.slots >= trace.num_layers * trace.num_experts
    scenario = Scenario.model_validate(
        {
            "name": "calibration",
            "trace": "in memory",
            "hardware": _CARD,
            "memory": {"staging": STAGING, "capacity": _ROOM},
            "batching": {
                "policy": "decode_first",
                "token_budget": design.token_budget,
                "max_sequences": design.sequences,
            },
            "cache": {
                "policy": "lru",
                "scope": "per_layer",
                "slots": design.slots,
                "initial_layers": trace.num_layers if every else 0,
            },
            "bounds": False,
        }
    )
    requests = build_workload(scenario, trace)
    kv_tokens = [request.max_kv_tokens for request in requests]
    budget = plan_budget(scenario, shape, _ROOM, kv_tokens)
    slots = tuple(split_slots(design.slots, trace.num_layers, trace.num_experts))
    hardware = hardware or load_hardware(_CARD)
    places = Places(Topology.single_gpu(), plan_host(scenario, shape, hardware))
    return Plan(scenario, trace, CostModel(hardware, shape), budget, slots, places)


def _trace(design: Design, subject: Subject) -> Trace:
    shape = subject.shape
    lengths = np.add(design.prompts, design.outputs) - 1
    ids = _routes(design, shape, int(lengths.sum()))
    return Trace.from_arrays(
        expert_ids=ids,
        seq_len=lengths,
        prompt_tokens=design.prompts,
        num_experts=shape.num_experts,
        model=shape.name,
        model_config=None if subject.config is None else dict(subject.config),
        synthetic=True,
    )


def _routes(design: Design, shape: ModelShape, rows: int) -> npt.NDArray[np.int64]:
    """Draw distinct experts for each row and layer, [rows, layers, k].

    They follow a Zipf law over experts, in a different order for each layer. Gumbel's trick draws
    them without replacement.
    """
    rng = np.random.default_rng(design.seed)
    layers, experts = len(shape.moe_layers), shape.num_experts
    ranks = rng.permuted(np.tile(np.arange(1, experts + 1), (layers, 1)), axis=1)
    noise = rng.gumbel(size=(rows, layers, experts)).astype(np.float32)
    scores = noise - design.skew * np.log(ranks)[None]
    return np.argsort(-scores, axis=2)[:, :, : shape.top_k]
