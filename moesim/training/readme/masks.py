"""Masks: the channels that each expert takes from a dense model's FFNs.

Expert i takes the channels that score highest on domain i, layer by layer. Channels that every
expert takes form the *permanent* expert, which all tokens use. The rest of a mask is the expert's
*own* channels; two experts may share some of these too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from moesim.errors import UsageError
from moesim.files import whole_file
from moesim.streams import stream
from moesim.training.readme.ffn import Variant


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """The channels `chosen` `[N, L, D]` (bool) of N experts, one a domain, in L layers.

    `share` is the requested share of the D channels. `origin` says how they were chosen: `paper`,
    `code` or `random`. Raises `UsageError` for an expert without a channel.
    """

    domains: tuple[str, ...]
    chosen: Tensor
    share: float
    origin: str

    def __post_init__(self) -> None:
        empty = (self.sizes == 0).nonzero().tolist()
        if empty:
            expert, layer = empty[0]
            raise UsageError(
                f"expert {expert} ({self.domains[expert]}) has no channel in layer {layer} "
                f"(share {self.share}, {self.origin}); take a larger share"
            )

    @property
    def permanent(self) -> Tensor:
        """Return `[L, D]`: the channels that all experts have."""
        return self.chosen.all(dim=0)

    @property
    def own(self) -> Tensor:
        """Return `[N, L, D]`: the channels of each expert that are not permanent."""
        return self.chosen & ~self.permanent

    @property
    def sizes(self) -> Tensor:
        """Return `[N, L]`: how many channels each expert has in each layer."""
        return self.chosen.sum(dim=-1)

    @property
    def overlap(self) -> Tensor:
        """Return `[N, N]` float64: the share of expert i's channels that expert j has too."""
        flat = self.chosen.flatten(1).double()
        return flat @ flat.T / flat.sum(dim=1, keepdim=True)

    @property
    def empty_own(self) -> list[tuple[int, int]]:
        """Return each (expert, layer) without own channels, which `unfused` would leave empty."""
        return [(n, layer) for n, layer in (~self.own.any(dim=-1)).nonzero().tolist()]

    def describe(self) -> dict[str, Any]:
        """Return sizes and overlaps as plain JSON; channels are means over layers."""
        num_experts, num_layers, width = self.chosen.shape
        permanent = int(self.permanent.sum())
        return {
            "domains": list(self.domains),
            "origin": self.origin,
            "share": self.share,
            "layers": num_layers,
            "width": width,
            "channels": (self.sizes.sum(dim=1) / num_layers).tolist(),
            "permanent_channels": permanent / num_layers,
            "permanent_share_of_expert": permanent * num_experts / int(self.sizes.sum()),
            "overlap": self.overlap.tolist(),
            "empty_own": self.empty_own,
        }

    def save(self, path: str | Path) -> None:
        """Write the whole safetensors file or nothing. Raise `OutputError` on failure."""
        from safetensors.torch import save_file

        story = {"domains": json.dumps(self.domains), "share": repr(self.share)}
        with whole_file(Path(path)) as partial:
            save_file(
                {"chosen": self.chosen.contiguous()}, partial, story | {"origin": self.origin}
            )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raise `UsageError` for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                story, chosen = file.metadata(), file.get_tensor("chosen")
            return cls(
                tuple(json.loads(story["domains"])), chosen, float(story["share"]), story["origin"]
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: no masks in this file: {error}") from error


def check_masks(domains: Sequence[str], width: int, share: float, variant: Variant) -> None:
    """Raise `UsageError` before any scoring if no masks of this kind exist."""
    if len(domains) < 2:
        raise UsageError(f"{len(domains)} domains: at least 2 are needed, one an expert")
    if not 0 < share <= 1:
        raise UsageError(f"share ({share}) must be above 0 and at most 1")
    if len(domains) > width:
        raise UsageError(
            f"{len(domains)} experts are more than an FFN of {width} channels can be cut into"
        )
    if (kept := _kept(width, share, variant)) < 1:
        raise UsageError(
            f"share ({share}) of {width} channels leaves an expert {kept} channels "
            f"({variant}); take a larger share"
        )


def top_masks(
    scores: Tensor, domains: Sequence[str], share: float = 0.5, variant: Variant = "paper"
) -> Masks:
    """Return each expert's highest-scoring channels of `scores` `[N, L, D]`, layer by layer.

    With n = floor(share x D), `paper` takes the n highest (of equals the first). `code`, as
    released, takes those strictly above the n-th highest: n - 1, or fewer among equals.
    Raise `UsageError` as `check_masks` does, and if equals leave an expert without a channel.
    """
    width = scores.shape[-1]
    check_masks(domains, width, share, variant)
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    if variant == "code":
        # Strictly above, as released, which leaves one channel fewer than `paper`.
        chosen = scores > ordered[..., num_channels(width, share) - 1, None]
    else:
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen.scatter_(-1, order[..., : _kept(width, share, variant)], True)
    return Masks(tuple(domains), chosen, share, variant)


def pooled_mask(scores: Tensor, share: float = 0.5, variant: Variant = "paper") -> Tensor:
    """Return `[L, D]`: one mask for all domains, by the mean of their scores `[N, L, D]`.

    It has as many channels as each of `top_masks`, and is what their experts must beat. Raise
    `UsageError` as `top_masks` does.
    """
    mean_1LD = scores.mean(dim=0, keepdim=True)
    twice = mean_1LD.expand(2, -1, -1)  # masks have at least two experts
    return top_masks(twice, ("all", "again"), share, variant).chosen[0]


def random_masks(like: Masks, seed: int) -> Masks:
    """Draw as many random channels for each expert and layer as `like` has: a control."""
    draw = stream(seed, "random masks")
    chosen = torch.zeros_like(like.chosen)
    for (expert, layer), size in zip(
        torch.cartesian_prod(*map(torch.arange, like.sizes.shape)).tolist(),
        like.sizes.flatten().tolist(),
        strict=True,
    ):
        chosen[expert, layer, draw.permutation(like.chosen.shape[-1])[:size]] = True
    return Masks(like.domains, chosen, like.share, "random")


def num_channels(width: int, share: float) -> int:
    """Return floor(share x width): the channels of an expert, and of a token's own mask."""
    return int(share * width + 1e-9)  # 0.29 x 100 is 28.999... in floating point


def _kept(width: int, share: float, variant: Variant) -> int:
    return num_channels(width, share) - (variant == "code")
