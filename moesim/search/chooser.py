"""Optuna as the chooser of points: what to try next, from all that was tried.

The study is stored in a journal, a file of JSON lines, after every step. A later command with the
same study continues it. The choice of a trial depends on the stored trials and on the trial's
number alone: each trial has a sampler of its own, seeded by the search's seed and this number. So a
search that was killed and continued chooses the same points as one that was not.

The first choices are spread over the grid: each is a place that is farthest from those before it.
Later ones alternate. One is that of TPE (Watanabe, arXiv 2304.11127). A grid has few points, so TPE
would often choose one again; the nearest free place replaces it. The other is a free place beside
one of the best, because the metrics of a simulation seldom jump between neighbours.

This module needs the extra `search`; others import it inside functions.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from moesim.errors import OutputError
from moesim.files import output_errors
from moesim.search.front import better_part, front_of
from moesim.search.grid import Grid, Place

__all__ = ["BATCH", "JOURNAL", "Answer", "Chooser", "open_chooser"]

BATCH: Final = 4
"""The places that are chosen together: enough to keep a few processes busy."""
SPREAD: Final = 2 * BATCH
"""The first places, which are spread evenly, because TPE has nothing to learn from yet."""
JOURNAL: Final = "optuna.journal"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a trial found: its objectives, and by how much it misses each condition (0: met).

    `objectives` is None where the run failed or an objective is undefined.
    """

    objectives: tuple[float, ...] | None
    excess: tuple[float, ...] = ()


@dataclass(slots=True)
class Chooser:
    """A study of Optuna over the places of a grid."""

    study: optuna.Study
    keys: tuple[str, ...]
    space: Mapping[str, BaseDistribution]
    _open: dict[int, Trial] = field(default_factory=dict)

    def answered(self) -> list[Place]:
        """Return the places of the trials that have an answer, in their order."""
        finished = [each for each in self._trials() if each.state.is_finished()]
        return [self._place(each) for each in finished]

    def next_batch(self, most: int) -> list[tuple[int, Place]]:
        """Return up to BATCH trials without an answer, as number and place; [] at `most` trials.

        Trials that a killed search had chosen are returned again.
        """
        trials = self._trials()
        # Answers are stored in the order of the trials, so those without one are the last.
        first = sum(each.state.is_finished() for each in trials)
        batch = []
        for number in range(first, min(most, first - first % BATCH + BATCH)):
            if number < len(trials):  # perhaps not all of its values are chosen
                trial = Trial(self.study, trials[number]._trial_id)
            else:
                trial = self.study.ask()
            self._open[number] = trial
            self._choose(trial)
            batch.append((number, self._place(trial)))
        return batch

    def tell(self, number: int, answer: Answer) -> None:
        """Store the answer of a trial that `next_batch` returned."""
        trial = self._open.pop(number)
        if answer.objectives is None:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        stored = self._trials()[number].system_attrs  # by a search that was killed just then
        for at, miss in enumerate(answer.excess):
            if f"constraints:condition {at}" not in stored:
                trial.set_constraint(f"condition {at}", miss)
        self.study.tell(trial, answer.objectives)

    def _choose(self, trial: Trial) -> None:
        for name, distribution in self.space.items():
            if isinstance(distribution, IntDistribution):
                trial.suggest_int(name, distribution.low, distribution.high)
            elif isinstance(distribution, CategoricalDistribution):
                trial.suggest_categorical(name, distribution.choices)

    def _place(self, trial: Trial | FrozenTrial) -> Place:
        """Return the place of a trial; a key with one value is not chosen, and has the number 0."""
        return tuple(int(trial.params.get(key, 0)) for key in self.keys)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)


def open_chooser(
    grid: Grid,
    free: Sequence[Place],
    maximize: Sequence[bool],
    seed: int,
    name: str,
    *,
    anew: bool = False,
) -> Chooser:
    """Return the study `name` in the journal of the grid's folder, which is made if missing.

    `free` are the places that may be chosen, `maximize` the directions of the objectives. `anew`
    forgets the study's earlier trials. The caller holds the lock of the folder.

    Raises:
        OutputError: the journal cannot be written, or is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = grid.folder / JOURNAL
    # A key with one value leaves nothing to choose.
    space = {key: _distribution(grid, key) for key in grid.keys if len(grid.values[key]) > 1}
    try:
        storage = _storage(file)
        if anew and name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        study = optuna.create_study(
            storage=storage,
            sampler=_GridSampler(grid, free, space, seed),
            study_name=name,
            directions=["maximize" if more else "minimize" for more in maximize],
            load_if_exists=True,
        )
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        # Its lines are read by Optuna, which checks none of them.
        raise OutputError(
            file,
            f"it is no whole journal of Optuna ({type(error).__name__}); remove it, and the same "
            "command chooses anew; finished runs are kept",
        ) from None
    return Chooser(study, grid.keys, space)


def _storage(file: Path) -> JournalStorage:
    with output_errors(file):
        _mend(file)
        return JournalStorage(JournalFileBackend(str(file), lock_obj=_Unlocked(str(file))))


def _distribution(grid: Grid, key: str) -> BaseDistribution:
    count = len(grid.values[key])
    if key in grid.ordered:
        return IntDistribution(0, count - 1)
    return CategoricalDistribution(range(count))


class _Unlocked(JournalFileSymlinkLock):
    """No lock: the command holds that of the whole folder, and frees it even when it is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _mend(file: Path) -> None:
    """Remove the end of a journal that a killed process left half-written."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with file.open("r+b") as handle:
            handle.truncate(len(whole))


class _GridSampler(BaseSampler):
    """Choose spread places first, then in turn a place of TPE and one beside the best."""

    def __init__(
        self, grid: Grid, free: Sequence[Place], space: Mapping[str, BaseDistribution], seed: int
    ) -> None:
        self._keys = tuple(space)
        searched = [at for at, key in enumerate(grid.keys) if key in space]
        self._free = [tuple(place[at] for at in searched) for place in free]
        self._space = dict(space)
        # How far a step of a key is; an unordered key has only equal and different.
        self._steps = [
            1 / (len(grid.values[key]) - 1) if key in grid.ordered else None for key in space
        ]
        self._counts = [len(grid.values[key]) for key in space]
        self._seed = seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Return the values of all keys: the places are chosen as a whole."""
        taken = self._taken(study, trial)
        left = [place for place in self._free if place not in set(taken)]
        digest = hashlib.sha256(f"{self._seed} {trial.number}".encode()).digest()
        number = int.from_bytes(digest[:4], "big")
        rng = random.Random(number)
        if trial.number < SPREAD:
            place = self._farthest(left, taken, rng)
        elif trial.number % 2 and (beside := self._beside(_best(study), set(left))):
            place = rng.choice(beside)
        else:
            place = self._nearest(left, self._of_tpe(study, trial, number))
        return dict(zip(self._keys, place, strict=True))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise AssertionError("all values are chosen together")

    def _taken(self, study: optuna.Study, trial: FrozenTrial) -> list[Place]:
        others = study.get_trials(deepcopy=False)[: trial.number]
        return [tuple(int(each.params[key]) for key in self._keys) for each in others]

    def _of_tpe(self, study: optuna.Study, trial: FrozenTrial, seed: int) -> Place:
        tpe = TPESampler(seed=seed, n_startup_trials=1, multivariate=True)
        values = tpe.sample_relative(study, trial, self._space)
        if not values:  # nothing was answered yet
            values = {
                key: tpe.sample_independent(study, trial, key, distribution)
                for key, distribution in self._space.items()
            }
        return tuple(int(values[key]) for key in self._keys)

    def _beside(self, best: Sequence[FrozenTrial], left: Set[Place]) -> list[Place]:
        """Return the free places beside the best ones: each differs in one key.

        Of an ordered key, it is the middle of the free values next to the best one, on each side.
        """
        places = []
        for trial in best:
            own = tuple(int(trial.params[key]) for key in self._keys)
            for axis, step in enumerate(self._steps):
                line = [(*own[:axis], at, *own[axis + 1 :]) for at in range(self._counts[axis])]
                below, above = line[: own[axis]][::-1], line[own[axis] + 1 :]
                if step is None:
                    places += [place for place in (*below, *above) if place in left]
                    continue
                for side in (below, above):
                    free = list(itertools.takewhile(left.__contains__, side))
                    places += free[len(free) // 2 : len(free) // 2 + 1]
        return sorted(set(places))

    def _farthest(self, left: Sequence[Place], taken: Sequence[Place], rng: random.Random) -> Place:
        if not taken:
            return rng.choice(left)
        distances = [min(self._distance(place, other) for other in taken) for place in left]
        most = max(distances)
        return rng.choice([p for p, d in zip(left, distances, strict=True) if d > most - 1e-9])

    def _nearest(self, left: Sequence[Place], wanted: Place) -> Place:
        return min(left, key=lambda place: self._distance(place, wanted))

    def _distance(self, one: Place, other: Place) -> float:
        """Return the sum over the keys of how far two values are apart, as a share of the range."""
        return sum(
            float(a != b) if step is None else abs(a - b) * step
            for a, b, step in zip(one, other, self._steps, strict=True)
        )


def _best(study: optuna.Study) -> list[FrozenTrial]:
    """Return the front of the answered trials that meet all conditions, or the nearest to it."""
    trials = [each for each in study.get_trials(deepcopy=False) if each.values is not None]
    excess = [
        sum(miss for key, miss in each.system_attrs.items() if key.startswith("constraints:"))
        for each in trials
    ]
    signs = [1 if way == StudyDirection.MAXIMIZE else -1 for way in study.directions]
    scores = [
        [sign * value for sign, value in zip(signs, each.values, strict=True)] for each in trials
    ]
    met = [at for at, miss in enumerate(excess) if miss <= 0]
    if not met:
        return [trials[at] for at in better_part(scores, excess, 1)]
    return [trials[met[at]] for at in front_of([scores[at] for at in met])]
