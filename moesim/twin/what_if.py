"""What-ifs: the fitted machine in another setting, in another format, or with another part.

A what-if changes the row of a sample, and is predicted as samples are. Where a part of the machine
changes, the ratios of fitted to assumed numbers stay, and the interval is that of a machine without
a fit, because the new part was not measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import exp
from typing import Any, Final

from moesim.errors import MoesimError, UsageError
from moesim.hardware.overrides import faster_link
from moesim.hardware.parts import assemble, memory_named
from moesim.measured.cached import ExpertCache, over_hit_rates
from moesim.measured.engine_text import gpu_vendor
from moesim.measured.fit import engine_of, machine_of, owned_by, parts_of
from moesim.measured.intervals import interval_of, joined
from moesim.measured.kinds import OFFLOAD
from moesim.measured.predict import Answer, Declined, Prediction, Reading, read
from moesim.measured.rows import Row
from moesim.measured.setting import Setting
from moesim.measured.simulated import Simulated, in_one_line
from moesim.model.formats import check_format_name
from moesim.trace.localities import hit_rates_like
from moesim.twin.learn import Learned, slopes_of
from moesim.twin.link import Link
from moesim.twin.model import OpenMachine, memory_figures
from moesim.twin.samples import Sample, Samples

__all__ = ["Change", "Imagined", "change_of", "imagine"]

_FEWEST_CHANNELS: Final = 1
_MOST_CHANNELS: Final = 32
_MOST: Final = 1 << 24
_COUNTS: Final = ("ub", "t")
"""Options whose values are numbers of at least 1."""
_PLAIN: Final = ("gpu", "cpu", "ram", "pcie")


@dataclass(frozen=True, slots=True)
class Change:
    """What a what-if changes: fields of rows, parts of settings, and the memory's channels.

    With `cache`, the experts that a setting has on the GPU become the slots of an expert cache.
    """

    text: str
    fields: Mapping[str, str | int] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    experts: int | None = None
    channels: int | None = None
    cache: bool = False

    @property
    def of_machine(self) -> bool:
        """Whether a part of the machine changes."""
        return self.channels is not None or any(key in _PLAIN for key in self.fields)


@dataclass(frozen=True, slots=True)
class Imagined:
    """The answer to a what-if: speeds of single tokens and of prompts beside those of `base`.

    `prompt` is None where the logs time no prompt.
    """

    change: Change
    base: Sample
    decode: Answer
    prompt: Answer | None = None


def change_of(text: str) -> Change:
    """Return the change that a text names, like `ncmoe=20` or `format=Q8_0,ncmoe=30`.

    Raises:
        UsageError: a key is not known, or a value is wrong.
    """
    change = Change(text)
    for pair in re.split(r",(?=\s*[\w-]+\s*=)", text):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (equals and value):
            raise UsageError(f"--what-if {text!r}: write KEY=VALUE, like ncmoe=20")
        handler = _KEYS.get(key.casefold().replace("_", "-"))
        if handler is None:
            names = "ncmoe, format, gpu, cpu, ram, pcie, channels, context, ubatch, kv, threads"
            raise UsageError(f"--what-if {text!r}: {key!r} is not known; there are {names}, cache")
        change = handler(change, value)
    return change


def imagine(change: Change, learned: Learned, samples: Samples, link: Link) -> Imagined:
    """Return the answer to a what-if, from the fastest measured setting."""
    base = max(learned.samples, key=lambda sample: sample.value)
    prompts = [each for each in samples.prompts if _alike(each, base)] or samples.prompts
    decode = _answered(change, base, learned, samples, link)
    if not prompts:
        return Imagined(change, base, decode)
    return Imagined(change, base, decode, _answered(change, prompts[0], learned, samples, link))


def _alike(one: Sample, other: Sample) -> bool:
    a, b = one.reading.row, other.reading.row
    return (a.model, a.quant, a.setting) == (b.model, b.quant, b.setting)


def _answered(
    change: Change, base: Sample, learned: Learned, samples: Samples, link: Link
) -> Answer:
    reading = read(_changed(base.reading, change))
    if reading.reason:
        return Declined(reading.reason)
    try:
        if change.cache:
            return _cached(change, base.reading, reading, learned, samples, link)
        return _predicted(change, base.reading, reading, learned, samples, link)
    except (MoesimError, ValueError) as error:
        return Declined(in_one_line(error))


def _cached(
    change: Change, old: Reading, new: Reading, learned: Learned, samples: Samples, link: Link
) -> Answer:
    """Return the speed with an expert cache in the GPU memory of the experts that are there now.

    LRU hits at published rates (`moesim.trace.localities`), whose range widens the interval.
    """
    case = Simulated(models=samples.models).case_of(new)
    sizes = case.sizes
    on_cpu = case.scenario.get("placement", {}).get("options", {}).get("layers", 0)
    if not on_cpu:
        return Declined("all experts are in GPU memory: a cache has nothing to do")
    if new.kind.name != OFFLOAD:
        return Declined("everything runs on the CPU: a cache needs experts on the GPU; add ncmoe=N")
    slots = sizes.experts * (sizes.layers - on_cpu) // sizes.layers
    hits = hit_rates_like(case.shape.name, slots / sizes.experts, sizes)
    whole = replace(change, experts=case.shape.moe_layers[-1] + 1)
    reading = read(_changed(old, whole))
    predictions = []
    for rate in (hits.low, hits.value, hits.high):
        cache = ExpertCache(slots, rate)
        answer = _predicted(whole, old, reading, learned, samples, link, cache)
        if isinstance(answer, Declined):
            return answer
        predictions.append(answer)
    both = over_hit_rates(*predictions)
    note = (
        f"LRU with {slots} of {sizes.experts} experts of each layer hits {hits.value:.0%} "
        f"({hits.low:.0%} to {hits.high:.0%}): {hits.source}"
    )
    return replace(both, notes=(*both.notes, note))


def _predicted(
    change: Change,
    old: Reading,
    new: Reading,
    learned: Learned,
    samples: Samples,
    link: Link,
    cache: ExpertCache | None = None,
) -> Answer:
    """Return the speed of a changed row, with an interval that holds the fit's uncertainty."""
    plain = OpenMachine(samples.models)
    figures: dict[str, Any] = {}
    if change.channels is not None:
        figures |= memory_figures(plain.hardware(new), _more_channels(change, new))
    if link.seen and plain.hardware(new).has_gpu:
        figures |= faster_link(plain.hardware(new), link.factor)
    model = OpenMachine(samples.models, figures, cache)
    alike = plain.hardware(old).unified == model.hardware(new).unified
    numbers = _carried(learned, model.assumed(new), alike=alike, engine=engine_of(new))
    machine, owner = machine_of(new), owned_by(new)[2]
    fit = replace(
        learned.fit, machine=machine, engine=engine_of(new), owner=owner,
        read_bandwidth=numbers[0], layer_ns=numbers[1],
    )  # fmt: skip
    answer = model.at(new, numbers[0]).with_fitted([fit]).predict(new)
    if isinstance(answer, Declined):
        return answer
    low, high = answer.low / answer.value, answer.high / answer.value
    if change.of_machine:
        low, high = interval_of(new, answer.notes)
    own = 0.0
    if (
        new.group == "decode" and alike
    ):  # the interval of prompts is much wider than what the fit leaves open
        own = learned.uncertainty(slopes_of(parts_of([new], model, *numbers))[0])
    factor = joined(max(high, 1 / low), exp(own))
    notes = answer.notes if alike else (*answer.notes, "its memory is of another kind: not fitted")
    return Prediction(answer.value, answer.value / factor, answer.value * factor, notes)


def _carried(
    learned: Learned, assumed: tuple[float, float], *, alike: bool, engine: str
) -> tuple[float, float]:
    """Return both numbers of another machine, whose ratios to the assumed ones are the same.

    The host time of a layer is that of an engine's backend, so another backend has the assumed one.
    """
    if not alike:
        return assumed
    fit, before = learned.fit, learned.assumed
    reads = fit.read_bandwidth / before[0]
    layer = fit.layer_ns / before[1] if engine == fit.engine else 1.0
    return assumed[0] * reads, assumed[1] * layer


def _more_channels(change: Change, new: Reading) -> float:
    """Return by how much more channels make the memory of a row faster."""
    assert change.channels is not None
    now = memory_named(new.row.ram).channels
    if now is None:
        now = memory_named(_usual_memory(new)).channels
    if now is None:
        raise UsageError(
            f"channels={change.channels}: how many channels there are now is not known; give --ram"
        )
    return change.channels / now


def _usual_memory(new: Reading) -> str:
    """Return the memory that is usual with the processor of a row."""
    from moesim.hardware.parts import cpu_named

    found = cpu_named(new.row.cpu).cpu
    return found.memory if found is not None else ""


def _changed(reading: Reading, change: Change) -> Row:
    """Return the row of a reading with a change."""
    row = replace(reading.row, fit=False)
    fields = dict(change.fields)
    gpu = fields.get("gpu")
    if isinstance(gpu, str) and gpu_vendor(gpu) != gpu_vendor(row.gpu):
        fields["engine"] = reading.engine.name  # the backend follows from the card
    row = replace(row, **fields)  # type: ignore[arg-type]
    setting = row.setting
    if change.experts is not None:
        setting = _spelt(reading.setting)
        setting = f"ngl=99 ncmoe={change.experts} {setting}".strip()
    setting = " ".join([setting, *(f"{key}={value}" for key, value in change.settings.items())])
    return replace(row, setting=setting)


def _spelt(setting: Setting) -> str:
    """Return what a setting says but for the places of weights, in options that are read again."""
    pairs = (
        ("ub={}", setting.ubatch),
        ("b={}", setting.batch),
        ("ctk={}", setting.kv_keys),
        ("ctv={}", setting.kv_values),
        ("t={}", setting.threads),
        ("c={}", setting.context),
        ("mla={}", setting.mla),
        ("numa {}", setting.numa),
    )
    parts = [text.format(value) for text, value in pairs if value not in (None, "")]
    switches = (
        ("fa", setting.flash_attention),
        ("fmoe", setting.fused_moe),
        ("nopo", None if setting.op_offload is None else not setting.op_offload),
        ("rtr", setting.repack or None),
    )
    parts += [f"{name}={int(value)}" for name, value in switches if value is not None]
    return " ".join(parts + (["-nkvo 1"] if setting.kv_on_cpu else []))


def _number(text: str, least: int, most: int) -> int:
    match = re.fullmatch(r"(\d{1,9})([kK]?)", text)
    number = int(match[1]) * (1024 if match[2] else 1) if match else -1
    if not least <= number <= most:
        raise UsageError(f"--what-if: {text!r} is no number from {least} to {most}")
    return number


def _cache(change: Change, text: str) -> Change:
    if text.casefold() != "lru":
        raise UsageError(f"--what-if cache={text}: hit rates are published for lru only")
    return replace(change, cache=True)


def _experts(change: Change, text: str) -> Change:
    return replace(change, experts=_number(text, 0, 10_000))


def _channels(change: Change, text: str) -> Change:
    return replace(change, channels=_number(text, _FEWEST_CHANNELS, _MOST_CHANNELS))


def _format(change: Change, text: str) -> Change:
    if wrong := check_format_name(text):
        raise UsageError(f"--what-if format={text}: {wrong}")
    return replace(change, fields={**change.fields, "quant": text})


def _part(name: str) -> Callable[[Change, str], Change]:
    def put(change: Change, text: str) -> Change:
        text = text.strip("\"'")
        parts = {"cpu": "", "ram": "", "pcie": "", "gpu": "none", name: text}
        assemble(
            parts["gpu"], parts["cpu"], parts["ram"], parts["pcie"]
        )  # its mistakes are said now
        return replace(change, fields={**change.fields, name: text})

    return put


def _depth(change: Change, text: str) -> Change:
    return replace(change, fields={**change.fields, "depth": _number(text, 0, _MOST)})


def _option(name: str) -> Callable[[Change, str], Change]:
    def put(change: Change, text: str) -> Change:
        if not re.fullmatch(r"[\w./]{1,20}", text):
            raise UsageError(f"--what-if {name}={text}: the value is not understood")
        if name in _COUNTS:
            _number(text, 1, _MOST)
        return replace(change, settings={**change.settings, name: text})

    return put


_KEYS: Final[Mapping[str, Callable[[Change, str], Change]]] = {
    **dict.fromkeys(("ncmoe", "n-cpu-moe", "n"), _experts),
    **dict.fromkeys(("format", "quant"), _format),
    **{name: _part(name) for name in _PLAIN},
    **dict.fromkeys(("context", "depth", "ctx"), _depth),
    **dict.fromkeys(("ubatch", "ub"), _option("ub")),
    "kv": _option("kv"),
    **dict.fromkeys(("threads", "t"), _option("t")),
    "channels": _channels,
    **dict.fromkeys(("cache", "expert-cache"), _cache),
}
