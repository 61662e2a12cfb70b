"""The workload: which requests arrive and when, their lengths, and the trace rows they replay.

The workload is the same for every policy (common random numbers). To ensure this, each kind of
choice draws from a random stream of its own.

A request can be longer than its recorded sequence. Then it is *tiled*: it continues with the rows
of other requests of the same domain. Reports give the share of tiled rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from moesim.config.suggest import suggest
from moesim.config.yaml_document import dotted
from moesim.errors import ScenarioError
from moesim.machine.work import FAR
from moesim.scenario.arrivals import Closed, Csv, Gamma, Poisson, Recorded
from moesim.serving.arrivals import NOT_SENT
from moesim.serving.request import Request
from moesim.streams import stream
from moesim.workload.arrivals_csv import MOST_REQUESTS, MOST_TOKENS, CsvError, read_arrivals

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.trace import Trace

_SECOND_NS = 1_000_000_000
_EVEN = 1e-9  # below this coefficient of variation gaps are equal, and its square may become 0

_SHARED_ROWS = 4_000_000  # rows of a domain that are held a second time, for requests to share

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Arrival times in nanoseconds, in ascending order, and lengths if the source has them.

    Closed clients have `think_ns`, the time that follows each request. Their first requests arrive
    at zero; the others have the time `NOT_SENT`, because it depends on the run.
    """

    times_ns: Ints
    prompt_tokens: Ints | None = None
    output_tokens: Ints | None = None
    think_ns: Ints | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of a scenario before any run, so that several runs draw them once.

    They were built for `scenario` and `trace`, and no run has served them.
    """

    scenario: Scenario
    trace: Trace
    requests: Sequence[Request]

    def fits(self, scenario: Scenario, trace: Trace) -> bool:
        """Return whether a scenario has these requests."""
        ours = self.scenario
        same = (ours.workload, ours.seed) == (scenario.workload, scenario.seed)
        return same and trace is self.trace

    def fresh(self) -> list[Request]:
        """Return new requests for a run. They share the arrays of rows, which no run changes."""
        return [
            Request(
                it.index,
                arrival_ns=it.arrival_ns,
                prompt_tokens=it.prompt_tokens,
                output_tokens=it.output_tokens,
                rows=it.rows,
                domain=it.domain,
                tiled_rows=it.tiled_rows,
                cached_tokens=it.first_row_position,
                think_ns=it.think_ns,
            )
            for it in self.requests
        ]


def build_workload(scenario: Scenario, trace: Trace) -> list[Request]:
    """Return the requests of a scenario in order of arrival.

    Raise `ScenarioError` for a workload that the trace cannot supply.
    """
    plan = scenario.workload
    pool = drawn_from(scenario, trace)
    wanted = plan.requests or len(pool)
    _check_size(scenario, "requests", wanted, MOST_REQUESTS)
    arrivals = _arrivals(scenario, trace, pool, wanted)
    chosen = _choose(scenario, pool, len(arrivals.times_ns))
    if isinstance(plan.arrivals, Recorded):  # each request keeps the time recorded for it
        chosen = chosen[np.argsort(trace.requests["arrival_s"][chosen], kind="stable")]
    # Lengths of a CSV file come first, then those of the scenario, then the recorded ones.
    prompts = arrivals.prompt_tokens
    outputs = arrivals.output_tokens
    if prompts is None or outputs is None:
        if plan.lengths is not None:
            prompts = np.full(len(chosen), plan.lengths.prompt)
            outputs = np.full(len(chosen), plan.lengths.output)
        else:
            prompts = trace.requests["prompt_tokens"][chosen]
            outputs = trace.requests["output_tokens"][chosen]
    tokens = float(np.sum(prompts, dtype=float) + np.sum(outputs, dtype=float))
    _check_size(scenario, "tokens", tokens, MOST_TOKENS)
    supply = _Supply(trace, pool, plan.prefill, stream(scenario.seed, "resampled rows"))
    thinks = arrivals.think_ns
    requests = []
    for index, source in enumerate(chosen.tolist()):
        prompt, output = int(prompts[index]), int(outputs[index])
        rows, tiled = supply.rows(source, prompt, output)
        if plan.prefill == "skip":  # `rows` begin with the first decoded token
            cached = prompt
        else:
            # The last prompt token is always computed: its logits give the first output token.
            cached = min(plan.cached_prefix, prompt - 1)
            rows = rows[cached:]
        requests.append(
            Request(
                index,
                arrival_ns=int(arrivals.times_ns[index]),
                prompt_tokens=prompt,
                output_tokens=output,
                rows=rows,
                domain=str(trace.requests["domain"][source]),
                tiled_rows=min(tiled, len(rows)),  # tiled rows are the last ones
                cached_tokens=cached,
                think_ns=None if thinks is None else int(thinks[index]),
            )
        )
    return requests


def drawn_from(scenario: Scenario, trace: Trace) -> Ints:
    """Return the indices of the trace's requests that the workload may draw.

    Raise `ScenarioError` if there are none, or if domains or prompt rows are missing.
    """
    check_prefill(scenario, trace)
    check_domains(scenario, trace)
    domains, wanted = trace.requests["domain"], scenario.workload.domains
    pool = np.flatnonzero(trace.requests["num_rows"] > 0)
    if wanted is not None:
        pool = pool[np.isin(domains[pool], np.array(wanted, dtype=object))]
    if not len(pool):
        raise ScenarioError.at(
            scenario, "workload", "no request of the trace has any rows; choose another trace"
        )
    if scenario.workload.part is not None:
        part = requests_of(trace, scenario.workload.part)
        pool = pool[(pool >= part.start) & (pool < part.stop)]
        if not len(pool):
            raise ScenarioError.at(
                scenario,
                "workload.part",
                f"holds no request with rows that may be drawn; the trace has {trace.num_requests} "
                "requests; write a larger part",
            )
    return pool


def requests_of(trace: Trace, part: Sequence[float]) -> range:
    """Return the numbers of the requests of a part of a trace, given as two shares."""
    first, last = (round(share * trace.num_requests) for share in part)
    return range(first, last)


def check_prefill(scenario: Scenario, trace: Trace) -> None:
    """Raise `ScenarioError` if the workload replays prompt rows that the trace does not hold."""
    if trace.meta.prompt_rows == "absent" and scenario.workload.prefill == "recorded":
        raise ScenarioError.at(
            scenario,
            "workload.prefill",
            "the trace holds no prompt rows; choose `skip` (start with the first decoded token) "
            "or `resample` (draw them from decoded rows of the same domain)",
        )


def check_domains(scenario: Scenario, trace: Trace) -> None:
    """Raise `ScenarioError` with every domain that the trace lacks, or that has no rows in it."""
    domains = trace.requests["domain"]
    recorded = sorted(set(domains.tolist()) - {""})
    with_rows = set(domains[trace.requests["num_rows"] > 0].tolist())
    mistakes = []
    for index, name in enumerate(scenario.workload.domains or ()):
        if name not in recorded:
            wrong = f"the trace has no domain {name!r}{suggest(name, recorded, rest='it has')}"
        elif name not in with_rows:
            wrong = f"no request of the domain {name!r} has any rows"
        else:
            continue
        key = ("workload", "domains", index)
        mistakes.append(f"{scenario.document().place(key)}: {dotted(key)}: {wrong}")
    if mistakes:
        raise ScenarioError(mistakes)


def check_arrivals(scenario: Scenario, trace: Trace) -> None:
    """Raise `ScenarioError` for arrivals that cannot be read or that the trace does not record."""
    how = scenario.workload.arrivals
    if isinstance(how, Csv):
        _from_csv(scenario, how)
    elif isinstance(how, Recorded) and np.isnan(trace.requests["arrival_s"]).any():
        raise _no_times(scenario)


def _no_times(scenario: Scenario) -> ScenarioError:
    return ScenarioError.at(
        scenario,
        "workload.arrivals",
        "the trace records no arrival times; choose all_at_once, poisson, gamma, csv or closed",
    )


def _check_size(scenario: Scenario, what: str, count: float, most: int) -> None:
    """Raise `ScenarioError` for a workload that would fill the memory of the host."""
    if count > most:
        raise ScenarioError.at(
            scenario,
            "workload",
            f"asks for {count:.3g} {what} or more; at most {most:,} are simulated at once; "
            "lower workload.requests or workload.lengths",
        )


def _choose(scenario: Scenario, pool: Ints, count: int) -> Ints:
    """Return the recorded request that each of `count` arrivals replays.

    The pool is repeated if it is too small.
    """
    order = scenario.workload.order
    rng = stream(scenario.seed, "request order")
    if order == "resampled":
        return rng.choice(pool, size=count, replace=True)
    if order == "shuffled":
        pool = rng.permutation(pool)
    return np.resize(pool, count)


def _arrivals(scenario: Scenario, trace: Trace, pool: Ints, count: int) -> Arrivals:
    """Return `count` arrivals, or those of a CSV file."""
    how = scenario.workload.arrivals
    rng = stream(scenario.seed, "arrivals")
    if isinstance(how, Csv):
        return _from_csv(scenario, how)
    if isinstance(how, Closed):
        return _of_clients(scenario, how, count)
    if isinstance(how, Recorded):
        # `_choose` draws from its own stream, so this call chooses the same requests as the caller.
        times = np.sort(trace.requests["arrival_s"][_choose(scenario, pool, count)])
        if np.isnan(times).any():
            raise _no_times(scenario)
        return Arrivals(_whole_ns(scenario, (times - times[0]) * how.time_scale))
    if isinstance(how, Poisson):
        gaps = rng.exponential(1 / how.rate_per_s, count)
    elif isinstance(how, Gamma):
        # Gaps of a gamma distribution have the coefficient of variation 1 / sqrt(shape).
        shape = 1 / max(how.burstiness, _EVEN) ** 2
        with np.errstate(divide="ignore"):
            gaps = rng.gamma(shape, np.divide(1, how.rate_per_s * shape), count)
    else:
        gaps = np.zeros(count)
    return Arrivals(_whole_ns(scenario, np.cumsum(gaps)))


def _of_clients(scenario: Scenario, how: Closed, count: int) -> Arrivals:
    """Return the arrivals of closed clients, with the think time that follows each request."""
    times_ns = np.full(count, NOT_SENT)
    times_ns[: how.clients] = 0
    if how.think.distribution == "constant":
        return Arrivals(times_ns, think_ns=np.full(count, how.think.mean))
    # A stream of its own, so that think times shift no other choice.
    drawn = stream(scenario.seed, "think times").exponential(how.think.mean / _SECOND_NS, count)
    return Arrivals(times_ns, think_ns=_whole_ns(scenario, drawn))


def _whole_ns(scenario: Scenario, seconds: npt.NDArray[np.float64]) -> Ints:
    """Return times in whole nanoseconds. Raise `ScenarioError` if one is too late to count."""
    with np.errstate(over="ignore"):
        times_ns = seconds * _SECOND_NS
    if not times_ns.max() < FAR:  # written so that NaN is refused, too
        raise ScenarioError.at(
            scenario,
            "workload.arrivals",
            f"a request arrives after {seconds.max():g} s, too late to count in nanoseconds",
        )
    return np.rint(times_ns).astype(np.int64)


def _from_csv(scenario: Scenario, how: Csv) -> Arrivals:
    """Return the arrivals and lengths of a CSV file. Raise `ScenarioError` with a wrong line."""
    path = scenario.path(how.path)
    try:
        lines = read_arrivals(path, how.format, scenario.workload.requests)
    except CsvError as error:
        raise ScenarioError.at(
            scenario, "workload.arrivals", f"{path}:{error.line}: {error.reason}"
        ) from None
    moments = np.array([arrival.moment for arrival in lines])
    if how.format == "azure":
        moments = (moments - moments[0]).astype("timedelta64[ns]").astype(np.int64) / _SECOND_NS
    times_ns = _whole_ns(scenario, moments * how.time_scale)
    prompts = np.array([arrival.prompt_tokens for arrival in lines])
    return Arrivals(times_ns, prompts, np.array([arrival.output_tokens for arrival in lines]))


class _Supply:
    """Finds trace rows for requests of any length."""

    def __init__(self, trace: Trace, pool: Ints, prefill: str, rng: np.random.Generator) -> None:
        self._trace = trace
        self._rng = rng
        self._resample = prefill == "resample"
        self._skip = prefill == "skip"
        self._absent = trace.meta.prompt_rows == "absent"
        self._rings: dict[tuple[str, bool], _Ring] = {}
        self._by_domain: dict[str, list[int]] = {}
        for request in pool.tolist():
            self._by_domain.setdefault(str(trace.requests["domain"][request]), []).append(request)

    def rows(self, source: int, prompt: int, output: int) -> tuple[Ints, int]:
        """Return the rows of a request that replays `source`, and how many of them are tiled.

        A request computes one row less than it has tokens: its last token is never an input.
        """
        if self._skip:
            return self._tile(source, output - 1, decode_only=not self._absent)
        if self._resample:
            decoded, tiled = self._tile(source, output - 1, decode_only=not self._absent)
            domain_rows = self._decode_rows(source)
            return np.concatenate((self._rng.choice(domain_rows, prompt), decoded)), tiled
        return self._tile(source, prompt + output - 1, decode_only=False)

    def _own(self, request: int, decode_only: bool) -> Ints:
        """Return the recorded rows of a request, without those of its prompt if `decode_only`."""
        rows = self._trace.slice(request)
        skipped = int(self._trace.requests["prompt_tokens"][request]) if decode_only else 0
        return np.arange(rows.start + skipped, rows.stop)

    def _tile(self, source: int, count: int, *, decode_only: bool) -> tuple[Ints, int]:
        """Return `count` rows and how many are tiled.

        The request's own rows come first, then those of the next requests of its domain.
        """
        own = self._own(source, decode_only)
        if len(own) >= count:
            return own[:count], 0
        ring = self._ring(source, decode_only)
        if not len(ring.rows):
            # No request of the domain has decoded rows, so this one's prompt rows replace them.
            return np.resize(self._own(source, decode_only=False), count), count
        return ring.take(ring.starts[source], count), count - len(own)

    def _decode_rows(self, source: int) -> Ints:
        """Return all decoded rows of the domain of `source`, or its own rows if there are none."""
        rows = self._ring(source, not self._absent).rows
        return rows if len(rows) else self._own(source, decode_only=False)

    def _ring(self, source: int, decode_only: bool) -> _Ring:
        """Return the rows of the domain of `source`."""
        domain = str(self._trace.requests["domain"][source])
        ring = self._rings.get((domain, decode_only))
        if ring is None:
            requests = self._by_domain[domain]
            pieces = [self._own(request, decode_only) for request in requests]
            ring = _Ring.of(dict(zip(requests, pieces, strict=True)))
            self._rings[domain, decode_only] = ring
        return ring


class _Ring(NamedTuple):
    """The rows of all requests of a domain, one after another, and where each request begins.

    `rows` are read-only. `twice` holds them two times, so that requests share its memory. It is
    empty for a long ring.
    """

    rows: Ints
    twice: Ints
    starts: dict[int, int]

    @classmethod
    def of(cls, pieces: dict[int, Ints]) -> _Ring:
        """Return the ring of the rows of each request."""
        rows = np.concatenate(list(pieces.values()))
        rows.flags.writeable = False
        twice = np.concatenate((rows, rows)) if len(rows) <= _SHARED_ROWS else rows[:0]
        twice.flags.writeable = False
        starts = accumulate(map(len, pieces.values()), initial=0)
        return cls(rows, twice, dict(zip(pieces, starts, strict=False)))

    def take(self, first: int, count: int) -> Ints:
        """Return `count` rows from place `first` on, round and round."""
        if first + count <= len(self.twice):
            return self.twice[first : first + count]
        return np.take(self.rows, np.arange(first, first + count), mode="wrap")
