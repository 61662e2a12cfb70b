"""Formulas: the speeds and the memory of an advice as expressions that a page can evaluate.

Every formula comes from simulations by the code that gave the advice, and is checked against
further ones. Where it does not hold, its range is narrower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Final

from moesim.advice.advice import Advice
from moesim.advice.choice import UBATCHES
from moesim.advice.expression import Expression
from moesim.advice.fits import (
    TOLERANCE,
    Formula,
    Range,
    Sample,
    Space,
    candidates_of,
    corners_of,
    fitted,
    layers_table,
    middle_of,
    more_knots,
    range_of,
    shifted,
)
from moesim.advice.formula_set import Formulas, Key
from moesim.advice.memory_formulas import memory_formula
from moesim.advice.price import Priced
from moesim.advice.samples import BANDWIDTHS, Samples, Setting, base_of
from moesim.errors import MoesimError, UsageError

__all__ = ["Formulas", "formulas_of"]

_LEAST_CONTEXT: Final = 4096
_MOST_CONTEXT: Final = 131072
_FAR: Final = 3
"""One over the share of all layers that two numbers of layers differ by, for a slope."""


def formulas_of(advice: Advice) -> Formulas:
    """Return the formulas of an advice.

    Raises:
        UsageError: the best choice cannot be simulated at other settings.
    """
    if advice.best.choice.disk:
        raise UsageError("the time of reads from a disk has no formula")
    return _Maker(advice).formulas()


class _Maker:
    """Makes the formulas of one advice. All samples are of the engine and the place of the best."""

    def __init__(self, advice: Advice) -> None:
        self.advice, self.question = advice, advice.question
        self.best = advice.best.choice
        self.samples = Samples(self.question, self.best.engine, self.best.whole)
        self.first = self.best.kv
        self.other_kv = next((kv for kv in self.question.kv if kv != self.first), self.first)
        self.refused: list[str] = []

    @cached_property
    def chosen(self) -> dict[str, Priced]:
        """The recommended choice of each format, of those in the place of the best."""
        found = {one.choice.format: one for one in self.advice.by_format()}
        found[self.best.format] = self.advice.best
        return {
            form: one
            for form, one in found.items()
            if one.choice.whole == self.best.whole and not one.choice.disk
        }

    @cached_property
    def divides(self) -> bool:
        """Whether the number of layers on the CPU may change."""
        return not self.best.whole and not self.question.machine.hardware.unified

    @cached_property
    def kv_memory(self) -> str:
        """The bandwidth of the memory that holds the KV cache."""
        return "host" if self.best.whole else "gpu"

    @cached_property
    def bandwidths(self) -> tuple[str, ...]:
        """The bandwidths that the times of decoding may depend on."""
        known = base_of(self.question)
        wanted = ("host",) if self.best.whole else BANDWIDTHS
        return tuple(name for name in wanted if name in known)

    @cached_property
    def space(self) -> Space:
        """The ranges in which decoding in the best format is affine.

        The widest ranges are tried first. Only where they fail is each variable tried alone.
        """
        base = {**base_of(self.question), "n": self.best.cpu_layers}
        every = len(self.question.model.shape.moe_layers)
        context = base["context"]
        wide: dict[str, Range] = {
            "n": (0, every) if self.divides else (base["n"], base["n"]),
            "context": (min(context, _LEAST_CONTEXT), max(context, _MOST_CONTEXT)),
        }
        tried = {name: candidates_of(base[name], self._most(name)) for name in self.bandwidths}
        wide |= {name: ranges[0] for name, ranges in tried.items()}
        return next(space for space in self._spaces(base, wide, tried) if self._fits(space))

    def _spaces(
        self, base: Setting, wide: Mapping[str, Range], tried: Mapping[str, list[Range]]
    ) -> Iterator[Space]:
        """Yield spaces to try, the widest first; in the last one, nothing varies."""
        yield Space(base, wide)
        fixed = {name: (base[name], base[name]) for name in wide}
        if self.divides:
            sample = self._decoding(self.best.format, self.first)
            layers = layers_table(sample, base, round(wide["n"][1]))
            yield Space(base, wide, layers)
            narrow = self._narrowed({**base, "n": wide["n"][1] // 2}, wide, tried)
            yield Space(base, {**narrow, "n": wide["n"]}, layers)
        narrow = self._narrowed(base, wide, tried)
        yield Space(base, {**narrow, "n": fixed["n"]})
        self.refused.append("times are no sum of what single variables change")
        yield Space(base, fixed)

    def _fits(self, space: Space) -> bool:
        """Return whether one formula of the best format holds in a space, to its corners."""
        sample = self._decoding(self.best.format, self.first)
        shift = shifted(sample, sample, space, self._knots(space), self.kv_memory)
        terms = [*fitted(sample, space, self._monomials), *self._link_terms(sample, space), *shift]
        formula = Formula(["+", *terms], space.ranges)
        points = [middle_of(space), *corners_of(space)]
        return all(formula.check(point, sample(point)) <= TOLERANCE for point in points)

    def _narrowed(
        self, base: Setting, wide: Mapping[str, Range], tried: Mapping[str, list[Range]]
    ) -> dict[str, Range]:
        """Return the range of context and bandwidths in which the time is affine in each alone."""
        sample = self._decoding(self.best.format, self.first)
        ranges = {"n": wide["n"], "context": self._contexts(sample, base, wide["context"])}
        for name, candidates in tried.items():
            ranges[name] = range_of(sample, base, name, candidates)
        return ranges

    def _contexts(self, sample: Sample, base: Setting, wide: Range) -> Range:
        low, high = wide
        start = max([low, *(edge for edge in self._windows() if edge < high)])
        # Beyond the last window it is affine.
        found = range_of(sample, base, "context", [(start, high)] if start < high else [])
        return wide if found[0] < found[1] else found

    def _windows(self) -> list[int]:
        kinds = self.question.model.shape.all_kinds()
        return sorted({kind.window for kind in kinds if kind.window})

    def _knots(self, space: Space) -> list[float]:
        low, high = space.ranges["context"]
        if low == high:
            return [low]
        return sorted({low, high, *(edge for edge in self._windows() if low < edge < high)})

    def _most(self, name: str) -> float | None:
        """Return the GB/s of host memory that its reader can take, by the machine's figures."""
        hardware = self.question.machine.hardware
        limits = [hardware.cpu_memory_bytes_per_s]
        threads = hardware.cpu_threads or hardware.cpu_cores
        if hardware.core_memory_bytes_per_s is not None and threads is not None:
            limits.append(hardware.core_memory_bytes_per_s * threads)
        known = [limit for limit in limits if limit is not None]
        if name != "host" or not known:
            return None
        return min(known) / hardware.host_memory_efficiency / 1e9

    def _decoding(self, form: str, kv: str) -> Sample:
        return lambda setting: self.samples.decode_s(form, kv, setting)

    def _prompting(self, form: str, kv: str, ubatch: int, tokens: int) -> Sample:
        return lambda setting: self.samples.prompt_s(form, kv, ubatch, tokens, setting)

    def formulas(self) -> Formulas:
        """Return all formulas."""
        decode = self._decode_formulas()
        forms = {key[0] for key in decode}
        prompts, usual = (
            {
                key: each
                for key, each in self._prompt_formulas(usual=usual).items()
                if key[0] in forms
            }
            for usual in (False, True)
        )
        batches = sorted({int(key[2]) for key in prompts} | {self.best.ubatch})
        memory: dict[Key, Mapping[str, Mapping[str, Expression]]] = {
            (form, kv, str(ubatch)): memory_formula(
                self.question, self.best, form, kv, ubatch, self.space, layers=self.divides
            )
            for form, kv in decode
            for ubatch in batches
        }
        return Formulas(
            self.question, self.space, decode, prompts, usual, memory,
            self._intervals(bool(prompts)), tuple(self.refused), self.divides,
        )  # fmt: skip

    # Decoding

    @cached_property
    def _monomials(self) -> list[Key]:
        """What decoding is a sum of; what the link takes is `_link_terms`."""
        found: list[Key] = [(), ("n",), (self.kv_memory,)]
        return found if self.best.whole else [*found, ("n", "gpu"), ("n", "host")]

    def _decode_formulas(self) -> dict[Key, Formula]:
        space = self.space
        reference = self._decoding(self.best.format, self.first)
        knots = self._knots(space)
        shifts = {
            kv: shifted(
                self._decoding(self.best.format, kv), reference, space, knots, self.kv_memory
            )
            for kv in self.question.kv
        }
        link = self._link_terms(reference, space)
        found: dict[Key, Formula] = {}
        for number, form in enumerate(self.chosen):
            local = self._local(form)
            terms = [*fitted(self._decoding(form, self.first), local, self._monomials), *link]
            formulas: dict[Key, Formula] = {
                (form, kv): Formula(["+", *terms, *shift], local.ranges)
                for kv, shift in shifts.items()
            }
            if self._decode_holds(form, formulas, corners_of(local)[number % 2]):
                found |= formulas
        return found

    def _local(self, form: str) -> Space:
        """Return the space of a format, whose own number of layers counts if it may not change."""
        space = self.space
        if space.varies("n") or not self.divides:
            return space
        layers = self.chosen[form].choice.cpu_layers
        return Space({**space.base, "n": layers}, {**space.ranges, "n": (layers, layers)})

    def _link_terms(self, sample: Sample, space: Space) -> list[Expression]:
        """Return what hidden states take on the link; they are the same in all formats."""
        if not space.varies("link"):
            return []
        slow = space.far("link")
        point = {**space.base, "n": space.far("n") if space.varies("n") else space.base["n"]}
        more = sample({**point, "link": slow}) - sample(point)
        each = more / max(1, point["n"]) / (space.factor("link", slow) - 1)
        return [["*", each, "n", ["+", space.symbol("link"), -1]]]

    def _decode_holds(self, form: str, formulas: Mapping[Key, Formula], corner: Setting) -> bool:
        """Return whether the formulas of a format hold at the prices and in a corner."""
        for one in self._priced_here():
            formula = formulas.get((one.choice.format, one.choice.kv))
            if formula is not None:
                setting = {**self.space.base, "n": one.choice.cpu_layers}
                formula.check(setting, 1 / one.decode.value)
        kv = self.other_kv
        formulas[form, kv].check(corner, self._decoding(form, kv)(corner))
        return self._holds(form, formulas, "decoding")

    def _is_here(self, one: Priced, space: Space) -> bool:
        choice = one.choice
        here = choice.engine == self.best.engine and choice.whole == self.best.whole
        here = here and not choice.disk
        return here and (space.varies("n") or choice.cpu_layers == space.base["n"])

    def _holds(self, form: str, formulas: Mapping[Key, Formula], what: str) -> bool:
        error = max(formula.error for formula in formulas.values())
        if error > TOLERANCE:
            self.refused.append(f"{what} in {form or 'this file'}: no formula within 0.1 %")
        return error <= TOLERANCE

    # Prompts

    def _prompt_formulas(self, *, usual: bool) -> dict[Key, Formula]:
        """Return the formulas of prompts, at the bandwidths of the question.

        With `usual`, they are those of a usual prompt that is shorter than a batch, which is a step
        of its own. Each format has its recommended physical batch, and the best format every one.
        """
        pairs = [(form, one.choice.ubatch) for form, one in self.chosen.items()]
        if not self.best.whole:
            pairs += [(self.best.format, ubatch) for ubatch in UBATCHES]
        found: dict[Key, Formula] = {}
        for form, ubatch in dict.fromkeys(pairs):
            tokens = min(ubatch, self.question.prompt) if usual else ubatch
            if not usual or tokens < ubatch:
                try:
                    found |= self._prompts_of(form, ubatch, tokens)
                except MoesimError as error:
                    self.refused.append(f"prompts in {form or 'this file'}: {error}")
        return found

    def _priced_here(self) -> list[Priced]:
        forms = self.chosen
        return [
            one
            for one in self.advice.priced
            if one.choice.format in forms and self._is_here(one, self._local(one.choice.format))
        ]

    @cached_property
    def _prompt_space(self) -> Space:
        """The ranges for prompts: a context has a whole batch, and bandwidths do not change."""
        base, ranges = self.space.base, dict(self.space.ranges)
        low, high = ranges["context"]
        # Three quarters of the context may be the usual prompt.
        low = max(low, 2 * max(UBATCHES), max(UBATCHES) + self.question.output)
        if low >= high or base["context"] < low:
            low = high = base["context"]
        fixed = {name: (base[name], base[name]) for name in self.bandwidths}
        return Space(base, {**ranges, "context": (low, high), **fixed})

    def _prompts_of(self, form: str, ubatch: int, tokens: int) -> dict[Key, Formula]:
        """Return the formulas of prompts of a format that hold, or none."""
        local = self._local(form)
        local = Space(local.base, {**self._prompt_space.ranges, "n": local.ranges["n"]})
        sample = self._prompting(form, self.first, ubatch, tokens)
        terms = self._known_terms(form, ubatch, sample, local) if tokens == ubatch else None
        terms = terms or fitted(sample, local, [(), ("n",)])
        knots = self._knots(local)
        faster = self._faster_host(local)
        # What a context adds is mostly the same in all formats. Where it is not, it has more knots.
        shared = (self.best.format, self.best.ubatch, self.best.ubatch, knots)
        tried = [(faster, shared)] if faster is not local else []
        tried += [(local, shared), (local, (form, ubatch, tokens, more_knots(knots)))]
        formulas: dict[Key, Formula] = {}
        for space, source in tried:
            formulas = {
                (form, kv, str(ubatch)): Formula(
                    ["+", *terms, *self._prompt_shift(kv, *source)], space.ranges
                )
                for kv in self.question.kv
            }
            kv, point = self.other_kv, middle_of(space)
            if space is faster and "host" in space.ranges:
                point["host"] = space.ranges["host"][1]
            simulated = self._prompting(form, kv, ubatch, tokens)(point)
            if formulas[form, kv, str(ubatch)].check(point, simulated) <= TOLERANCE:
                self._check_prices(formulas, usual=tokens < ubatch)
                break
        what = f"prompts in batches of {ubatch}"
        return formulas if self._holds(form, formulas, what) else {}

    def _known_terms(
        self, form: str, ubatch: int, sample: Sample, space: Space
    ) -> list[Expression] | None:
        """Return the terms of a prompt with a price as one of two samples, or None without one.

        Simulating prompts takes most of the time of a page.
        """
        every = round(space.ranges["n"][1])
        for one in self._priced_here():
            choice = one.choice
            known = (choice.format, choice.kv, choice.ubatch) == (form, self.first, ubatch)
            if known and space.varies("n") and every - choice.cpu_layers >= every / _FAR:
                near = 1 / one.prefill.value
                slope = (sample({**space.base, "n": every}) - near) / (every - choice.cpu_layers)
                return [near - choice.cpu_layers * slope, ["*", slope, "n"]]
        return None

    def _faster_host(self, space: Space) -> Space:
        """Return the space with faster host memory too, which changes no prompt that copies bound.

        A formula without this bandwidth has to hold at its largest value.
        """
        if not self.divides or not self.space.varies("host"):
            return space
        host = (self.space.base["host"], self.space.ranges["host"][1])
        return Space(space.base, {**space.ranges, "host": host})

    def _prompt_shift(
        self, kv: str, form: str, ubatch: int, tokens: int, knots: Sequence[float]
    ) -> list[Expression]:
        sample = self._prompting(form, kv, ubatch, tokens)
        reference = self._prompting(form, self.first, ubatch, tokens)
        return shifted(sample, reference, self._prompt_space, knots, "")

    def _check_prices(self, formulas: Mapping[Key, Formula], *, usual: bool) -> None:
        for one in self._priced_here():
            formula = formulas.get((one.choice.format, one.choice.kv, str(one.choice.ubatch)))
            speed = one.usual if usual else one.prefill
            if formula is not None and speed is not None:
                formula.check({**self.space.base, "n": one.choice.cpu_layers}, 1 / speed.value)

    # Intervals

    def _intervals(self, prompts: bool) -> dict[str, Sequence[Range]]:
        """Return the factors of intervals without and with layers on the CPU."""
        form, kv, ubatch = self.best.format, self.first, self.best.ubatch
        numbers = [0, self.space.far("n")] if self.space.varies("n") else [self.space.base["n"]] * 2
        settings = [{**self.space.base, "n": number} for number in numbers]
        found = {"decode": [self.samples.interval(form, kv, each) for each in settings]}
        if prompts:
            found["prompt"] = [
                self.samples.prompt_interval(form, kv, ubatch, each) for each in settings
            ]
        return {name: tuple(each) for name, each in found.items()}
