"""Recording: the router decisions of a real, running model, written as a trace.

Hooks read what the experts of every mixture-of-experts layer are called with while `generate()`
runs. They change nothing: the model's outputs are bit-identical with and without them.

A trace can also hold *predictions*: the choices of the following layers' gates for the hidden state
that this layer's gate saw. A prefetcher could have known these at that moment (Eliseev and Mazur,
2023, "Fast Inference of Mixture-of-Experts Language Models with Offloading").

    prompts.py    files of prompts; every mistake is reported with its line
    routers.py    finds a model's layers: experts, and the gate beside them
    calls.py      ids and weights in a call of experts, and adapters of other interfaces
    scores.py     which function a gate scores with
    layer_state.py  what is learned of a layer while it runs, and its predictions
    recorder.py   the hooks
    wrappers.py   models inside of torch.compile, PEFT and the like
    plain_models.py  models of one's own without `generate`
    tokens.py     the tokens of a prompt or a chat
    generation.py prompts in, trace out
    header.py     the trace's header: model and run
    loading.py    a model from the Hub or from a folder
    dry_run.py    what a recording would give, without the model's weights

torch and transformers load with the first use of `Recorder`, `record` or `load_model`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moesim.record.extra import require_torch
from moesim.record.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from moesim.record.calls import Adapter
    from moesim.record.generation import record
    from moesim.record.loading import load_model
    from moesim.record.recorder import Recorder

__all__ = ["Adapter", "Prompt", "Recorder", "load_model", "read_prompts", "record"]

_HOME = {
    "Adapter": "moesim.record.calls",
    "Recorder": "moesim.record.recorder",
    "load_model": "moesim.record.loading",
    "record": "moesim.record.generation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'moesim.record' has no attribute {name!r}")
    require_torch("recording a model")
    return getattr(import_module(_HOME[name]), name)
