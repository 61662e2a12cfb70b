"""Do masks specialise at all? Each domain's own mask against one mask for all, before any tuning.

    python studies/readme/masks.py OUT --text arxiv=... --text c4=... --text github=... \\
        --text wikipedia=...

Read-ME gives each domain the channels that score highest on it. The rival is *one* mask of the same
number of channels a layer, chosen by the mean of all domains' scores (`pooled`). If a domain is not
served better by its own mask than by the pooled one, a router has nothing to gain before tuning.
Other rivals are the other domains' masks (at the first share), and as many channels drawn at
random.

Protocol, fixed before the first run. Nothing is fitted or tuned.

    model       SmolLM2-135M, bfloat16, no tuning; a cut model has fewer channels, and no router
    scores      of three disjoint samples of 65,536 tokens a domain; `code` is the main variant
    held out    the same windows for all masks, in no sample (`mask_runs` says how text is divided)
    shares      0.5, 0.25 and 0.125 of the channels
    question    own − pooled, nats a token, mean over domains (negative: masks specialise)

Two intervals are given, both 95 % t-intervals of paired differences. One is over the samples, which
differ in the text that is scored: does the mask depend on luck? The other is over the held-out
windows, each averaged over the samples: does the loss depend on the windows? Over all domains the
second also holds the differences between domains, so it is rather too wide. A difference is
"specialised" if both intervals are below zero, "pooled is better" if both are above, and otherwise
"not seen". The median window and the number of windows that the own mask wins are printed too. A
few windows unlike their domain's other text can outweigh all others in a mean.

The same is reported for smaller scoring sizes, which are the first windows of the same samples, and
for `paper` scores, both at the first share. The pooled mask is chosen from the tokens of all
domains. A further row therefore gives the pooled mask a quarter of the tokens of each.

Overlaps say whether a difference could be seen: masks of two domains must have fewer channels in
common than masks of two samples of one domain.

A killed study resumes in OUT, where each sample's scores and each loss are kept. It takes about 40
minutes on one idle core. `--first 1` measures one sample; the same command without it
measures the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Final

import torch
from mask_runs import Cell, How, Losses, Scores, Settings, mask_of, measure
from output import run_main, spread
from torch import Tensor

from moesim.cli.text import corpus_of
from moesim.report.statistics import estimate
from moesim.report.tabular import Table, markdown

DIFFERENCE: Final = (
    "own − pooled, over samples",
    "over windows",
    "median window",
    "windows that own wins",
    "reading",
)


def main() -> None:
    default = Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", action="append", metavar="DOMAIN=PATH")
    parser.add_argument("--base", default=default.base)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(default.sizes))
    parser.add_argument("--samples", type=int, default=default.samples)
    parser.add_argument("--first", type=int, help="measure only that many samples for now")
    parser.add_argument("--shares", type=float, nargs="+", default=list(default.shares))
    parser.add_argument("--held-out", type=int, default=default.held_out)
    parser.add_argument("--length", type=int, default=default.length)
    parser.add_argument("--draws", type=int, default=default.draws)
    parser.add_argument("--dtype", default=default.dtype)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(
        options.base,
        tuple(sorted(options.tokens)),
        options.samples,
        tuple(options.shares),
        options.held_out,
        options.length,
        options.draws,
        options.dtype,
    )
    corpus = corpus_of(options.text, 2_000_000)
    first = min(options.first or settings.samples, settings.samples)
    measured = measure(settings, corpus, options.out, first)
    found = Found(replace(settings, samples=first), corpus.domains, *measured)
    for table in (
        by_mask(found),
        own_less_pooled(found),
        confusion(found),
        by_size(found),
        overlaps(found),
    ):
        print(markdown(table), end="\n\n")


@dataclass(frozen=True, slots=True)
class Difference:
    """Differences of two losses: means of each sample, and means of each held-out window."""

    by_sample: Sequence[float]
    by_window: Sequence[float]

    @property
    def reading(self) -> str:
        """Return the verdict that the protocol names."""
        both = [estimate(self.by_sample), estimate(self.by_window)]
        if any(each.half is None for each in both):
            return "one sample"
        if all(each.high < 0 for each in both):
            return "specialised"
        return "pooled is better" if all(each.low > 0 for each in both) else "not seen"

    @property
    def cells(self) -> list[str]:
        """Return the columns `DIFFERENCE` as text."""
        means = (estimate(each) for each in (self.by_sample, self.by_window))
        won = sum(each < 0 for each in self.by_window)
        return [
            *(spread(each, digits=3, sign=True) for each in means),
            f"{median(self.by_window):+.3f}",
            f"{won} of {len(self.by_window)}",
            self.reading,
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """All that a run measured."""

    settings: Settings
    domains: Sequence[str]
    losses: Losses
    scores: Scores

    def loss(self, mask: str, domain: str, sample: int, how: How) -> list[float]:
        """Return losses of a domain's windows; `own` is its own mask, `others` their mean."""
        if mask == "dense":
            return list(self.losses[Cell("code", 0, 1.0, 0, mask, domain)])
        if mask == "random":
            draws = range(self.settings.draws)
            cells = [Cell("code", 0, how.share, draw, mask, domain) for draw in draws]
        else:
            masks = {"own": [domain], "others": [d for d in self.domains if d != domain]}
            cells = [Cell(*how, sample, each, domain) for each in masks.get(mask, [mask])]
        return [_mean(each) for each in zip(*(self.losses[cell] for cell in cells), strict=True)]

    def less(
        self, ours: tuple[str, How], rival: tuple[str, How], domains: Sequence[str]
    ) -> Difference:
        """Return the difference of two masks' losses on some domains."""

        def losses(mask: str, how: How, sample: int) -> list[float]:
            return [x for domain in domains for x in self.loss(mask, domain, sample, how)]

        by_sample = []
        for sample in range(self.settings.samples):
            pairs = zip(losses(*ours, sample), losses(*rival, sample), strict=True)
            by_sample.append([a - b for a, b in pairs])
        by_window = [_mean(each) for each in zip(*by_sample, strict=True)]
        return Difference([_mean(each) for each in by_sample], by_window)


def by_mask(found: Found) -> Table:
    """Return losses by domain; intervals are over samples, of random masks over draws."""
    settings, columns = found.settings, (found.domains, *([d] for d in found.domains))
    table = Table(
        f"Losses, nats a token ({settings.samples} samples of {settings.tokens:,} scoring tokens a "
        f"domain, {settings.held_out} held-out windows of {settings.length} a domain)",
        ["channels", "mask", "mean", *found.domains],
    )
    for share, mask in _rows(settings):
        how = How("code", settings.tokens, share)
        cells = []
        for domains in columns:
            values = [
                _mean([_mean(found.loss(mask, domain, sample, how)) for domain in domains])
                for sample in range(1 if mask in ("dense", "random") else settings.samples)
            ]
            cells.append(spread(estimate(values), digits=3))
        table.add(f"{share:g}", mask, *cells)
    return table


def own_less_pooled(found: Found) -> Table:
    """Return the study's answer: own less pooled, of both variants."""
    settings = found.settings
    table = Table(
        "Own mask less pooled mask, nats a token (negative: masks specialise)",
        ["scores, channels, domain", *DIFFERENCE],
    )
    hows = [How("code", settings.tokens, share) for share in settings.shares]
    for how in (*hows, How("paper", settings.tokens, settings.shares[0])):
        for name, domains in _named(found.domains):
            less = found.less(("own", how), ("pooled", how), domains)
            table.add(f"{how.variant}, {how.share:g}, {name}", *less.cells)
    return table


def confusion(found: Found) -> Table:
    """Return the loss of each mask on each domain, mean over samples."""
    how = How("code", found.settings.tokens, found.settings.shares[0])
    table = Table(
        f"Each mask on each domain, {how.share:g} of the channels (columns: held-out text)",
        ["mask", *found.domains],
    )
    for mask in (*found.domains, "pooled"):
        samples = range(found.settings.samples)
        cells = (
            estimate(_mean(found.loss(mask, domain, sample, how)) for sample in samples)
            for domain in found.domains
        )
        table.add(mask, *(spread(each, digits=3) for each in cells))
    return table


def by_size(found: Found) -> Table:
    """Return how the answer depends on the number of scoring tokens."""
    settings, share = found.settings, found.settings.shares[0]
    table = Table(
        f"Scoring tokens a domain, {share:g} of the channels, mean over domains",
        ["tokens: own", "pooled", *DIFFERENCE],
    )
    pairs = [(size, size) for size in settings.sizes]
    pairs += [(size, size // len(found.domains)) for size in settings.sizes]
    for size, rival in pairs:
        if rival not in settings.sizes:
            continue
        ours, theirs = (How("code", each, share) for each in (size, rival))
        less = found.less(("own", ours), ("pooled", theirs), found.domains)
        table.add(f"{size:,}", f"{len(found.domains)} × {rival:,}", *less.cells)
    return table


def overlaps(found: Found) -> Table:
    """Return the share of channels that two masks have in common, means over pairs."""
    settings = found.settings
    table = Table(
        "Channels in common (% of a mask; by chance: the share of channels)",
        ["scores, tokens, channels", "two domains", "two samples of a domain", "own and pooled"],
    )
    hows = [How("code", size, settings.shares[0]) for size in settings.sizes[:-1]]
    hows += [How("code", settings.tokens, share) for share in settings.shares]
    for how in (*hows, How("paper", settings.tokens, settings.shares[0])):
        masks = [_masks(found, how, sample) for sample in range(settings.samples)]
        domains = [pair for each in masks for pair in combinations(each[:-1], 2)]
        of_domains = list(zip(*masks, strict=True))[:-1]
        samples = [pair for each in of_domains for pair in combinations(each, 2)]
        own_and_pooled = [(own, each[-1]) for each in masks for own in each[:-1]]
        cells = (_common(pairs) for pairs in (domains, samples, own_and_pooled))
        table.add(f"{how.variant}, {how.tokens:,}, {how.share:g}", *cells)
    return table


def _masks(found: Found, how: How, sample: int) -> list[Tensor]:
    """Return the masks `[L, D]` of all domains, and the pooled one."""
    cells = (Cell(*how, sample, mask, "") for mask in (*found.domains, "pooled"))
    return [mask_of(cell, found.scores, found.domains) for cell in cells]


def _common(pairs: Sequence[tuple[Tensor, Tensor]]) -> str:
    if not pairs:
        return ""
    return f"{100 * _mean([float((a & b).sum() / a.sum()) for a, b in pairs]):.1f}"


def _rows(settings: Settings) -> Iterator[tuple[float, str]]:
    first = settings.shares[0]
    yield 1.0, "dense"
    for share in settings.shares:
        masks = ("own", "pooled", "others", "random")
        yield from ((share, mask) for mask in masks if mask != "others" or share == first)


def _named(domains: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    yield "all", domains
    for domain in domains:
        yield domain, [domain]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    run_main(main)
