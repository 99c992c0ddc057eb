"""What a person sees of a sweep while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from harness.console import Console, clock
from harness.sweep import show, trial
from harness.sweep.claims import filled_trials
from harness.sweep.conclusion import best_by_quality, place_of_quality, settings_in_words
from harness.sweep.search import Search
from harness.sweep.slots import FAILURE, SLOT
from harness.sweep.storage import without_password


def header(found: Search) -> str:
    """Returns what a sweep says before it starts."""
    config = found.config
    objectives = trial.objective_names(found.objectives, found.rule)
    return "\n".join(
        [
            f"sweep of {config.method} on {config.task}, preset {config.preset}, model {config.model}: {found.slots} "
            f"trials, sampler {found.sampler}, pruner {found.pruner}",
            f"searched: {found.space.describe()}",
            f"objective: {', '.join(objectives)}; {found.rule.words}",
            f"study {found.study} in {without_password(found.storage)}",
        ]
    )


class Progress:
    """Tells of trials as they end, with the best so far and the time left.

    Args:
        slots: how many trials there are in all.
        places: how many are worked on at the same time.
        words: what is told of one.
    """

    def __init__(self, slots: int, places: int, console: Console, words: Callable[[FrozenTrial], str]) -> None:
        self._slots, self._places, self._console, self._words = slots, places, console, words
        self._told: set[int] = set()

    def tell(self, filled: Sequence[FrozenTrial], first: bool = False) -> None:
        """Tells of those that are new; of what was there at the beginning only how many they are."""
        new = [each for each in filled if each.number not in self._told]
        self._told.update(each.number for each in new)
        if first:
            if new:
                self._console.say(f"{len(new)} of {self._slots} are there already")
            return
        for number, each in enumerate(new, start=len(self._told) - len(new) + 1):
            left = show.time_left(filled, self._slots, self._places)
            rest = "" if not left else f", about {clock(left)} left"
            self._console.say(f"{number} of {self._slots}: {self._words(each)}{rest}")


def trial_in_words(study: Study, found: FrozenTrial) -> str:
    """Returns how a trial ended, and the best one so far."""
    if found.state == TrialState.COMPLETE:
        how = ", ".join(f"{value:.0f}" if value == int(value) > 1 else f"{value:.4f}" for value in found.values)
    else:
        how = found.user_attrs.get(FAILURE, "pruned")
    best = best_by_quality(study, filled_trials(study))
    so_far = ""
    if best is not None:
        so_far = f"; best {best.values[place_of_quality(study)]:.4f} (trial {best.user_attrs[SLOT]})"
    return f"trial {found.user_attrs[SLOT]} with {settings_in_words(found.params)}: {how}{so_far}"


def final_in_words(found: FrozenTrial) -> str:
    """Returns how a final run ended."""
    if found.state == TrialState.COMPLETE:
        return f"seed {found.user_attrs['result']['seed']}: {found.values[0]:.4f}"
    return found.user_attrs.get(FAILURE, "")
