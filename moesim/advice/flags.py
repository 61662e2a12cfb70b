"""Flags: the command line with which each engine runs a choice.

Options are those of `llama-server` of llama.cpp and of ik_llama.cpp, of `sglang.launch_server` with
kt-kernel for KTransformers, and of `vllm serve`. In llama.cpp, `-c` counts the tokens of all
sequences. KTransformers and vLLM are not priced: their flags hold the context and the load only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from moesim.advice.choice import FREE_SHARE, Choice
from moesim.advice.question import Question
from moesim.advice.runnable import why_not

__all__ = ["PRICED", "flags_of", "left_out"]

PRICED: Final = ("llama.cpp", "ik_llama.cpp")
"""Engines with a profile, so that the speed of a choice is known."""


def flags_of(question: Question, choice: Choice) -> dict[str, str]:
    """Return the flags of each engine that can run a choice, by its name."""
    return {
        name: " ".join(flags(question, choice))
        for name, flags in _ENGINES.items()
        if not why_not(name, question, choice)
    }


def left_out(question: Question, choice: Choice) -> dict[str, str]:
    """Return why the other engines cannot run a choice, by their names."""
    reasons = {name: why_not(name, question, choice) for name in _ENGINES}
    return {name: reason for name, reason in reasons.items() if reason}


def _llama(question: Question, choice: Choice) -> list[str]:
    flags = ["-c", str(question.context * question.load)]
    if question.load > 1:
        flags += ["-np", str(question.load)]
    if choice.whole:
        flags += ["-ngl", "0"]
        if question.machine.hardware.has_gpu:  # else prompts are copied to the card
            flags += ["-dev", "none"]
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
    if "-dev" in flags:  # mainline's option only
        del flags[flags.index("-dev") : flags.index("-dev") + 2]
    place = flags.index("-fa")
    return [*flags[:place], "-fa", *flags[place + 2 :], "-fmoe"]


def _ktransformers(question: Question, choice: Choice) -> list[str]:
    hardware = question.machine.hardware
    flags = ["--kt-method", "LLAMAFILE"]
    if hardware.cpu_cores is not None:
        flags += ["--kt-cpuinfer", str(hardware.cpu_cores)]
    flags += ["--kt-threadpool-count", str(hardware.cpu_sockets), "--kt-num-gpu-experts", "0"]
    flags += ["--max-total-tokens", str(question.context * question.load)]
    flags += ["--max-running-requests", str(question.load)]
    return [*flags, "--chunked-prefill-size", str(choice.ubatch)]


def _vllm(question: Question, choice: Choice) -> list[str]:
    flags = ["--max-model-len", str(question.context), "--max-num-seqs", str(question.load)]
    flags += ["--gpu-memory-utilization", f"{1 - FREE_SHARE:.2f}"]
    flags += ["--max-num-batched-tokens", str(choice.ubatch)]
    return flags if choice.kv == "f16" else [*flags, "--kv-cache-dtype", "fp8"]


_ENGINES: Final[Mapping[str, Callable[[Question, Choice], list[str]]]] = {
    "llama.cpp": _llama,
    "ik_llama.cpp": _ik_llama,
    "KTransformers": _ktransformers,
    "vLLM": _vllm,
}
