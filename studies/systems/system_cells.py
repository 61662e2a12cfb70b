"""What is compared: models, machines and batches, and each system as a scenario of its cell.

A system that the trace refuses is tried again with the least change that lets it run: the depth
that was recorded, or a table learnt on the other half of the trace in place of predictions. A
router that reveals its choices early would be another model. Such a run is shown and not ranked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from system_traces import FORMS, SERVED, Routing

from moesim.errors import BudgetError, ScenarioError
from moesim.policies import find, parse_options
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.policies import FAMILIES
from moesim.simulate import prepare
from moesim.systems.preset import Preset, load_preset
from moesim.trace import Trace, load_trace

__all__ = ["COMMON", "FITTED", "LENGTHS", "LOADS", "MACHINES", "MODELS", "OWN"]
__all__ += ["Cell", "Entry", "Load", "Machine", "Model", "entry_of", "own_engine", "scenario_of"]

COMMON: Final = "ideal"
"""The engine of all systems in the comparison of policies."""
FITTED: Final = "llama.cpp"
"""A fitted engine, for all systems once more: does it change the order?"""
OWN: Final = "own"
"""The engine that a preset names."""
LENGTHS: Final = {"prompt": 16, "output": 16}
"""A step has room for all prompts of the largest batch, so that its requests end together."""
LEARNT: Final = 0.5
"""The share of a trace from which a table is learnt: the part that no run serves."""


@dataclass(frozen=True, slots=True)
class Load:
    """How many requests a run serves: those that warm the caches, and those that are counted."""

    warming: int
    counted: int


LOADS: Final = {1: Load(2, 4), 8: Load(8, 16), 32: Load(32, 32)}
"""The load by batch."""


@dataclass(frozen=True, slots=True, eq=False)  # each exists once
class Model:
    """A model: what its routing is, in a few words, and its sizes by machine."""

    key: str
    label: str
    routing: str
    sizes: Mapping[str, Mapping[str, Any]]

    def bits(self, machine: Machine) -> str:
        """Return the bits of an expert's weight on a machine, as text."""
        return f"{self.sizes[machine.key]['expert_bits']:g} bits"


@dataclass(frozen=True, slots=True, eq=False)  # each exists once
class Machine:
    """A machine by the names of its parts."""

    key: str
    label: str
    parts: Mapping[str, str]

    def __str__(self) -> str:
        texts = {**self.parts, "pcie": f"PCIe {self.parts['pcie']}"}
        return ", ".join(texts.values())


@dataclass(frozen=True, slots=True)
class Cell:
    """One model on one machine, with a number of sequences at once."""

    model: Model
    machine: Machine
    batch: int

    @property
    def place(self) -> tuple[str, str]:
        """The keys of model and machine."""
        return self.model.key, self.machine.key


@dataclass(frozen=True, slots=True)
class Entry:
    """A system in a cell.

    `data` is its scenario without engine, seed and bounds, or None if it cannot run. `changed` says
    how it differs from the preset, `refusal` why. `other_model`: its router is not the trace's.
    `fits`: GPU memory has a slot for every expert.
    """

    cell: Cell
    system: str
    data: Mapping[str, Any] | None
    changed: str = ""
    refusal: str = ""
    other_model: bool = False
    fits: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """A change of a preset's settings, and its description."""

    settings: Mapping[str, Any]
    words: str = ""
    trace: Path | None = None


_Q4: Final = {"shape": "mixtral-8x7b", "expert_bits": 4.5, "weight_bits": 4.5}
_F16: Final = {"shape": "mixtral-8x7b", "expert_bits": 16, "weight_bits": 16}
_DEEPSEEK: Final = {"shape": "deepseek-v2-lite", "expert_bits": 16, "weight_bits": 16}
_GPT_OSS: Final = {"shape": "gpt-oss-120b", "expert_bits": 4.25, "weight_bits": 16}
_KEYS: Final = ("12GB", "24GB", "80GB")

MODELS: Final = {
    each.key: each
    for each in (
        # With 4.5 bits everything would fit on the largest card, where people run 16 bits.
        Model(
            "mixtral",
            "Mixtral-8x7B",
            "recorded from a small model, costed with Mixtral's sizes (foreign)",
            {"12GB": _Q4, "24GB": _Q4, "80GB": _F16},
        ),
        Model(
            "deepseek",
            "DeepSeek-V2-Lite",
            "real routing of the model itself, four tasks (ESFT)",
            dict.fromkeys(_KEYS, _DEEPSEEK),
        ),
        Model(
            "gpt-oss",
            "GPT-OSS-120B",
            "synthetic, with the skew that published hit rates of the model have",
            dict.fromkeys(_KEYS, _GPT_OSS),
        ),
    )
}
MACHINES: Final = {
    key: Machine(key, key.replace("GB", " GB"), parts)
    for key, parts in {
        "12GB": {
            "gpu": "RTX 3060 12GB",
            "cpu": "Ryzen 5 5600",
            "memory": "128 GB DDR4-3200 dual channel",
            "pcie": "4.0 x16",
        },
        "24GB": {
            "gpu": "RTX 4090",
            "cpu": "Ryzen 9 7950X",
            "memory": "128 GB DDR5-5200 dual channel",
            "pcie": "4.0 x16",
        },
        "80GB": {
            "gpu": "A100 80GB SXM",
            "cpu": "EPYC 7763",
            "memory": "512 GB DDR4-3200 8 channels",
            "pcie": "4.0 x16",
        },
    }.items()
}


def entry_of(
    cell: Cell, system: str, routing: Routing, load: Load, traces: dict[Path, Trace]
) -> Entry:
    """Return a system's entry in a cell: as the preset is, with the least change, or refused.

    `traces` keeps opened traces.
    """
    preset = load_preset(system)
    base = _base(cell, system, routing, load)
    learnt, words = _profiles(preset, routing.half)
    refusal = ""
    for attempt in _attempts(preset, routing, cell.batch, traces):
        data = _merged(_merged(base, learnt), attempt.settings)
        path = attempt.trace or routing.served
        data["trace"] = str(path)
        try:
            plan = prepare(scenario_of(data, COMMON, 0), _opened(path, traces))
        except BudgetError as error:
            return Entry(cell, system, None, refusal=f"does not fit: {_plain(str(error))}")
        except ScenarioError as error:
            refusal = refusal or "; ".join(map(_plain, error.problems))
            continue
        changed = "; ".join(filter(None, (words, attempt.words)))
        fits = sum(plan.slots) >= plan.trace.num_layers * plan.trace.num_experts
        return Entry(cell, system, data, changed, refusal, attempt.trace is not None, fits)
    return Entry(cell, system, None, refusal=refusal)


def scenario_of(
    data: Mapping[str, Any], engine: str, seed: int, *, bounds: bool = False
) -> Scenario:
    """Return an entry's scenario under an engine."""
    document = {**data, "seed": seed, "bounds": bounds}
    if engine != OWN:
        document["engine"] = engine
    return load_scenario(document)


def own_engine(system: str) -> str | None:
    """Return the engine that a system's preset names, if any."""
    setting = load_preset(system).sets.get("engine.profile")
    return None if setting is None else str(setting.value)


def _base(cell: Cell, system: str, routing: Routing, load: Load) -> dict[str, Any]:
    return {
        "name": "systems",
        "trace": str(routing.served),
        "system": system,
        "model": dict(cell.model.sizes[cell.machine.key]),
        "hardware": dict(cell.machine.parts),
        "workload": {
            "requests": load.warming + load.counted,
            "part": SERVED,
            "order": "resampled",  # each seed draws other requests, which gives intervals
            "lengths": LENGTHS,
            # A request arrives when it is sent, so TTFT contains no queue of earlier batches.
            "arrivals": {"kind": "closed", "clients": cell.batch},
        },
        "batching": {"max_sequences": cell.batch},
        # With larger blocks, the last request of a batch would wait for blocks that no other takes.
        "memory": {"kv_block_tokens": 1},
        "metrics": {"window": {"skip_requests": load.warming}},
    }


def _attempts(
    preset: Preset, routing: Routing, batch: int, traces: dict[Path, Trace]
) -> Iterator[Attempt]:
    """Yield changes of a preset, from none to the largest."""
    yield Attempt({})
    name = preset.sets["prefetch.policy"].value if "prefetch.policy" in preset.sets else "none"
    policy = find("prefetch", name)
    recorded = _opened(routing.served, traces).meta.prediction_depth
    if policy.needs_predictions and recorded:
        words = f"prefetch looks {recorded} layers ahead, as recorded"
        yield Attempt({"prefetch": {"options": {"depth": recorded}}}, words)
    if policy.needs_predictions:
        options = {"depth": 1, "train": LEARNT, "combine": "bayes" if batch == 1 else "sum"}
        words = f"prefetch by a table of the previous layer, learnt on {LEARNT:.0%} of the trace"
        yield Attempt({"prefetch": {"policy": "previous_layer", "options": options}}, words)
    for form in FORMS:
        words = f"the same routing as if its router were {form}: another model"
        yield Attempt({}, words, routing.forms[form])


def _profiles(preset: Preset, half: Path) -> tuple[dict[str, Any], str]:
    """Return settings with which policies learn from the half of the trace that is not served.

    Without them such a policy would count in the served requests, which is hindsight.
    """
    settings: dict[str, Any] = {}
    for section, family in FAMILIES.items():
        if f"{section}.policy" not in preset.sets:
            continue
        policy = find(family, preset.sets[f"{section}.policy"].value)
        prefix = f"{section}.options."
        options = {
            key.removeprefix(prefix): setting.value
            for key, setting in preset.sets.items()
            if key.startswith(prefix)
        }
        for given in policy.inputs(parse_options(policy, options)):
            if given.trace and given.path is None and given.part is None:
                settings[section] = {"options": {given.option: str(half)}}
    return settings, "popularity counted in the other half of the trace" if settings else ""


def _opened(path: Path, traces: dict[Path, Trace]) -> Trace:
    if path not in traces:
        traces[path] = load_trace(path)
    return traces[path]


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _plain(problem: str) -> str:
    """Return a message without its place, which is the same for all."""
    return problem.removeprefix("scenario: ")
