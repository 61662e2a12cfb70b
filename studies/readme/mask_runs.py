"""What `masks.py` measures: channel scores of disjoint samples, and losses of cut models.

`asked` and `compared` say which losses, `measure` finds them and keeps each result in a folder.

A domain's documents are joined in the order of the file and cut into stretches:

    held out | sample 0 | held out | sample 1 | held out | ... | held out

All samples have the same number of tokens. Text that no sample needs is divided evenly among the
held-out stretches. Windows of held-out text come from the middle half of each stretch, evenly
spread. Its first and last quarters are read by nothing. So only a document longer than a quarter
of a stretch can have text both in a sample and among the held-out windows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import permutations, product
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from output import counted
from torch import Tensor
from torch.nn import functional

from moesim.errors import OutputError, UsageError
from moesim.files import whole_file, write_json
from moesim.training import Corpus
from moesim.training.dense import load_base
from moesim.training.readme.ffn import Variant, find_ffns, frozen, watched
from moesim.training.readme.masks import pooled_mask, random_masks, top_masks
from moesim.training.tokens import Tokens, spread_windows, token_stream

VARIANTS: Final[tuple[Variant, ...]] = ("code", "paper")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run measures. `sizes` are scoring tokens a domain, the largest last."""

    base: str = "smollm2"
    sizes: tuple[int, ...] = (4_096, 16_384, 65_536)
    samples: int = 3
    shares: tuple[float, ...] = (0.5, 0.25, 0.125)
    held_out: int = 12
    length: int = 512
    draws: int = 3
    dtype: str = "bfloat16"

    @property
    def tokens(self) -> int:
        return self.sizes[-1]


class Cell(NamedTuple):
    """One loss: a mask, by how it was made, on a domain's held-out windows.

    `mask` is a domain, `pooled`, `random` (then `sample` numbers the draw) or `dense`.
    """

    variant: Variant
    tokens: int
    share: float
    sample: int
    mask: str
    domain: str

    @property
    def file(self) -> str:
        return "{}-{}-{}-{}-{}.on-{}.json".format(*self)


class How(NamedTuple):
    """How masks are made: by which scores, from how many tokens a domain, of what share."""

    variant: Variant
    tokens: int
    share: float


Losses = Mapping[Cell, Sequence[float]]  # nats a token of each held-out window
Scores = Mapping[tuple[str, int, int], Tensor]  # [N, L, D] by variant, tokens and sample


@dataclass(frozen=True, slots=True, eq=False)
class DomainText:
    """One domain's windows: `held_out` `[V, T]`, and `samples` `[S, W, T]` that share no token."""

    held_out: Tensor
    samples: Tensor


def divided(stream: Tokens, tokens: int, samples: int, held_out: int, length: int) -> DomainText:
    """Cut a domain's ids into windows of `length`, as the module says.

    `tokens` is a sample's size, `held_out` the number of held-out windows. Windows of a sample are
    in an order whose first ones are evenly spread over it. Raise `UsageError` for too little text.
    """
    stretches = samples + 1
    stretch, each = (len(stream) - samples * tokens) // stretches, held_out // stretches
    if stretch // 2 < each * length:
        needed = samples * tokens + stretches * 2 * each * length
        raise UsageError(f"{len(stream):,} tokens are too few for this layout: give {needed:,}")
    starts = [number * (stretch + tokens) for number in range(stretches)]
    middles = [stream[start + stretch // 4 :][: stretch // 2] for start in starts]
    order = sorted(range(tokens // length), key=lambda at: f"{at:032b}"[::-1])
    cut = [torch.from_numpy(stream[start + stretch :][:tokens]) for start in starts[:-1]]
    return DomainText(
        torch.cat([spread_windows(middle, each, length) for middle in middles]),
        torch.stack([ids.reshape(-1, length)[order] for ids in cut]),
    )


def texts_of(
    corpus: Corpus, tokenizer: Any, tokens: int, samples: int, held_out: int, length: int
) -> dict[str, DomainText]:
    """Return every domain's windows. Raise `UsageError` that names a domain of too little text."""
    texts = {}
    for domain in corpus.domains:
        documents = [*corpus.train[domain], *corpus.validation[domain]]
        # In the order of the file: parts 2 and 10 of it in this order, and neighbours together.
        documents.sort(key=lambda each: [part.zfill(9) for part in re.split(r"(\d+)", each.name)])
        stream = token_stream(tokenizer, documents)
        try:
            texts[domain] = divided(stream, tokens, samples, held_out, length)
        except UsageError as error:
            raise UsageError(f"domain {domain!r}: {error}") from error
    return texts


def scores_by_size(model: Any, windows_WT: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Return channel scores `[L, D]` (float64) by `variant-size`, of the first `size` tokens.

    One pass serves all sizes and both variants; no activations are kept.
    """
    ffns = find_ffns(model)
    shape = (len(ffns), ffns[0].width)
    sums = {variant: torch.zeros(shape, dtype=torch.float64) for variant in VARIANTS}
    length = windows_WT.shape[1]
    scores: dict[str, Tensor] = {}
    with frozen(model) as decoder, ExitStack() as hooks:
        for variant, sums_LD in sums.items():

            def add(layer: int, values: Tensor, sums_LD: Tensor = sums_LD) -> None:
                # float32 within a window, float64 over windows, where small values would be lost.
                sums_LD[layer] += values.float().abs().flatten(0, -2).sum(dim=0).double()

            hooks.enter_context(watched(ffns, add, variant))
        for done, ids_T in enumerate(windows_WT, 1):
            decoder(input_ids=ids_T[None], use_cache=False)
            if (size := done * length) in sizes:
                scores |= {f"{variant}-{size}": sums[variant] / size for variant in VARIANTS}
    return scores


@contextmanager
def sliced(model: Any, mask_LD: Tensor) -> Iterator[None]:
    """Leave only the channels of `mask_LD` in the model's FFNs while the block lasts.

    FFNs become smaller, which computes the same as zeros in place of all other channels.
    """
    ffns = find_ffns(model)
    names = ("gate_proj", "up_proj", "down_proj")
    linears = [[getattr(ffn.module, name) for name in names] for ffn in ffns]
    full = [[linear.weight.data for linear in of_layer] for of_layer in linears]
    try:
        for of_layer, mask_D in zip(linears, mask_LD, strict=True):
            gate, up, down = of_layer
            gate.weight.data, up.weight.data = gate.weight.data[mask_D], up.weight.data[mask_D]
            down.weight.data = down.weight.data[:, mask_D].contiguous()
        yield
    finally:
        for of_layer, weights in zip(linears, full, strict=True):
            for linear, weight in zip(of_layer, weights, strict=True):
                linear.weight.data = weight


def losses_of(model: Any, windows_VT: Tensor) -> list[float]:
    """Return each window's mean cross entropy in nats a token, computed from float32 logits."""
    losses = []
    with torch.inference_mode():
        for ids_T in windows_VT:
            logits = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
            losses.append(float(functional.cross_entropy(logits.float(), ids_T[1:])))
    return losses


def kept_scores(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a file; make and save them if there is none."""
    from safetensors.torch import load_file, save_file

    if not path.exists():
        made = make()
        with whole_file(path) as file:
            save_file(dict(made), file)
    return load_file(path)


def kept_losses(path: Path, make: Callable[[], list[float]]) -> list[float]:
    """Return the losses of a file; make and save them if there is none."""
    if not path.exists():
        made = make()
        with whole_file(path) as file:
            write_json(file, {"losses": made})
    losses: list[float] = json.loads(path.read_text(encoding="utf-8"))["losses"]
    return losses


def measure(settings: Settings, corpus: Corpus, out: Path, first: int) -> tuple[Losses, Scores]:
    """Return all losses and scores of the `first` samples."""
    claim(out, settings, corpus)
    model, tokenizer = load_base(settings.base, dtype=settings.dtype)
    texts = texts_of(
        corpus,
        tokenizer,
        settings.tokens,
        settings.samples,
        settings.held_out,
        settings.length,
    )
    domains = list(texts)
    losses: dict[Cell, list[float]] = {}
    scores: dict[tuple[str, int, int], Tensor] = {}

    def look(cell: Cell) -> list[float]:
        windows = texts[cell.domain].held_out
        if cell.mask == "dense":
            return losses_of(model, windows)
        with sliced(model, mask_of(cell, scores, domains)):
            return losses_of(model, windows)

    for sample in range(first):
        by_domain = [
            kept_scores(
                out / f"scores-{sample}-{domain}.safetensors",
                partial(scores_by_size, model, texts[domain].samples[sample], settings.sizes),
            )
            for domain in counted(domains, f"sample {sample}, scores")
        ]
        for variant, size in product(VARIANTS, settings.sizes):
            of_size = [each[f"{variant}-{size}"] for each in by_domain]
            scores[variant, size, sample] = torch.stack(of_size)
        for cell in counted(list(asked(settings, domains, sample)), f"sample {sample}, losses"):
            losses[cell] = kept_losses(out / cell.file, partial(look, cell))
    for cell in counted(list(compared(settings, domains, first)), "other losses"):
        losses[cell] = kept_losses(out / cell.file, partial(look, cell))
    return losses, scores


def claim(out: Path, settings: Settings, corpus: Corpus) -> None:
    """Write what this run is into its folder. Raise `OutputError` if another one is there."""
    path = out / "run.json"
    story = json.loads(json.dumps({**asdict(settings), "text": corpus.describe()}))
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != story:
            raise OutputError(out, "holds another run (see its run.json); choose another folder")
        return
    with whole_file(path) as file:
        write_json(file, story)


def asked(settings: Settings, domains: Sequence[str], sample: int) -> Iterator[Cell]:
    """Yield what the study's question needs of one sample."""
    for share in settings.shares:
        yield from own_and_pooled(How("code", settings.tokens, share), domains, sample)


def compared(settings: Settings, domains: Sequence[str], samples: int) -> Iterator[Cell]:
    """Yield all other losses: the dense model, chance, other domains' masks, other scores."""
    share = settings.shares[0]
    for domain in domains:
        yield Cell("code", 0, 1.0, 0, "dense", domain)
    for sample, (mask, domain) in product(range(samples), permutations(domains, 2)):
        yield Cell("code", settings.tokens, share, sample, mask, domain)
    for each, draw, domain in product(settings.shares, range(settings.draws), domains):
        yield Cell("code", 0, each, draw, "random", domain)
    others = [How("code", size, share) for size in settings.sizes[:-1]]
    others.append(How("paper", settings.tokens, share))
    for how, sample in product(others, range(samples)):
        yield from own_and_pooled(how, domains, sample)


def own_and_pooled(how: How, domains: Sequence[str], sample: int) -> Iterator[Cell]:
    for domain in domains:
        yield Cell(*how, sample, domain, domain)
        yield Cell(*how, sample, "pooled", domain)


def mask_of(cell: Cell, scores: Scores, domains: Sequence[str]) -> Tensor:
    """Return the channels `[L, D]` (bool) that a cell's model has."""
    if cell.mask == "random":
        like = top_masks(next(iter(scores.values())), domains, cell.share, "code")
        return random_masks(like, cell.sample).chosen[0]
    scores_NLD = scores[cell.variant, cell.tokens, cell.sample]
    if cell.mask == "pooled":
        return pooled_mask(scores_NLD, cell.share, cell.variant)
    masks = top_masks(scores_NLD, domains, cell.share, cell.variant)
    return masks.chosen[domains.index(cell.mask)]
