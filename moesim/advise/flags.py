"""Flags: the command line with which an engine runs a choice.

Options are those of llama.cpp's `llama-server` and of ik_llama.cpp's, as their `--help` states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from moesim.advise.choice import Choice
from moesim.advise.question import Question

__all__ = ["flags_of"]


def flags_of(question: Question, choice: Choice) -> dict[str, str]:
    """Return the flags of each engine that can run a choice, by its name."""
    return {name: " ".join(flags(question, choice)) for name, flags in _ENGINES.items()}


def _llama(question: Question, choice: Choice) -> list[str]:
    flags = ["-c", str(question.context * question.load)]
    if question.load > 1:
        flags += ["-np", str(question.load)]
    if choice.whole:
        flags += ["-ngl", "0"]
    else:
        flags += ["-ngl", "999"]
        if choice.cpu_layers:
            first = choice.first_layers(question.model.shape)
            flags += ["--n-cpu-moe", str(first)]
    flags += ["-b", str(max(2048, choice.ubatch)), "-ub", str(choice.ubatch), "-fa", "on"]
    if choice.kv != "f16":
        flags += ["-ctk", choice.kv, "-ctv", choice.kv]
    return flags


def _ik_llama(question: Question, choice: Choice) -> list[str]:
    flags = _llama(question, choice)
    place = flags.index("-fa")
    return [*flags[:place], "-fa", *flags[place + 2 :], "-fmoe"]


_ENGINES: Final[Mapping[str, Callable[[Question, Choice], list[str]]]] = {
    "llama.cpp": _llama,
    "ik_llama.cpp": _ik_llama,
}
