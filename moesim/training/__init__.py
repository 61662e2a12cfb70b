"""Training: small real language models, dense or of experts, that need no download.

A decoder-only model (transformers classes, from a config) learns text that every machine with
Python has: the standard library's source and documentation, licences, and the names of Unicode
characters. Training takes minutes on two cores. The routers then have specialised on real text,
unlike random weights or a synthetic trace. They still route as *small* models do.

    text.py       domains of text, read from this machine or from files, split for validation
    tokenizer.py  a byte-level BPE tokenizer trained on that text
    presets.py    the shapes: shallow, deep, dense, gated
    tokens.py     a domain's text as ids, and windows of them
    training.py   the loop: a fixed seed, a falling validation loss, a folder written whole
    checkpoint.py an unfinished training, in one file
    prompting.py  prompts cut from the held-out text
    dense.py      dense base models: trained here, or pretrained and shipped in a package
    readme/       Read-ME: a dense model refactored into experts
    gates/        DSelect-k and other gates, for tasks and for tokens
    routed.py, routed_ffn.py  a decoder whose FFNs were replaced by experts
    gated.py      such a decoder with any gate, trained from scratch
    multitask/    mixtures of shared experts, with a gate's weights and a tower for each task
    digits.py     two overlaid digits, both to be recognised: Multi-MNIST
    movielens.py  which users watch which movies, and how they rate them

torch and transformers load with the first use of `train` or `load_base`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moesim.record.extra import require_torch
from moesim.training.dense import load_base
from moesim.training.presets import PRESETS, DensePreset, GatedPreset, MoePreset, Preset
from moesim.training.prompting import cut_prompts, write_prompts
from moesim.training.text import Corpus, Document, built_in_corpus, read_corpus

if TYPE_CHECKING:
    from moesim.training.training import Evaluation, train

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
        raise AttributeError(f"module 'moesim.training' has no attribute {name!r}")
    require_torch("training a model")
    return getattr(import_module("moesim.training.training"), name)
