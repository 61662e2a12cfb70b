"""Gain-driven prefetch: copy what would shorten a later layer most, while the link is idle.

HybriMoE (arXiv 2504.05897) applies the gates of the next three layers to the hidden state of this
layer. It simulates each of these layers with the experts that are now in GPU memory, and with one
more. The expert that saves most is copied next, as long as its copy fits into the idle time of the
link. Other guesses are not copied.

A layer is simulated as the placement `two_queue` divides it, or with copies alone where experts do
not run on the CPU. The link is idle from the end of this layer's copies until the later layer
starts: while the experts of the layers between are computed, and their attention. Queued copies are
done first: those chosen before, and those of experts that ran on the CPU and took a slot. The
source does not say how much of this time it counts.

All times are estimates, so the choice is the same on every machine. Ties: the nearest layer, and
then the order of `View.predicted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Final, Literal

from annotated_types import Ge, Le

from moesim.errors import UsageError
from moesim.policies.placement.two_queue import QueuedEvent
from moesim.policies.prefetch.base import Prefetch, PrefetchContext, Prices
from moesim.policies.registry import register
from moesim.policies.view import Key, View

MOST_LAYERS: Final = 3
"""The number of later layers whose gates the paper applies."""


@dataclass(frozen=True, slots=True)
class GainOptions:
    """`depth`: number of later layers to prefetch for, at most 3.

    `recorded` stands for as many of the three as the trace has predictions of.
    """

    depth: Annotated[int, Ge(1), Le(MOST_LAYERS)] | Literal["recorded"] = MOST_LAYERS


class _Layer:
    """The experts of one layer event, of which some are absent, with estimated durations."""

    def __init__(self, rows: dict[Key, int], absent: Sequence[Key], prices: Prices) -> None:
        self.rows = rows
        self.absent = absent
        self._prices = prices

    @cached_property
    def _times_ns(self) -> tuple[int, int]:
        copied = self._copied
        return self._event.makespan_ns(copied), self._event.link_ns(copied)

    @cached_property
    def _event(self) -> QueuedEvent:
        return QueuedEvent(self.rows, dict.fromkeys(self.absent, "host"), self._prices)

    @cached_property
    def _copied(self) -> int:
        return self._event.best() if self._prices.has_cpu else len(self._event.queue)

    @property
    def on_cpu(self) -> Sequence[Key]:
        """The absent experts that the CPU computes."""
        return self._event.queue[self._copied :]

    @property
    def span_ns(self) -> int:
        """How long the experts of the layer take."""
        return self._times_ns[0]

    @property
    def idle_ns(self) -> int:
        """How long the link is idle meanwhile."""
        return max(0, self._times_ns[0] - self._times_ns[1])

    def with_resident(self, key: Key) -> _Layer:
        """Return the same layer event with one more expert in GPU memory."""
        absent = [other for other in self.absent if other != key]
        return _Layer(self.rows, absent, self._prices)

    def gains_ns(self, keys: Sequence[Key]) -> dict[Key, int]:
        """Return by how much the layer is shorter if each of some absent keys were resident."""
        known: dict[tuple[int, ...], int] = {}
        gains = {}
        for key in keys:
            # Experts with the same durations save the same, and in a prompt they are many.
            kind = self._durations(key)
            if kind not in known:
                known[kind] = self.span_ns - self.with_resident(key).span_ns
            gains[key] = known[kind]
        return gains

    def _durations(self, key: Key) -> tuple[int, ...]:
        prices, rows = self._prices, self.rows[key]
        cpu_ns = prices.cpu_ns(key, rows) if prices.has_cpu else 0
        copy_ns, read_ns = prices.copy_ns(key), prices.read_ns(key)
        return rows, copy_ns, read_ns, cpu_ns, prices.gpu_ns(key, rows)


@register("prefetch", "gain", "hybrimoe")
class Gain(Prefetch):
    """Fetch the predicted experts that save most time, within the idle time of the link."""

    needs_predictions = True
    Options = GainOptions

    @classmethod
    def prediction_depth(cls, options: GainOptions) -> int:
        return 1 if options.depth == "recorded" else options.depth

    @classmethod
    def note(cls, options: GainOptions) -> str | None:
        if options.depth != "recorded":
            return None
        return (
            f"{cls.name} looks as many layers ahead as the trace has predictions of, at most "
            f"{MOST_LAYERS}"
        )

    def prepare(self, context: PrefetchContext) -> None:
        if context.prices is None:
            raise UsageError(f"{self.name} needs estimated durations, which only a simulation has")
        depth = self.options.depth
        self._depth = min(MOST_LAYERS, context.recorded_depth) if depth == "recorded" else depth
        self._context, self._prices = context, context.prices
        self._present: set[Key] = set()  # of the next layer, before its event
        self._queued_ns = 0  # copies that were chosen and are not done yet
        self._idle_ns = 0  # idle time of the link in the last layer, before the next one's front

    def wanted(self, view: View) -> Sequence[Key]:
        layers, now = self._context.num_layers, view.layer
        self._pass(self._idle_ns)
        self._idle_ns = 0
        if now < 0:
            self._look(view, 0, ())
            return ()
        rows_of_step = -(-sum(view.tokens) // self._context.top_k)
        self._pass(self._prices.front_ns(now, rows_of_step))
        rows = dict(zip(view.union, view.tokens, strict=True))
        absent = [key for key in rows if key not in self._present]
        here = _Layer(rows, absent, self._prices)
        self._idle_ns = here.idle_ns
        depth = min(self._depth, layers - 1 - now)
        later = [self._predicted(view, ahead) for ahead in range(1, depth + 1)]
        fronts_ns = [self._prices.front_ns(now + 1 + ahead, rows_of_step) for ahead in range(depth)]
        idle_ns = [layer.idle_ns for layer in [here, *later][:depth]]
        free_ns = list(accumulate(a + b for a, b in zip(idle_ns, fronts_ns, strict=True)))
        # Experts that ran on the CPU and took a slot are copied for later events.
        kept = [key for key in here.on_cpu if view.resident(key)]
        self._queued_ns += sum(map(self._prices.copy_ns, kept))
        chosen = self._chosen(later, [free - self._queued_ns for free in free_ns])
        self._queued_ns += sum(map(self._prices.copy_ns, chosen))
        self._look(view, now + 1, chosen)
        return chosen

    def _pass(self, idle_ns: int) -> None:
        """Let the link work on chosen copies for some time."""
        self._queued_ns = max(0, self._queued_ns - idle_ns)

    def _look(self, view: View, layer: int, chosen: Sequence[Key]) -> None:
        """Note which experts of a layer are resident before its event."""
        experts = self._context.num_experts
        keys = range(layer * experts, (layer + 1) * experts)
        self._present = {key for key in keys if view.resident(key)}.union(chosen)

    def _predicted(self, view: View, ahead: int) -> _Layer:
        """Return a later layer as it is predicted, with the experts that are resident now."""
        rows = dict(zip(view.predicted(ahead), view.predicted_tokens(ahead), strict=True))
        return _Layer(rows, [key for key in rows if not view.resident(key)], self._prices)

    def _chosen(self, later: Sequence[_Layer], left_ns: list[int]) -> list[Key]:
        """Return the keys to copy, nearest layer first.

        `left_ns` is the time of the link that is left before each later layer.
        """
        copy_ns, layers = self._prices.copy_ns, list(later)
        chosen: list[list[Key]] = [[] for _ in layers]
        gains_ns: list[dict[Key, int] | None] = [None] * len(layers)
        while True:
            best_ns, place, best = 0, -1, -1
            for ahead, layer in enumerate(layers):
                # The time only gets less, so a copy that does not fit now never will.
                fits_ns = min(left_ns[ahead:])
                known = gains_ns[ahead]
                among = layer.absent if known is None else known
                keys = [key for key in among if copy_ns(key) <= fits_ns]
                gains = layer.gains_ns(keys) if known is None else {k: known[k] for k in keys}
                gains_ns[ahead] = gains
                for key, gain_ns in gains.items():
                    if gain_ns > best_ns:
                        best_ns, place, best = gain_ns, ahead, key
            if place < 0:
                return [key for keys in chosen for key in keys]
            chosen[place].append(best)
            # A copy delays those of the later layers, which are issued after it.
            for ahead in range(place, len(left_ns)):
                left_ns[ahead] -= copy_ns(best)
            layers[place] = layers[place].with_resident(best)
            gains_ns[place] = None
