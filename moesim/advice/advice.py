"""Advice: the choices that fit, their prices, the Pareto front, and the one that is recommended.

A choice is on the front if no other has as many bits a weight and is as fast, in decoding and in
reading prompts. Bits stand for the quality of answers, which is not simulated. Recommended is, of
the choices with at least four bits, the one with the most bits that takes at most a tenth longer
than the fastest; below four bits answers get noticeably worse (assumed). Where experts are read
from a disk, it is the fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from moesim.advice.choice import (
    UBATCHES,
    Choice,
    Memory,
    choices,
    disk_choices,
    formats_of,
    memory_of,
)
from moesim.advice.price import Priced, Pricer
from moesim.advice.question import Question
from moesim.errors import UsageError
from moesim.measured.predict import Declined

if TYPE_CHECKING:
    import pandas as pd

    from moesim.advice.cached import Cached
    from moesim.advice.grounds import Grounds
    from moesim.advice.terms import Term
    from moesim.advice.upgrades import Cliff, Upgrade

__all__ = ["Advice", "advise", "front_of", "recommended"]

_LEAST_BITS: Final = 4.0
_SLOWER: Final = 1.1
_CLOSE: Final = 0.005
"""Speeds that differ by less are equal."""


@dataclass(frozen=True, repr=False)
class Advice:
    """The answer to a question: all priced choices, the front, and the recommended one.

    `declined` are choices without a price, each with the reason. Other parts of the answer are
    computed when they are asked for.
    """

    question: Question
    priced: tuple[Priced, ...]
    front: tuple[Priced, ...]
    best: Priced
    declined: tuple[tuple[Choice, str], ...]
    pricer: Pricer = field(compare=False)

    def __repr__(self) -> str:
        from moesim.advice.heading import heading
        from moesim.advice.tables import recommendation

        return "\n".join((heading(self.question), *recommendation(self)))

    def _repr_html_(self) -> str:
        """Return the best choice of each format as a table, for a notebook."""
        from moesim.advice.tables import front_table
        from moesim.report.notebook import html_table

        table = front_table(self)
        rows = [[cell.text for cell in row] for row in table.rows]
        return html_table(f"{self!r}\n{table.title}", table.columns, rows)

    @cached_property
    def terms(self) -> Sequence[Term]:
        """What takes the time of a step of the recommended choice, in ms, the longest first."""
        return self.pricer.terms(self.best.choice)

    @cached_property
    def grounds(self) -> Grounds:
        """What the answer rests on, and how far such answers were from measurements."""
        from moesim.advice.grounds import grounds_of

        return grounds_of(self, self.pricer)

    @cached_property
    def cliff(self) -> Cliff:
        """What happens with longer contexts than asked."""
        from moesim.advice.upgrades import cliff_of

        return cliff_of(self, self.pricer)

    @cached_property
    def upgrades(self) -> Sequence[Upgrade]:
        """What would help most, with the time of a request that it saves."""
        from moesim.advice.upgrades import upgrades

        return upgrades(self)

    @cached_property
    def cached(self) -> Cached | Declined:
        """What an expert cache on the GPU would give, or why none is priced."""
        from moesim.advice.cached import cached_of

        return cached_of(self)

    def plain(self) -> dict[str, Any]:
        """Return the whole answer as plain data, the content of `moesim advise --json`."""
        from moesim.advice.tables import as_plain, extras_as_plain

        extras = extras_as_plain(self.terms, self.upgrades, self.cliff, self.cached)
        return {**as_plain(self, self.grounds), **extras}

    @property
    def frame(self) -> pd.DataFrame:
        """The front as a pandas DataFrame, one row per choice, with units in the columns.

        Speeds are in tokens/s, with the ends of their intervals in `low` and `high`.
        """
        import pandas as pd  # slow to import, and only needed here

        from moesim.advice.tables import as_plain

        return pd.json_normalize(as_plain(self)["front"], sep="_")

    def by_format(self) -> list[Priced]:
        """Return the choice that would be recommended of each format, the most bits first."""
        formats = dict.fromkeys(one.choice.format for one in self.front)
        return [
            self.best
            if name == self.best.choice.format
            else recommended([one for one in self.priced if one.choice.format == name])
            for name in formats
        ]


def advise(
    question: Question,
    pricer: Pricer | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    thorough: bool = False,
    ubatches: Sequence[int] = UBATCHES,
) -> Advice:
    """Return the advice on a question.

    Where no choice fits the memory, experts are read from a disk. A choice that takes longer
    than another of its format that is as exact, or over a tenth longer than any, is left out,
    unless `thorough`. `ubatches` are the physical batches that are compared.

    Raises:
        UsageError: no choice fits the machine, or none can be priced.
    """
    pricer = pricer or Pricer(question)
    asked = list(choices(question, ubatches))
    fitting = [choice for choice in asked if memory_of(question, choice).fits]
    if not fitting:
        fitting = asked = list(disk_choices(question))
    if not fitting:
        raise UsageError(_too_large(question, list(choices(question, ubatches))))
    priced: list[Priced] = []
    declined: list[tuple[Choice, str]] = []
    # Less exact KV caches are priced first, because they bound the speed of more exact ones.
    for number, choice in enumerate(sorted(fitting, key=lambda each: each.kv == "f16")):
        if progress is not None:
            progress(number, len(fitting))
        if not _worth_a_price(choice, fitting, pricer):
            continue
        if not thorough and _too_slow(choice, priced, pricer):
            continue
        answer = pricer.price(choice)
        if isinstance(answer, Declined):
            declined.append((choice, answer.reason))
        else:
            priced.append(answer)
    if progress is not None:
        progress(len(fitting), len(fitting))
    if not priced:
        raise UsageError(f"no choice can be priced: {declined[0][1]}")
    priced.sort(key=lambda one: asked.index(one.choice))
    best, front = recommended(priced), front_of(priced)
    return Advice(question, tuple(priced), front, best, tuple(declined), pricer)


def _too_slow(choice: Choice, priced: Sequence[Priced], pricer: Pricer) -> bool:
    """Return whether a choice takes longer than one that is as exact, or over a tenth longer.

    Its prompt is not bounded by simulation, but by those of priced choices: it is not read faster
    with more layers on the CPU, with a more exact KV cache, or with a batch that it does not fill.
    """
    same = [
        one
        for one in priced
        if (one.choice.engine, one.choice.format) == (choice.engine, choice.format)
        and one.choice.whole == choice.whole
    ]
    decode = pricer.decode(choice)
    if not same or isinstance(decode, Declined):
        return False
    question = pricer.question
    filled = min(choice.ubatch, question.prompt)
    bounds = [
        one.first_token_s.value
        for one in same
        if one.choice.ubatch >= filled and one.choice.cpu_layers <= choice.cpu_layers
    ]
    answer_s = question.output * question.load / decode.value
    least_s = max(bounds, default=0.0) + answer_s
    slower = (1 if one.choice.kv == choice.kv else _SLOWER for one in same)
    return any(
        least_s > factor * one.request_s.value for factor, one in zip(slower, same, strict=True)
    )


def _worth_a_price(choice: Choice, fitting: Sequence[Choice], pricer: Pricer) -> bool:
    """Return whether a choice may be best: pricing a prompt takes long, decoding does not.

    More layers on the CPU than needed pay only where they decode faster. Everything on the CPU pays
    only where nothing of the model fits the GPU.
    """
    if choice.whole:
        return not any(
            other.format == choice.format and other.engine == choice.engine and not other.whole
            for other in fitting
        )
    rivals = [
        other
        for other in fitting
        if replace(other, cpu_layers=choice.cpu_layers) == choice
        and other.cpu_layers < choice.cpu_layers
    ]
    ours = pricer.decode(choice)
    if isinstance(ours, Declined):
        return True  # its reason is shown
    theirs = [pricer.decode(other) for other in rivals]
    return all(isinstance(each, Declined) or each.value < ours.value for each in theirs)


def front_of(priced: Sequence[Priced]) -> tuple[Priced, ...]:
    """Return the choices that no other beats in bits, decoding and prompts, the most bits first."""
    front = [one for one in priced if not any(_beats(other, one) for other in priced)]
    return tuple(sorted(front, key=lambda one: (-one.bits, -one.decode.value)))


def _beats(other: Priced, one: Priced) -> bool:
    """Return whether `other` is as good in all and better in one; small differences are none."""
    pairs = [
        (other.bits, one.bits),
        (_exactness(other), _exactness(one)),
        (other.decode.value, one.decode.value),
        (other.prefill.value, one.prefill.value),
    ]
    return all(a >= b * (1 - _CLOSE) for a, b in pairs) and any(
        a > b * (1 + _CLOSE) for a, b in pairs
    )


def _exactness(one: Priced) -> int:
    """Return the bits of a number in the KV cache."""
    return 16 if one.choice.kv == "f16" else 8


def recommended(priced: Sequence[Priced]) -> Priced:
    """Return the recommended choice: see the module."""
    good = [one for one in priced if one.bits >= _LEAST_BITS]
    if any(one.choice.disk for one in priced):  # reads from a disk are so slow that fewer bits pay
        return min(priced, key=lambda one: one.request_s.value)
    if not good:  # the most exact that there is
        most = max(one.bits for one in priced)
        good = [one for one in priced if one.bits >= most * (1 - _CLOSE)]
    fastest = min(one.request_s.value for one in good)
    near = [one for one in good if one.request_s.value <= fastest * _SLOWER]
    return max(near, key=_rank)


def _rank(one: Priced) -> tuple[float, ...]:
    """Return what decides between choices that are nearly as fast, the most important first."""
    return (round(one.bits, 2), _exactness(one), -one.request_s.value, one.prefill.value)


def _too_large(question: Question, asked: Sequence[Choice]) -> str:
    """Return what is missing: the smallest choice, and by how much it is too large."""
    from moesim.config.units import format_bytes

    if not asked:
        small = Choice(question.engines[0], _smallest(question), kv=question.kv[-1])
        small = replace(small, cpu_layers=len(question.model.shape.moe_layers))
        asked = [small]

    def missing(memory: Memory) -> int:
        return max(0, -memory.gpu_left) + max(0, -(memory.host_left or 0))

    memories = [(missing(memory_of(question, choice)), choice) for choice in asked]
    lacking, choice = min(memories, key=lambda pair: pair[0])
    memory = memory_of(question, choice)
    parts = []
    if memory.gpu_left < 0:
        parts.append(
            f"{format_bytes(memory.gpu_bytes)} of GPU memory, and the GPU has "
            f"{format_bytes(memory.gpu_has)}"
        )
    if memory.host_left is not None and memory.host_left < 0:
        parts.append(
            f"{format_bytes(memory.host_bytes)} of host memory, and there are "
            f"{format_bytes(memory.host_has or 0)}"
        )
    form = f" in {choice.format}" if choice.format else ""
    return (
        f"{question.model.title} does not fit: the smallest choice{form} needs "
        f"{' and '.join(parts)}; {format_bytes(lacking)} are missing"
    )


def _smallest(question: Question) -> str:
    return formats_of(question)[-1]
