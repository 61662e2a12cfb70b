"""Models: small real language models, dense or of experts, that need no download.

A decoder-only model (transformers classes, from a config) learns text that every machine with
Python has: its standard library's source, that library's documentation, licences, the names of
Unicode characters. Minutes on two cores give routers that have specialised on something real,
unlike random weights or a synthetic trace, though they route as *small* models do.

    text.py       domains of text, read from this machine or from files, split for validation
    tokenizer.py  a byte-level BPE tokenizer trained on that text
    presets.py    the shapes: shallow, deep, dense, gated
    tokens.py     a domain's text as ids, and windows of them
    training.py   the loop: a fixed seed, a falling validation loss, a folder written whole
    checkpoint.py a training under way, in one file
    prompting.py  prompts cut from the held-out text
    dense.py      dense base models: one's own, and a pretrained one that comes in a package
    readme/       Read-ME: a dense model refactored into experts
    gates/        DSelect-k and the family of gates, for tasks and for tokens
    experts.py, routed.py  a decoder whose FFNs were exchanged for experts
    gated.py      such a decoder with any gate, trained from scratch
    multitask/    mixtures of shared experts, with a gate's weights and a tower for each task
    digits.py     two overlaid digits, each to be told: Multi-MNIST
    movielens.py  who watches what, and how they rate it

torch and transformers load with the first use of `train` or `load_base`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moesim.models.dense import load_base
from moesim.models.presets import PRESETS, DensePreset, GatedPreset, MoePreset, Preset
from moesim.models.prompting import cut_prompts, write_prompts
from moesim.models.text import Corpus, Document, built_in_corpus, read_corpus
from moesim.record.extra import require_torch

if TYPE_CHECKING:
    from moesim.models.training import Evaluation, train

__all__ = [
    "PRESETS",
    "Corpus",
    "DensePreset",
    "Document",
    "Evaluation",
    "GatedPreset",
    "MoePreset",
    "Preset",
    "built_in_corpus",
    "cut_prompts",
    "load_base",
    "read_corpus",
    "train",
    "write_prompts",
]


def __getattr__(name: str) -> Any:
    if name not in ("Evaluation", "train"):
        raise AttributeError(f"module 'moesim.models' has no attribute {name!r}")
    require_torch("training a model")
    return getattr(import_module("moesim.models.training"), name)
