"""Memory as formulas: the bytes of each part by layers on the CPU, context and GPU memory.

Each part is asked of `memory_of` at all numbers of layers and at all edges of the context. Parts
are sums of what each variable changes, which is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Final

from moesim.advice.choice import Choice, memory_of
from moesim.advice.expression import Expression, evaluate, table
from moesim.advice.fits import Space
from moesim.advice.question import Question
from moesim.errors import UsageError

__all__ = ["memory_formula"]

_GIB: Final = 2**30
_CLOSE: Final = 4  # bytes: roundings of parts
Parts = dict[tuple[str, str], int]


def memory_formula(
    question: Question,
    best: Choice,
    form: str,
    kv: str,
    ubatch: int,
    space: Space,
    *,
    layers: bool,
) -> Mapping[str, Mapping[str, Expression]]:
    """Return the bytes of each part in `gpu` and in `host`, by `n`, `context` and `vram` in GiB.

    With `layers`, the number of layers on the CPU may change.

    Raises:
        UsageError: parts are no sum of what the variables change.
    """
    ask = _asker(question, replace(best, format=form, kv=kv, ubatch=ubatch))
    base = {"n": best.cpu_layers, "context": question.context, "vram": _vram(question)}
    every = len(question.model.shape.moe_layers)
    points = {
        "n": list(range(every + 1)) if layers else [base["n"]],
        "context": _edges(question, space, ubatch),
        "vram": [base["vram"], 2 * base["vram"]] if base["vram"] else [0],
    }
    asked = {
        name: [(value, ask({**base, name: value})) for value in values]
        for name, values in points.items()
    }
    start = ask(base)
    found: dict[str, dict[str, Expression]] = {"gpu": {}, "host": {}}
    for place, part in start:
        size = start[place, part]
        whole: list[Expression] = [size]
        for name, parts in asked.items():
            changes = [(value, each[place, part] - size) for value, each in parts]
            if any(change for _, change in changes):
                whole.append(table(name, changes))
        found[place][part] = size if len(whole) == 1 else ["+", *whole]
    _check(found, ask, {name: values[len(values) // 2] for name, values in points.items()})
    return found


def _vram(question: Question) -> float:
    hardware = question.machine.hardware
    return hardware.vram_bytes / _GIB if hardware.has_gpu else 0


def _edges(question: Question, space: Space, ubatch: int) -> list[float]:
    """Return the contexts between which memory is affine: a window is held with a batch."""
    low, high = space.ranges["context"]
    kinds = question.model.shape.all_kinds()
    edges = {kind.window + ubatch for kind in kinds if kind.window}
    return sorted({low, high, *(edge for edge in edges if low < edge < high)})


def _asker(question: Question, choice: Choice) -> Callable[[Mapping[str, float]], Parts]:
    """Return what gives the bytes of all parts at a setting."""
    has_gpu, own = question.machine.hardware.has_gpu, _vram(question)

    @cache  # a machine takes long to assemble
    def asked(context: float, vram: float) -> Question:
        figures = dict(question.parts.figures)
        if has_gpu and vram != own:
            figures["vram"] = round(vram * _GIB)
        parts = replace(question.parts, figures=figures)
        return replace(question, context=round(context), parts=parts)

    def ask(setting: Mapping[str, float]) -> Parts:
        layers = round(setting["n"])
        changed = asked(setting["context"], setting["vram"])
        memory = memory_of(changed, replace(choice, cpu_layers=layers))
        places = {"gpu": memory.gpu, "host": memory.host}
        return {(place, part): size for place in places for part, size in places[place].items()}

    return ask


def _check(
    found: Mapping[str, Mapping[str, Expression]],
    ask: Callable[[Mapping[str, float]], Parts],
    setting: Mapping[str, float],
) -> None:
    for (place, part), size in ask(setting).items():
        if abs(evaluate(found[place][part], setting) - size) > _CLOSE:
            raise UsageError(f"the {part} in {place} memory have no formula")
