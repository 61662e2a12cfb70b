"""A run of a second whose decisions are known: does moesim compute the same here?

The routing is made by arithmetic on whole numbers, so it is the same with every version of numpy.
"""

from __future__ import annotations

import time
from typing import Any, Final

from moesim.doctor.check import Check

__all__ = ["DECISIONS", "check_self", "decisions"]

_REQUESTS, _ROWS, _PROMPT, _LAYERS, _EXPERTS = 6, 24, 8, 4, 8
_CONFIG: Final = {
    "model_type": "mixtral",
    "hidden_size": 512,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 1024,
    "num_local_experts": _EXPERTS,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
}
DECISIONS: Final = {"hits": 438, "misses": 714, "steps": 144}
"""What the run decides, with one row a step; a test computes it with a plain LRU."""


def routing() -> Any:
    """Return the trace of the self-check: 6 requests over 4 layers of 8 experts, top-2."""
    import numpy as np

    from moesim.trace import Trace

    rows, layers = _REQUESTS * _ROWS, np.arange(_LAYERS)
    row_T1 = np.arange(rows)[:, None]
    first_TL = (row_T1 * row_T1 // 7 + 3 * layers) % _EXPERTS
    step_TL = 1 + (row_T1 // 5 + layers) % (_EXPERTS - 1)
    return Trace.from_arrays(
        expert_ids=np.stack([first_TL, (first_TL + step_TL) % _EXPERTS], axis=2),
        seq_len=[_ROWS] * _REQUESTS,
        prompt_tokens=[_PROMPT] * _REQUESTS,
        num_experts=_EXPERTS,
        model="self-check",
        synthetic=True,
        model_config=_CONFIG,
    )


def decisions() -> dict[str, int]:
    """Simulate the self-check and return what was decided."""
    from moesim.scenario import Scenario
    from moesim.simulate import prepare
    from moesim.simulate.build import serve

    scenario = {
        "trace": "in memory",
        "hardware": "rtx-4090",
        "bounds": False,
        "cache": {"policy": "lru", "slots": "3/layer"},
        "batching": {"policy": "decode_first", "token_budget": 1, "max_sequences": 1},
        "simulation": "reference",
    }
    server, _ = serve(prepare(Scenario.model_validate(scenario), routing()))
    ledger = server.ledger
    return {
        "hits": sum(ledger.hits),
        "misses": sum(ledger.demand_copies),
        "steps": ledger.num_steps,
    }


def check_self() -> Check:
    """Simulate the self-check, and compare its decisions with the stored ones."""
    began = time.monotonic()
    try:
        found = decisions()
    except Exception as error:  # the check must report what is broken, whatever it is
        return Check(
            "self-check", "broken", f"{type(error).__name__}: {error}", "install moesim again"
        )
    if found != DECISIONS:
        wrong = [f"{key} {found[key]:,}, not {DECISIONS[key]:,}" for key in DECISIONS]
        return Check("self-check", "broken", "; ".join(wrong), "please report this")
    spent = time.monotonic() - began
    hits, misses = f"{found['hits']:,} hits", f"{found['misses']:,} misses"
    return Check("self-check", "ok", f"decided as stored ({hits}, {misses}) in {spent:.1f} s")
