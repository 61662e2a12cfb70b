"""Flags with gaps, for settings that a reader of a page chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from moesim.advice.advice import Advice
from moesim.advice.choice import Choice
from moesim.advice.flags import PRICED, flags_of
from moesim.advice.formulas import Formulas
from moesim.advice.question import Question

__all__ = ["flag_forms"]

_CONTEXT: Final = 7_654_321
"""Stands for the context, which no other number in flags equals."""


def flag_forms(advice: Advice, formulas: Formulas) -> dict[str, Any]:
    """Return flags of engines with the gaps `{tokens}` and `{layers}`.

    There are two forms for each format of KV entries and physical batch: without and with layers on
    the CPU. `first_layers` has the number that fills `{layers}`, by the layers on the CPU.
    """
    question, best = advice.question, advice.best.choice
    shape = question.model.shape
    every = len(shape.moe_layers)
    numbers = [0, every] if formulas.divides else [best.cpu_layers] * 2
    keys = dict.fromkeys((kv, ubatch) for _, kv, ubatch in formulas.memory)
    flags: dict[str, dict[str, list[str]]] = {}
    for engine in PRICED:
        forms = {
            f"{kv} {ubatch}": [
                _form(question, replace(best, kv=kv, ubatch=int(ubatch), cpu_layers=n), engine)
                for n in numbers
            ]
            for kv, ubatch in keys
        }
        if all(text is not None for texts in forms.values() for text in texts):
            flags[engine] = {key: [str(text) for text in texts] for key, texts in forms.items()}
    layers = [replace(best, cpu_layers=n).first_layers(shape) for n in range(every + 1)]
    return {"flags": flags, "first_layers": layers}


def _form(question: Question, choice: Choice, engine: str) -> str | None:
    text = flags_of(replace(question, context=_CONTEXT), choice).get(engine)
    if text is None:
        return None
    first = choice.first_layers(question.model.shape)
    text = text.replace(f"--n-cpu-moe {first}", "--n-cpu-moe {layers}")
    return text.replace(str(_CONTEXT * question.load), "{tokens}")
