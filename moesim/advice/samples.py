"""Samples: simulated times of a choice at other settings of its machine, context and format.

A setting names what differs from the question: `n` layers of experts on the CPU, `context` tokens,
and bandwidths in GB/s: `gpu` and `host` of memories, `link` of copies. Memories are as large as
needed here, because whether a choice fits is another matter than its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moesim.advice.choice import UBATCHES, Choice
from moesim.advice.price import Pricer
from moesim.advice.question import Question
from moesim.errors import UsageError
from moesim.hardware.overrides import faster_link
from moesim.measured.predict import Answer, Declined, Prediction

__all__ = ["BANDWIDTHS", "Samples", "Setting", "base_of", "with_bandwidths"]

Setting = Mapping[str, float]
GIGA: Final = 10**9
BANDWIDTHS: Final = ("gpu", "host", "link")
_ROOMY_BYTES: Final = 2**42


def base_of(question: Question) -> dict[str, float]:
    """Return the setting of a question without `n`: its context, and bandwidths of its machine."""
    hardware = question.machine.hardware
    base: dict[str, float] = {"context": question.context}
    if hardware.has_gpu:
        base["gpu"] = hardware.memory_bytes_per_s / GIGA
    if not hardware.unified and hardware.host_memory_bytes_per_s is not None:
        base["host"] = hardware.host_memory_bytes_per_s / GIGA
        if hardware.has_gpu:
            base["link"] = hardware.h2d.pinned_bytes_per_s / GIGA
    return base


def with_bandwidths(question: Question, setting: Setting) -> dict[str, Any]:
    """Return the figures of the question's machine with the bandwidths of a setting.

    Both ways of the link change by the same factor, as do copies of memory that is not pinned.
    """
    hardware, base = question.machine.hardware, base_of(question)
    figures = dict(question.parts.figures)
    changed = {name for name in BANDWIDTHS if name in base and setting.get(name) != base[name]}
    if "gpu" in changed & setting.keys():
        figures["memory_bandwidth"] = round(setting["gpu"] * GIGA)
    if "host" in changed & setting.keys():
        figures["host_memory_bandwidth"] = round(setting["host"] * GIGA)
    if "link" in changed & setting.keys():
        factor = setting["link"] / base["link"]
        for way, rates in faster_link(hardware, factor).items():
            figures[way] = {**figures.get(way, {}), **rates}
    return figures


@dataclass(frozen=True)
class Samples:
    """Simulated times of one engine on the machine of a question; each is simulated once.

    With `whole`, everything is on the CPU.
    """

    question: Question
    engine: str
    whole: bool
    _pricers: dict[tuple[Any, ...], Pricer] = field(default_factory=dict)

    def decode_s(self, form: str, kv: str, setting: Setting) -> float:
        """Return the seconds between two tokens of each sequence.

        Raises:
            UsageError: it cannot be simulated.
        """
        choice = self._choice(form, kv, UBATCHES[0], setting)
        return self.question.load / _value(self._pricer(setting).decode(choice)).value

    def prompt_s(self, form: str, kv: str, ubatch: int, tokens: int, setting: Setting) -> float:
        """Return the seconds a token of a prompt takes in a step of at most `tokens`.

        The step is in the middle of the context, as in `Pricer`.

        Raises:
            UsageError: it cannot be simulated.
        """
        return 1 / _value(self._prompt(form, kv, ubatch, tokens, setting)).value

    def interval(self, form: str, kv: str, setting: Setting) -> tuple[float, float]:
        """Return the factors from the speed of decoding to the ends of its interval."""
        choice = self._choice(form, kv, UBATCHES[0], setting)
        return _factors(_value(self._pricer(setting).decode(choice)))

    def prompt_interval(
        self, form: str, kv: str, ubatch: int, setting: Setting
    ) -> tuple[float, float]:
        """Return the factors from the speed of prompts to the ends of its interval."""
        return _factors(_value(self._prompt(form, kv, ubatch, ubatch, setting)))

    def _prompt(self, form: str, kv: str, ubatch: int, tokens: int, setting: Setting) -> Answer:
        choice = self._choice(form, kv, ubatch, setting)
        return self._pricer(setting).prompt(choice, tokens)

    def _choice(self, form: str, kv: str, ubatch: int, setting: Setting) -> Choice:
        layers = round(setting["n"])
        return Choice(self.engine, form, layers, self.whole, ubatch, kv)

    def _pricer(self, setting: Setting) -> Pricer:
        key = tuple(setting.get(name) for name in ("context", *BANDWIDTHS))
        if key not in self._pricers:
            question = self.question
            hardware = question.machine.hardware
            figures = with_bandwidths(question, setting)
            if hardware.has_gpu:
                figures["vram"] = _ROOMY_BYTES
            if hardware.host_memory_bytes is not None and not hardware.unified:
                figures["host_memory"] = _ROOMY_BYTES
            parts = replace(question.parts, figures=figures)
            asked = replace(question, context=round(setting["context"]), parts=parts)
            self._pricers[key] = Pricer(asked)
        return self._pricers[key]


def _value(answer: Answer) -> Prediction:
    if isinstance(answer, Declined):
        raise UsageError(answer.reason)
    return answer


def _factors(prediction: Prediction) -> tuple[float, float]:
    return prediction.low / prediction.value, prediction.high / prediction.value
