"""The seam between rows and times: what a predictor gets, and what it answers.

A predictor is called with a `Reading`: the row, and all that its texts say. It never sees a
measured value. Rows that the reading already declines do not reach it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, Protocol

from moesim.measured.engine_text import Engine, impossible_backend, read_engine
from moesim.measured.grammar import read_setting
from moesim.measured.kinds import CPU_ONLY, Kind, kind_of
from moesim.measured.rows import Row
from moesim.measured.setting import Setting

__all__ = [
    "SHORT_DEPTH",
    "USUAL_PROMPT",
    "Answer",
    "Declined",
    "Group",
    "Prediction",
    "Predictor",
    "Reading",
    "group_of",
    "read",
]

Group = Literal["decode", "prefill", "small_batch"]
"""How rows are scored: one token at a time, long prompts, and batches of 2 to 64 tokens."""

_MOST_SMALL: Final = 64
SHORT_DEPTH: Final = 2048
"""Tokens of the longest depth that stands for a missing prompt: for `pp512` people write 512."""
USUAL_PROMPT: Final = 512
"""Tokens of a timed prompt that nothing tells."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Tokens per second, and the interval in which the measured value is expected."""

    value: float
    low: float
    high: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.value <= self.high < float("inf"):
            raise ValueError(f"not 0 < low <= value <= high: {self.low}, {self.value}, {self.high}")


@dataclass(frozen=True, slots=True)
class Declined:
    """No prediction, and why."""

    reason: str


Answer = Prediction | Declined


@dataclass(frozen=True, slots=True)
class Reading:
    """A row and what its texts say. Where `reason` is not "", the row cannot be predicted."""

    row: Row
    setting: Setting
    engine: Engine
    kind: Kind
    group: Group | None
    reason: str

    @property
    def decodes(self) -> bool:
        """Return whether tokens are generated, one a sequence and step; else prompts are timed."""
        return _metric(self.row.metric) == "decode" or self.group == "decode"

    @property
    def threads(self) -> int | None:
        """Return the threads that the setting states, or else the text of the CPU; None if none."""
        if self.setting.threads is not None:
            return self.setting.threads
        found = _THREADS.search(self.row.cpu)
        return int(found[1] or found[2]) if found is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Return all that was supposed or left out while reading."""
        prompt = _prompt_notes(self.row, self.group)
        return (*self.kind.notes, *self.setting.notes, *self.engine.notes, *prompt)


_THREADS: Final = re.compile(r"\b(\d{1,4}) ?threads?\b|-t (\d{1,4})\b", re.IGNORECASE)


class Predictor(Protocol):
    """A function that predicts a row's tokens per second."""

    def __call__(self, reading: Reading, /) -> Answer:
        """Return a prediction, or why there is none."""


def read(row: Row) -> Reading:
    """Return what a row's texts say."""
    setting = read_setting(row.setting)
    kind = kind_of(row, setting)
    engine = read_engine(row.engine, row.gpu, cpu_only=kind.name == CPU_ONLY)
    group = group_of(row)
    return Reading(row, setting, engine, kind, group, _reason(row, setting, engine, kind, group))


@lru_cache(maxsize=256)
def _metric(name: str) -> str:
    """Return "decode" or "prefill" for a metric's name, "" for another."""
    known = {"decode_tok_s": "decode", "aggregate_decode_tok_s": "decode"}
    return (known | {"prefill_tok_s": "prefill"}).get(name.casefold(), "")


def group_of(row: Row) -> Group | None:
    """Return the group in which a row is scored; None for a metric that is not predicted.

    A prompt of one token is one decode step, whatever its metric is called.
    """
    metric = _metric(row.metric)
    if metric == "decode":
        return "small_batch" if row.batch > 1 else "decode"
    if metric != "prefill":
        return None
    if not row.prompt or row.prompt > _MOST_SMALL:
        return "prefill"
    return "decode" if row.prompt * row.batch <= 1 else "small_batch"


def _prompt_notes(row: Row, group: Group | None) -> tuple[str, ...]:
    """Return what is supposed of the timed prompt of a prefill row that does not give it."""
    if _metric(row.metric) != "prefill" or group is None or row.prompt:
        return ()
    missing = (
        "a prompt of 0 tokens is taken as missing" if row.prompt == 0 else "no prompt is given"
    )
    if row.depth and row.depth <= SHORT_DEPTH:
        return (f"{missing}: the depth of {row.depth} tokens is the prompt, after an empty cache",)
    return (f"{missing}: {USUAL_PROMPT} tokens are timed",)


def _reason(row: Row, setting: Setting, engine: Engine, kind: Kind, group: Group | None) -> str:
    if kind.reason:
        return kind.reason
    if group is None:
        return f"metric {row.metric!r} is not predicted" if row.metric else "no metric is named"
    if not row.model:
        return "no model is named"
    if not engine.name:
        return f"engine {row.engine!r} is not known" if row.engine else "no engine is named"
    if kind.name != CPU_ONLY and (why := impossible_backend(engine, row.gpu)):
        return why
    if setting.reason:
        return setting.reason
    if kind.name == "offload" and not setting.placement:
        return "the row is of kind offload, but its setting does not say what is on the CPU"
    return ""
