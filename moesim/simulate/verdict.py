"""The verdict: what limits a run, and how much time each cause costs.

A run can be limited by its policy, by a working set that exceeds its slots, by the link, the host,
the disk, the CPU, or by computing. The *regret* of a cause is the time in steps that would be saved
without it. For the policy, the working set and the link another run measures it: the run with MIN's
evictions, with a slot for every expert, or with copies that take no time. For the host, the disk
and the CPU it is the time that the GPU waits for them. For computing it is the time that the GPU
computes. Those times are read from the run itself, and no other run is needed. They are estimates:
without its longest wait, a run may wait for something else.

Regrets overlap, so they do not add up: a better policy and more slots avoid the same copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from moesim.config.units import format_bytes
from moesim.results.metrics import ratio
from moesim.serving.budget import OnGpu, bytes_in_unused_memory
from moesim.serving.stalls import CAUSES

if TYPE_CHECKING:
    from moesim.serving.ledger import Ledger
    from moesim.serving.request import Request
    from moesim.simulate.build import Plan

__all__ = ["REGRET_KEYS", "more_slots", "regrets", "spent_of", "verdict"]

REMEDIES: Final = {
    "policy": "MIN's evictions",
    "working set": "a slot for every expert (filled at first use)",
    "link": "copies that take no time",
}
"""What removes a cause whose regret another run measures."""
WAITED_FOR: Final = {
    "host": "host to issue work or to read the router's choices",
    "disk": "disk",
    "cpu": "CPU",
}
"""What the GPU waits for, for each cause whose regret is that wait."""
_STALLS: Final = {"host": ("readback", "host"), "disk": ("disk",), "cpu": ("cpu",)}
# What removes them costs more and more: other software, more memory, other hardware.
ORDER: Final = ("policy", "host", "working set", "link", "disk", "cpu")
REGRET_KEYS: Final = tuple(f"regret_{word.replace(' ', '_')}_s" for word in (*ORDER, "compute"))
_WORTH_IT: Final = 10  # a remedy must save more than one part in ten


def spent_of(ledger: Ledger) -> dict[str, int]:
    """Return how long the GPU waits for the host, the disk and the CPU, and computes, in ns."""
    spent_ns = {
        word: sum(sum(ledger.stall_ns[CAUSES.index(cause)]) for cause in causes)
        for word, causes in _STALLS.items()
    }
    return {**spent_ns, "compute": ledger.stepping_ns - sum(map(sum, ledger.stall_ns))}


def verdict(
    now_ns: int, then_ns: Mapping[str, int], spent_ns: Mapping[str, int] | None = None
) -> tuple[str, str]:
    """Return what limits a run, and a sentence with what each cause costs.

    `now_ns` is the run's time in steps, `then_ns` that with each remedy, and `spent_ns` what
    `spent_of` returns. Without the host, the disk or the CPU, the wait for it is saved. The verdict
    is the cheapest cause (in `ORDER`, after none: *compute*) without which the time is within a
    tenth of `now_ns` of the best. So a cause is named if more than a tenth of the time in steps
    would be saved, and more than a tenth over each cheaper one. A remedy that `then_ns` lacks is no
    choice.
    """
    spent_ns = spent_ns or {}
    waits_ns = {word: spent_ns.get(word, 0) for word in WAITED_FOR}
    without = {word: now_ns - wait_ns for word, wait_ns in waits_ns.items()}
    without.update(then_ns)
    best_ns = min(without.values())
    # In integers, so that a time exactly at the threshold is judged alike everywhere.
    choices = {"compute": now_ns}
    choices.update((word, without[word]) for word in ORDER if word in without)
    word = next(w for w, ns in choices.items() if (ns - best_ns) * _WORTH_IT <= now_ns)
    if word == "compute":
        lead = f"no remedy would save more than a tenth of the {_seconds(now_ns)} in steps"
    elif word in REMEDIES:
        change = f"{_seconds(now_ns)} to {_change(now_ns, then_ns[word])}"
        lead = f"{REMEDIES[word]} would cut the time in steps from {change}"
    else:
        lead = f"of the {_seconds(now_ns)} in steps, {_wait(now_ns, word, waits_ns[word])}"
    remedies = [w for w in REMEDIES if w in then_ns and w != word]
    others = [f"{REMEDIES[w]}: {_change(now_ns, then_ns[w])}" for w in remedies]
    others += [_wait(now_ns, w, ns) for w, ns in waits_ns.items() if ns and w != word]
    if computing_ns := spent_ns.get("compute"):
        others.append(f"the GPU computes {_share(now_ns, computing_ns)}")
    if "policy" not in then_ns:
        others.append("experts never move, so no other eviction is a remedy")
    return word, "; ".join([lead, *others])


def regrets(
    now_ns: int, then_ns: Mapping[str, int], spent_ns: Mapping[str, int]
) -> dict[str, float | None]:
    """Return the regret of each cause in seconds, under `REGRET_KEYS`; None for no choice.

    Arguments are those of `verdict`. A remedy that saves no time has a regret of 0, also where it
    costs time.
    """
    saved_ns = {word: max(0, now_ns - ns) for word, ns in then_ns.items()}
    saved_ns.update(spent_ns)
    values = [saved_ns.get(word) for word in (*ORDER, "compute")]
    return {
        key: None if ns is None else ns / 1e9 for key, ns in zip(REGRET_KEYS, values, strict=True)
    }


def more_slots(plan: Plan, requests: Sequence[Request]) -> list[str]:
    """Return how many slots the unused memory holds, and whether all experts fit the memory.

    The first is left out if the unused memory holds less than a slot a layer. Where the placement
    fixes which experts are in GPU memory and would add none, a hint says so.
    """
    from moesim.simulate.build import residents_in

    budget, slots, sizes = plan.budget, sum(plan.slots), plan.sizes
    total = plan.trace.num_layers * plan.trace.num_experts
    every_bytes = total * plan.cost.expert_bytes if sizes is None else sum(sizes)
    rest_bytes = bytes_in_unused_memory(
        plan.scenario,
        plan.cost.shape,
        plan.cost.hardware.vram_bytes,
        [request.max_kv_tokens for request in requests],
        OnGpu.of(plan.cost.shape, plan.places.lanes),
    )
    rest = rest_bytes * total // every_bytes
    fits = "fits" if max(budget.slots_bytes, rest_bytes) >= every_bytes else "does not fit"
    texts = [f"a slot for every expert {fits} in {format_bytes(budget.capacity_bytes)}"]
    if budget.free_bytes < plan.trace.num_layers * plan.cost.expert_bytes or rest <= slots:
        return texts
    if plan.places.residents is not None:
        # The largest experts must fit, because the placement may choose any.
        rest = residents_in(plan, rest_bytes // plan.cost.expert_bytes)
    if rest > slots:
        hint = f"cache.slots: rest would give {rest} of {total} slots"
    else:
        hint = (
            f"placement {plan.scenario.placement.policy} keeps {slots} of {total} experts there, "
            "also with cache.slots: rest; its options decide"
        )
    unused = f"{format_bytes(budget.free_bytes)} of {format_bytes(budget.capacity_bytes)} of memory"
    return [f"{unused} is unused: {hint}", *texts]


def _wait(now_ns: int, word: str, wait_ns: int) -> str:
    return f"the GPU waits {_share(now_ns, wait_ns)} for the {WAITED_FOR[word]}"


def _share(now_ns: int, part_ns: int) -> str:
    return f"{_seconds(part_ns)} ({ratio(part_ns, now_ns) or 0.0:.0%})"


def _change(now_ns: int, then_ns: int) -> str:
    gain = ratio(then_ns - now_ns, now_ns) or 0.0
    return f"{_seconds(then_ns)} ({gain:+.0%})"


def _seconds(time_ns: int) -> str:
    seconds = time_ns / 1e9
    return f"{seconds:#.3g} s" if seconds < 99.95 else f"{seconds:,.0f} s"
