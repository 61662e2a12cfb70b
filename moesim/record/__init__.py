"""Recording: what the routers of a real, running model decide, written down as a trace.

Hooks sit on every router of a Hugging Face mixture-of-experts model while `generate()` runs as it
always does. They only look: what the model computes is the same, bit for bit, as without them.
Beside each decision stand *predictions*: what the gates of the following layers would have said of
the hidden state that this layer's gate saw, which is all that a prefetcher could have known then
(Eliseev and Mazur, 2023, "Fast Inference of Mixture-of-Experts Language Models with Offloading").

    prompts.py    files of prompts, read with the line of every mistake
    routers.py    where the routers of a model are, and how each family says what it chose
    recorder.py   the hooks
    generation.py prompts in, trace out
    header.py     what the trace's header says of the model and of the run
    loading.py    a model from the Hub or from a folder

torch and transformers load with the first use of `Recorder`, `record` or `load_model`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moesim.record.extra import require_torch
from moesim.record.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from moesim.record.generation import record
    from moesim.record.loading import load_model
    from moesim.record.recorder import Recorder

__all__ = ["Prompt", "Recorder", "load_model", "read_prompts", "record"]

_HOME = {
    "Recorder": "moesim.record.recorder",
    "load_model": "moesim.record.loading",
    "record": "moesim.record.generation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moesim.record' has no attribute {name!r}")
    require_torch("recording a model")
    return getattr(import_module(_HOME[name]), name)
