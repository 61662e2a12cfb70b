"""Models: small real mixture-of-experts language models that anyone can train without a download.

A decoder-only model (transformers classes, from a config) learns text that every machine with
Python has: its standard library's source, that library's documentation, licences, the names of
Unicode characters. Minutes on two cores give routers that have specialised on something real,
unlike random weights or a synthetic trace, though they route as *small* models do.

    text.py       domains of text, read from this machine or from files, split for validation
    tokenizer.py  a byte-level BPE tokenizer trained on that text
    presets.py    the shapes: shallow, deep
    training.py   the loop: a fixed seed, a falling validation loss, a folder written whole
    prompting.py  prompts cut from the held-out text

torch and transformers load with the first use of `train`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moesim.models.presets import PRESETS, Preset
from moesim.models.prompting import cut_prompts, write_prompts
from moesim.models.text import Corpus, Document, built_in_corpus, read_corpus
from moesim.record.extra import require_torch

if TYPE_CHECKING:
    from moesim.models.training import Evaluation, train

__all__ = [
    "PRESETS",
    "Corpus",
    "Document",
    "Evaluation",
    "Preset",
    "built_in_corpus",
    "cut_prompts",
    "read_corpus",
    "train",
    "write_prompts",
]


def __getattr__(name: str) -> Any:
    if name not in ("Evaluation", "train"):
        raise AttributeError(f"module 'moesim.models' has no attribute {name!r}")
    require_torch("training a model")
    return getattr(import_module("moesim.models.training"), name)
