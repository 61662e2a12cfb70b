"""Sweeps: rows of one machine that differ only in where the layers or their experts are.

`advise` is asked about the machine, the model, the format, the KV cache and the physical batch of a
sweep. The number of layers that it advises is compared with what was measured.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from moesim.advice.advice import advise
from moesim.advice.choice import UBATCHES, Choice
from moesim.advice.question import KV_FORMATS, Model, Parts, Question
from moesim.errors import MoesimError
from moesim.measured.kinds import CPU_ONLY, OFFLOAD, RESIDENT
from moesim.measured.predict import Reading, read
from moesim.measured.rows import Measured, Row
from moesim.measured.setting import placed
from moesim.model.shapes import ModelShape, named_shape

__all__ = [
    "CLOSE",
    "Advised",
    "Place",
    "Sweep",
    "advised",
    "choice_of",
    "place_of",
    "question_of",
    "speed_at",
    "sweeps",
]

CLOSE: Final = 0.05
"""Share of the best measured speed that the advised setting may lose."""
SHORT_CONTEXT: Final = 512
"""Tokens of a context that no text has; a benchmark of 128 tokens needs fewer."""
_ANSWER: Final = 128
_LINE: Final = 2  # points
_TABLE: Final = re.compile(r" table \d+$")  # tables of one thread are of one machine
_THREADS: Final = re.compile(r"(?:\bat )?\b\d+ threads?\b|-t \d+\b")


@dataclass(frozen=True, slots=True)
class Place:
    """Layers on the CPU: `experts` MoE layers with their experts only, `whole` layers whole."""

    experts: int
    whole: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """A row of a sweep, and the tokens per second measured at each number of layers on the CPU.

    The layers are whole ones if `whole`, and else those whose experts are there. `stated` has the
    bytes of GPU memory that the author states for some of these numbers.
    """

    row: Row
    whole: bool
    measured: tuple[tuple[int, float], ...]
    stated: tuple[tuple[int, float], ...] = ()

    @property
    def best(self) -> tuple[int, float]:
        """The layers on the CPU with the highest speed, and that speed."""
        return max(self.measured, key=lambda point: point[1])

    def stated_bytes(self, layers: int) -> float | None:
        """Return the GPU memory with that many layers on the CPU, on a line through two stated."""
        if len(self.stated) < _LINE:
            return None
        (low, much), (high, little) = self.stated[0], self.stated[-1]
        return much + (little - much) * (layers - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Advised:
    """A sweep with the layers that `advise` puts on the CPU, and the speed measured there.

    `layers` is None if it cannot be asked, and `reason` says why. `fits` is False if the GPU memory
    that the author states would not suffice, and None where the author states too little.
    """

    sweep: Sweep
    layers: int | None = None
    speed: float | None = None
    fits: bool | None = None
    reason: str = ""

    @property
    def lost(self) -> float | None:
        """Share of the best measured speed that is lost; None without advice."""
        return None if self.speed is None else 1 - self.speed / self.sweep.best[1]


def place_of(reading: Reading, shape: ModelShape) -> Place | None:
    """Return where a row puts its layers; None if it divides the experts of a layer."""
    if reading.kind.name == RESIDENT:
        return Place(0, 0)
    where = placed(reading.setting, shape.num_layers, shape.moe_layers)
    whole = sum("attn_q" in names for names in where.on_cpu)
    experts = [
        sum("exps" in name for name in where.on_cpu[layer] if "sh" not in name)
        for layer in shape.moe_layers
    ]
    if any(number not in (0, max(experts, default=0)) for number in experts):
        return None
    return Place(sum(map(bool, experts)), whole)


def sweeps(rows: Iterable[Measured]) -> list[Sweep]:
    """Return the sweeps of at least two settings, in the order of their first rows."""
    groups: dict[tuple[object, ...], tuple[Row, dict[int, float], dict[int, float]]] = {}
    for measured in rows:
        reading = read(measured.row)
        if measured.value is None or reading.kind.name not in (OFFLOAD, RESIDENT):
            continue
        found = _place(reading)
        for whole, layers in found:
            new: tuple[Row, dict[int, float], dict[int, float]] = (measured.row, {}, {})
            _, points, stated = groups.setdefault((whole, *_key(reading)), new)
            points.setdefault(layers, measured.value)
            if (nbytes := reading.setting.vram_bytes) is not None:
                stated[layers] = nbytes / 1e9 * 2**30  # authors copy GiB from nvidia-smi
    return [
        Sweep(row, bool(key[0]), *(tuple(sorted(each.items())) for each in (points, stated)))
        for key, (row, points, stated) in groups.items()
        if len(points) > 1
    ]


def _place(reading: Reading) -> list[tuple[bool, int]]:
    """Return (False, layers of experts) or (True, whole layers) on the CPU; both if there are none.

    A model that is not known has the layers that its setting names.
    """
    try:
        shape = named_shape(reading.row.model)
    except MoesimError:
        named = re.search(r"ncmoe=(\d+)", reading.row.setting)
        return [(False, int(named[1]))] if named else []
    place = place_of(reading, shape)
    if place is None:
        return []
    if reading.setting.gpu_layers is not None and reading.setting.placement == "layers":
        return [(True, place.whole)]
    return [(False, place.experts)] if not place.whole else []


def _key(reading: Reading) -> tuple[object, ...]:
    """Return all that the rows of a sweep share."""
    row, setting = reading.row, reading.setting
    rest = replace(
        setting, placement="", rules=(), gpu_layers=None, model_layers=None, vram_bytes=None,
        notes=(),
    )  # fmt: skip
    texts = (row.gpu, row.cpu, row.ram, row.pcie, row.model, row.quant, row.engine)
    numbers = (row.metric, row.depth, row.prompt, row.allocated, row.batch)
    return (_TABLE.sub("", row.source), *texts, *numbers, rest)


def question_of(row: Row) -> Question:
    """Return the question of a row's author: the machine, the model, its format and the context.

    Raises:
        UsageError: a part of the row is not known.
    """
    reading, model = read(row), Model.of(row.model)
    setting = reading.setting
    used = (row.depth or 0) + max(row.prompt or 0, _ANSWER)
    context = max(SHORT_CONTEXT, row.allocated or 0, setting.context or 0, used)
    return Question(
        model,
        Parts(row.gpu or "none", _with_threads(reading), row.ram, row.pcie),
        context,
        load=row.batch,
        engines=(row.engine,),
        formats=() if model.format is not None else (row.quant,),
        kv=(setting.kv_keys or KV_FORMATS[0],),
    )


def _with_threads(reading: Reading) -> str:
    """Return the text of the processor, with the threads of the row in words."""
    cpu = _THREADS.sub("", reading.row.cpu).strip(" ,")
    return cpu if reading.threads is None else f"{cpu}, {reading.threads} threads".lstrip(" ,")


def choice_of(reading: Reading, shape: ModelShape) -> Choice | str:
    """Return the choice of `advise` that a row's setting is, or what in it is no choice."""
    setting = reading.setting
    kv = setting.kv_keys or KV_FORMATS[0]
    if setting.kv_keys != setting.kv_values or kv not in KV_FORMATS:
        return "a KV cache of another format"
    if setting.repack or setting.op_offload is False:
        return "weights repacked, or prompts kept on the CPU"
    place = place_of(reading, shape)
    every = len(shape.moe_layers)
    if reading.kind.name == CPU_ONLY:
        place = Place(every, shape.num_layers)
    if place is None or (place.whole and reading.kind.name != CPU_ONLY):
        return "layers whole on the CPU, or parts of them"
    ubatch = setting.ubatch or UBATCHES[0]
    return Choice(
        reading.row.engine, reading.row.quant, place.experts, bool(place.whole), ubatch, kv
    )


def advised(sweep: Sweep) -> Advised:
    """Return the layers of experts that `advise` puts on the CPU, and the speed measured there.

    Compared are the choices with the row's format, KV cache and physical batch.
    """
    ubatch = read(sweep.row).setting.ubatch or UBATCHES[0]
    try:
        question = question_of(sweep.row)
        layers = advise(question, ubatches=(ubatch,)).best.choice.cpu_layers
    except MoesimError as error:
        return Advised(sweep, reason=str(error).split(", and it is no path")[0])
    stated = sweep.stated_bytes(layers)
    fits = None if stated is None else stated <= question.machine.hardware.vram_bytes
    return Advised(sweep, layers, speed_at(sweep.measured, layers), fits)


def speed_at(points: Sequence[tuple[int, float]], layers: int) -> float:
    """Return the speed at a number of layers: its time lies on the line between its neighbours.

    Outside of what was measured it is that of the nearest end.
    """
    numbers = [number for number, _ in points]
    place = bisect_left(numbers, layers)
    if place == len(points) or numbers[place] == layers or place == 0:
        return points[min(place, len(points) - 1)][1]
    (low, before), (high, after) = points[place - 1], points[place]
    share = (layers - low) / (high - low)
    return 1 / ((1 - share) / before + share / after)
