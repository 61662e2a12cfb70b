"""Grounds: what an answer rests on, and how far such answers were from what people measured.

Figures of machine and engine are measured, fitted, or assumed. `scores.json` has the errors of
measured rows by engine and placement, which `studies/measured/scoreboard.py` writes. It has no
measured values.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from moesim.advice.advice import Advice
from moesim.advice.choice import MEMORY_ASSUMED
from moesim.advice.price import DISK_NOTE, Pricer
from moesim.engines.engine import load_engine
from moesim.measured.predict import Reading

__all__ = ["SCORES", "Grounds", "Score", "grounds_of", "score_of"]

SCORES: Final = Path(__file__).parent / "scores.json"
_LEAST_ROWS: Final = 5
"""Rows that a median needs; with fewer, those of all engines are taken."""
_HALF: Final = 0.5
_INTERFACES: Final = {"rocm": "hip"}
_PLACES: Final = {
    "offload": "experts on the CPU",
    "cpu-only": "everything on the CPU",
    "resident": "everything on the GPU",
    "resident/unified": "memory that CPU and GPU share",
}


@dataclass(frozen=True, slots=True)
class Score:
    """The median error of measured rows like an answer, in per cent, without a fit.

    `engine` is "" for rows of any engine. `formed` is True where figures were formed with some of
    these rows. `inside` is the share of rows within their interval.
    """

    group: str
    engine: str
    placement: str
    rows: int
    machines: int
    error_pct: float
    inside: float
    formed: bool

    def __str__(self) -> str:
        engine = self.engine or "any engine"
        machines = "machine" if self.machines == 1 else "machines"
        others = "" if self.formed else " that no figure was formed with"
        return (
            f"rows of {engine} with {_PLACES[self.placement]}, {self.group}: median error "
            f"{self.error_pct:.0f} % over {self.rows} measurements on {self.machines} {machines}"
            f"{others}; {self.inside:.0%} within their interval"
        )


@dataclass(frozen=True, slots=True)
class Grounds:
    """What an answer rests on: kinds of figures, what is assumed, and the errors of such rows.

    `figures` has the number of figures of each kind, for the machine and for the engine.
    """

    figures: Mapping[str, Mapping[str, int]]
    assumed: tuple[str, ...]
    scores: tuple[Score, ...]

    def lines(self) -> Iterator[str]:
        """Yield the grounds as lines."""
        for name, kinds in self.figures.items():
            numbers = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
            yield f"figures of {name}: {numbers}"
        yield from map(str, self.scores)
        if not self.scores:
            yield "no measured rows are like this one: its error is not known"
        for text in self.assumed:
            yield f"assumed: {text}"

    def caution(self) -> Iterator[str]:
        """Yield what to know of the interval: how few of such rows were within theirs."""
        for score in self.scores:
            if score.inside < _HALF:
                yield (
                    f"caution: {score.group} like this was within its interval for "
                    f"{score.inside:.0%} of {score.rows} measured rows only, so the interval is "
                    "too narrow"
                )

    def plain(self) -> dict[str, Any]:
        """Return the grounds as plain data."""
        scores = [{name: getattr(score, name) for name in Score.__slots__} for score in self.scores]
        return {
            "figures": {name: dict(kinds) for name, kinds in self.figures.items()},
            "assumed": list(self.assumed),
            "scores": scores,
        }


def grounds_of(advice: Advice, pricer: Pricer) -> Grounds:
    """Return what the price of the best choice rests on."""
    question, choice = advice.question, advice.best.choice
    reading = pricer.reading(choice)
    machine = question.machine.hardware.figures
    figures = {
        "the machine": _kinds(figure.kind for figure in machine.values()),
        f"{reading.engine.name} {reading.engine.backend}".strip(): _engine_kinds(reading),
    }
    groups = () if choice.disk else ("decode", "prefill")  # no row reads from a disk
    scores = [score_of(reading, group) for group in groups]
    found = tuple(score for score in scores if score is not None)
    return Grounds(figures, (*question.assumed, *_assumed(advice)), found)


def _assumed(advice: Advice) -> Iterator[str]:
    question, choice = advice.question, advice.best.choice
    if choice.format:
        yield f"{choice.format} stores each tensor as llama.cpp's rules say (docs/formats.md)"
    yield from MEMORY_ASSUMED
    if question.machine.hardware.architecture == "apple":
        yield "macOS lets the GPU use 75% of the memory (iogpu.wired_limit_mb changes it)"
    lengths = f"{question.prompt:,} new tokens, {question.output:,} out"
    yield f"lengths of goal {question.goal}: {lengths}"
    if question.load > 1:
        yield f"{question.load} sequences decode together, and a prompt waits for no other one"
    yield "bits of a weight stand for the quality of answers, which is not simulated"
    if choice.disk:
        yield DISK_NOTE
    else:
        yield "every expert is as likely as another, which changes no time of a fixed placement"


def _engine_kinds(reading: Reading) -> dict[str, int]:
    """Return the kinds of the figures of an engine, for the processors that a row uses."""
    backend = reading.engine.backend.lower()
    used = f"gpu.{_INTERFACES.get(backend, backend)}."
    figures = load_engine(reading.engine.name).figures
    on_cpu = reading.kind.name in ("offload", "cpu-only")
    return _kinds(
        origin.kind
        for key, origin in figures.items()
        if key.startswith(used)
        or not key.startswith(("gpu.", "cpu."))
        or (on_cpu and key.startswith("cpu."))
    )


def _kinds(kinds: Iterator[str]) -> dict[str, int]:
    return dict(Counter(sorted(kinds, reverse=True)))


def score_of(reading: Reading, group: str) -> Score | None:
    """Return the errors of rows like one, of the narrowest class with enough rows; None without.

    Rows that no figure was formed with come first; then any engine; then all rows.
    """
    place = reading.kind.name
    engine = (reading.engine.name, reading.engine.backend)
    for half in ("exam", "all"):
        for names in (engine, ("", "")):
            part = _scores().get((*names, place, group), {}).get(half)
            if part and part["rows"] >= _LEAST_ROWS:
                return Score(
                    group, " ".join(filter(None, names)), place, part["rows"], part["machines"],
                    part["median_abs_error_pct"], part["inside"], half == "all",
                )  # fmt: skip
    return None


@cache
def _scores() -> Mapping[tuple[str, ...], Mapping[str, Any]]:
    kinds = json.loads(SCORES.read_text(encoding="utf-8"))["kinds"]
    keys = ("engine", "backend", "placement", "group")
    return {tuple(kind[key] for key in keys): kind for kind in kinds}
