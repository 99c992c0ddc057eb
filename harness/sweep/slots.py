"""The places of a sweep and the trials tried for each, derived from the list of trials alone.

A sweep of N trials has the slots 0 to N - 1. A slot is filled by one finished trial; a trial whose process died, or was
stopped, is *lost*, and the slot gets another *attempt*. Everybody who reads the list comes to the same conclusion, so
that nothing but the storage's own steps needs to be atomic:

* Attempts of a slot count by the order of their numbers. The first one that finished fills the slot.
* Otherwise the first one that is not lost is the slot's current attempt; only that one may be run.
* Later ones, as two processes may make at the same moment, are *spares*: taken if the current one is lost, closed at
  the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

SLOT = "slot"
"""User attribute: the slot, written when the trial is created."""
FAILURE = "failure"
"""User attribute: why a trial failed or diverged; a trial that failed without is lost."""
SPARE = "spare"
"""User attribute of a trial that the sweep did not need."""
RELEASED = "released"
"""System attribute of a lost trial that was given back by a worker that stopped on purpose."""
REPLACES = "replaces"
"""System attribute: the numbers of the attempts that were found lost when this one took their place."""


@dataclass(frozen=True)
class Slot:
    """A place of the sweep.

    Attributes:
        index: 0-based.
        attempts: the trials tried for it by number, without spares that are closed.
    """

    index: int
    attempts: tuple[FrozenTrial, ...] = ()

    @property
    def lost(self) -> tuple[FrozenTrial, ...]:
        # On PostgreSQL a write of FAILURE under way may end after the trial was found lost. Then its successor's word
        # counts, because somebody may be running that one.
        replaced = {number for trial in self.attempts for number in trial.system_attrs.get(REPLACES, ())}
        return tuple(
            trial
            for trial in self.attempts
            if trial.state == TrialState.FAIL and (FAILURE not in trial.user_attrs or trial.number in replaced)
        )

    @property
    def deaths(self) -> int:
        """How many attempts were lost with their process."""
        return sum(RELEASED not in trial.system_attrs for trial in self.lost)

    @property
    def filled(self) -> FrozenTrial | None:
        lost = {trial.number for trial in self.lost}
        finished = (trial for trial in self.attempts if trial.state.is_finished())
        return next((trial for trial in finished if trial.number not in lost), None)

    @property
    def current(self) -> FrozenTrial | None:
        """The attempt that may be run or is running, None where a new one is needed or the slot is filled."""
        if self.filled:
            return None
        return next((trial for trial in self.attempts if not trial.state.is_finished()), None)

    @property
    def is_open(self) -> bool:
        """Whether somebody should begin to work on it."""
        if self.filled:
            return False
        return self.current is None or self.current.state == TrialState.WAITING


def finished_for_good(trial: FrozenTrial) -> bool:
    """Whether a trial ended with a result: a value, pruned, or a failure of which it tells the reason."""
    if trial.state == TrialState.FAIL:
        return FAILURE in trial.user_attrs
    return trial.state.is_finished()


def slots_of(trials: Iterable[FrozenTrial], slots: int | None = None) -> list[Slot]:
    """Sorts trials into slots.

    Args:
        trials: all trials of a study, in any order.
        slots: how many slots to return, from 0 on; up to the last one that has a trial if None.
    """
    attempts: defaultdict[int, list[FrozenTrial]] = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: trial.number):
        closed = trial.state.is_finished() and SPARE in trial.user_attrs
        if SLOT in trial.user_attrs and not closed:
            attempts[trial.user_attrs[SLOT]].append(trial)
    count = max(attempts, default=-1) + 1 if slots is None else slots
    return [Slot(index, tuple(attempts[index])) for index in range(count)]


def filled_trials(study: Study, slots: int | None = None) -> list[FrozenTrial]:
    """Returns the trial that counts for each filled slot, by slot; of the first ``slots`` ones if a number is given."""
    return [slot.filled for slot in slots_of(study.get_trials(), slots) if slot.filled]
