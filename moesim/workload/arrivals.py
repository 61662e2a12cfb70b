"""When requests arrive: by a process, at recorded times, from a file, or sent by clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.errors import ScenarioError, WorkloadError
from moesim.machine.work import FAR
from moesim.scenario.arrivals import Closed, FromFile, Gamma, Poisson, Recorded
from moesim.serving.arrivals import NOT_SENT
from moesim.streams import stream
from moesim.workload.formats import Columns
from moesim.workload.request_file import Reading, RequestFile, read_requests

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.trace import Trace

__all__ = ["Arrivals", "arrivals_of", "check_arrivals", "file_notes", "read_file"]

_SECOND_NS = 1_000_000_000
_EVEN = 1e-9  # below this coefficient of variation gaps are equal, and its square may become 0

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Arrival times in nanoseconds, in ascending order, and what else the source has.

    A file gives lengths, domains ("" without one) and the ids of prompts' token blocks, of which
    each stands for `block_tokens` tokens; `lines` are those of its requests.

    Closed clients have `think_ns`, the time that follows each request. Their first requests arrive
    at zero; the others have the time `NOT_SENT`, because it depends on the run.
    """

    times_ns: Ints
    prompt_tokens: Ints | None = None
    output_tokens: Ints | None = None
    think_ns: Ints | None = None
    domains: Sequence[str] | None = None
    lines: Sequence[int] | None = None
    blocks: Sequence[tuple[int, ...]] | None = None
    block_tokens: int | None = None


def check_arrivals(scenario: Scenario, trace: Trace) -> None:
    """Raise `ScenarioError` for arrivals that cannot be read or that the trace does not record."""
    how = scenario.workload.arrivals
    if isinstance(how, FromFile):
        _of_file(scenario, how)
    elif isinstance(how, Recorded) and np.isnan(trace.requests["arrival_s"]).any():
        raise _no_times(scenario)


def _no_times(scenario: Scenario) -> ScenarioError:
    return ScenarioError.at(
        scenario,
        "workload.arrivals",
        "the trace records no arrival times; choose all_at_once, poisson, gamma, file or closed",
    )


def arrivals_of(scenario: Scenario, trace: Trace, chosen: Ints) -> Arrivals:
    """Return an arrival for each of the trace's requests `chosen`, or those of a file."""
    how, count = scenario.workload.arrivals, len(chosen)
    if isinstance(how, FromFile):
        return _of_file(scenario, how)
    if isinstance(how, Closed):
        return _of_clients(scenario, how, count)
    if isinstance(how, Recorded):
        times = np.sort(trace.requests["arrival_s"][chosen])
        if np.isnan(times).any():
            raise _no_times(scenario)
        return Arrivals(_whole_ns(scenario, (times - times[0]) * how.time_scale))
    if isinstance(how, Poisson):
        gaps = stream(scenario.seed, "arrivals").exponential(1 / how.rate_per_s, count)
        return Arrivals(_whole_ns(scenario, np.cumsum(gaps)))
    if isinstance(how, Gamma):
        return Arrivals(_gamma(scenario, how.rate_per_s, how.burstiness, count))
    return Arrivals(np.zeros(count, np.int64))


def _gamma(scenario: Scenario, rate_per_s: float, burstiness: float, count: int) -> Ints:
    """Return `count` times with gamma-distributed gaps before each."""
    # Gaps of a gamma distribution have the coefficient of variation 1 / sqrt(shape).
    shape = 1 / max(burstiness, _EVEN) ** 2
    with np.errstate(divide="ignore"):
        gaps = stream(scenario.seed, "arrivals").gamma(
            shape, np.divide(1, rate_per_s * shape), count
        )
    return _whole_ns(scenario, np.cumsum(gaps))


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


def read_file(scenario: Scenario, how: FromFile) -> RequestFile:
    """Return the requests of a scenario's file. Raise `ScenarioError` with a wrong line."""
    columns = Columns(**how.columns.model_dump())
    reading = Reading(
        how.format,
        columns,
        how.block_tokens,
        how.characters_per_token,
        frozenset(how.repair),
        scenario.workload.requests,
    )
    try:
        return read_requests(scenario.path(how.path), reading)
    except WorkloadError as error:
        raise ScenarioError.at(scenario, "workload.arrivals", str(error)) from None


def file_notes(scenario: Scenario) -> list[str]:
    """Return what was repaired in the scenario's file of requests."""
    how = scenario.workload.arrivals
    # Without repairs, the file need not be read again.
    if not isinstance(how, FromFile) or not how.repair:
        return []
    return [f"{how.path}: {note}" for note in read_file(scenario, how).notes()]


def _of_file(scenario: Scenario, how: FromFile) -> Arrivals:
    """Return the arrivals, lengths, domains and token blocks of a file."""
    file = read_file(scenario, how)
    requests = file.requests
    return Arrivals(
        _times_of_file(scenario, how, file),
        np.array([it.prompt_tokens for it in requests]),
        np.array([it.output_tokens for it in requests]),
        domains=[it.domain for it in requests],
        lines=[it.line for it in requests],
        blocks=None if file.block_tokens is None else [it.blocks or () for it in requests],
        block_tokens=file.block_tokens,
    )


def _times_of_file(scenario: Scenario, how: FromFile, file: RequestFile) -> Ints:
    count = len(file.requests)
    if how.times == "all_at_once":
        return np.zeros(count, np.int64)
    if how.times == "gamma":
        assert how.rate_per_s is not None  # the schema demands it
        return _gamma(scenario, how.rate_per_s, how.burstiness, count)
    if not file.timed:
        raise ScenarioError.at(
            scenario,
            "workload.arrivals",
            f"{scenario.path(how.path)}:1: holds no times of arrival; write times: all_at_once, "
            "or times: gamma with rate_per_s",
        )
    times_ns = np.array([it.arrival_ns for it in file.requests])
    if how.time_scale == 1 and times_ns[-1] < FAR:
        return times_ns
    return _whole_ns(scenario, times_ns / _SECOND_NS * how.time_scale)
