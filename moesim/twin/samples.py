"""Samples: the measurements of logs as rows that can be predicted, completed by options.

A log says little of the machine: what it lacks is given, or assumed as in `moesim advise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log2
from statistics import stdev
from typing import Final

from moesim.advice.question import Model, Parts
from moesim.errors import MoesimError, UsageError
from moesim.measured.predict import Reading, read
from moesim.measured.rows import Row
from moesim.measured.simulated import NamedModel, Simulated, in_one_line
from moesim.model.formats import check_format_name
from moesim.twin.log import Entry
from moesim.twin.server import UNPLACED

__all__ = ["Options", "Sample", "Samples", "samples_of"]

_MOST: Final = 40
"""Samples that are all simulated; of more, groups are formed."""
_KEYS: Final = ("gpu", "cpu", "ram", "pcie")


@dataclass(frozen=True, slots=True)
class Options:
    """What the user says of the machine and the runs; "" where nothing is said.

    A text replaces what the logs say, but `setting` adds to it.
    """

    gpu: str = ""
    cpu: str = ""
    ram: str = ""
    pcie: str = ""
    model: str = ""
    format: str = ""
    engine: str = ""
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A measurement that can be predicted: what its row says, and what was measured."""

    reading: Reading
    value: float
    deviation: float | None
    place: str


@dataclass(frozen=True, slots=True)
class Samples:
    """All samples, those that are left out as pairs of a place and the reason, and notes.

    `models` are those that the logs name and moesim does not ship.
    """

    used: tuple[Sample, ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    models: Mapping[str, NamedModel] = field(default_factory=dict)

    @property
    def decodes(self) -> tuple[Sample, ...]:
        """The samples of single tokens, which the numbers are fitted to."""
        return tuple(sample for sample in self.used if sample.reading.group == "decode")

    @property
    def prompts(self) -> tuple[Sample, ...]:
        """The samples of prompts."""
        return tuple(sample for sample in self.used if sample.reading.group == "prefill")


def samples_of(entries: Sequence[Entry], options: Options) -> Samples:
    """Return the samples of measurements.

    Raises:
        UsageError: an option is wrong, no card is named, or none of the rows can be predicted.
    """
    if options.format and (wrong := check_format_name(options.format)):
        raise UsageError(f"--format {options.format}: {wrong}")
    model = Model.of(options.model) if options.model else None
    models = {} if model is None else {model.name: NamedModel(model.section, model.shape)}
    simulated = Simulated(models=models)
    used: list[Sample] = []
    left_out: list[tuple[str, str]] = []
    notes: dict[str, None] = {}
    for index, entry in enumerate(entries):
        if entry.left_out and not (entry.left_out == UNPLACED and options.setting):
            left_out.append((entry.place, entry.left_out))
            continue
        completed, more = _completed(entry, options, model)
        reading = read(replace(completed, index=index))
        why, supposed = _case(reading, simulated)
        if why:
            left_out.append((entry.place, why))
            continue
        notes.update(dict.fromkeys((*entry.notes, *more, *reading.notes, *supposed)))
        used.append(Sample(reading, entry.value, entry.deviation, entry.place))
    if not used:
        place, why = left_out[0]
        raise UsageError(f"{place}: no measurement can be used; this one is left out: {why}")
    kept = _thinned(used)
    if len(kept) < len(used):
        notes[f"{len(used)} measurements are {len(kept)} groups of like depth, each its median"] = (
            None
        )
    return Samples(tuple(kept), tuple(left_out), tuple(notes), models)


def _thinned(samples: list[Sample]) -> list[Sample]:
    """Return the samples, or where they are many the median of each group of like depth.

    A log of a server has hundreds of requests, which would all be simulated.
    """
    if len(samples) <= _MOST:
        return samples
    groups: dict[Row, list[Sample]] = {}
    for sample in samples:
        row = sample.reading.row
        like = replace(row, index=0, depth=_step(row.depth), prompt=_step(row.prompt))
        groups.setdefault(like, []).append(sample)
    return [_median(group) for group in groups.values()]


def _step(tokens: int | None) -> int | None:
    """Return a number that is equal for like numbers of tokens, which differ by up to 40 %."""
    return None if tokens is None else round(2 * log2(tokens + 256))


def _median(group: list[Sample]) -> Sample:
    middle = sorted(group, key=lambda sample: sample.value)[len(group) // 2]
    if len(group) == 1:
        return middle
    return replace(middle, deviation=stdev(sample.value for sample in group))


def _completed(entry: Entry, options: Options, model: Model | None) -> tuple[Row, tuple[str, ...]]:
    """Return the row of an entry with what the options add, and what was assumed."""
    row = entry.row
    given = {key: text for key in _KEYS if (text := getattr(options, key))}
    row = replace(row, source="", fit=row.metric.casefold() == "decode_tok_s", **given)
    if row.gpu == "" and "cpu-only" not in row.setting:
        raise UsageError(f"{entry.place}: the log names no card; give --gpu, or --gpu none")
    parts, notes = Parts(row.gpu or "none", row.cpu, row.ram, row.pcie).filled()
    row = replace(row, gpu=parts.gpu, cpu=parts.cpu, ram=parts.ram)
    if model is not None:
        form = row.quant if model.format is None else ""
        row = replace(row, model=model.name, quant=form)
    if options.format:
        row = replace(row, quant=options.format)
    if options.engine:
        row = replace(row, engine=options.engine)
    if options.setting:
        row = replace(row, setting=f"{row.setting} {options.setting}".strip())
    return row, notes


def _case(reading: Reading, simulated: Simulated) -> tuple[str, tuple[str, ...]]:
    """Return why a row cannot be used, "" if it can, and what is supposed of its machine."""
    if reading.reason:
        return reading.reason, ()
    if reading.group not in ("decode", "prefill"):
        return "batches of 2 to 64 tokens are not used", ()
    try:
        return "", simulated.case_of(reading).notes
    except (MoesimError, ValueError) as error:
        text = in_one_line(error)
        return f"{text}; give --model" if "no model shape" in text else text, ()
