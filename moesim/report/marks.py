"""Marks: what must stand beside every number of a run, so that it is not taken for more than it is.

A mark tells of routing that no model made, of sizes of another model, and of policies that know
the future. Runs write these facts into their summaries. Those of older versions did not: then the
names in the summary decide. The label of a row never does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from moesim.errors import UsageError
from moesim.report.runs import Run

__all__ = [
    "FORESEES",
    "foreseeing",
    "mark_of",
    "marked",
    "prefetches",
    "routing_mark",
    "routing_sentence",
    "shared_mark",
    "shared_sentence",
]

FORESEES: Final = "knows the future"
POLICIES: Final = {"eviction": "cache", "prefetch": "prefetch", "batching": "batching"}


def mark_of(routing: Any, sizes: Any) -> str:
    """Return the mark for these facts of a summary; "" for recorded routing with its own sizes."""
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
    """Return the marks of several runs, with how many runs each concerns unless all share it."""
    return "; ".join(_counted([routing_mark(run) for run in runs], " in "))


def shared_sentence(runs: Sequence[Run]) -> str:
    """Return the sentences of several runs, with how many runs each concerns unless all do."""
    return " ".join(_counted([routing_sentence(run) for run in runs], " This holds for "))


def marked(text: str, mark: str) -> str:
    """Return a title with a mark behind it: `latency (ms) [synthetic routing]`."""
    return f"{text} [{mark}]".strip() if mark else text


def foreseeing(run: Run) -> tuple[str, ...]:
    """Return the policies of a run that know the future, like `eviction min`."""
    told = run.summary.get("knows_the_future")
    if isinstance(told, str):
        return tuple(told.split(", ")) if told else ()
    return tuple(
        f"{family} {name}"
        for family, section in POLICIES.items()
        for name in [run.text(f"{section}_policy")]
        if _clairvoyant(family, name) or (family == "eviction" and _learnt_in_hindsight(run, name))
    )


def prefetches(run: Run) -> bool:
    """Return whether a run may prefetch. MIN and the infinite cache fetch on demand only, so they
    bound no such run."""
    return run.text("prefetch_policy") != "none"


def _routing(run: Run) -> str:
    told = run.summary.get("routing")
    if told is not None:
        return str(told)
    older = run.text("trace") == "synthetic" or "the trace is synthetic" in run.notes
    return "synthetic" if older else "recorded"


def _sizes(run: Run) -> str:
    told = run.summary.get("sizes")
    if told is not None:
        return str(told)
    names = [run.summary.get(key) for key in ("trace", "model")]
    own = _section(run, "model").get("shape") == "trace" or None in names or names[0] == names[1]
    return "own" if own else "foreign"


def _clairvoyant(family: str, name: str) -> bool:
    """What the policy says of itself; False for one of a package that is not installed."""
    from moesim.policies import find

    try:
        return bool(getattr(find(family, name), "clairvoyant", False))
    except UsageError:
        return False


def _learnt_in_hindsight(run: Run, name: str) -> bool:
    if name != "static":
        return False
    options = _section(run, "cache").get("options")
    profile = options.get("profile") if isinstance(options, Mapping) else None
    trace = run.scenario.get("trace")
    return not profile or run.path / str(profile) == run.path / str(trace)


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
