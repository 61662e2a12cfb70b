"""Stretches: steps in a row that are decided and timed by one compiled call.

A step and the decode steps after it that serve the same requests make one stretch. The kernel has
the state of all caches as arrays, so the `ExpertCache`s of the server stay as they were.

Shapes: S steps, B rows of a step, L trace layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.cost.roofline import CostModel
from moesim.errors import InvariantError, PolicyViolation, TraceError
from moesim.hardware.ops import BatchShape, Copy, Tail
from moesim.hardware.topology import GPU, H2D
from moesim.machine.prices import Prices, alone_ns
from moesim.machine.work import FAR
from moesim.policies.blame import blamed, is_foreign
from moesim.policies.eviction.base import Eviction
from moesim.policies.eviction.min import MIN
from moesim.policies.eviction.resident import Resident
from moesim.policies.eviction.static import Static
from moesim.policies.guard import unguarded
from moesim.serving.compiled.again import promises
from moesim.serving.compiled.kernel import (
    COLUMNS,
    Books,
    Costs,
    Out,
    Steps,
    stretch_of,
)
from moesim.serving.compiled.log import Readbacks, StretchLog
from moesim.serving.compiled.policies import (
    FIRST,
    KERNELS,
    LAST,
    OPTION,
    RESIDENT,
    WORDS,
    Kernel,
    Lessons,
)
from moesim.serving.compiled.unions import unions_of_steps
from moesim.serving.experts.residency import ExpertCache
from moesim.serving.ledger import Ledger
from moesim.serving.request import Request
from moesim.serving.routing import check_ids
from moesim.serving.scheduler import Scheduler
from moesim.serving.step import Step
from moesim.serving.step_memo import StepBytes
from moesim.serving.step_timeline import show_step
from moesim.serving.unions import UnionMemo, Unions
from moesim.trace import Trace

__all__ = ["Stretches", "kernel_of", "later_batch", "rows_of"]

_MOST_STEPS: Final = 2048
_MOST_ROWS: Final = 1 << 15  # of a stretch, so that its ids fit into the caches of a processor
_KINDS: Final = ((GPU, "experts"), (H2D, "demand"), (GPU, "experts"))


def kernel_of(policy: Eviction) -> Kernel | None:
    """Return the compiled functions of a policy, or None if it has none.

    Raise `PolicyViolation` where the `kernel` of its class is no `Kernel`.
    """
    kind = type(unguarded(policy))
    if kind in (Resident, Static):
        return KERNELS["lru"]  # it is not asked
    own = vars(kind).get("kernel")
    if isinstance(own, Kernel):
        return own
    if own is not None:
        raise PolicyViolation(policy.name, "kernel", f"is {own!r:.60}; it must be a Kernel")
    if is_foreign(kind):
        return None
    return KERNELS.get("lru" if policy.name == "infinite" else policy.name)


class Stretches:
    """The compiled back end of one server. Arguments are those of the server and its memo."""

    def __init__(
        self,
        trace: Trace,
        caches: Sequence[ExpertCache],
        numbers: Sequence[int],
        prices: Prices,
        cost: CostModel,
        ledger: Ledger,
        *,
        staging: int,
        block_tokens: int,
        memo: UnionMemo | None = None,
        keep: bool = False,
    ) -> None:
        """Take over the caches, which no step has changed. `keep` is that of the log."""
        layers, experts = trace.num_layers, trace.num_experts
        self._trace, self._prices, self._ledger = trace, prices, ledger
        self._ids, self._memo = trace.expert_ids, memo
        self._step_ns = 0  # the time of the last step
        self._backs: dict[StepBytes, Readbacks] = {}
        nbytes = caches[0].expert_bytes
        self._log = StretchLog(ledger, layers, nbytes, block_tokens, keep=keep)
        self._unused, self._block_tokens = trace.meta.unused, block_tokens
        distinct = dict(zip(numbers, caches, strict=True))
        self._caches = [distinct[number] for number in range(len(distinct))]
        self._nbytes = nbytes
        policies = [cache.policy for cache in self._caches]
        self._fixed = [type(policy) in (Resident, Static) for policy in policies]
        main = policies[-1]
        kernel = kernel_of(main)
        assert kernel is not None, "the caller has asked `kernel_of`"
        self._kind = type(unguarded(main))  # to blame
        with blamed(self._kind, "kernel"):
            self._stretch = self._compile(kernel)
            option = 0.0 if all(self._fixed) else float(kernel.option(main.options))
        first = [numbers.index(number) * experts for number in range(len(policies))]
        width = max(1, max(cache.capacity for cache in caches)) + experts
        self._books = Books(
            np.array(numbers, np.int64),
            np.array([cache.capacity for cache in self._caches], np.int64),
            np.array(self._fixed),
            np.zeros(len(policies), np.int64),
            np.zeros((len(policies), width), np.int64),
            main.always,
            staging,
        )
        keys = layers * experts
        self._ints = np.zeros((keys + len(policies), WORDS), np.int64)
        self._ints[keys:, FIRST] = first
        self._ints[keys:, LAST] = [*first[1:], keys]
        self._floats = np.zeros((keys + len(policies), 2), np.float64)
        self._floats[keys:, OPTION] = option
        self._given = np.zeros(0, np.float64)
        self._policies, self._numbers = policies, np.array(numbers)
        if kernel.lessons is not None:
            nothing = Lessons({}, np.zeros(0))
            with blamed(self._kind, "kernel"):
                self._learn(
                    [
                        nothing if fixed else kernel.lessons(unguarded(each))
                        for each, fixed in zip(policies, self._fixed, strict=True)
                    ],
                    keys,
                )
        for number, cache in enumerate(self._caches):
            for key in cache.slots:
                self._books.members[number, self._books.held[number]] = key
                self._books.held[number] += 1
                self._ints[key, RESIDENT] = 1
        self._cost = cost
        self._costs = self._costs_for(1)

    def _compile(self, kernel: Kernel) -> Any:
        """Return the compiled function of a policy."""
        return stretch_of(kernel)

    def _learn(self, lessons: Sequence[Lessons], keys: int) -> None:
        """Put what the policy of each cache knows into the arrays."""
        begin = 0
        for number, (first, given) in enumerate(lessons):
            for key, value in first.items():
                self._floats[key, 0] = value
            self._ints[keys + number, 0] = begin
            begin += len(given)
        self._given = np.concatenate([given for _, given in lessons])

    def _costs_for(self, rows: int) -> Costs:
        """Return the durations of experts with up to `rows` rows."""
        cost, prices = self._cost, self._prices
        expert = [0, *(cost.expert_ns(count) for count in range(1, rows + 1))]
        fetch = [cost.fetch_ns(copied) for copied in range(self._trace.num_experts + 1)]
        copy = alone_ns(prices, H2D, Copy(0, self._nbytes))
        landing_ns = prices.landing_ns
        return Costs(
            cost.call_ns, np.array(expert, np.int64), np.array(fetch, np.int64), copy, landing_ns
        )

    def repeats(
        self, step: Step, scheduler: Scheduler, left_ns: int
    ) -> tuple[Sequence[Request], int]:
        """Return the requests that the steps after a formed one decode, and how many steps.

        The last of the steps may be the last one of some requests. In `left_ns` a request arrives;
        so no more steps are prepared than probably run until then.
        """
        if step.finished or len(step.emitting) < len(step.parts):
            return (), 0
        requests = scheduler.decodes_that_repeat(len(step.parts))
        if not requests:
            return (), 0
        most = min(request.output_tokens - request.emitted for request in requests)
        most = min(most, _MOST_STEPS, _MOST_ROWS // len(requests))
        if self._step_ns:
            most = min(most, left_ns // self._step_ns + 1)
        pool = scheduler.pool
        while most > 0 and sum(pool.missing(each, most) for each in requests) > pool.free:
            most //= 2
        return requests, most

    def run(
        self,
        step: Step,
        requests: Sequence[Request],
        more: int,
        start_ns: int,
        due_ns: int,
        sizes: StepBytes,
        later: StepBytes,
    ) -> npt.NDArray[np.int64]:
        """Run a step and up to `more` that decode `requests`; return when each that ran has ended.

        `sizes` are the bytes of the step's readbacks, `later` those of each step after it.
        It stops behind a step that ends at `due_ns` or later. Where the last step would end at FAR
        or later, it is not logged: the wait for it is refused.
        """
        number = self._ledger.num_steps
        unions = self._unions(*rows_of(step, requests, more))
        if len(self._costs.expert_ns) <= step.batch.tokens:
            self._costs = self._costs_for(2 * step.batch.tokens)
        first, others = self._readbacks(sizes), self._readbacks(later)
        fixed_ns = self._log.begin(self._fixed_ns(step, more), first, others)
        shown, works = self._shown(number, unions)
        steps = Steps(*unions, fixed_ns, shown, self._trace.num_experts)
        out = self._log.out(more + 1, works)
        with blamed(self._kind, "kernel"):
            ran, num_keys, num_works = self._stretch(
                steps,
                start_ns,
                min(due_ns, FAR),
                self._costs,
                self._books,
                self._ints,
                self._floats,
                self._given,
                out,
            )
        self._check_capacity()
        finish = out.finish_ns[:ran].copy()
        if finish[-1] >= FAR:
            ran -= 1  # its wait refuses it
        if ran:
            self._step_ns = int(finish[-1] - (finish[-2] if len(finish) > 1 else start_ns))
            sizes_of = unions.sizes[: ran * self._trace.num_layers]
            logged = Unions(unions.keys[:num_keys], unions.tokens, sizes_of)
            self._log.add(step, ran, start_ns, logged)
            for place in np.flatnonzero(shown[:ran]).tolist():
                begins = start_ns if place == 0 else int(finish[place - 1])
                backs = others if place else first
                works_of = out.works[:num_works]
                self._show(number + place, begins, _batch(step, place),
                           works_of[works_of[:, 0] == place],
                           backs.ids_ns if backs.ids_bytes else None, backs.sampled_ns)  # fmt: skip
        return np.asarray(finish)

    @property
    def kept(self) -> Sequence[Steps] | None:
        """The steps that have run, in parts; None where they were not to be kept."""
        return self._log.kept

    def again(self, parts: Sequence[Steps]) -> tuple[npt.NDArray[np.int64], int] | None:
        """Run the steps of another run, one after another; return their ends, and all hits.

        The ends [S + 1] begin with the start, 0. MIN is promised these very steps. None if the time
        exceeds FAR.
        """
        self._costs = self._costs_for(
            max((int(part.counts.max(initial=1)) for part in parts), default=1)
        )
        layers = self._trace.num_layers
        if isinstance(unguarded(self._policies[-1]), MIN):
            keys = layers * self._trace.num_experts
            first, self._given, begins = promises(parts, self._books.cache_of, keys)
            self._floats[:keys, 0], self._ints[keys:, 0] = -first, begins
        now, hits, ends = 0, 0, [np.zeros(1, np.int64)]
        for part in parts:
            number = len(part.fixed_ns)
            sums = np.zeros((number, len(COLUMNS)), np.int64)
            out = Out(
                np.zeros(number, np.int64), sums, np.zeros((layers, len(COLUMNS)), np.int64),
                np.zeros(number, np.int64), np.empty((0, 6), np.int64),
            )  # fmt: skip
            self._stretch(part, now, FAR, self._costs, self._books, self._ints, self._floats,
                          self._given, out)  # fmt: skip
            now = int(out.finish_ns.max())
            if now >= FAR:
                return None
            hits += int(sums[:, COLUMNS.index("hits")].sum())
            ends.append(out.finish_ns)
        return np.concatenate(ends), hits

    def _readbacks(self, sizes: StepBytes) -> Readbacks:
        """Return the readbacks of these sizes; most steps have those of another one."""
        found = self._backs.get(sizes)
        if found is None:
            found = self._backs[sizes] = Readbacks.of(sizes, self._prices)
        return found

    def _shown(self, first: int, unions: Unions) -> tuple[npt.NDArray[np.bool_], int]:
        """Return which steps are shown, [S], and the number of their works.

        `first` is the number of the first step.
        """
        timeline, layers = self._ledger.timeline_steps, self._trace.num_layers
        number = len(unions.sizes) // layers
        shown = np.zeros(number, np.bool_)
        if first >= timeline.stop:
            return shown, 0
        shown[max(0, timeline.start - first) : max(0, timeline.stop - first)] = True
        sizes = unions.sizes.reshape(number, layers)[shown]
        return shown, sizes.size + 2 * int(sizes.sum())  # residents; a copy and a call for others

    def _unions(self, rows: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Unions:
        """Return the unions of steps. Those of one step are kept for other runs of its rows."""
        memo = self._memo if len(ends) == 2 else None
        name = b"" if memo is None else memo.name_of(rows)
        known = None if memo is None else memo.get(name)
        if known is not None:
            return known
        experts, top_k = self._trace.num_experts, self._trace.top_k
        ids = np.ascontiguousarray(self._ids[rows])
        if int(ids.max(initial=0)) >= experts:  # unused places have the highest id of all
            check_ids(self._trace, ids, rows)
        layers = ids.shape[1]
        most = int(np.minimum(np.diff(ends) * top_k, experts).sum()) * layers
        keys, counts = np.empty(most, np.int32), np.empty(most, np.int32)
        sizes = np.empty((len(ends) - 1) * layers, np.int32)
        number = unions_of_steps(ids, ends, self._unused, experts, keys, counts, sizes)
        if number < 0:
            row, layer = divmod(-1 - number, layers)
            where = f"row {int(rows[row])}, layer {layer}"
            raise TraceError(
                self._trace.path or "trace", where, "an expert id is repeated in a row"
            )
        unions = Unions(keys[:number], counts[:number], sizes)
        if memo is not None:
            memo.keep(name, Unions(keys[:number].copy(), counts[:number].copy(), sizes))
        return unions

    def _check_capacity(self) -> None:
        """Raise `PolicyViolation` where the list of a policy lacks keys that should leave."""
        books = self._books
        for number in np.flatnonzero(books.held > books.capacity).tolist():
            raise PolicyViolation(
                self._policies[number].name,
                "kernel",
                f"keeps more than {books.capacity[number]} keys; its list must have all residents",
            )

    def _fixed_ns(self, step: Step, more: int) -> npt.NDArray[np.int64]:
        """Return the GPU's time of each step outside of layer events, [S]."""
        batch = step.batch
        first = sum(self._prices.layers_ns(batch)) + alone_ns(self._prices, GPU, Tail(batch))
        later = self._cost.steps_ns(later_batch(step, more)) if more else ()
        return np.array([first, *later], np.int64)

    def flush(self, now_ns: int) -> None:
        """Add all steps to the ledger, when the last one has run and it is `now_ns`.

        Raise `InvariantError` for impossible times, or for layer events that MIN was not promised.
        """
        self._log.flush()
        experts, layers = self._trace.num_experts, np.array(self._numbers)
        residents = np.flatnonzero(self._ints[: len(layers) * experts, RESIDENT])
        for number, cache in enumerate(self._caches):
            cache.left_by_kernel = residents[layers[residents // experts] == number].tolist()
        minima = {at: each for at, each in enumerate(self._policies) if isinstance(each, MIN)}
        if minima:
            keys = np.repeat(self._numbers, experts).tolist()
            wanted = self._ledger.layer_events().filled().grouped(keys, len(self._policies))
            for number, policy in minima.items():
                _check_future(wanted[number].flat, policy)

    def _show(
        self,
        number: int,
        start_ns: int,
        batch: BatchShape,
        works: npt.NDArray[np.int64],
        ids_ns: int | None,
        sampled_ns: int,
    ) -> None:
        """Add a step to the timeline."""
        ledger = self._ledger
        by_layer: list[list[list[int]]] = [[] for _ in range(self._trace.num_layers)]
        for work in works.tolist():
            by_layer[work[1]].append(work)

        def event(layer: int, clock: int) -> int:
            duration_ns = 0
            for _, _, kind, key, start, finish in by_layer[layer]:
                lane, name = _KINDS[kind]
                expert = key % ledger.num_experts if key >= 0 else -1
                span = clock + start, clock + finish
                ledger.timeline.append((lane, name, *span, number, layer, expert))
                duration_ns = max(duration_ns, finish)
            return duration_ns

        show_step(ledger, self._prices, number, start_ns, batch, ids_ns, sampled_ns, event)


def _check_future(wanted: npt.NDArray[np.int64], policy: MIN) -> None:
    """Raise `InvariantError` where layer events wanted other keys than MIN was promised."""
    promised = policy.future.flat
    same = min(len(wanted), len(promised))
    wrong = np.flatnonzero(wanted[:same] != promised[:same])
    if wrong.size or same < len(wanted):
        place = int(wrong[0]) if wrong.size else same
        event = int(np.searchsorted(policy.future.ends, place, side="right"))
        raise InvariantError(13, f"layer event {event} is not the one MIN was promised")


def rows_of(
    step: Step, requests: Sequence[Request], more: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the trace rows of all steps, and where each step's rows begin and end."""
    first = len(step.rows)
    if not more:
        return step.rows, np.array([0, first], np.int64)
    later = np.stack([request.next_rows(more) for request in requests], axis=1).reshape(-1)
    ends = first + len(requests) * np.arange(more + 1, dtype=np.int64)
    return np.concatenate([step.rows, later]), np.concatenate([[0], ends])


def later_batch(step: Step, more: int) -> BatchShape:
    """Return the batches of the steps behind a step, with their KV entries and pairs as arrays.

    Each sequence is longer by 1 in each.
    """
    size = len(step.parts)
    entries = sum(before + tokens for _, before, tokens, _ in step.parts)
    kv = entries + size * np.arange(1, more + 1)
    return BatchShape(size, kv, kv, size, size)  # type: ignore[arg-type]


def _batch(step: Step, later: int) -> BatchShape:
    """Return the batch of a step that is `later` steps behind a step."""
    if not later:
        return step.batch
    size, kv, *_ = later_batch(step, later)
    return BatchShape(size, int(kv[-1]), int(kv[-1]), size, size)  # type: ignore[index]
