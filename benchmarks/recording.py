"""What recording a model takes, as a multiple of its `generate` alone.

A random Qwen3-MoE of middling size (512 wide, 8 layers, 32 experts, 4 a token) generates for 8
prompts, on one thread, with and without a recorder, in turn. Ratios are of CPU time. *Whole* is
`moesim.record.record` with its trace written. On a small model the hooks take a larger share, and
on a large one a smaller.

    python benchmarks/recording.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import figures
import torch
from figures import Figure

from moesim.record import Prompt, Recorder, record

ROUNDS, PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 12, 8, 64, 24
TARGET = "at most 1.10"
OPTIONS: dict[str, dict[str, Any]] = {
    "ids and weights": {},
    "and scores": {"probabilities": True},
    "and predictions, 1 layer ahead": {"prediction_depth": 1},
}


def model_of(hidden: int, layers: int) -> Any:
    """Return a random model in evaluation mode."""
    import transformers

    config: Any = transformers.Qwen3MoeConfig
    torch.manual_seed(0)
    made: Any = transformers.Qwen3MoeForCausalLM(
        config(
            vocab_size=4096,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            moe_intermediate_size=hidden // 2,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=hidden // 8,
            num_experts=32,
            num_experts_per_tok=4,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    return made.eval()


def cpu_s(act: Callable[[], object]) -> float:
    """Return the CPU seconds of an act."""
    start = time.process_time()
    act()
    return time.process_time() - start


def measure(quick: bool) -> list[Figure]:
    """Return the ratios of recorded to bare generation."""
    torch.set_num_threads(1)
    model = model_of(128, 2) if quick else model_of(512, 8)
    rounds, tokens = (2, 4) if quick else (ROUNDS, NEW_TOKENS)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 4096, (PROMPTS, PROMPT_TOKENS), generator=draw)
    asked = [Prompt(tokens=tuple(row)) for row in ids.tolist()]

    def generated(**options: Any) -> None:
        watched = Recorder(model, **options) if options.pop("record", True) else nullcontext()
        with watched, torch.no_grad():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
            )

    def whole(out: Path) -> None:
        record(model, None, asked, out, max_new_tokens=tokens, batch_size=PROMPTS, force=True)

    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            bare = cpu_s(lambda: generated(record=False))
            found = {name: cpu_s(partial(generated, **o)) for name, o in OPTIONS.items()}
            found["whole, with its trace"] = cpu_s(lambda: whole(Path(folder) / "trace"))
            if number:  # the first round warms up
                for name, spent in found.items():
                    ratios.setdefault(name, []).append(spent / bare)
    return [
        Figure.of(f"recorded over bare generation: {name}", values, "", TARGET)
        for name, values in ratios.items()
    ]


if __name__ == "__main__":
    figures.main(__doc__, measure)
