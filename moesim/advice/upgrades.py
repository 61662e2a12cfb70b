"""Upgrades: what would help a choice most, each as another simulation, and the cliff beyond it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from moesim.advice.advice import Advice, advise
from moesim.advice.choice import Choice, fewest_on_cpu, formats_of, memory_of
from moesim.advice.price import Priced, Pricer, Span
from moesim.advice.question import Question
from moesim.errors import MoesimError
from moesim.hardware.hardware import Hardware
from moesim.hardware.overrides import faster_link
from moesim.measured.predict import Declined

__all__ = ["MOST_CONTEXT", "Cliff", "Upgrade", "cliff_of", "upgrades"]

_MORE_VRAM: Final = 8 * 2**30
_MOST: Final = 3
_LEAST_GAIN: Final = 0.005
"""Smaller gains would be shown as 0%."""
_SIZE: Final = re.compile(r"\b(\d{1,6})\s*GB\b(?!/)", re.IGNORECASE)
_BLOCK: Final = 256
MOST_CONTEXT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A change of machine or format, with the speeds that it gives."""

    name: str
    then: Priced
    gain: float
    """Share of the time of a usual request that it saves."""
    factor: float
    """The factor by which the time that is saved may be wrong against the time that is left."""

    @property
    def gain_span(self) -> Span:
        """The gain and its interval.

        The saved and the remaining time are different work, so their ratio is taken to be as
        uncertain as a time.
        """
        odds = self.gain / (1 - self.gain)
        low, high = odds / self.factor, odds * self.factor
        return Span(self.gain, low / (1 + low), high / (1 + high))


@dataclass(frozen=True, slots=True)
class Cliff:
    """The longest context that a choice holds, and the speed at twice the asked one.

    `context` is at most `MOST_CONTEXT`: contexts beyond are not looked at.
    `moved` more layers are on the CPU then; None where nothing fits any more.
    """

    context: int
    doubled: int
    moved: int | None = None
    decode: Span | None = None


def upgrades(advice: Advice) -> list[Upgrade]:
    """Return the upgrades that save most of a usual request's time, the best first."""
    now = advice.best.request_s
    factor, found = now.high / now.value, []
    for name, question in _changes(advice):
        try:
            then = advise(question, ubatches=(advice.best.choice.ubatch,)).best
        except MoesimError:
            continue  # such a machine cannot be priced either
        gain = 1 - then.request_s.value / now.value
        if gain >= _LEAST_GAIN:
            found.append(Upgrade(name, then, gain, factor))
    return sorted(found, key=lambda each: -each.gain)[:_MOST]


def _changes(advice: Advice) -> Iterator[tuple[str, Question]]:
    """Yield changed questions, each about the format, batch and KV cache of the best choice."""
    question, best = advice.question, advice.best.choice
    same: dict[str, Any] = {"kv": (best.kv,)}
    if best.format and question.model.format is None:
        same["formats"] = (best.format,)
    hardware = question.machine.hardware
    given, _ = question.parts.filled()
    for name, figures in () if best.disk else _figures(hardware):
        parts = replace(given, figures={**given.figures, **figures})
        yield name, replace(question, parts=parts, **same)
    if best.disk and (size := _SIZE.search(given.ram)):
        doubled = f"{2 * int(size[1])}GB"
        ram = given.ram[: size.start()] + doubled + given.ram[size.end() :]
        yield f"host memory of {doubled}", replace(question, parts=replace(given, ram=ram), **same)
    formats = formats_of(question)
    if best.format in formats[:-1]:
        smaller = formats[formats.index(best.format) + 1]
        yield f"weights in {smaller}", replace(question, kv=(best.kv,), formats=(smaller,))


def _figures(hardware: Hardware) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield machines with one better part, as changed figures."""
    if hardware.has_gpu and not hardware.unified:
        yield "8 GiB more GPU memory", {"vram": hardware.vram_bytes + _MORE_VRAM}
        yield "twice the link", dict(faster_link(hardware, 2))
    host = hardware.host_memory_bytes_per_s
    if host is not None and not hardware.unified:
        figures: dict[str, Any] = {"host_memory_bandwidth": host * 3 // 2}
        if hardware.cpu_memory_bytes_per_s is not None:
            figures["cpu_memory_bandwidth"] = hardware.cpu_memory_bytes_per_s * 3 // 2
        yield "host memory of 1.5 times the bandwidth", figures
    if hardware.cpu_flops_per_s is not None and hardware.cpu_cores is not None:
        yield (
            "a processor of twice the cores",
            {
                "cpu_flops": 2 * hardware.cpu_flops_per_s,
                "cpu_int8_ops": 2 * hardware.cpu_int8_ops_per_s,
                "cpu_cores": 2 * hardware.cpu_cores,
            },
        )


def cliff_of(advice: Advice, pricer: Pricer) -> Cliff:
    """Return the longest context with the best choice's flags, and the speed at twice the asked."""
    question, choice = advice.question, advice.best.choice
    longest = _longest(question, choice)
    doubled = replace(question, context=2 * question.context)
    moved, decode = _at(doubled, choice)
    return Cliff(longest, doubled.context, moved, decode)


def _longest(question: Question, choice: Choice) -> int:
    """Return the longest context with which a choice fits, to 256 tokens above the asked one."""

    def fits(blocks: int) -> bool:
        return memory_of(replace(question, context=_BLOCK * blocks), choice).fits

    low = question.context // _BLOCK
    high = max(low, MOST_CONTEXT // _BLOCK)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return max(question.context, low * _BLOCK)  # the asked one may be no multiple


def _at(question: Question, choice: Choice) -> tuple[int | None, Span | None]:
    """Return how many more layers a longer context moves to the CPU, and the speed then."""
    layers = choice.cpu_layers
    if not choice.whole:
        fewest = fewest_on_cpu(question, replace(choice, cpu_layers=0))
        if fewest is None:
            return None, None
        layers = max(layers, fewest)
    then = replace(choice, cpu_layers=layers)
    if not memory_of(question, then).fits:
        return None, None
    answer = Pricer(question).decode(then)
    if isinstance(answer, Declined):
        return None, None
    return layers - choice.cpu_layers, Span.of(answer).divided(question.load)
