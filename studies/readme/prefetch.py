"""Layer-ahead prefetch against loading on demand, over expert slots of a layer (Read-ME, figure 6).

    python studies/readme/prefetch.py [--seeds 5]

The paper plots latency for 2 to 5 slots on an A100-80GB. Prefetching is always better, by up to
about 30 %. Its baseline loads on demand through a general library, which copies from pageable host
memory. So the plot compares two things at once. This study takes them apart:

    total      prefetch from pinned memory    against on demand from pageable memory
    pinning    on demand from pinned memory   against on demand from pageable memory
    prefetch   prefetch from pinned memory    against on demand from pinned memory

1 + total = (1 + pinning) (1 + prefetch) for each seed. Beside it stands the headroom: the change by
prefetch if overlap were perfect. Each layer that loads would then take max(compute, load), with
the misses of the run on demand from pinned memory, and the compute of a run with all experts
resident.

Nothing is fitted. All results are predicted from assumptions, fixed before the first run:

- the profile a100-80gb. Pinned copies run at 25 GB/s, pageable ones at the profile's 12 GB/s. Other
  levels are shown: 20, 14.4 (measured beside 26.2 pinned on one machine) and 8.8 GB/s (a constant
  of published offloading code for an A100 machine);
- the shape of Read-ME's Llama-2-7B (135 MB an expert);
- a decoupled router over 7 experts, uniform; a token takes its predecessor's expert in 71.3 %;
- requests of 32 prompt and 32 output tokens, served expert-aware. One client sends 16 of them, 32
  tokens a step. 8, 11 and 24 clients send 48, and share 8 tokens a step. So with 11 or 24, some
  tokens wait for a place;
- a loaded expert takes a slot, LRU, unless a row says otherwise.

The roofline computes a layer six times as fast as the paper (Table 8: 1.27 ms at batch 5). The
overlap depends on this time. So an operation has an overhead of 430 us, which makes layers as slow
as Table 8's. One table has the profile's own costs. An expert that is absent or on its way when its
layer begins is computed in an operation of its own, and has that overhead again. Prefetch that
comes in time saves this too, and the headroom includes it.

The effect of a part is seen if the 95 % interval of its paired changes lies below zero.

The closed form is shown too. Let one token pass L layers that each compute in c and load in l, with
nothing resident. It takes L(c + l) on demand and c + l + (L - 1) max(c, l) ahead.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

import numpy as np
from loads import closed
from output import at_least_one, command, counted, run_main, spread

from moesim.cost.roofline import CostModel
from moesim.hardware import load_hardware
from moesim.hardware.ops import BatchShape
from moesim.model.shapes import ModelShape, named_shape
from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Table, markdown
from moesim.scenario import Scenario
from moesim.simulate import prepare, result_of
from moesim.trace import DecoupledKnobs, Trace, synthesize_decoupled

SLOTS: Final = (2, 3, 4, 5)
CACHES: Final[dict[str, dict[str, Any]]] = {
    "lru": {"policy": "lru", "admission": "always"},
    "lookahead": {"policy": "lookahead", "admission": "always"},
    "lookahead, 8 recent": {
        "policy": "lookahead",
        "admission": "always",
        "options": {"recent_rows": 8},
    },
    "lookahead, bypass": {"policy": "lookahead", "admission": "bypass"},
    "lookahead, 8 recent, bypass": {
        "policy": "lookahead",
        "admission": "bypass",
        "options": {"recent_rows": 8},
    },
}
"""A loaded expert takes a slot, unless bypass may drop it at once."""
LOADS: Final[dict[int, dict[str, Any]]] = {
    1: closed(1, 16, 32),
    **{clients: closed(clients, 48) for clients in (8, 11, 24)},
}
"""By the number of clients."""
PAGEABLE: Final = ("20GB/s", "14.4GB/s", "12GB/s", "8.8GB/s")
BANDWIDTHS: Final = ("6GB/s", "12GB/s", "25GB/s", "50GB/s", "100GB/s", "400GB/s")
LAYERS: Final = 32
EXPERTS: Final = 7
INITIAL_LAYERS: Final = 4
PAPER_LAYER_MS: Final = 40.55 / LAYERS
SLOW: Final = "430us"
_MS: Final = 1e6


@dataclass(frozen=True, slots=True)
class Setting:
    """What all sides of a comparison share. `overhead` is that of an operation, if not the own."""

    clients: int
    slots: int
    cache: str = "lru"
    initial_layers: int = 0
    overhead: str | None = SLOW
    pinned: str = "25GB/s"
    pageable: str = "12GB/s"

    @property
    def all_slots(self) -> int:
        """Slots of all layers: one for each expert of an initial layer, `slots` in the others."""
        return EXPERTS * self.initial_layers + self.slots * (LAYERS - self.initial_layers)


@dataclass(frozen=True, slots=True)
class Side:
    """How experts come in: from which host memory, and when."""

    pinned: bool
    prefetch: str


PAGEABLE_DEMAND: Final = Side(False, "none")
PINNED_DEMAND: Final = Side(True, "none")
PINNED_AHEAD: Final = Side(True, "layer_ahead")
PAGEABLE_AHEAD: Final = Side(False, "layer_ahead")


@dataclass(frozen=True, slots=True)
class Seen:
    """One run: the time and the misses of each step, in all; experts of a layer event."""

    steps_ms: Any
    step_misses: Any
    accesses: int
    unique: float

    @property
    def step_ms(self) -> float:
        """Mean step latency."""
        return float(self.steps_ms.mean())

    @property
    def misses(self) -> float:
        """Share of accesses that were neither resident nor on their way."""
        return float(self.step_misses.sum() / self.accesses)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=at_least_one, default=5)
    study = Study(range(parser.parse_args().seeds))
    print(command("prefetch"))
    for table in (
        study.by_clients(),
        study.by_initial_layers(),
        study.by_pageable(),
        study.by_layer_speed(),
        study.by_cache(),
        study.by_link(),
        study.by_side(),
        closed_form(),
        study.reaching(-0.3),
    ):
        print(markdown(table), end="\n\n")


@functools.cache
def run(setting: Setting, side: Side, seed: int) -> Seen:
    """Serve a seed's workload, which is the same for all sides."""
    hardware: dict[str, Any] = {"profile": "a100-80gb", "pinned": side.pinned}
    key = "pinned_bandwidth" if side.pinned else "pageable_bandwidth"
    hardware["h2d"] = {key: setting.pinned if side.pinned else setting.pageable}
    if setting.overhead is not None:
        hardware["kernel_overhead"] = setting.overhead
    scenario = Scenario.model_validate(
        {
            "trace": "in memory",
            "model": "readme-llama-2-7b",
            "hardware": hardware,
            **LOADS[setting.clients],
            "cache": {
                **CACHES[setting.cache],
                "slots": setting.all_slots,
                "initial_layers": setting.initial_layers,
            },
            "prefetch": side.prefetch,
            "bounds": False,
            "timeline": {"steps": 0},
            "seed": seed,
        }
    )
    result = result_of(prepare(scenario, _trace(seed)))
    steps, summary = result.columns["steps"], result.summary
    return Seen(
        (steps["finish_ns"] - steps["start_ns"]) / _MS,
        steps["misses"],
        summary["accesses"],
        summary["unique_experts_per_event_mean"],
    )


def headroom(setting: Setting, seed: int) -> float:
    """Return the relative change of step time on demand, from pinned memory, by perfect overlap."""
    demand = run(setting, PINNED_DEMAND, seed)
    resident = replace(setting, cache="lru", initial_layers=LAYERS)
    compute_ms = run(resident, PINNED_DEMAND, seed).steps_ms
    hardware = load_hardware("a100-80gb", {"h2d": {"pinned_bandwidth": setting.pinned}})
    shape = named_shape("readme-llama-2-7b")
    load_ms = CostModel(hardware, shape).copy_ns("h2d", shape.expert_bytes) / _MS
    best_ms = overlapped(compute_ms, demand.step_misses * load_ms, LAYERS - setting.initial_layers)
    return float(best_ms.sum() / demand.steps_ms.sum() - 1)


def overlapped(compute: Any, load: Any, loading: int, layers: int = LAYERS) -> Any:
    """Return the time of a step whose `loading` layers each take max(compute, load).

    `compute` and `load` are those of the whole step. A token has the same expert in all layers, so
    all layers that load at all load the same.
    """
    return (layers - loading) * compute / layers + loading * np.maximum(
        compute / layers, load / loading
    )


@functools.cache
def _trace(seed: int) -> Trace:
    knobs = DecoupledKnobs(
        requests=48, prompt_tokens=32, output_tokens=32, num_layers=LAYERS, seed=seed
    )
    return synthesize_decoupled(knobs)


_PARTS: Final = ("total (%)", "by pinning", "by prefetch", "headroom of prefetch")
_STATE: Final = ("unique", "misses on demand (%)", "on demand, pageable (ms)")


class Study:
    """The tables over the same seeds, and the changes that they show."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = seeds
        self.settings: list[Setting] = []
        """Those whose parts were shown, in order."""

    def runs(self, setting: Setting, side: Side) -> list[Seen]:
        """Return the runs of all seeds."""
        return [run(setting, side, seed) for seed in self.seeds]

    def change(self, setting: Setting, side: Side, baseline: Side) -> Estimate:
        """Return the relative change of a step's mean latency, paired by seed."""
        after, before = (
            [seen.step_ms for seen in self.runs(setting, which)] for which in (side, baseline)
        )
        return difference(after, before)

    def parts(self, setting: Setting) -> tuple[Estimate, Estimate, Estimate]:
        """Return the changes in total, by pinning and by prefetch."""
        return (
            self.change(setting, PINNED_AHEAD, PAGEABLE_DEMAND),
            self.change(setting, PINNED_DEMAND, PAGEABLE_DEMAND),
            self.change(setting, PINNED_AHEAD, PINNED_DEMAND),
        )

    def cells(self, setting: Setting) -> list[str]:
        """Return the cells of `_PARTS`."""
        if setting not in self.settings:
            self.settings.append(setting)
        most = estimate(headroom(setting, seed) for seed in self.seeds)
        shown = [spread(part, digits=1, scale=100, sign=True) for part in self.parts(setting)]
        return [*shown, f"{100 * most.mean:+.1f}"]

    def state(self, setting: Setting) -> list[str]:
        """Return the cells of `_STATE`."""
        demand = self.runs(setting, PAGEABLE_DEMAND)
        return [
            f"{estimate(seen.unique for seen in demand).mean:.2f}",
            f"{100 * estimate(seen.misses for seen in demand).mean:.1f}",
            spread(estimate(seen.step_ms for seen in demand), digits=1),
        ]

    def by_clients(self) -> Table:
        """Return the parts over clients and slots."""
        title = f"Change of a step's mean latency ({len(self.seeds)} seeds, 95 %)"
        table = Table(title, ["clients, slots", *_STATE, *_PARTS])
        for clients, slots in counted(list(product(LOADS, SLOTS)), "clients"):
            setting = Setting(clients, slots)
            table.add(f"{clients}, {slots}", *self.state(setting), *self.cells(setting))
        return table

    def by_initial_layers(self) -> Table:
        """Return the same with all experts of the first layers resident, in slots of their own."""
        title = f"With all experts of the first {INITIAL_LAYERS} of {LAYERS} layers resident"
        table = Table(title, ["clients, slots", *_PARTS])
        for clients, slots in counted(list(product((1, 11), SLOTS)), "initial layers"):
            setting = Setting(clients, slots, initial_layers=INITIAL_LAYERS)
            table.add(f"{clients}, {slots}", *self.cells(setting))
        return table

    def by_pageable(self) -> Table:
        """Return the parts over rates of pageable copies."""
        rows = product((1, 11), (2, 5), PAGEABLE)
        settings = (
            (f"{clients}, {slots}, {rate}", Setting(clients, slots, pageable=rate))
            for clients, slots, rate in rows
        )
        return self._table("Over rates of pageable copies", "clients, slots, rate", settings)

    def by_layer_speed(self) -> Table:
        """Return the parts with the profile's own costs, whose layers are six times as fast."""
        rows = product((1, 11), (2, 5))
        settings = (
            (f"{clients}, {slots}", Setting(clients, slots, overhead=None))
            for clients, slots in rows
        )
        return self._table("With the roofline's fast layers", "clients, slots", settings)

    def by_cache(self) -> Table:
        """Return the parts with other caches, at 3 slots."""
        settings = (
            (f"{clients}, {cache}", Setting(clients, 3, cache=cache))
            for clients, cache in product((1, 11), CACHES)
        )
        return self._table("Over caches, at 3 slots", "clients, cache", settings)

    def by_link(self) -> Table:
        """Return the parts with faster pinned links; the pageable rate stays."""
        rows = product((1, 11), (2, 5), ("50GB/s", "100GB/s"))
        settings = (
            (f"{clients}, {slots}, {rate}", Setting(clients, slots, pinned=rate))
            for clients, slots, rate in rows
        )
        return self._table("Over pinned links", "clients, slots, pinned rate", settings)

    def _table(self, title: str, head: str, settings: Iterable[tuple[str, Setting]]) -> Table:
        table = Table(title, [head, *_PARTS])
        for name, setting in counted(list(settings), title):
            table.add(name, *self.cells(setting))
        return table

    def by_side(self) -> Table:
        """Return what prefetch changes from either memory: the parts in the other order.

        A copy from pageable memory blocks the thread that starts it, so its overlap is an upper
        bound.
        """
        table = Table(
            "Prefetch from pinned memory, and from pageable memory if that could overlap",
            ["clients, slots", "by prefetch, pinned (%)", "by prefetch, pageable (%)"],
        )
        for clients, slots in counted(list(product((1, 11), (2, 5))), "sides"):
            setting = Setting(clients, slots)
            changes = (
                self.change(setting, PINNED_AHEAD, PINNED_DEMAND),
                self.change(setting, PAGEABLE_AHEAD, PAGEABLE_DEMAND),
            )
            shown = [spread(change, digits=1, scale=100, sign=True) for change in changes]
            table.add(f"{clients}, {slots}", *shown)
        return table

    def reaching(self, change: float) -> Table:
        """Return how many of the settings shown so far reach a mean change, and by which part."""
        table = Table(
            f"How many of the settings above change by {100 * change:.0f} % or more",
            [
                "pinned link, layers, admission",
                "settings",
                "total",
                "pinning alone",
                "prefetch alone",
            ],
        )
        kinds: dict[str, list[Setting]] = {}
        for setting in self.settings:
            layers = "slow" if setting.overhead else "fast"
            kind = f"{setting.pinned}, {layers}, {CACHES[setting.cache]['admission']}"
            kinds.setdefault(kind, []).append(setting)
        for kind, settings in kinds.items():
            columns = zip(*(self.parts(setting) for setting in settings), strict=True)
            counts = [sum(part.mean <= change for part in column) for column in columns]
            table.add(kind, str(len(settings)), *map(str, counts))
        return table


def closed_form() -> Table:
    """Return the saving of a layer ahead if nothing is resident, and if a fifth of layers load."""
    shape = named_shape("readme-llama-2-7b")
    table = Table(
        f"Closed form: change in %, layers computing in {PAPER_LAYER_MS:.2f} ms (paper) or "
        f"{_layer_ms(shape):.2f} ms (roofline)",
        [
            "link",
            "load of an expert (ms)",
            "paper, all load",
            "a fifth",
            "roofline, all",
            "a fifth",
        ],
    )
    for bandwidth in BANDWIDTHS:
        hardware = load_hardware("a100-80gb", {"h2d": {"bandwidth": bandwidth}})
        load_ms = CostModel(hardware, shape).copy_ns("h2d", shape.expert_bytes) / _MS
        changes = [
            f"{100 * saved(compute, load_ms, share):+.1f}"
            for compute in (PAPER_LAYER_MS, _layer_ms(shape))
            for share in (1.0, 0.2)
        ]
        table.add(bandwidth, f"{load_ms:.2f}", *changes)
    return table


def _layer_ms(shape: ModelShape) -> float:
    """Return the time of one token of a sequence of 64 in one layer and one expert."""
    cost = CostModel(load_hardware("a100-80gb"), shape)
    return (cost.front_ns(0, BatchShape(1, 64, 64, 1, 1)) + cost.experts_ns((1,))) / _MS


def saved(compute: float, load: float, share: float = 1.0, layers: int = LAYERS) -> float:
    """Return the relative change of mean latency if all layers of a share of steps load.

    With overlap such a step takes c + l + (L - 1) max(c, l) instead of L(c + l).
    """
    on_demand = layers * (compute + share * load)
    ahead = compute + load + (layers - 1) * max(compute, load)
    return (share * ahead + (1 - share) * layers * compute) / on_demand - 1


if __name__ == "__main__":
    run_main(main)
