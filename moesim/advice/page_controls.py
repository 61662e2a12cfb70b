"""Controls: the fields with which a reader of a page changes settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Final

from moesim.advice.advice import Advice
from moesim.advice.choice import fewest_on_cpu
from moesim.advice.formulas import Formulas

__all__ = ["control_names", "controls"]

_NAMES: Final = {
    "n": "layers with experts on the CPU",
    "context": "a context of, in tokens,",
    "gpu": "GPU memory bandwidth, in GB/s,",
    "host": "host memory bandwidth, in GB/s,",
    "link": "link bandwidth, in GB/s,",
}
"""Variables of formulas, as a reason for a missing speed names them."""
_LABELS: Final = {
    "gpu": "GPU memory bandwidth, GB/s",
    "host": "host memory bandwidth, GB/s",
    "link": "link bandwidth for copies, GB/s",
}


def control_names() -> dict[str, str]:
    """Return the names of the variables of formulas."""
    return dict(_NAMES)


def controls(advice: Advice, formulas: Formulas) -> str:
    """Return the fields of all variables that may change, as HTML."""
    question, best, space = advice.question, advice.best.choice, formulas.space
    hardware = question.machine.hardware
    keys = list(formulas.memory)
    fields = []
    forms = list(dict.fromkeys(key[0] for key in keys))
    if len(forms) > 1:
        fields.append(_select("format", "weights", forms, best.format))
    if formulas.divides:
        every = len(question.model.shape.moe_layers)
        fewest = fewest_on_cpu(question, replace(best, cpu_layers=0))
        automatic = best.cpu_layers == fewest
        fields.append(_layers(best.cpu_layers, every, automatic=automatic))
    low, high = space.ranges["context"]
    if low < high:
        fields.append(
            _number("context", "context, tokens", question.context, round(low), round(high), "1")
        )
    kinds = list(dict.fromkeys(key[1] for key in keys))
    if len(kinds) > 1:
        fields.append(_select("kv", "KV entries", kinds, best.kv))
    batches = sorted({int(key[2]) for key in keys})
    if len(batches) > 1:
        names = list(map(str, batches))
        fields.append(_select("ubatch", "physical batch (-ub), tokens", names, str(best.ubatch)))
    for name, label in _LABELS.items():
        if space.varies(name):
            low, high = space.ranges[name]
            fields.append(_number(name, label, space.base[name], low, high, "any"))
    if hardware.has_gpu:
        label = "memory, GiB" if hardware.unified else "GPU memory, GiB"
        fields.append(_number("vram", label, hardware.vram_bytes / 2**30, 1, 2048, "any"))
    if not hardware.unified and hardware.host_memory_bytes is not None:
        size = hardware.host_memory_bytes / 2**30
        fields.append(_number("ram", "host memory, GiB", size, 1, 8192, "any"))
    fields.append('<div><button type="reset">as asked</button></div>')
    return "\n".join(fields)


def _select(name: str, label: str, options: Sequence[str], chosen: str) -> str:
    items = "".join(
        f'<option value="{escape(each)}"{" selected" if each == chosen else ""}>'
        f"{escape(each or 'its own')}</option>"
        for each in options
    )
    return f'<label>{escape(label)}<select name="{name}">{items}</select></label>'


def _number(name: str, label: str, value: float, low: float, high: float, step: str) -> str:
    """Return a field whose value is exact, because formulas may hold for it alone."""
    return (
        f'<label>{escape(label)} <span class="soft">({_short(low)} to {_short(high)})</span>'
        f'<input type="number" name="{name}" value="{value!r}" min="{low!r}" max="{high!r}" '
        f'step="{step}" required></label>'
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _layers(value: int, every: int, *, automatic: bool) -> str:
    checked = " checked" if automatic else ""
    return (
        f'<div><label>layers with experts on the CPU: <output data-of="n">{value}</output> of '
        f'{every}<input type="range" name="n" value="{value}" min="0" max="{every}" step="1">'
        f'</label><label class="line"><input type="checkbox" name="automatic"{checked}> '
        "as few as fit</label></div>"
    )
