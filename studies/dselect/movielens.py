"""MovieLens-100k by mixtures with different gates: would a user watch a movie, and its rating.

    python studies/dselect/movielens.py OUT [--gates dselect_k top_k ...] [--seeds 3]

Tasks, split and layer sizes are those of COMET's supplement, with a tenth of its data, fewer
experts and one epoch. Unwatched pairs and the split are drawn once, so that tuning sees no test
row. A seed draws first weights and batches. Gates are static, with one set of weights a task. With
--per-example they read the embeddings.

Said before the first run: the question is whether DSelect-k's test losses are below plain Top-k's,
paired over the seeds, both after the same tuning, and whether they are below the control's. A
difference of 22 % of a loss, as published for another recommender, would be far outside the
intervals of three seeds. Hash shows whether the choice of experts matters at all.

The ratings are read from the package recbole (pip install --no-deps recbole==1.2.1) and not stored.
Each finished run is kept in OUT, and a killed study resumes there. It takes about seven minutes of
one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import multitask

from moesim.cli.ending import run_to_its_end
from moesim.training import movielens
from moesim.training.gates import Gate
from moesim.training.multitask import Mixture

RATES = (5e-4, 2e-2)


def make_world(options: argparse.Namespace, ratings: movielens.Ratings) -> multitask.World:
    """Return the study's data and network."""
    tasks = movielens.tasks(options.watch_weight)
    rows = movielens.prepare(ratings)

    def network(gates: Sequence[Gate]) -> Mixture:
        return Mixture(
            [movielens.expert(2 * options.width) for _ in range(options.experts)],
            gates,
            {task.name: movielens.tower() for task in tasks},
            trunk=movielens.Embeddings(ratings.num_users, ratings.num_movies, options.width),
        )

    return multitask.World(
        tasks,
        lambda seed: rows,
        network,
        n=options.experts,
        k=options.k,
        features=2 * options.width if options.per_example else None,
        epochs=options.epochs,
        batch=options.batch,
        rates=RATES,
        size=multitask.size_of(options),
    )


def main(arguments: Sequence[str] | None = None, ratings: movielens.Ratings | None = None) -> None:
    """Run the study from a command line, with `ratings` if they are given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    multitask.add_arguments(parser, epochs=1, batch=256, draws=2, seeds=3)
    parser.add_argument("--width", type=int, default=128, help="of an embedding")
    parser.add_argument("--watch-weight", type=float, default=0.5, help="the rest is rating's")
    options = parser.parse_args(arguments)
    multitask.run_study(options, make_world(options, ratings or movielens.load()))


if __name__ == "__main__":
    run_to_its_end(main)
