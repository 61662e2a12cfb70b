"""The workload: which requests arrive, when, how long they are, and which trace rows they replay.

The same for every policy (common random numbers): each choice draws from a stream of its own.
A request longer than its recorded sequence goes on with the next sequences of the same domain;
the tiled share is reported.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesim.config.suggest import suggest
from moesim.config.yaml_document import dotted
from moesim.errors import ScenarioError
from moesim.machine.base import FAR
from moesim.scenario.sections import Csv, Gamma, Poisson, Recorded
from moesim.serving.request import Request
from moesim.streams import stream

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.trace import Trace

_SECOND_NS = 1_000_000_000
_EVEN = 1e-9  # gaps of a smaller coefficient of variation are all the same
_MOST_TOKENS = 100_000_000  # more would fill the memory before anything is simulated
_CSV_COLUMNS = {
    "plain": ("arrival_s", "prompt_tokens", "output_tokens"),
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
}
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?)(?:Z|\+00:00)?")

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
    _check_size(scenario, wanted)
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
    _check_size(scenario, float(np.sum(prompts, dtype=float) + np.sum(outputs, dtype=float)))
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


def _check_size(scenario: Scenario, tokens: float) -> None:
    if tokens > _MOST_TOKENS:
        raise ScenarioError.at(
            scenario,
            "workload",
            f"asks for {tokens:.3g} tokens or more; at most {_MOST_TOKENS:,} are simulated at once"
            "; lower workload.requests or workload.lengths",
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
    columns = _CSV_COLUMNS[how.format]
    limit = scenario.workload.requests
    lines: list[int] = []
    rows: list[tuple[Any, int, int]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
                raise _csv_error(scenario, path, 1, _no_column(missing, reader.fieldnames or ()))
            for row in reader:
                if limit is not None and len(rows) == limit:
                    break
                try:
                    rows.append(_csv_row(row, columns))
                except ValueError as error:
                    raise _csv_error(scenario, path, reader.line_num, str(error)) from None
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _csv_error(scenario, path, 1, f"cannot be read: {error}") from None
    if not rows:
        raise _csv_error(scenario, path, 1, "holds no requests; write one a line")
    times, prompts, outputs = zip(*rows, strict=True)
    moments = np.array(times)
    if how.format == "azure":
        moments = (moments - moments[0]).astype("timedelta64[ns]").astype(np.int64) / _SECOND_NS
    late = np.flatnonzero(np.diff(moments) < 0)
    if len(late):
        line = lines[int(late[0]) + 1]
        raise _csv_error(
            scenario, path, line, "arrives before the request above it; sort the lines by time"
        )
    times_ns = _whole_ns(scenario, moments * how.time_scale)
    return Arrivals(times_ns, np.array(prompts), np.array(outputs))


def _no_column(missing: Sequence[str], there: Sequence[str]) -> str:
    """Say which columns are missing, and which format the file has instead, if it has one."""
    said = f"has no column {' and no column '.join(map(repr, missing))}"
    for kind, columns in _CSV_COLUMNS.items():
        if set(columns) <= set(there):
            return f"{said}; its columns are those of `format: {kind}`"
    formats = " or ".join(f"{', '.join(cols)} ({kind})" for kind, cols in _CSV_COLUMNS.items())
    return f"{said}; it has {', '.join(there) or 'none'}; `format` says which it needs: {formats}"


def _csv_row(row: Mapping[str, str | None], columns: tuple[str, ...]) -> tuple[Any, int, int]:
    """Arrival, prompt and output tokens of one line. Raises `ValueError` with the reason."""
    cells = [(row[name] or "").strip() for name in columns]
    if not all(cells):
        raise ValueError(f"column {columns[cells.index('')]!r} is empty")
    when, prompt, output = cells
    moment: Any
    if columns[0] == "TIMESTAMP":
        stamp = _TIMESTAMP.fullmatch(when)
        if stamp is None:
            raise ValueError(f"{when!r} is no UTC time like 2023-11-16 18:17:03.9799600")
        moment = np.datetime64(stamp[1])
    else:
        moment = float(when)
        if not 0 <= moment < float("inf"):
            raise ValueError(f"arrival {when!r} must be seconds ≥ 0")
    return moment, _length(prompt), _length(output)


def _length(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"length {text!r} must be a whole number, at least 1")
    if int(text) > _MOST_TOKENS:
        raise ValueError(f"length {text!r} is too large; at most {_MOST_TOKENS:,} are simulated")
    return int(text)


def _csv_error(scenario: Scenario, path: Path, line: int, reason: str) -> ScenarioError:
    return ScenarioError.at(scenario, "workload.arrivals", f"{path}:{line}: {reason}")


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
