"""The workload: which requests arrive, when, how long they are, and which trace rows they replay.

The same for every policy (common random numbers): each choice draws from a stream of its own.
A request longer than its recorded sequence goes on with the next sequences of the same domain;
the tiled share is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.config.suggest import suggest
from moesim.config.yaml_document import dotted
from moesim.errors import ScenarioError
from moesim.machine.base import FAR
from moesim.scenario.sections import Csv, Gamma, Poisson, Recorded
from moesim.serving.arrivals_csv import MOST_REQUESTS, MOST_TOKENS, CsvError, read_arrivals
from moesim.serving.request import Request
from moesim.streams import stream

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.trace import Trace

_SECOND_NS = 1_000_000_000
_EVEN = 1e-9  # gaps of a smaller coefficient of variation are all the same

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Arrival times in nanoseconds, rising, and lengths where the source gives them."""

    times_ns: Ints
    prompt_tokens: Ints | None = None
    output_tokens: Ints | None = None


def build_workload(scenario: Scenario, trace: Trace) -> list[Request]:
    """The requests of a scenario in order of arrival. Raises `ScenarioError` for a workload that
    the trace cannot supply."""
    plan = scenario.workload
    pool = drawn_from(scenario, trace)
    wanted = plan.requests or len(pool)
    _check_size(scenario, "requests", wanted, MOST_REQUESTS)
    arrivals = _arrivals(scenario, trace, pool, wanted)
    chosen = _choose(scenario, pool, len(arrivals.times_ns))
    if isinstance(plan.arrivals, Recorded):
        chosen = chosen[np.argsort(trace.requests["arrival_s"][chosen], kind="stable")]
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
    requests = []
    for index, source in enumerate(chosen.tolist()):
        prompt, output = int(prompts[index]), int(outputs[index])
        rows, tiled = supply.rows(source, prompt, output)
        requests.append(
            Request(
                index,
                arrival_ns=int(arrivals.times_ns[index]),
                prompt_tokens=prompt,
                output_tokens=output,
                rows=rows,
                domain=str(trace.requests["domain"][source]),
                tiled_rows=tiled,
                prefill_skipped=plan.prefill == "skip",
            )
        )
    return requests


def drawn_from(scenario: Scenario, trace: Trace) -> Ints:
    """The trace's requests that may be drawn."""
    check_prefill(scenario, trace)
    check_domains(scenario, trace)
    domains, wanted = trace.requests["domain"], scenario.workload.domains
    pool = np.flatnonzero(trace.requests["num_rows"] > 0)
    if wanted is not None:
        pool = pool[np.isin(domains[pool], np.array(wanted, dtype=object))]
    if not len(pool):
        raise ScenarioError.at(scenario, "workload", "no request of the trace has any rows")
    return pool


def check_prefill(scenario: Scenario, trace: Trace) -> None:
    """Raise ScenarioError where prompt rows are to be replayed that the trace does not hold."""
    if trace.meta.prompt_rows == "absent" and scenario.workload.prefill == "recorded":
        raise ScenarioError.at(
            scenario,
            "workload.prefill",
            "the trace holds no prompt rows; choose `skip` (start with the first decoded token) "
            "or `resample` (draw them from decoded rows of the same domain)",
        )


def check_domains(scenario: Scenario, trace: Trace) -> None:
    """Raise ScenarioError with every domain that the trace lacks, or that has no rows in it."""
    domains = trace.requests["domain"]
    held = sorted(set(domains.tolist()) - {""})
    with_rows = set(domains[trace.requests["num_rows"] > 0].tolist())
    mistakes = []
    for index, name in enumerate(scenario.workload.domains or ()):
        if name not in held:
            wrong = f"the trace has no domain {name!r}{suggest(name, held, rest='it has')}"
        elif name not in with_rows:
            wrong = f"no request of the domain {name!r} has any rows"
        else:
            continue
        key = ("workload", "domains", index)
        mistakes.append(f"{scenario.document().place(key)}: {dotted(key)}: {wrong}")
    if mistakes:
        raise ScenarioError(mistakes)


def check_arrivals(scenario: Scenario, trace: Trace) -> None:
    """Raise ScenarioError for arrivals that cannot be read, or that the trace does not record."""
    how = scenario.workload.arrivals
    if isinstance(how, Csv):
        _from_csv(scenario, how)
    elif isinstance(how, Recorded) and np.isnan(trace.requests["arrival_s"]).any():
        raise _no_times(scenario)


def _no_times(scenario: Scenario) -> ScenarioError:
    return ScenarioError.at(
        scenario,
        "workload.arrivals",
        "the trace records no arrival times; choose all_at_once, poisson, gamma or csv",
    )


def _check_size(scenario: Scenario, what: str, count: float, most: int) -> None:
    """Refuse what would fill the memory before anything is simulated."""
    if count > most:
        raise ScenarioError.at(
            scenario,
            "workload",
            f"asks for {count:.3g} {what} or more; at most {most:,} are simulated at once; "
            "lower workload.requests or workload.lengths",
        )


def _choose(scenario: Scenario, pool: Ints, count: int) -> Ints:
    """Which recorded request stands behind each arrival; the pool repeats where it is too small."""
    order = scenario.workload.order
    rng = stream(scenario.seed, "request order")
    if order == "resampled":
        return rng.choice(pool, size=count, replace=True)
    if order == "shuffled":
        pool = rng.permutation(pool)
    return np.resize(pool, count)


def _arrivals(scenario: Scenario, trace: Trace, pool: Ints, count: int) -> Arrivals:
    how = scenario.workload.arrivals
    rng = stream(scenario.seed, "arrivals")
    if isinstance(how, Csv):
        return _from_csv(scenario, how)
    if isinstance(how, Recorded):
        times = np.sort(trace.requests["arrival_s"][_choose(scenario, pool, count)])
        if np.isnan(times).any():
            raise _no_times(scenario)
        return Arrivals(_whole_ns(scenario, (times - times[0]) * how.time_scale))
    if isinstance(how, Poisson):
        gaps = rng.exponential(1 / how.rate_per_s, count)
    elif isinstance(how, Gamma):
        shape = 1 / max(how.burstiness, _EVEN) ** 2
        with np.errstate(divide="ignore"):
            gaps = rng.gamma(shape, np.divide(1, how.rate_per_s * shape), count)
    else:
        gaps = np.zeros(count)
    return Arrivals(_whole_ns(scenario, np.cumsum(gaps)))


def _whole_ns(scenario: Scenario, seconds: npt.NDArray[np.float64]) -> Ints:
    with np.errstate(over="ignore"):
        times_ns = seconds * _SECOND_NS
    if not times_ns.max() < FAR:  # nor where it is no number
        raise ScenarioError.at(
            scenario,
            "workload.arrivals",
            f"a request arrives after {seconds.max():g} s, too late to count in nanoseconds",
        )
    return np.rint(times_ns).astype(np.int64)


def _from_csv(scenario: Scenario, how: Csv) -> Arrivals:
    """Arrivals and lengths of a CSV file; lines are checked one by one."""
    path = scenario.path(how.path)
    try:
        read = read_arrivals(path, how.format, scenario.workload.requests)
    except CsvError as error:
        raise ScenarioError.at(
            scenario, "workload.arrivals", f"{path}:{error.line}: {error.reason}"
        ) from None
    moments = np.array([arrival.moment for arrival in read])
    if how.format == "azure":
        moments = (moments - moments[0]).astype("timedelta64[ns]").astype(np.int64) / _SECOND_NS
    times_ns = _whole_ns(scenario, moments * how.time_scale)
    prompts = np.array([arrival.prompt_tokens for arrival in read])
    return Arrivals(times_ns, prompts, np.array([arrival.output_tokens for arrival in read]))


class _Supply:
    """Finds trace rows for requests of any length."""

    def __init__(self, trace: Trace, pool: Ints, prefill: str, rng: np.random.Generator) -> None:
        self._trace = trace
        self._rng = rng
        self._resample = prefill == "resample"
        self._skip = prefill == "skip"
        self._absent = trace.meta.prompt_rows == "absent"
        self._by_domain: dict[str, list[int]] = {}
        for request in pool.tolist():
            self._by_domain.setdefault(str(trace.requests["domain"][request]), []).append(request)

    def rows(self, source: int, prompt: int, output: int) -> tuple[Ints, int]:
        """Rows of a request that starts like `source`, and how many of them are tiled."""
        if self._skip:
            return self._tile(source, output - 1, decode_only=not self._absent)
        if self._resample:
            decoded, tiled = self._tile(source, output - 1, decode_only=not self._absent)
            everything = self._decode_rows(source)
            return np.concatenate((self._rng.choice(everything, prompt), decoded)), tiled
        return self._tile(source, prompt + output - 1, decode_only=False)

    def _own(self, request: int, decode_only: bool) -> Ints:
        rows = self._trace.slice(request)
        skipped = int(self._trace.requests["prompt_tokens"][request]) if decode_only else 0
        return np.arange(rows.start + skipped, rows.stop)

    def _tile(self, source: int, count: int, *, decode_only: bool) -> tuple[Ints, int]:
        """`count` rows: the request's own, then those of the next ones of its domain."""
        own = self._own(source, decode_only)
        if len(own) >= count:
            return own[:count], 0
        others = self._by_domain[str(self._trace.requests["domain"][source])]
        if not any(len(self._own(other, decode_only)) for other in others):
            # No request of the domain has such rows: take any of this one.
            others, decode_only = [source], False
        at = others.index(source)
        pieces, have = [own], len(own)
        while have < count:
            at = (at + 1) % len(others)
            pieces.append(self._own(others[at], decode_only))
            have += len(pieces[-1])
        return np.concatenate(pieces)[:count], count - len(own)

    def _decode_rows(self, source: int) -> Ints:
        others = self._by_domain[str(self._trace.requests["domain"][source])]
        rows = np.concatenate([self._own(other, not self._absent) for other in others])
        return rows if len(rows) else self._own(source, decode_only=False)
