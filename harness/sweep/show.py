"""What a sweep found: its study as data for programs and as a table for people.

One trial counts for each slot of the sweep; attempts that were lost with their process, and spare ones of a slot that
was filled already, are counted apart and take part in nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from harness.errors import UserError
from harness.sweep import findings, words
from harness.sweep.slots import FAILURE, SLOT, Slot, slots_of
from harness.sweep.studies import IDENTITY, OBJECTIVES

SCHEMA_VERSION = 1
SHOWN_ROWS = 40


def summary(study: Study) -> dict[str, Any]:
    """Returns what the study holds, ready for JSON: no NaN, and ``None`` for what is not known.

    Raises:
        UserError: the study was not made by a sweep of ours.
    """
    objectives = objectives_of(study)
    names = [objective["name"] for objective in objectives]
    trials = study.get_trials(deepcopy=False)
    slots = slots_of(trials)
    counted = [slot.filled for slot in slots if slot.filled]
    complete = [trial for trial in counted if trial.state == TrialState.COMPLETE]
    front = [trial.user_attrs[SLOT] for trial in findings.pareto_front(complete, study.directions)]
    rows = [_row(trial) for trial in counted]
    searched = [name for name, entry in space(complete).items() if not words.is_fixed(entry)]
    return {
        "schema_version": SCHEMA_VERSION,
        "study": study.study_name,
        "identity": study.user_attrs[IDENTITY],
        "objectives": objectives,
        "space": space(counted),
        "trials": {"filled": len(counted), **_states(rows), **_attempts(slots, trials)},
        "rows": rows,
        "best": front[0] if len(objectives) == 1 and front else None,
        "pareto_front": front if len(objectives) > 1 else None,
        "importance": findings.importance(findings.numbered_by_slot(study, counted), names),
        "budget": {name: sum(row[name] or 0 for row in rows) for name in ("steps", "seconds", "overhead_seconds")},
        "without_influence": [findings.influence(complete, name) for name in searched],
    }


def objectives_of(study: Study) -> list[dict[str, str]]:
    """Returns name and direction of each objective.

    Raises:
        UserError: the study was not made by a sweep of ours.
    """
    attributes, directions = study.user_attrs, study.directions
    if not isinstance(attributes.get(IDENTITY), dict) or len(attributes.get(OBJECTIVES, ())) != len(directions):
        raise UserError(
            f"the study {study.study_name!r} was not made by harness.sweep, since it does not say what was tuned: name "
            "another study"
        )
    pairs = zip(attributes[OBJECTIVES], directions, strict=True)
    return [{"name": name, "direction": direction.name.lower()} for name, direction in pairs]


def space(trials: Iterable[FrozenTrial]) -> dict[str, dict[str, Any]]:
    """Returns the range or the choices of each parameter that the trials have."""
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            found.setdefault(name, _range(distribution))
    return dict(sorted(found.items()))


def _range(distribution: BaseDistribution) -> dict[str, Any]:
    if isinstance(distribution, CategoricalDistribution):
        return {"choices": list(distribution.choices)}
    return {"low": distribution.low, "high": distribution.high, "log": distribution.log}


def state_in_words(trial: FrozenTrial) -> str:
    """Returns complete, pruned, diverged or failed.

    With several objectives, where Optuna knows no pruning, a trial that diverged is one that failed.
    """
    if trial.state == TrialState.PRUNED and trial.user_attrs.get(FAILURE):
        return "diverged"
    return {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")


def _row(trial: FrozenTrial) -> dict[str, Any]:
    reported = {step: value for step, value in trial.intermediate_values.items() if math.isfinite(value)}
    names = ("seconds", "overhead_seconds", "steps", "trained_parameters", "pack", FAILURE)
    return {
        "slot": trial.user_attrs[SLOT],
        "number": trial.number,
        "state": state_in_words(trial),
        "values": [_finite(value) for value in trial.values] if trial.state == TrialState.COMPLETE else None,
        "last_reported": [max(reported), reported[max(reported)]] if reported else None,
        "params": dict(sorted(trial.params.items())),
        **{name: trial.user_attrs.get(name) for name in names},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _states(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts = Counter(row["state"] for row in rows)
    return {state: counts[state] for state in words.STATES}


def _attempts(slots: Sequence[Slot], trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Returns how many attempts do not count: still going on, lost with their process, or at a slot filled already."""
    filled, lost = sum(slot.filled is not None for slot in slots), sum(len(slot.lost) for slot in slots)
    return {
        "running": sum(trial.state == TrialState.RUNNING for trial in trials),
        "lost_attempts": lost,
        "spare_attempts": sum(trial.state.is_finished() for trial in trials) - filled - lost,
    }


def table(summary: Mapping[str, Any]) -> str:
    """Returns what :func:`summary` returned, for a person; of more than 40 trials the best 40."""
    header, rows = words.columns(summary)
    trials = words.aligned(header, rows[:SHOWN_ROWS]) if rows else []
    if len(rows) > SHOWN_ROWS:
        trials.append(f"the best {SHOWN_ROWS} of {len(rows)} trials")
    told = [words.wrapped(part(summary)) for part in (words.conditions, words.failures, words.conclusions)]
    parts = [told[0], trials, *told[1:]]
    return "\n\n".join("\n".join(part) for part in parts if part)


def time_left(trials: Sequence[FrozenTrial], slots: int, places: int) -> float | None:
    """Estimates the seconds until all slots are filled, as if all that is left started now.

    Args:
        trials: the finished trials that count.
        slots: how many trials the sweep has in all.
        places: how many trials are worked on at the same time.

    Returns:
        The mean duration of the finished trials for each round of ``places`` trials; None if there is none to go by.
    """
    left = slots - len(trials)
    if left <= 0:
        return 0.0
    durations = [trial.duration.total_seconds() for trial in trials if trial.duration is not None]
    return sum(durations) / len(durations) * math.ceil(left / places) if durations else None
