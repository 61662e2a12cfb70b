"""The workload: which requests arrive and when, their lengths, and the trace rows they replay.

The workload is the same for every policy (common random numbers). To ensure this, each kind of
choice draws from a random stream of its own.

A request can be longer than its recorded sequence. Then it is *tiled*: it continues with the rows
of other requests of the same domain. Reports give the share of tiled rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.config.suggest import suggest
from moesim.config.yaml_document import dotted
from moesim.errors import ScenarioError
from moesim.scenario.arrivals import FromFile, Recorded
from moesim.serving.request import Request
from moesim.streams import stream
from moesim.workload.arrivals import Arrivals, arrivals_of
from moesim.workload.pairing import choose, pair
from moesim.workload.prefixes import prefixes_of
from moesim.workload.request_file import MOST_REQUESTS
from moesim.workload.supply import Supply

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.trace import Trace

MOST_TOKENS = 250_000_000
"""The most tokens of a workload; each takes up to eight bytes before anything is simulated."""

Ints = npt.NDArray[np.int64]


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
        same = same and ours.memory.prefix_cache == scenario.memory.prefix_cache
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
                source=it.source,
                prefix=it.prefix,
                unit_tokens=it.unit_tokens,
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
    chosen = choose(scenario, pool, wanted)
    arrivals = arrivals_of(scenario, trace, chosen)
    if isinstance(plan.arrivals, Recorded):  # each request keeps the time recorded for it
        chosen = chosen[np.argsort(trace.requests["arrival_s"][chosen], kind="stable")]
    lengths = _lengths(scenario, arrivals, len(chosen))
    prompts: Ints
    outputs: Ints
    prompts, outputs = lengths or (
        trace.requests["prompt_tokens"][chosen],
        trace.requests["output_tokens"][chosen],
    )
    tokens = float(np.sum(prompts, dtype=float) + np.sum(outputs, dtype=float))
    _check_size(scenario, "tokens", tokens, MOST_TOKENS)
    # Else `chosen` stands already, in the order of the recorded times if these are wanted.
    if lengths and (plan.pairing.by != "order" or isinstance(plan.arrivals, FromFile)):
        replayed: Ints = outputs - 1 + (prompts if plan.prefill == "recorded" else 0)
        chosen = pair(scenario, trace, pool, arrivals, replayed)
    beyond = stream(scenario.seed, "rows beyond") if plan.pairing.beyond == "resample" else None
    longest = int((prompts + outputs).max())
    drawn = stream(scenario.seed, "resampled rows")
    supply = Supply(trace, pool, plan.prefill, drawn, beyond, longest=longest)
    prefixes = prefixes_of(scenario, trace, arrivals, chosen, prompts)
    thinks = arrivals.think_ns
    requests = []
    for index, source in enumerate(chosen.tolist()):
        prompt, output = int(prompts[index]), int(outputs[index])
        rows, tiled = supply.rows(source, prompt, output)
        if tiled and plan.pairing.beyond == "refuse":
            raise _too_long(scenario, arrivals, index, len(rows), tiled)
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
                source=source,
                prefix=() if prefixes is None else prefixes.paths[index],
                unit_tokens=0 if prefixes is None else prefixes.block_tokens,
            )
        )
    return requests


def _lengths(scenario: Scenario, arrivals: Arrivals, count: int) -> tuple[Ints, Ints] | None:
    """Return prompt and output lengths of a file, else those of the scenario; None if recorded."""
    if arrivals.prompt_tokens is not None and arrivals.output_tokens is not None:
        return arrivals.prompt_tokens, arrivals.output_tokens
    if (same := scenario.workload.lengths) is not None:
        return np.full(count, same.prompt), np.full(count, same.output)
    return None


def _too_long(
    scenario: Scenario, arrivals: Arrivals, index: int, rows: int, lacking: int
) -> ScenarioError:
    """Return the error about a request that is longer than its sequence."""
    line = "" if arrivals.lines is None else f" (line {arrivals.lines[index]} of the file)"
    return ScenarioError.at(
        scenario,
        "workload.pairing",
        f"refuses request {index}{line}: it needs {rows:,} rows, and its sequence lacks "
        f"{lacking:,} of them; write beyond: tile or beyond: resample, or pair by length",
    )


def pairing_notes(scenario: Scenario, requests: Sequence[Request]) -> list[str]:
    """Return which sequences the requests of a file replay; nothing without one."""
    how, pairing = scenario.workload.arrivals, scenario.workload.pairing
    if not isinstance(how, FromFile):
        return []
    sequences = len({request.source for request in requests})
    rows = sum(len(request.rows) for request in requests)
    beyond = sum(request.tiled_rows for request in requests) / max(1, rows)
    return [
        f"the {len(requests):,} requests of {how.path} replay the routing of {sequences:,} "
        f"recorded sequences, paired by {pairing.by}; {beyond:.1%} of their rows lie beyond a "
        f"sequence (workload.pairing.beyond: {pairing.beyond})"
    ]


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


def _check_size(scenario: Scenario, what: str, count: float, most: int) -> None:
    """Raise `ScenarioError` for a workload that would fill the memory of the host."""
    if count > most:
        raise ScenarioError.at(
            scenario,
            "workload",
            f"asks for {count:.3g} {what} or more; at most {most:,} are simulated at once; "
            "lower workload.requests or workload.lengths",
        )
