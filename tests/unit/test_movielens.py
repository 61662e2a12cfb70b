"""MovieLens: what is watched and how it is rated, split as said, from a package where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="mixtures need the torch extra")

from random_datasets import made_up_ratings  # noqa: E402

from moesim.errors import UsageError  # noqa: E402
from moesim.training import movielens  # noqa: E402
from moesim.training.multitask import Examples  # noqa: E402

torch.set_num_threads(1)
real = pytest.mark.skipif(
    movielens.find() is None,
    reason="the ratings are in the package recbole (1.2.1), which is not installed",
)

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def pairs_of(rows: Examples) -> list[tuple[int, int]]:
    return [(user, movie) for user, movie in rows.inputs.tolist()]


def test_splits_are_disjoint_of_the_sizes_said_and_half_watched() -> None:
    parts = movielens.prepare(made_up_ratings())
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 316,
        "validation": 44,
        "test": 40,
    }
    together = [pair for rows in parts.values() for pair in pairs_of(rows)]
    assert len(set(together)) == len(together) == 400
    for rows in parts.values():
        assert rows.targets["watch"].double().mean() == 0.5


def test_what_was_rated_is_watched_with_its_rating_and_nothing_else_is() -> None:
    ratings = made_up_ratings()
    rated = {
        (int(user), int(movie)): float(value)
        for user, movie, value in zip(ratings.users, ratings.movies, ratings.values, strict=True)
    }
    seen = 0
    for rows in movielens.prepare(ratings).values():
        for row, pair in enumerate(pairs_of(rows)):
            assert bool(rows.targets["watch"][row]) == bool(rows.known["rating"][row])
            assert bool(rows.known["rating"][row]) == (pair in rated)
            assert rows.targets["rating"][row] == rated.get(pair, 0)
            seen += pair in rated
    assert seen == len(rated)


def test_a_seed_fixes_rows_and_another_draws_others() -> None:
    one, same, other = (movielens.prepare(made_up_ratings(), seed)["test"] for seed in (0, 0, 1))
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.inputs, other.inputs)


def test_where_few_pairs_are_unwatched_all_of_them_are_drawn() -> None:
    parts = movielens.prepare(made_up_ratings(5, 8, 35))
    watched = [int(rows.targets["watch"].sum()) for rows in parts.values()]
    assert (sum(watched), sum(map(len, parts.values()))) == (35, 40)


def test_a_file_is_read_with_ids_that_count_from_zero(tmp_path: Path) -> None:
    file = tmp_path / "ratings"
    file.write_text(HEADER + "7\t20\t3\t1\n9\t20\t5\t2\n7\t11\t1\t3\n", encoding="utf-8")
    ratings = movielens.read(file)
    assert ratings.users.tolist() == [0, 1, 0]
    assert ratings.movies.tolist() == [1, 1, 0]
    assert ratings.values.tolist() == [3, 5, 1]
    assert (ratings.num_users, ratings.num_movies) == (2, 2)
    file.write_text("a\tb\n1\t2\n", encoding="utf-8")
    with pytest.raises(UsageError, match="lacks one of user_id"):
        movielens.read(file)


def test_without_the_package_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install --no-deps recbole==1\.2\.1"):
        movielens.load()


def test_embeddings_experts_and_towers_fit() -> None:
    features = movielens.Embeddings(4, 5, 3)(torch.tensor([[3, 4], [0, 0]]))
    assert features.shape == (2, 6)
    assert movielens.tower()(movielens.expert(6)(features)).shape == (2, 1)


@pytest.mark.parametrize("watch", [0.0, 1.0])
def test_both_tasks_weigh_something(watch: float) -> None:
    with pytest.raises(UsageError, match="weight of task"):
        movielens.tasks(watch)


@real
def test_the_real_ratings_are_a_hundred_thousand() -> None:
    ratings = movielens.load()
    assert len(ratings.values) == 100_000
    assert (ratings.num_users, ratings.num_movies) == (943, 1682)
    assert sorted(set(ratings.values.tolist())) == [1, 2, 3, 4, 5]
    parts = movielens.prepare(ratings)
    assert [len(rows) for rows in parts.values()] == [157_500, 22_500, 20_000]
