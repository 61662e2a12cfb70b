"""Which engines run a choice: by format, by processor, and by what is on the CPU.

Sources: the READMEs of llama.cpp, ik_llama.cpp, kt-kernel and vLLM.
"""

from __future__ import annotations

import re
from typing import Final

from moesim.advice.choice import Choice
from moesim.advice.question import Question, unreadable
from moesim.hardware.vendors import vendor_of

__all__ = ["ktransformers_bytes", "why_not"]

_PLAIN: Final = re.compile(r"BF16|F16|MXFP4(_MOE)?")
"""Formats in which models are published, and which vLLM runs as they are."""


def why_not(engine: str, question: Question, choice: Choice) -> str:
    """Return why an engine cannot run a choice, or ""."""
    return _RULES[engine](question, choice)


def _llama(question: Question, choice: Choice) -> str:
    return unreadable(choice.format, "llama.cpp") if choice.format else ""


def _ik_llama(question: Question, choice: Choice) -> str:
    vendor = vendor_of(question.machine.hardware)
    if choice.whole or vendor in (None, "NVIDIA"):
        return ""
    return "it supports NVIDIA cards and processors only"


def _ktransformers(question: Question, choice: Choice) -> str:
    if vendor_of(question.machine.hardware) != "NVIDIA":
        return "it needs an NVIDIA card"
    if choice.whole:
        return "it keeps all other weights on the card, and here they are on the CPU"
    if not choice.cpu_layers:
        return "it is made for experts on the CPU beside a card, and here there are none"
    missing = ktransformers_bytes(question) - question.machine.hardware.vram_bytes
    if missing > 0:
        return (
            "its other weights have 16 bits on the card, and with the KV cache "
            f"{missing / 1e9:.1f} GB are missing"
        )
    return ""


def ktransformers_bytes(question: Question) -> int:
    """Return the bytes on the card: weights beside routed experts in 16 bits, and the KV cache."""
    shape = question.model.stored("BF16", "f16")
    tokens = question.context * question.load
    return shape.fixed_bytes + tokens * shape.kv_bytes_per_token


def _vllm(question: Question, choice: Choice) -> str:
    if vendor_of(question.machine.hardware) not in ("NVIDIA", "AMD"):
        return "it needs an NVIDIA or AMD card"
    if choice.whole or choice.cpu_layers:
        return "it keeps all weights on the card, and they do not fit"
    if not _PLAIN.fullmatch(choice.format):
        form = choice.format or "the format of the file"
        return f"it reads {form} only through a plugin that is experimental"
    return ""


_RULES: Final = {
    "llama.cpp": _llama,
    "ik_llama.cpp": _ik_llama,
    "KTransformers": _ktransformers,
    "vLLM": _vllm,
}
