"""Table 8 of Read-ME: latency of a step by batch size; batch 20 predicted from 5, 10 and 30.

    python studies/readme/table8.py

The table gives milliseconds a step of router, attention and experts, for a traditional router (TR,
one a layer) and the paper's autoregressive one (AR). The columns of batch 20 are held out. There
are three forms. A and B are fitted to TR and AR apart by least squares over batches 5, 10 and 30:

- A, a line in the batch: router = r; attention = a0 + a1 b; experts = c0 + c1 b.
- B, a line in unique experts: the same, but experts = c0 + c1 U(b); U(b) = N (1 - (1 - 1/N)^b) are
  the distinct experts that b independent tokens want, uniformly one of N = 7 each.
- C, nothing fitted: the roofline of the profile a100-80gb, all experts resident, U(b) of them
  read, sequences of 256 tokens (assumed). It prices only the autoregressive router.

The forms were chosen before their errors were seen, and are kept for any errors. There is no seed:
the table is data, and the forms are closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise, product
from math import comb, log
from typing import Final

import numpy as np
from output import run_main

from moesim.cost.roofline import CostModel
from moesim.hardware import load_hardware
from moesim.hardware.ops import BatchShape
from moesim.model.shapes import named_shape
from moesim.report.tabular import Table, markdown

BATCHES: Final = (5, 10, 20, 30)
HELD_OUT: Final = 20
PUBLISHED: Final = {
    "TR": {
        "router": (1.76, 1.80, 1.78, 1.93),
        "attention": (18.13, 18.28, 18.49, 19.59),
        "experts": (22.43, 24.59, 24.97, 30.17),
    },
    "AR": {
        "router": (0.61, 0.61, 0.61, 0.61),
        "attention": (18.18, 18.13, 18.36, 19.66),
        "experts": (21.75, 22.53, 22.99, 28.31),
    },
}
NUM_EXPERTS: Final = 7
CONTEXT: Final = 256
FEWER: Final = (5.08, 3.51)
"""Unique experts per batch with decodes first and with expert-aware batching, as published."""
SHAPE: Final = "readme-llama-2-7b"
_MS: Final = 1e6

Basis = Callable[[int], list[float]]
Latency = Callable[[int], dict[str, float]]


def main() -> None:
    forms = {"A": fitted_to_batch, "B": fitted_to_unique, "C": roofline}
    predictions = {(f, k): form(k)(HELD_OUT) for f, form in forms.items() for k in PUBLISHED}
    print("```sh\npython studies/readme/table8.py\n```", end="\n\n")
    print(markdown(errors(predictions)), end="\n\n")
    print(markdown(residuals({"A": fitted_to_batch, "B": fitted_to_unique})), end="\n\n")
    print(markdown(step_explained()), end="\n\n")
    print(markdown(expert_slopes()), end="\n\n")
    before, after = FEWER
    for kind in PUBLISHED:
        print(
            f"By form B ({kind}), {before} unique experts becoming {after} saves "
            f"{100 * saved_by_fewer(kind):.1f} % of a step; the paper's mean latency, 5.0 to 6.1 %."
        )


def unique_experts(batch: int, num_experts: int = NUM_EXPERTS) -> float:
    """Return the mean number of distinct experts of `batch` uniform, independent tokens."""
    return float(num_experts * (1 - (1 - 1 / num_experts) ** batch))


def fitted_to_batch(kind: str) -> Latency:
    """Return form A."""
    return _fitted(kind, {"router": _constant, "attention": _line, "experts": _line})


def fitted_to_unique(kind: str) -> Latency:
    """Return form B."""
    return _fitted(kind, {"router": _constant, "attention": _line, "experts": _line_in_unique})


def roofline(kind: str) -> Latency:
    """Return form C: the simulator's prices, without the head, and only with the AR router."""
    cost = CostModel(load_hardware("a100-80gb"), named_shape(SHAPE))

    def latency(batch: int) -> dict[str, float]:
        shape = BatchShape(batch, batch * CONTEXT, batch * CONTEXT, batch, batch)
        overhead = cost.experts_ns((1,)) - _expert_ns(cost)
        experts = unique_experts(batch) * _expert_ns(cost) + overhead
        layers = cost.shape.num_layers
        router = {"router": cost.router_ns(shape) / _MS} if kind == "AR" else {}
        return {
            **router,
            "attention": cost.front_ns(0, shape) * layers / _MS,
            "experts": experts * layers / _MS,
        }

    return latency


def _expert_ns(cost: CostModel) -> int:
    """Return the time of one more expert in a grouped call: reading its weights, for few rows."""
    return cost.experts_ns((1, 1)) - cost.experts_ns((1,))


def _constant(batch: int) -> list[float]:
    return [1.0]


def _line(batch: int) -> list[float]:
    return [1.0, batch]


def _line_in_unique(batch: int) -> list[float]:
    return [1.0, unique_experts(batch)]


def _fitted(kind: str, bases: Mapping[str, Basis]) -> Latency:
    """Fit by least squares, component by component, over all batches but the one held out."""
    seen = [place for place, batch in enumerate(BATCHES) if batch != HELD_OUT]
    weights = {}
    for part, basis in bases.items():
        design = np.array([basis(BATCHES[place]) for place in seen])
        times = np.array([PUBLISHED[kind][part][place] for place in seen])
        weights[part] = np.linalg.lstsq(design, times, rcond=None)[0]
    return lambda batch: {
        part: float(np.dot(basis(batch), weights[part])) for part, basis in bases.items()
    }


def published(kind: str, batch: int) -> dict[str, float]:
    """Return the paper's components at a batch size."""
    place = BATCHES.index(batch)
    return {part: times[place] for part, times in PUBLISHED[kind].items()}


def expert_ms() -> float:
    """Return what one more unique expert costs in all layers by the roofline, in ms a step."""
    cost = CostModel(load_hardware("a100-80gb"), named_shape(SHAPE))
    return _expert_ns(cost) * cost.shape.num_layers / _MS


def slope_over(kind: str, first: int, last: int) -> float:
    """Return what one more unique expert costs between two batches of the table, in ms a step."""
    gained = published(kind, last)["experts"] - published(kind, first)["experts"]
    return gained / (unique_experts(last) - unique_experts(first))


def slope_of_form_b(kind: str) -> float:
    """Return what one more unique expert costs by form B, in ms a step."""
    latency = fitted_to_unique(kind)
    gained = latency(20)["experts"] - latency(5)["experts"]
    return gained / (unique_experts(20) - unique_experts(5))


def batch_of(unique: float) -> float:
    """Return how many independent tokens want this number of experts in the mean."""
    return log(1 - unique / NUM_EXPERTS) / log(1 - 1 / NUM_EXPERTS)


def step_ms(kind: str, unique: float) -> float:
    """Return the table's step in ms, interpolated at the batch that wants `unique` experts."""
    sums = [sum(published(kind, batch).values()) for batch in BATCHES]
    return float(np.interp(batch_of(unique), BATCHES, sums))


def saved_by_fewer(kind: str) -> float:
    """Return form B's saving, as a share of a step, for fewer unique experts in one batch size."""
    before, after = FEWER
    # The paper's unique experts are those of some batch size, which it does not give.
    batch = min(range(1, 31), key=lambda size: abs(unique_experts(size) - before))
    return slope_of_form_b(kind) * (before - after) / sum(fitted_to_unique(kind)(batch).values())


def expert_slopes() -> Table:
    """Return the cost of one more unique expert, and what fewer experts save of a step by it."""
    before, after = FEWER
    table = Table(
        f"One more unique expert (ms a step), and what {before} becoming {after} saves of a step",
        ["router", "from", "ms", "saved (%)"],
    )
    for kind in PUBLISHED:
        step = step_ms(kind, before)
        slopes = {
            "batches 5 to 10": slope_over(kind, 5, 10),
            "batches 5 to 20": slope_over(kind, 5, 20),
            "batches 5 to 30": slope_over(kind, 5, 30),
            "form B": slope_of_form_b(kind),
            "the roofline, in a step as long": expert_ms(),
        }
        for name, slope in slopes.items():
            table.add(kind, name, f"{slope:.2f}", f"{100 * slope * (before - after) / step:.1f}")
    return table


def errors(predictions: Mapping[tuple[str, str], Mapping[str, float]]) -> Table:
    """Return paper, prediction and gap at the held-out batch, by component and in all."""
    table = Table(
        f"Batch {HELD_OUT}, held out (ms)",
        ["form", "router", "part", "paper", "predicted", "gap", "gap in %"],
    )
    for (form, kind), predicted in predictions.items():
        paper = published(kind, HELD_OUT)
        parts = [(part, paper[part], ms) for part, ms in predicted.items()]
        whole = sum(paper[part] for part in predicted)
        parts.append(("sum of these", whole, sum(predicted.values())))
        for part, wanted, got in parts:
            numbers = (f"{wanted:.2f}", f"{got:.2f}", f"{got - wanted:+.2f}")
            table.add(form, kind, part, *numbers, f"{100 * (got / wanted - 1):+.1f}")
    return table


def residuals(forms: Mapping[str, Callable[[str], Latency]]) -> Table:
    """Return fit less paper at the fitted batches, summed: the smallest error of a form."""
    seen = [batch for batch in BATCHES if batch != HELD_OUT]
    table = Table(
        "Fit less paper at the batches fitted, sum (ms)",
        ["form", "router", *(f"batch {batch}" for batch in seen)],
    )
    for form, fit in forms.items():
        for kind in PUBLISHED:
            gaps = [sum(fit(kind)(b).values()) - sum(published(kind, b).values()) for b in seen]
            table.add(form, kind, *(f"{gap:+.2f}" for gap in gaps))
    return table


def step_explained() -> Table:
    """Return what each cause could add between batches, by the roofline, and the paper's steps."""
    cost = CostModel(load_hardware("a100-80gb"), named_shape(SHAPE))
    layers, hardware = cost.shape.num_layers, cost.hardware
    flops = hardware.flops_per_s * hardware.compute_efficiency
    pairs = list(pairwise(BATCHES))

    one_ms = expert_ms()
    causes: dict[str, Callable[[int], float]] = {
        "unique experts": unique_experts,
        "reading their weights (ms)": lambda b: unique_experts(b) * one_ms,
        "arithmetic of the experts (ms)": (
            lambda b: 1e3 * 2 * b * cost.shape.expert_params * layers / flops
        ),
        "reading KV entries, attention (ms)": _kv_ms(cost),
        **{f"experts with over {n} rows": partial(crowded, rows=n) for n in (4, 8, 16)},
    }
    title = f"Steps between batches (reading one expert in all layers takes {one_ms:.2f} ms)"
    table = Table(title, ["", *(f"{a} to {b}" for a, b in pairs)])
    for kind, part in product(PUBLISHED, ("experts", "attention")):
        steps = (published(kind, b)[part] - published(kind, a)[part] for a, b in pairs)
        table.add(f"paper: {part}, {kind} (ms)", *(f"{step:+.2f}" for step in steps))
    for cause, value in causes.items():
        table.add(cause, *(f"{value(b) - value(a):+.2f}" for a, b in pairs))
    return table


def _kv_ms(cost: CostModel) -> Callable[[int], float]:
    rate = cost.hardware.memory_bytes_per_s * cost.hardware.memory_efficiency
    return lambda batch: 1e3 * batch * CONTEXT * cost.shape.kv_bytes_per_token / rate


def crowded(batch: int, rows: int) -> float:
    """Return the mean number of experts with more than `rows` of `batch` tokens (binomial)."""
    share = 1 / NUM_EXPERTS
    few = sum(comb(batch, n) * share**n * (1 - share) ** (batch - n) for n in range(rows + 1))
    return NUM_EXPERTS * (1 - few)


if __name__ == "__main__":
    run_main(main)
