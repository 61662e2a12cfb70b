"""Simulations: a scenario becomes a plan, a plan is served, and its outcome is summarised."""

from moesim.simulate.simulation import (
    Outcome,
    Plan,
    Result,
    SimPrices,
    baseline_of,
    bounds_of,
    build_server,
    finish,
    group_by_cache,
    prepare,
    result_from,
    result_of,
    run,
    simulate,
    summarise,
)

__all__ = [
    "Outcome",
    "Plan",
    "Result",
    "SimPrices",
    "baseline_of",
    "bounds_of",
    "build_server",
    "finish",
    "group_by_cache",
    "prepare",
    "result_from",
    "result_of",
    "run",
    "simulate",
    "summarise",
]
