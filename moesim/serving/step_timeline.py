"""The timeline of a step that was timed at once: one work after another, but in layer events."""

from __future__ import annotations

from collections.abc import Callable

from moesim.hardware.ops import BatchShape, Tail
from moesim.hardware.topology import D2H, GPU
from moesim.machine.prices import Prices, alone_ns
from moesim.serving.ledger import Ledger

__all__ = ["show_step"]


def show_step(
    ledger: Ledger,
    prices: Prices,
    number: int,
    start_ns: int,
    batch: BatchShape,
    ids_ns: int | None,
    sampled_ns: int,
    event: Callable[[int, int], int],
) -> None:
    """Add the works of step `number` to the timeline.

    `ids_ns` is the time until the ids of a layer are on the host, None if none return; `sampled_ns`
    that of the sampled tokens. `event(layer, start)` adds the works of a layer event, and returns
    its duration.
    """
    layers, layers_ns = ledger.layers, prices.layers_ns(batch)
    clock = start_ns

    def lasts(lane: str, kind: str, duration_ns: int, layer: int) -> int:
        ledger.timeline.append((lane, kind, clock, clock + duration_ns, number, layer, -1))
        return clock + duration_ns

    for layer, model_layer in enumerate(layers.model_layers):
        for dense in layers.dense_before[layer]:
            clock = lasts(GPU, "dense", layers_ns[dense], layer)
        clock = lasts(GPU, "front", layers_ns[model_layer], layer)
        if ids_ns is not None:
            clock = lasts(D2H, "readback", ids_ns, layer)
        clock += event(layer, clock)
    for dense in layers.dense_before[-1]:
        clock = lasts(GPU, "dense", layers_ns[dense], ledger.num_layers)
    clock = lasts(GPU, "tail", alone_ns(prices, GPU, Tail(batch)), ledger.num_layers)
    lasts(D2H, "readback", sampled_ns, ledger.num_layers)
