"""The formulas of an advice, and what a page needs to evaluate them, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesim.advice.expression import Expression
from moesim.advice.fits import Formula, Range, Space
from moesim.advice.question import GOALS, Question

__all__ = ["Formulas", "Key"]

Key = tuple[str, ...]


@dataclass(frozen=True)
class Formulas:
    """The formulas of an advice.

    `decode_s` is the time between tokens of a sequence, by format and KV entries. `prompt_s` is
    that of a token of a prompt, by format, KV entries and physical batch; `usual_s` that of a usual
    prompt that is shorter than a batch. `memory` has the bytes of each part by the same three.
    Intervals are factors of speeds, with none and with some layers on the CPU. `refused` says what
    is not offered, and why.
    """

    question: Question
    space: Space
    decode_s: Mapping[Key, Formula]
    prompt_s: Mapping[Key, Formula]
    usual_s: Mapping[Key, Formula]
    memory: Mapping[Key, Mapping[str, Mapping[str, Expression]]]
    intervals: Mapping[str, Sequence[Range]]
    refused: tuple[str, ...] = ()
    divides: bool = True
    """Whether the number of layers on the CPU may change."""

    @property
    def checks(self) -> tuple[int, float]:
        """The number of simulations that formulas were checked against, and the largest error."""
        every = [*self.decode_s.values(), *self.prompt_s.values(), *self.usual_s.values()]
        errors = [error for each in every for error in each.errors]
        return len(errors), max(errors, default=0.0)

    def plain(self) -> dict[str, Any]:
        """Return the formulas as plain data."""
        number, error = self.checks
        return {
            "decode_s": {" ".join(key): each.plain() for key, each in self.decode_s.items()},
            "prompt_s": {" ".join(key): each.plain() for key, each in self.prompt_s.items()},
            "usual_s": {" ".join(key): each.plain() for key, each in self.usual_s.items()},
            "memory": {" ".join(key): each for key, each in self.memory.items()},
            "intervals": {name: list(map(list, each)) for name, each in self.intervals.items()},
            "prompt_tokens": _prompt_tokens(self.question),
            "checked": {"simulations": number, "largest_error": error},
            "refused": list(self.refused),
        }


def _prompt_tokens(question: Question) -> Expression:
    """Return the tokens of a usual prompt, as `Question.prompt`."""
    wanted: Expression | None = GOALS[question.goal].prompt
    if wanted is None:
        wanted = ["floor", ["/", ["*", 3, "context"], 4]]
    return ["min", wanted, ["+", "context", -question.output]]
