"""The table of families in docs/record.md, made from a tiny random model of each.

    python tests/support/family_table.py docs/record.md

writes it between the two marks of the page. It takes about a minute of one core.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

__all__ = ["BEGIN", "END", "row", "table", "with_table"]

BEGIN: Final = "<!-- table of families: begin -->"
END: Final = "<!-- table of families: end -->"
_HEAD: Final = (
    "| family | ids and weights | predictions | scores | own shape | text on the real machine |\n"
    "|---|---|---|---|---|---|\n"
)


def row(kind: str) -> str:
    """Return the line of one family."""
    from moe_families import REFUSED

    cells = _refused(kind) if kind in REFUSED else _recorded(kind)
    return f"| `{kind}` | " + " | ".join(cells) + " |\n"


def table() -> str:
    """Return the whole table."""
    from moe_families import FAMILIES, REFUSED

    return _HEAD + "".join(row(kind) for kind in sorted((*FAMILIES, *REFUSED)))


def with_table(page: str, lines: str) -> str:
    """Return a page with `lines` between its marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{lines}{END}{tail}"


def _refused(kind: str) -> list[str]:
    from moe_families import REFUSED

    return [f"refused: {REFUSED[kind]}", "–", "–", "–", "–"]


def _recorded(kind: str) -> list[str]:
    from moe_families import PROMPTS, tiny_family

    from moesim.model.hf_config import shape_from_config
    from moesim.record import Prompt, record

    prompts = [Prompt(tokens=tokens) for tokens in PROMPTS]
    with tempfile.TemporaryDirectory() as folder:

        def made(name: str, **options: Any) -> Any:
            out = Path(folder) / name
            return record(tiny_family(kind), None, prompts, out, max_new_tokens=2, **options)

        plain = made("plain")
        depths = {d: partial(made, f"ahead-{d}", prediction_depth=d) for d in (1, 2)}
        deepest = max((d for d, act in depths.items() if _said(act) is None), default=0)
        scored: Any = None
        no_scores = _said(lambda: made("scored", probabilities=True))
        if no_scores is None:
            from moesim.trace import load_trace

            scored = load_trace(Path(folder) / "scored").meta.provenance["probabilities"]
        shape = _said(lambda: shape_from_config(plain.meta.model_config or {}))
        unused = " (places without an expert unused)" if _has_unused(plain) else ""
        left_out = ", other banks left out" if "layers_left_out" in plain.meta.provenance else ""
    return [
        f"yes{unused}{left_out}",
        {0: "no", 1: "1 layer ahead", 2: "any depth"}[deepest],
        "no" if scored is None else str(scored),
        "yes" if shape is None else "needs `model`",
        _served(kind),
    ]


def _has_unused(trace: Any) -> bool:
    return bool((trace.expert_ids[:] == trace.meta.unused).any())


def _served(kind: str) -> str:
    """Return whether the real machine generates the model's own text, or why not."""
    import torch
    from moe_families import PROMPTS, tiny_family

    from moesim.executor.generate import Serving, generate

    model = tiny_family(kind)
    model.set_experts_implementation("eager")
    found: list[Any] = []

    def serve() -> None:
        serving = Serving(slots=8, token_budget=7, max_sequences=3)
        found.append(generate(model.to(torch.float64), PROMPTS, 4, serving).tokens)

    refusal = _said(serve)
    if refusal is None:
        return "yes" if found[0] == own_text(model, PROMPTS, 4) else "other text"
    reasons = {
        "convolution": "convolution along the sequence",
        "keeps entries": "attends through an index",
        "not called with ids": "experts not called with ids",
        "cannot be run from buffers": "experts of their own kind",
        "several banks": "several banks of experts",
        "attention function": "attention of its own",
        "not a Hugging Face decoder": "no decoder",
    }
    return "refused: " + next((r for key, r in reasons.items() if key in refusal), refusal)


def own_text(model: Any, prompts: Any, tokens: int) -> list[list[int]]:
    """Return what a model generates greedily, one whole forward pass a token."""
    import torch

    texts = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(tokens):
            with torch.no_grad():
                text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
        texts.append(text[len(prompt) :])
    return texts


def _said(act: Callable[[], object]) -> str | None:
    """Return what the refusal of an act says; None if it is not refused."""
    from moesim.errors import UsageError

    try:
        act()
    except UsageError as error:
        return str(error)
    return None


if __name__ == "__main__":
    here = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(here), str(here / "tests" / "support")]
    place = Path(sys.argv[1])
    text = place.read_text(encoding="utf-8")
    place.write_text(with_table(text, table()), encoding="utf-8")
