"""Shares the trials of a sweep among any number of workers, which may be killed at any moment.

A worker asks for a :class:`Claim`, trains, and says how the trial ended. Nothing is lost: a trial whose worker died is
made again in the same slot with the same parameters. Nothing counts twice: a slot is filled by one trial, whatever a
worker does that was thought dead and comes back. See :mod:`harness.sweep.slots` for the rules, which every worker
applies to the list of trials by itself; there is no coordinator. From the storage they need two steps that are atomic:
creating a trial with its attributes, and changing its state, where of several that turn WAITING into RUNNING one wins
and a finished trial never changes again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from harness.errors import one_line
from harness.sweep.owners import HEARTBEAT, OWNER, Watch, is_dead, this_process
from harness.sweep.slots import (
    FAILURE,
    RELEASED,
    REPLACES,
    SLOT,
    SPARE,
    Slot,
    filled_trials,
    finished_for_good,
    slots_of,
)
from harness.sweep.storage import storage_errors
from harness.sweep.studies import find_study, open_study

__all__ = ["Claim", "Claims", "filled_trials", "find_study", "open_study"]

FIXED = "fixed_params"
"""System attribute, Optuna's own: the parameters that a trial gets without asking the sampler."""

_log = logging.getLogger(__name__)


class Claim:
    """A trial that this process works on.

    Attributes:
        slot: its place in the sweep, 0-based.
        trial: suggests parameters, takes reports, and says when to prune. Once the claim is lost its methods raise
            ``optuna.exceptions.UpdateFinishedTrialError``.
        lost: others have found this process dead or silent, and the slot is theirs; the outcome here is void.
    """

    def __init__(self, claims: Claims, study: Study, slot: int, trial_id: int) -> None:
        self.slot, self.lost = slot, False
        self._claims, self._id = claims, trial_id
        self._storage, self._beats, self._ending = study._storage, 0, False
        self.trial = Trial(study, trial_id)

    def complete(self, values: Sequence[float], attrs: Mapping[str, Any] | None = None) -> bool:
        """Ends the trial with a value for each objective.

        Args:
            values: finite.
            attrs: user attributes, written before.

        Returns:
            Whether it counts; False if the claim was lost.

        Raises:
            ValueError: a value is not a number, or there are too few or many.
        """
        if len(values) != len(self.trial.study.directions) or any(value != value for value in values):
            raise ValueError(f"{list(values)} are not the values of {len(self.trial.study.directions)} objectives")
        return self._end(TrialState.COMPLETE, [float(value) for value in values], dict(attrs or {}))

    def prune(self, failure: str | None = None, attrs: Mapping[str, Any] | None = None) -> bool:
        """Ends the trial early, because the pruner said so or, with a sentence in ``failure``, because it diverged."""
        told = {} if failure is None else {FAILURE: failure}
        return self._end(TrialState.PRUNED, None, {**(attrs or {}), **told})

    def fail(self, failure: str, attrs: Mapping[str, Any] | None = None) -> bool:
        """Ends the trial without a result for the reason given, a sentence."""
        return self._end(TrialState.FAIL, None, {**(attrs or {}), FAILURE: failure})

    def beat(self) -> None:
        """Shows that this process is alive."""
        try:
            self._storage.set_trial_system_attr(self._id, HEARTBEAT, self._beats + 1)
            self._beats += 1
        except UpdateFinishedTrialError:
            self.lost = self.lost or not self._ending
            self._claims._held.pop(self._id, None)

    def release(self) -> None:
        """Gives the trial back, as if this process had died but not counted as a death."""
        self.lost = True
        self._claims._held.pop(self._id, None)
        try:
            self._storage.set_trial_system_attr(self._id, RELEASED, True)
        except UpdateFinishedTrialError:
            return
        _lose(self._storage, self._id)

    def _end(self, state: TrialState, values: list[float] | None, attrs: Mapping[str, Any]) -> bool:
        if self.lost:
            return False
        self._ending = True
        try:
            for key, value in attrs.items():
                self._storage.set_trial_user_attr(self._id, key, value)
            self._finish(state, values)
        except UpdateFinishedTrialError:
            # By others, or by ourselves: a server that was restarted may have kept what it could not answer any more.
            self.lost = not finished_for_good(self._storage.get_trial(self._id))
        finally:
            self._ending = False
        self._claims._held.pop(self._id, None)
        return not self.lost

    def _finish(self, state: TrialState, values: list[float] | None) -> None:
        frozen, study = self._storage.get_trial(self._id), self.trial.study
        if state == TrialState.PRUNED and frozen.last_step is not None and len(study.directions) == 1:
            last = frozen.intermediate_values[frozen.last_step]
            values = [last] if last == last else None  # Optuna, too, gives a pruned trial its last value, but not NaN
        study.sampler.after_trial(study, frozen, state, values)
        if not self._storage.set_trial_state_values(self._id, state, values):
            raise StorageInternalError(f"the storage did not take the end of trial {frozen.number}")


class Claims:
    """The slots of a sweep, seen by one worker: made in the process that works on its claims.

    Args:
        study: what :func:`open_study` returned; its pruner is that of the trials.
        slots: how many trials the sweep has.
        sampler: slot -> a sampler of its own, deterministic, so that a slot that is tried again before its parameters
            are known gets the same ones.
        fixed: slot -> parameters that its trial must have, None for none.
        parameters: names that each trial has. A lost trial that had all of them hands its values on to the next
            attempt; one that had fewer is sampled afresh.
        beat_seconds: between two heartbeats.
        grace_seconds: how long a heartbeat may stop before a trial is lost; at least four beats, and more than the
            longest time that a worker may be stopped or the storage may be away for it alone.
        most_losses: a slot is given up after so many deaths of its process, since its trial may be what kills.
    """

    def __init__(
        self,
        study: Study,
        slots: int,
        *,
        sampler: Callable[[int], BaseSampler],
        fixed: Callable[[int], Mapping[str, Any] | None] = lambda slot: None,
        parameters: Collection[str] = (),
        beat_seconds: float = 15.0,
        grace_seconds: float = 120.0,
        most_losses: int = 20,
    ) -> None:
        if grace_seconds < 4 * beat_seconds:
            raise ValueError(f"grace_seconds {grace_seconds} is less than four times beat_seconds {beat_seconds}")
        self._study, self._storage, self._count = study, study._storage, slots
        self._sampler, self._fixed, self._parameters = sampler, fixed, set(parameters)
        self._most_losses, self._beat_seconds = most_losses, beat_seconds
        self._watch = Watch(grace_seconds)
        self._owner = this_process()
        self._held: dict[int, Claim] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def claim(self) -> Claim | None:
        """Returns the trial to work on next, None if there is none right now.

        Then ask again a moment later, as often as every few seconds, until :meth:`unfinished` is 0: others may die.
        """
        self._start_beating()
        while True:
            slots = self._look()
            slot = next((slot for slot in slots if slot.is_open), None)
            if slot is None:
                if all(slot.filled for slot in slots):
                    self._close_spares(slots)
                return None
            if slot.current is None:
                self._create(slot)  # and look again: others may have created one, with a lower number
            elif slot.deaths >= self._most_losses:
                self._give_up(slot)
            elif claim := self._take(slot):
                return claim

    def unfinished(self) -> int:
        """Returns how many slots are not filled yet, those that are worked on included."""
        return sum(slot.filled is None for slot in self._slots())

    def waiting(self) -> int:
        """Returns how many slots nobody works on; those whose process is dead or silent are among them."""
        return sum(slot.is_open for slot in self._look())

    def close_spares(self) -> None:
        """Closes attempts that are not needed, once every slot is filled."""
        slots = self._slots()
        if all(slot.filled for slot in slots):
            self._close_spares(slots)

    def filled(self) -> list[FrozenTrial]:
        """Returns the trial that counts for each filled slot, by slot."""
        return filled_trials(self._study, self._count)

    def release(self) -> None:
        """Gives all claims of this process back at once, for a clean stop."""
        for claim in list(self._held.values()):
            claim.release()

    def close(self) -> None:
        """Ends the heartbeats; claims that are still held are lost after the grace period."""
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=5.0)  # it may be waiting for a storage that does not answer

    def _slots(self) -> list[Slot]:
        return slots_of(self._storage.get_all_trials(self._study._study_id, deepcopy=False), self._count)

    def _look(self) -> list[Slot]:
        """Declares trials lost whose processes are dead or silent, and returns the slots as they are then."""
        slots = self._slots()
        running = [trial for slot in slots for trial in slot.attempts if trial.state == TrialState.RUNNING]
        silent = self._watch.silent(running)
        gone = [
            trial._trial_id
            for trial in running
            if trial._trial_id not in self._held
            and (trial._trial_id in silent or is_dead(trial.user_attrs.get(OWNER, "")))
        ]
        for trial_id in gone:
            _lose(self._storage, trial_id)
        return self._slots() if gone else slots

    def _inherited(self, slot: Slot) -> dict[str, Any]:
        """System attributes of a slot's next attempt: the same, whoever works them out."""
        fixed = dict(self._fixed(slot.index) or {})
        for trial in slot.lost:
            fixed |= trial.system_attrs.get(FIXED, {})
            if self._parameters <= trial.params.keys():
                fixed |= trial.params
        numbers = [trial.number for trial in slot.lost]
        return ({FIXED: fixed} if fixed else {}) | ({REPLACES: numbers} if numbers else {})

    def _create(self, slot: Slot) -> None:
        template = optuna.trial.create_trial(
            state=TrialState.WAITING, user_attrs={SLOT: slot.index}, system_attrs=self._inherited(slot)
        )
        self._storage.create_new_trial(self._study._study_id, template)

    def _take(self, slot: Slot) -> Claim | None:
        """Claims a slot's current attempt; None if others were faster."""
        trial = slot.current
        trial_id = trial._trial_id
        try:
            for key, value in self._inherited(slot).items():
                if trial.system_attrs.get(key) != value:  # a spare, created before the attempt it now replaces was lost
                    self._storage.set_trial_system_attr(trial_id, key, value)
            if not self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return None
            self._storage.set_trial_user_attr(trial_id, OWNER, self._owner)
        except UpdateFinishedTrialError:
            return None
        study = _SlotStudy(self._study.study_name, self._storage, self._sampler(slot.index), self._study.pruner)
        claim = Claim(self, study, slot.index, trial_id)
        self._held[trial_id] = claim
        return claim

    def _give_up(self, slot: Slot) -> None:
        trial_id = slot.current._trial_id
        try:
            self._storage.set_trial_user_attr(trial_id, FAILURE, f"its process died {slot.deaths} times")
        except UpdateFinishedTrialError:
            return
        _lose(self._storage, trial_id)

    def _close_spares(self, slots: Sequence[Slot]) -> None:
        for trial in [trial for slot in slots for trial in slot.attempts if not trial.state.is_finished()]:
            try:
                self._storage.set_trial_user_attr(trial._trial_id, SPARE, True)
            except UpdateFinishedTrialError:
                continue
            _lose(self._storage, trial._trial_id)

    def _start_beating(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
            self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            try:
                for claim in list(self._held.values()):
                    claim.beat()
                self._look()  # so that the watch goes on while this process trains
            except storage_errors() as error:
                _log.warning("no heartbeat could be written (%s)", one_line(error))


class _SlotStudy(Study):
    """The study as samplers and pruners see it: trials that were lost do not compete with those that replace them."""

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        trials = super().get_trials(deepcopy, states)
        return [trial for trial in trials if not trial.state.is_finished() or finished_for_good(trial)]


def _lose(storage: BaseStorage, trial_id: int) -> None:
    """Ends a trial without a result; it stays as it is where it has ended already."""
    with contextlib.suppress(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial_id, TrialState.FAIL)
