"""Optuna as the chooser of points: what to try next, from all that was tried.

The study is stored in a journal, a file of JSON lines, after every step. A later command with the
same study continues it. A choice (`moesim.search.sampler`) depends on the stored trials and on the
trial's number alone. So a search that was killed and continued chooses the same points as one that
was not.

This module needs the extra `search`; others import it inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from moesim.errors import OutputError
from moesim.files import output_errors
from moesim.search.grid import Grid, Place
from moesim.search.optimum import JOURNAL
from moesim.search.sampler import GridSampler

__all__ = ["BATCH", "Answer", "Chooser", "open_chooser"]

BATCH: Final = 4
"""The places that are chosen together: enough to keep a few processes busy."""


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
            sampler=GridSampler(grid, free, space, seed),
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
