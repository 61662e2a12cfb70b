"""Does a mixture refactored as Read-ME says beat a dense model of the same size? (Table 5, fig. 7)

    python studies/readme/accuracy.py OUT --text arxiv=... --text c4=... [--seeds 3] [--rounds 2]
                                      [--shares 0.5 0.25 0.125] [--controls]

For every seed a small dense model is trained (`moesim models train --preset dense`). It is then
refactored and tuned by `moesim models readme --size small`, with experts of a half, a quarter and
an eighth of the channels. All models of a seed are tuned on the same windows in the same order.

    decoupled  one router for all layers: Read-ME
    oracle     the same experts; every text is computed by its own domain's expert, in tuning too
    dense      cut to an expert's size by the mean of all domains' scores: Table 5's rival

With --controls, at the first share only:

    layerwise  the same experts, a router in each layer
    random     decoupled, with as many channels drawn at random
    shuffled   decoupled, with channels scored on text dealt out at random among the domains

A decoupled model is also measured with oracle routing: its own experts, but each text by its
domain's expert. The *pooled mask* is `dense` before tuning. *Headroom* is the loss that this mask
adds to the dense model of full size: what better channels could gain at most.

**Protocol**, written before any result. Nothing is fitted: one schedule serves all models, shares
and seeds. Losses are nats a token on held-out text, mean over domains. Intervals are 95 % over
seeds, of differences seed by seed. A difference from `dense` is "same direction" if its interval
lies below zero, "opposite" if it lies above, otherwise "not seen". The paper's mixture (4.7 B, 1 B
tokens of tuning) is below its dense rival in all seven domains. Where `decoupled` is not below
`dense`, the bounds say why:

    oracle not below dense either   masks and experts are the limit: a router that always finds the
                                    domain would not win either
    oracle below dense              routing loses what the experts would gain

Oracle routing goes by the text's domain, as the experts do. It does not bound a router that finds a
better expert token by token.

A killed study resumes in OUT. The report's first lines give the command; docs/read-me.md gives the
durations.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from output import at_least_one, run_main, spread

from moesim.cli.text import corpus_of, spell_text
from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Table, markdown
from moesim.training import Corpus

SHARES = (0.5, 0.25, 0.125)
KINDS = ("decoupled", "oracle", "dense")
CONTROLS = ("layerwise", "random", "shuffled")
Record = Mapping[str, Any]  # one model's training.json
Stories = dict[tuple[float, str], Record]  # of one seed, by share and model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", action="append", metavar="DOMAIN=PATH")
    parser.add_argument("--seeds", type=at_least_one, default=3)
    parser.add_argument("--rounds", type=at_least_one, default=2)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--threads", type=at_least_one, default=1)
    options = parser.parse_args()
    # Before torch is imported, which reads it once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(options.threads)
    corpus = corpus_of(options.text, 2_000_000)
    stories: list[Stories] = [{} for _ in range(options.seeds)]
    # By share first, so that a study cut short has all seeds of the shares that it finished.
    for place, share in enumerate(options.shares):
        for seed, story in enumerate(stories):
            controls = CONTROLS if options.controls and place == 0 else ()
            out = options.out / f"seed-{seed}"
            story |= records_of(seed, share, corpus, out, options.rounds, controls)
    print(f"`{_command(options)}`", end="\n\n")
    for table in tables(stories):
        print(markdown(table), end="\n\n")


def records_of(
    seed: int, share: float, corpus: Corpus, out: Path, rounds: int, controls: Sequence[str]
) -> Stories:
    """Train all models of one seed and share; return the training record of each."""
    from moesim.training import train
    from moesim.training.readme.settings import SIZES

    def trained(done: int, steps: int) -> None:
        if done % 50 == 0:
            _say(seed, f"training the dense model: step {done} of {steps}")

    schedule = replace(SIZES["small"].schedule, rounds=rounds)
    # Before the long training, so that a wrong share ends the study at once.
    settings = replace(SIZES["small"], seed=seed, share=share, schedule=schedule)
    base = out / "base"
    if not base.exists():
        train(
            "dense", corpus, base, seed=seed, checkpoint=out / "base.safetensors", on_step=trained
        )
    folder = out / f"share-{share}-rounds-{rounds}"
    made = _refactored(base, corpus, folder / "none", settings, KINDS)
    for control in controls:
        if control == "layerwise":
            made |= _refactored(base, corpus, folder / "none", settings, [control])
            continue
        changed = replace(settings, control=control)
        alone = _refactored(base, corpus, folder / control, changed, ["decoupled"])
        made[control] = alone["decoupled"]
    return {
        (share, name): json.loads((path / "training.json").read_text(encoding="utf-8"))
        for name, path in made.items()
    }


def _refactored(
    base: Path, corpus: Corpus, out: Path, settings: Any, kinds: Sequence[str]
) -> dict[str, Path]:
    from moesim.training.readme.pipeline import run

    what = f"share {settings.share}, control {settings.control}"

    def tell(kind: str, measured: Any) -> None:
        _say(settings.seed, f"{what}: {kind}, {measured.stage}: {measured.validation:.3f}")

    return run(base, corpus, out, settings, kinds=kinds, on_stage=tell)


def _say(seed: int, what: str) -> None:
    print(f"seed {seed}: {what}", file=sys.stderr, flush=True)


def _command(options: argparse.Namespace) -> str:
    """Return the command without the folders of this machine."""
    text = [part for pair in spell_text(options.text) for part in ("--text", pair)]
    sizes = ["--seeds", str(options.seeds), "--rounds", str(options.rounds)]
    shares = [] if tuple(options.shares) == SHARES else ["--shares", *map(str, options.shares)]
    more = [*shares, *(["--controls"] if options.controls else [])]
    parts = ["python", "studies/readme/accuracy.py", options.out.name, *text, *sizes, *more]
    return shlex.join(parts)


def tables(stories: Sequence[Stories]) -> Iterable[Table]:
    """Yield all tables of the report."""
    yield before(stories)
    yield after(stories)
    yield where(stories)
    for share in _shares(stories):
        yield by_domain(stories, share)
    yield by_stage(stories)
    yield passes(stories)


def before(stories: Sequence[Stories]) -> Table:
    """Return losses before tuning, and the headroom, for each share."""
    shares = _shares(stories)
    table = Table(
        f"Validation loss before tuning ({len(stories)} seeds)",
        ["experts", *(f"share {share}" for share in shares)],
    )
    rows: dict[str, Callable[[Stories, float], float]] = {
        "dense, full size": _full,
        "pooled mask": _pooled,
        "own domain's expert (oracle routing)": _own,
        "another domain's expert": _others,
        "router, untrained": _unrouted,
    }
    for name, value in rows.items():
        cells = [estimate(value(story, share) for story in stories) for share in shares]
        table.add(name, *(spread(cell, digits=3) for cell in cells))
    pairs = {
        "headroom: pooled mask less full size": (_pooled, _full),
        "own domain's expert less pooled mask": (_own, _pooled),
    }
    for name, (value, other) in pairs.items():
        cells = [_less(stories, value, other, share) for share in shares]
        table.add(name, *(spread(cell, digits=3, sign=True) for cell in cells))
    for domain in _domains(stories):
        cells = [
            _less(
                stories, partial(_own_of, domain=domain), partial(_pooled_of, domain=domain), share
            )
            for share in shares
        ]
        table.add(f"— on {domain}", *(spread(cell, digits=3, sign=True) for cell in cells))
    return table


def after(stories: Sequence[Stories]) -> Table:
    """Return losses after tuning, and their differences from the dense model of equal size."""
    shares = _shares(stories)
    table = Table(
        "Validation loss after tuning",
        ["share", "model", "tuned", "less dense", "reading", "change in tuning"],
    )
    for share in shares:
        more = [name for name in CONTROLS if (share, name) in stories[0]]
        for name in ("dense", "decoupled", _BY_ORACLE, "oracle", *more):
            tuned, start, dense = (
                [_at(story, share, each, at) for story in stories]
                for each, at in ((name, -1), (name, 0), ("dense", -1))
            )
            less = difference(tuned, dense, relative=False)
            rival = name == "dense"
            table.add(
                str(share),
                name,
                spread(estimate(tuned), digits=3),
                "" if rival else spread(less, digits=3, sign=True),
                "" if rival else reading(less),
                spread(difference(tuned, start, relative=False), digits=3, sign=True),
            )
    return table


def where(stories: Sequence[Stories]) -> Table:
    """Return the difference from dense in two parts: what experts gain and what routing loses."""
    shares = _shares(stories)
    table = Table(
        "Where the difference from the dense model arises",
        ["share", "experts: oracle less dense", "routing: decoupled less oracle", "limit"],
    )
    for share in shares:
        oracle, decoupled, dense = (
            [_at(story, share, name, -1) for story in stories]
            for name in ("oracle", "decoupled", "dense")
        )
        experts = difference(oracle, dense, relative=False)
        routing = difference(decoupled, oracle, relative=False)
        whole = difference(decoupled, dense, relative=False)
        cells = [spread(each, digits=3, sign=True) for each in (experts, routing)]
        table.add(str(share), *cells, limit(whole, experts))
    return table


def limit(whole: Estimate, oracle: Estimate) -> str:
    """Return what the protocol says of a mixture's and its oracle's differences from dense."""
    if reading(whole) == "one seed":
        return "one seed"
    if reading(whole) == "same direction":
        return "none: the mixture wins"
    return "routing" if reading(oracle) == "same direction" else "masks and experts"


def by_domain(stories: Sequence[Stories], share: float) -> Table:
    """Return Table 5's form: perplexity of the mixture and of the dense model of its size."""
    table = Table(
        f"Perplexity after tuning, by domain, share {share}",
        [
            *("domain", "dense", "decoupled", "oracle"),
            *("decoupled less dense", "reading", "oracle less dense", "reading"),
        ],
    )
    for domain in _domains(stories):
        losses = {
            name: [story[share, name]["history"][-1]["by_domain"][domain] for story in stories]
            for name in KINDS
        }
        cells = [_perplexity(losses[name]) for name in ("dense", "decoupled", "oracle")]
        for name in ("decoupled", "oracle"):
            less = difference(losses[name], losses["dense"], relative=False)
            cells += [spread(less, digits=3, sign=True), reading(less)]
        table.add(domain, *cells)
    return table


def by_stage(stories: Sequence[Stories]) -> Table:
    """Return figure 7: the change of the validation loss in each stage."""
    shares = _shares(stories)
    columns = [(share, "decoupled") for share in shares]
    columns += [each for each in stories[0] if each[1] == "layerwise"]
    table = Table(
        "Change of validation loss by stage (paper: both kinds of stage lower it)",
        ["stage", *(part for share, name in columns for part in (f"{name}, {share}", "reading"))],
    )
    stages = [each["stage"] for each in stories[0][shares[0], "decoupled"]["history"]]
    for at in range(1, len(stages)):
        cells = []
        for share, name in columns:
            now, past = (
                [_at(story, share, name, place) for story in stories] for place in (at, at - 1)
            )
            change = difference(now, past, relative=False)
            cells += [spread(change, digits=4, sign=True), reading(change)]
        table.add(stages[at], *cells)
    return table


def passes(stories: Sequence[Stories]) -> Table:
    """Return how well routers agree with their targets, and how often the text was read."""
    shares = _shares(stories)
    table = Table("Routers on held-out text", ["share", "agreement, start", "end", "passes"])
    for share in shares:
        histories = [story[share, "decoupled"]["history"] for story in stories]
        cells = [
            spread(estimate(history[at]["agreement"] for history in histories), digits=3)
            for at in (0, -1)
        ]
        table.add(str(share), *cells, spread(estimate(h[-1]["passes"] for h in histories)))
    return table


_BY_ORACLE = "decoupled, oracle routing"


def _at(story: Stories, share: float, name: str, at: int) -> float:
    """Return a model's validation loss at a place of its history."""
    if name == _BY_ORACLE:
        return _mean(story[share, "decoupled"]["history"][at]["own_experts"].values())
    return float(story[share, name]["history"][at]["validation"])


def _full(story: Stories, share: float) -> float:
    return _mean(story[share, "dense"]["untuned"]["dense"].values())


def _pooled(story: Stories, share: float) -> float:
    return _at(story, share, "dense", 0)


def _pooled_of(story: Stories, share: float, domain: str) -> float:
    return float(story[share, "dense"]["history"][0]["by_domain"][domain])


def _own_of(story: Stories, share: float, domain: str) -> float:
    return float(story[share, "decoupled"]["untuned"]["experts"][domain][domain])


def _unrouted(story: Stories, share: float) -> float:
    return _at(story, share, "decoupled", 0)


def _own(story: Stories, share: float) -> float:
    domains = story[share, "decoupled"]["untuned"]["dense"]
    return _mean(_own_of(story, share, domain) for domain in domains)


def _others(story: Stories, share: float) -> float:
    experts = story[share, "decoupled"]["untuned"]["experts"]
    return _mean(loss for e in experts for d, loss in experts[e].items() if d != e)


def _less(stories: Sequence[Stories], value: Any, other: Any, share: float) -> Estimate:
    pairs = ([each(story, share) for story in stories] for each in (value, other))
    return difference(*pairs, relative=False)


def _domains(stories: Sequence[Stories]) -> list[str]:
    return list(stories[0][_shares(stories)[0], "dense"]["untuned"]["dense"])


def _shares(stories: Sequence[Stories]) -> list[float]:
    return list(dict.fromkeys(share for share, _ in stories[0]))


def reading(less: Estimate) -> str:
    """Return what the protocol says of a difference; the paper's side is below zero."""
    if less.half is None:
        return "one seed"
    if less.high < 0:
        return "same direction"
    return "opposite" if less.low > 0 else "not seen"


def _perplexity(losses: Sequence[float]) -> str:
    return spread(estimate(math.exp(loss) for loss in losses), digits=1)


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return sum(given) / len(given)


if __name__ == "__main__":
    run_main(main)
