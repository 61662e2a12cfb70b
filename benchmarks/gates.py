"""What DSelect-k's gate takes, as a multiple of Top-k's: CPU time and memory kept for backward.

Forward and backward in training mode, one thread, 2,048 rows. *Alone* is the gate's own work: both
gates are static with a task for each row, so no linear layer runs. *Whole* is a per-example gate
that reads 512 features, its linear layers among its work. DSelect-k runs as by default (it computes
the entropy, weighed 1e-6) and without the entropy. Gates run in turn; the median of the rounds'
ratios and their quartiles are printed. Bytes are those of a per-example gate, each storage counted
once, without parameters and inputs. No experts run.

    python benchmarks/gates.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import figures
import torch
from figures import Figure
from torch import Tensor

from moesim.training.gates import DSelectK, Gate, TopK

ROWS, FEATURES, ROUNDS = 2048, 512, 40
SIZES = tuple((n, k) for n in (64, 128, 256) for k in (4, 8))


class Kept:
    """A tensor that a graph holds for backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def gates_of(n: int, k: int, features: int | None) -> list[Gate]:
    """Return Top-k, DSelect-k as by default, and DSelect-k without entropy."""
    sizes: dict[str, Any] = {"features": features, "tasks": ROWS if features is None else 1}
    return [TopK(n, k, **sizes), DSelectK(n, k, **sizes), DSelectK(n, k, entropy=0.0, **sizes)]


def cpu_s(gate: Gate, inputs: Tensor | None, slope: Tensor) -> float:
    """Return the CPU seconds of one forward and backward pass."""
    start = time.process_time()
    weights, loss = gate(inputs)
    ((weights * slope).sum() + loss).backward()
    return time.process_time() - start


def saved_bytes(gate: Gate, inputs: Tensor) -> int:
    """Return the bytes that forward stores for backward, without parameters and inputs."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (inputs, *gate.parameters())}
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> Kept:
        kept.add(saved := Kept(tensor))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.tensor):
        output = gate.train()(inputs)
    # What forward itself has used up and dropped is no longer in the set.
    storages = {s.data_ptr(): s.nbytes() for s in (k.tensor.untyped_storage() for k in kept)}
    assert output.weights.requires_grad
    return sum(size for place, size in storages.items() if place not in known)


def rounds_s(gates: list[Gate], n: int, features: int | None, rounds: int) -> list[list[float]]:
    """Return the CPU seconds of each gate in each round, after three rounds to warm up."""
    inputs = None if features is None else torch.randn(ROWS, features)
    slope = torch.randn(ROWS, n)
    times = []
    for _ in range(rounds + 3):
        # In turn, so that a busy machine disturbs all alike.
        times.append([cpu_s(gate.train(), inputs, slope) for gate in gates])
    return times[3:]


def ratios(n: int, k: int, features: int | None, rounds: int) -> list[str]:
    """Return Top-k's median milliseconds, and both ratios with their quartiles."""
    times = rounds_s(gates_of(n, k, features), n, features, rounds)
    columns = [f"{statistics.median(row[0] for row in times) * 1e3:.1f}"]
    for place in (1, 2):
        low, middle, high = statistics.quantiles([row[place] / row[0] for row in times], n=4)
        columns.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
    return columns


def memory(n: int, k: int) -> list[str]:
    """Return Top-k's bytes a row, and DSelect-k's as a multiple."""
    inputs = torch.randn(ROWS, FEATURES)
    top_k, *ours = (saved_bytes(gate, inputs) for gate in gates_of(n, k, FEATURES))
    return [f"{top_k / ROWS:.0f}", *(f"{one / top_k:.2f}" for one in ours)]


def show(title: str, unit: str, row: Callable[[int, int], list[str]]) -> None:
    """Print one table, a line for each size."""
    print(
        f"\n{title}\n\n| n, k | Top-k ({unit}) | DSelect-k | without entropy |\n|---|--:|--:|--:|"
    )
    for n, k in SIZES:
        print(f"| {n}, {k} | {' | '.join(row(n, k))} |", flush=True)


def measure(quick: bool) -> list[Figure]:
    """Return the figures of one size, with DSelect-k as by default."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n, k = 128, 8
    found = []
    for name, features in (("alone", None), ("with linear layers", FEATURES)):
        spent = rounds_s(gates_of(n, k, features), n, features, 3 if quick else ROUNDS)
        ratios = [ours / top_k for top_k, ours, _ in spent]
        found.append(Figure.of(f"DSelect-k over Top-k, {n} experts, top-{k}, {name}", ratios))
    kept = float(memory(n, k)[1])
    return [*found, Figure.of("memory kept for backward, DSelect-k over Top-k", [kept])]


def main() -> None:
    """Print the three tables, or figures of one size as JSON."""
    if "--json" in sys.argv:
        figures.main(__doc__, measure)
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="Rounds of each size.")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    show("Time, gate alone", "ms", lambda n, k: ratios(n, k, None, rounds))
    show("Time, whole", "ms", lambda n, k: ratios(n, k, FEATURES, rounds))
    show("Memory kept for backward", "bytes a row", memory)


if __name__ == "__main__":
    main()
