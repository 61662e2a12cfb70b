"""Marks: short warnings that reports put beside every number of a run.

A mark says that no model made the routing, that the sizes are another model's, or that a policy
knows the future. Runs write these facts into their summaries (`moesim.simulate.facts`). For runs
of older versions the names in the summary decide. The label of a row never decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from moesim.errors import UsageError
from moesim.report.names import learnt_from
from moesim.report.runs import Run

__all__ = [
    "FORESEES",
    "foreseeing",
    "foresight_sentence",
    "mark_of",
    "marked",
    "prefetches",
    "routing_mark",
    "routing_sentence",
    "shared_mark",
    "shared_sentence",
]

FORESEES: Final = "knows the future"
POLICIES: Final = {
    "eviction": "cache",
    "prefetch": "prefetch",
    "batching": "batching",
    "placement": "placement",
}


def mark_of(routing: Any, sizes: Any) -> str:
    """Return the mark for these facts of a summary; "" for recorded routing with its own sizes."""
    # One mark is enough: all sizes are foreign to routing that no model made.
    if routing == "synthetic":
        return "synthetic routing"
    return "foreign sizes" if sizes == "foreign" else ""


def routing_mark(run: Run) -> str:
    """Return "synthetic routing", "foreign sizes", or "" where both are the model's own."""
    return mark_of(_routing(run), _sizes(run))


def routing_sentence(run: Run) -> str:
    """Return what the mark means for this run, for captions; "" where there is no mark."""
    sizes = f"costed with the sizes of {run.text('model')}"
    return {
        "synthetic routing": f"SYNTHETIC ROUTING: drawn at random, made by no model, {sizes}.",
        "foreign sizes": f"FOREIGN SIZES: routing of {run.text('trace')}, {sizes}.",
        "": "",
    }[routing_mark(run)]


def shared_mark(runs: Sequence[Run]) -> str:
    """Return the marks of several runs, with the number of runs unless all share a mark."""
    return "; ".join(_counted([routing_mark(run) for run in runs], " in "))


def shared_sentence(runs: Sequence[Run]) -> str:
    """Return the sentences of several runs, with the number of runs unless all share one."""
    return " ".join(_counted([routing_sentence(run) for run in runs], " This holds for "))


def marked(text: str, mark: str) -> str:
    """Return a title with a mark behind it: `latency (ms) [synthetic routing]`."""
    return f"{text} [{mark}]".strip() if mark else text


def foreseeing(run: Run) -> tuple[str, ...]:
    """Return the policies of a run that know the future, like `eviction min`."""
    policies = run.summary.get("knows_the_future")
    if isinstance(policies, str):
        return tuple(policies.split(", ")) if policies else ()
    return tuple(
        f"{family} {name}"
        for family, section in POLICIES.items()
        for name in [run.text(f"{section}_policy")]
        if _clairvoyant(family, name) or (family == "eviction" and _learnt_in_hindsight(run, name))
    )


def foresight_sentence(run: Run) -> str:
    """Return which policies of a run know the future, for captions; "" where none does."""
    seers = ", ".join(foreseeing(run))
    return f"{FORESEES.upper()}: {seers}; a bound, not a policy." if seers else ""


def prefetches(run: Run) -> bool:
    """Return whether a run may prefetch.

    MIN and the infinite cache copy on demand only, so they bound no such run.
    """
    return run.text("prefetch_policy") != "none"


def _routing(run: Run) -> str:
    routing = run.summary.get("routing")
    if routing is not None:
        return str(routing)
    # Older summaries say it in the name of the trace or in a note.
    synthetic = run.text("trace") == "synthetic" or "the trace is synthetic" in run.notes
    return "synthetic" if synthetic else "recorded"


def _sizes(run: Run) -> str:
    sizes = run.summary.get("sizes")
    if sizes is not None:
        return str(sizes)
    # A missing name proves nothing, so it gives no warning.
    names = [run.summary.get(key) for key in ("trace", "model")]
    own = _section(run, "model").get("shape") == "trace" or None in names or names[0] == names[1]
    return "own" if own else "foreign"


def _clairvoyant(family: str, name: str) -> bool:
    """Return the policy's `clairvoyant` flag; False if its package is not installed here."""
    from moesim.policies import find

    try:
        return bool(getattr(find(family, name), "clairvoyant", False))
    except UsageError:
        return False


def _learnt_in_hindsight(run: Run, name: str) -> bool:
    options = _section(run, "cache").get("options")
    replayed = run.path / str(run.scenario.get("trace"))
    return any(
        each.path is None or (each.trace and run.path / each.path == replayed)
        for each in learnt_from(name, options if isinstance(options, Mapping) else None)
    )


def _section(run: Run, name: str) -> Mapping[str, Any]:
    section = run.scenario.get(name)
    return section if isinstance(section, Mapping) else {}


def _counted(texts: Sequence[str], joint: str) -> list[str]:
    return [
        text if texts.count(text) == len(texts) else _some(text, joint, texts)
        for text in dict.fromkeys(texts)
        if text
    ]


def _some(text: str, joint: str, texts: Sequence[str]) -> str:
    end = "." if text.endswith(".") else ""
    return f"{text}{joint}{texts.count(text)} of {len(texts)} runs{end}"
