"""Small random data sets in the form of those of the multi-task studies."""

from __future__ import annotations

import numpy as np
import torch

from moesim.training.digits import Digits
from moesim.training.movielens import Ratings


def made_up_digits(per_class: int = 10, seed: int = 0) -> Digits:
    """Return images of noise, all different; `per_class` of each of the ten labels."""
    images = torch.rand(10 * per_class, 28, 28, generator=torch.Generator().manual_seed(seed))
    return Digits(images, torch.arange(10).repeat(per_class))


def made_up_ratings(users: int = 20, movies: int = 30, count: int = 200, seed: int = 0) -> Ratings:
    """Return `count` ratings in which every user and every movie occurs."""
    draw = np.random.default_rng(seed)
    pairs = np.concatenate([np.arange(users) * movies, np.arange(movies)])
    free = np.setdiff1d(np.arange(users * movies), pairs)
    chosen = np.union1d(pairs, draw.choice(free, count - len(np.unique(pairs)), replace=False))
    values = draw.integers(1, 6, size=count).astype(np.float32)
    return Ratings(chosen // movies, chosen % movies, values)
