"""Does a mixture refactored as Read-ME says beat a dense model of the same size? (Table 5, fig. 7)

    python studies/readme/accuracy.py OUT --text arxiv=... --text c4=... [--seeds 3]

For every seed a small dense model is trained (`moesim models train --preset dense`), refactored and
tuned by `moesim models readme --size small`. All models of a seed are tuned on the same windows in
the same order, with the same settings, which were fixed before any result was seen:

    decoupled  one router for all layers: Read-ME
    layerwise  the same experts, a router in each layer
    dense      cut to the size of one expert by the mean of all domains' scores: Table 5's rival
    random     decoupled, with experts of as many channels drawn at random
    shuffled   decoupled, with channels scored on text dealt out at random among the domains

Losses are nats a token on held-out text, mean over domains. Intervals are 95 % over seeds, of
differences seed by seed. At this scale only directions can be compared. A difference is "same
direction" if its interval excludes zero on the paper's side, otherwise "not seen". The paper's
model (4.7 B, tuned on 1 B tokens) has lower perplexity than the dense model on all seven domains.

A killed study resumes in OUT. It takes about ten minutes a seed on one idle core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from output import spread

from moesim.cli.text import corpus_of
from moesim.models import Corpus
from moesim.report.statistics import Estimate, estimate
from moesim.report.tabular import Table, markdown

KINDS = ("decoupled", "layerwise", "dense")
CONTROLS = ("random", "shuffled")
Stories = dict[str, dict[str, Any]]  # by model: its training.json


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", action="append", metavar="DOMAIN=PATH")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    # Before torch is imported, which reads it once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(options.threads)
    corpus = corpus_of(options.text, 2_000_000)
    seeds = range(options.seeds)
    stories = [stories_of(seed, corpus, options.out / f"seed-{seed}") for seed in seeds]
    for table in (by_model(stories), by_domain(stories), by_stage(stories), by_mask(stories)):
        print(markdown(table), end="\n\n")


def stories_of(seed: int, corpus: Corpus, out: Path) -> Stories:
    """Train all models of one seed; return the training record of each."""
    from moesim.models import train
    from moesim.models.readme.pipeline import run
    from moesim.models.readme.settings import SIZES

    def say(what: str) -> None:
        print(f"seed {seed}: {what}", file=sys.stderr, flush=True)

    base = out / "base"
    if not base.exists():
        say("training the dense model")
        train("dense", corpus, base, seed=seed)
    settings = replace(SIZES["small"], seed=seed)

    def tell(kind: str, measured: Any) -> None:
        say(f"{kind}, {measured.stage}: {measured.validation:.3f}")

    folders = run(base, corpus, out / "none", settings, kinds=KINDS, on_stage=tell)
    for control in CONTROLS:
        say(f"control: {control}")
        changed = replace(settings, control=control)
        models = run(base, corpus, out / control, changed, kinds=["decoupled"], on_stage=tell)
        folders[control] = models["decoupled"]
    return {
        name: json.loads((folder / "training.json").read_text(encoding="utf-8"))
        for name, folder in folders.items()
    }


def by_model(stories: Sequence[Stories]) -> Table:
    """Return losses at the start and the end, and the difference to Read-ME's."""
    table = Table(
        f"Validation loss ({len(stories)} seeds; dense base before: "
        f"{spread(estimate(_mean(s['dense']['untuned']['dense']) for s in stories), digits=3)})",
        ["model", "at the start", "tuned", "decoupled less this", "reading"],
    )
    for name in (*KINDS, *CONTROLS):
        first, last = (
            [story[name]["history"][at]["validation"] for story in stories] for at in (0, -1)
        )
        less = _less(stories, "decoupled", name)
        table.add(
            name,
            spread(estimate(first), digits=3),
            spread(estimate(last), digits=3),
            "" if name == "decoupled" else spread(less, digits=3, sign=True),
            "" if name == "decoupled" else _reading(less),
        )
    return table


def by_domain(stories: Sequence[Stories]) -> Table:
    """Return Table 5's form: perplexity of the mixture and of the dense model of its size."""
    table = Table(
        "Perplexity after tuning, by domain",
        ["domain", "dense", "decoupled", "loss, decoupled less dense", "reading"],
    )
    for domain in stories[0]["dense"]["untuned"]["dense"]:
        losses = {
            name: [story[name]["history"][-1]["by_domain"][domain] for story in stories]
            for name in ("dense", "decoupled")
        }
        less = estimate(a - b for a, b in zip(losses["decoupled"], losses["dense"], strict=True))
        ppl = [_perplexity(losses[name]) for name in ("dense", "decoupled")]
        table.add(domain, *ppl, spread(less, digits=3, sign=True), _reading(less))
    return table


def by_stage(stories: Sequence[Stories]) -> Table:
    """Return figure 7: the change of the validation loss in each stage."""
    table = Table(
        "Change of validation loss by stage (paper: both kinds lower it)",
        ["stage", "decoupled", "reading", "layerwise", "reading"],
    )
    for at in range(1, len(stories[0]["decoupled"]["history"])):
        cells = []
        for name in ("decoupled", "layerwise"):
            histories = [story[name]["history"] for story in stories]
            change = estimate(h[at]["validation"] - h[at - 1]["validation"] for h in histories)
            cells += [spread(change, digits=4, sign=True), _reading(change)]
        table.add(stories[0]["decoupled"]["history"][at]["stage"], *cells)
    return table


def by_mask(stories: Sequence[Stories]) -> Table:
    """Return the loss before tuning with the domain's own expert, with others, and by chance."""
    table = Table(
        "Loss added by an expert alone, before tuning (mean over domains)",
        ["experts", "its own domain's", "other domains'"],
    )
    for name in ("decoupled", *CONTROLS):
        own, other = [], []
        for story in stories:
            dense, experts = (story[name]["untuned"][key] for key in ("dense", "experts"))
            own.append(_mean({d: experts[d][d] - dense[d] for d in dense}))
            other.append(
                _mean({(e, d): experts[e][d] - dense[d] for e in experts for d in dense if e != d})
            )
        table.add(
            "by domain" if name == "decoupled" else name,
            spread(estimate(own), digits=3, sign=True),
            spread(estimate(other), digits=3, sign=True),
        )
    return table


def _less(stories: Sequence[Stories], name: str, other: str) -> Estimate:
    ends = (_validation(stories, each, -1) for each in (name, other))
    return estimate(a - b for a, b in zip(*ends, strict=True))


def _validation(stories: Sequence[Stories], name: str, at: int) -> list[float]:
    return [story[name]["history"][at]["validation"] for story in stories]


def _reading(less: Estimate) -> str:
    if less.half is None:
        return "one seed"
    if less.mean + less.half < 0:
        return "same direction"
    return "opposite" if less.mean - less.half > 0 else "not seen"


def _perplexity(losses: Sequence[float]) -> str:
    return spread(estimate(math.exp(loss) for loss in losses), digits=1)


def _mean(values: dict[Any, float]) -> float:
    return sum(values.values()) / len(values)


if __name__ == "__main__":
    main()
