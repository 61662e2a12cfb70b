"""Which recorded sequence of routing each request replays, where its lengths come from elsewhere.

The lengths of a file, or stated ones, are not those of the trace's requests. So each request is
*paired* with a recorded one, whose rows it replays:

- `order`: the trace's requests in the order of `workload.order`, round and round;
- `length`: the one whose rows are nearest in number to those of the request;
- `domain`: the next one of the domain that the file gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.config.suggest import suggest
from moesim.errors import ScenarioError
from moesim.streams import stream
from moesim.workload.arrivals import Arrivals

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.trace import Trace

__all__ = ["choose", "pair"]

Ints = npt.NDArray[np.int64]


def choose(scenario: Scenario, pool: Ints, count: int) -> Ints:
    """Return `count` recorded requests in the order of the scenario.

    The pool is repeated if it is too small.
    """
    order = scenario.workload.order
    rng = stream(scenario.seed, "request order")
    if order == "resampled":
        return rng.choice(pool, size=count, replace=True)
    if order == "shuffled":
        pool = rng.permutation(pool)
    return np.resize(pool, count)


def pair(scenario: Scenario, trace: Trace, pool: Ints, arrivals: Arrivals, rows: Ints) -> Ints:
    """Return the recorded request of each arrival, of which each needs as many `rows`.

    Raise `ScenarioError` if the file gives no domains, or one that the trace lacks.
    """
    match scenario.workload.pairing.by:
        case "length":
            return _by_length(scenario, trace, pool, rows)
        case "domain":
            return _by_domain(scenario, trace, pool, arrivals)
    return choose(scenario, pool, len(rows))


def _by_length(scenario: Scenario, trace: Trace, pool: Ints, rows: Ints) -> Ints:
    """Return the requests whose numbers of rows are nearest; equally long ones take turns.

    Of two that are equally near, the longer one is taken: nothing has to be added to its rows.
    """
    held = trace.requests["num_rows"][pool]
    if scenario.workload.prefill != "recorded" and trace.meta.prompt_rows == "recorded":
        held = held - trace.requests["prompt_tokens"][pool]  # only decoded rows are replayed
    sizes = np.unique(held)
    above = np.minimum(np.searchsorted(sizes, rows), len(sizes) - 1)
    below = np.maximum(above - 1, 0)
    nearer_below = rows - sizes[below] < np.abs(sizes[above] - rows)
    nearest = np.where(nearer_below, sizes[below], sizes[above])
    turns: dict[int, Iterator[int]] = {
        size: cycle(pool[held == size].tolist()) for size in np.unique(nearest).tolist()
    }
    return np.array([next(turns[size]) for size in nearest.tolist()])


def _by_domain(scenario: Scenario, trace: Trace, pool: Ints, arrivals: Arrivals) -> Ints:
    """Return for each arrival a request of its domain, each domain in the order of the scenario."""
    wanted = arrivals.domains
    if wanted is None or not any(wanted):
        raise ScenarioError.at(
            scenario,
            "workload.pairing",
            "goes by domain, and the requests have none; use a file with a column `domain`, or "
            "name it by workload.arrivals.columns.domain",
        )
    of_pool = trace.requests["domain"][pool]
    _check_known(scenario, arrivals.lines or (), wanted, sorted(set(of_pool.tolist())))
    turns = {
        name: iter(choose(scenario, pool[of_pool == name], count).tolist())
        for name, count in Counter(wanted).items()
    }
    return np.array([next(turns[name]) for name in wanted])


def _check_known(
    scenario: Scenario, lines: Sequence[int], wanted: Sequence[str], known: Sequence[str]
) -> None:
    for line, name in zip(lines, wanted, strict=True):
        if name not in known:
            how = scenario.workload.arrivals
            path = scenario.path(getattr(how, "path", ""))
            raise ScenarioError.at(
                scenario,
                "workload.pairing",
                f"{path}:{line}: no request that may be drawn has the domain {name!r}"
                f"{suggest(name, known, rest='they have')}",
            )
