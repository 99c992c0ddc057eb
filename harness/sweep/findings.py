"""What the trials of a sweep tell: the Pareto front, which parameters matter, and which do nothing.

Importance is fANOVA's (Hutter, Hoos and Leyton-Brown 2014): the share of the objective's variance over the search space
that a parameter explains by itself.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.sweep.slots import SLOT

if TYPE_CHECKING:
    from optuna.importance import FanovaImportanceEvaluator

LEAST_FOR_IMPORTANCE = 4
SAME_VALUE = 1e-6

Readings = Iterable[tuple[str, int, float]]


def pareto_front(complete: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """Returns the trials that no other one dominates, best in the first objective first; equals as :func:`best` has it.

    A trial dominates another one where it is at least as good in every objective and better in one. With a single
    objective these are all trials with the best value.
    """

    def dominates(one: FrozenTrial, other: FrozenTrial) -> bool:
        pairs = list(zip(_costs(one, directions), _costs(other, directions), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    front = [trial for trial in complete if not any(dominates(other, trial) for other in complete)]
    return sorted(front, key=lambda trial: (_costs(trial, directions), *_among_equals(trial)))


def best(
    complete: Sequence[FrozenTrial], directions: Sequence[StudyDirection], objective: int = 0
) -> FrozenTrial | None:
    """Returns the best trial by one objective, as :func:`merit` has it."""
    return min(complete, key=lambda trial: merit(trial, directions, objective), default=None)


def merit(trial: FrozenTrial, directions: Sequence[StudyDirection], objective: int = 0) -> tuple[float, float, int]:
    """Returns what makes one trial better than another, lower being better: the objective, the loss, the slot.

    Of equals the one with the lowest held-out loss is better, then the first: a metric such as Matthews correlation is
    0 for all trials that have learned no more than the larger class.
    """
    return (_costs(trial, directions)[objective], *_among_equals(trial))


def _costs(trial: FrozenTrial, directions: Sequence[StudyDirection]) -> list[float]:
    return [
        -value if direction == StudyDirection.MAXIMIZE else value
        for direction, value in zip(directions, trial.values, strict=True)
    ]


def _among_equals(trial: FrozenTrial) -> tuple[float, int]:
    losses = [metrics["loss"] for _, metrics in trial.user_attrs.get("measured", ()) if metrics.get("loss") is not None]
    return min(losses, default=math.inf), trial.user_attrs[SLOT]


def numbered_by_slot(study: Study, counted: Iterable[FrozenTrial]) -> Study:
    """Returns a copy in memory that holds the trials that count alone, each under the number of its slot.

    Slots that are not filled yet are trials that wait, which importance and plots leave out.
    """
    by_slot = {trial.user_attrs[SLOT]: trial for trial in counted}
    waiting = create_trial(state=TrialState.WAITING)
    trials = [by_slot.get(slot, waiting) for slot in range(max(by_slot, default=-1) + 1)]
    copy = in_memory(study, trials)
    for name, value in study.user_attrs.items():
        copy.set_user_attr(name, value)
    return copy


def in_memory(study: Study, trials: Iterable[FrozenTrial]) -> Study:
    """Returns a study of the same name and directions with these trials, numbered anew."""
    with _quiet():
        copy = optuna.create_study(study_name=study.study_name, directions=study.directions)
        copy.add_trials(trials)
    return copy


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna from telling that a study was created, which is no news of ours."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def evaluator() -> FanovaImportanceEvaluator:
    """Returns what measures importance: the same numbers for the same trials."""
    from optuna.importance import FanovaImportanceEvaluator  # imports scikit-learn, which takes a second

    return FanovaImportanceEvaluator(seed=0)


def importance(study: Study, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """Returns, for each objective of a study whose trials all count, the parameters' shares or why there are none."""
    scaled, names = ready_for_importance(study), varying(study)
    found = []
    for index, objective in enumerate(objectives):
        values = [trial.values[index] for trial in _complete(study)]
        reason = _no_importance(values, names)
        shares = None if reason else _shares(scaled, names, index)
        found.append({"objective": objective, "trials": len(values), "shares": shares, "reason": reason})
    return found


def _no_importance(values: Sequence[float], names: Sequence[str]) -> str | None:
    if len(values) < LEAST_FOR_IMPORTANCE:
        return f"it takes {LEAST_FOR_IMPORTANCE} complete trials, and there are {len(values)}"
    if len(names) < 2:
        return f"{names[0]} is the only parameter that varies" if names else "no parameter varies"
    if max(values) - min(values) <= SAME_VALUE * max(map(abs, values)):
        return f"all complete trials have the same value, to {SAME_VALUE:.0e} of it"
    return None


def _shares(study: Study, names: list[str], index: int) -> dict[str, float]:
    from optuna.importance import get_param_importances

    shares = get_param_importances(study, evaluator=evaluator(), params=names, target=lambda t: t.values[index])
    return {name: float(share) for name, share in shares.items()}


def _complete(study: Study) -> list[FrozenTrial]:
    """Returns the complete trials whose values are all finite."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in complete if all(map(math.isfinite, trial.values))]


def varying(study: Study) -> list[str]:
    """Returns the parameters that all complete trials have, and that have more than one value there."""
    complete = _complete(study)
    names = set.intersection(*(set(trial.params) for trial in complete)) if complete else set()
    return sorted(name for name in names if len({repr(trial.params[name]) for trial in complete}) > 1)


def ready_for_importance(study: Study) -> Study:
    """Returns a copy in memory of the complete trials, in the scales in which fANOVA should see them.

    Parameters that are searched on a log scale are decimal logarithms: fANOVA averages over the space evenly, and nine
    tenths of what it looks at would be the uppermost decade of the learning rate. Values lie from 0 to 1, since its
    trees, scikit-learn's, take a variance below 2e-16 for none.
    """
    complete = _complete(study)
    columns = list(zip(*(trial.values for trial in complete), strict=True))
    return in_memory(study, [_rescaled(trial, columns) for trial in complete])


def _rescaled(trial: FrozenTrial, columns: Sequence[Sequence[float]]) -> FrozenTrial:
    params, distributions = dict(trial.params), dict(trial.distributions)
    for name, distribution in trial.distributions.items():
        if getattr(distribution, "log", False):
            low, high = math.log10(distribution.low), math.log10(distribution.high)
            distributions[name] = FloatDistribution(low, high)
            params[name] = min(max(math.log10(params[name]), low), high)
    values = [
        (value - min(column)) / ((max(column) - min(column)) or 1.0)
        for value, column in zip(trial.values, columns, strict=True)
    ]
    return create_trial(values=values, params=params, distributions=distributions)


def influence(complete: Sequence[FrozenTrial], name: str) -> dict[str, Any]:
    """Returns how far trials are apart that differ in one parameter alone: the largest difference at the same step.

    ``training_loss`` is None, and a metric is missing, where no two such trials have a step in common.
    """
    alike: dict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in complete:
        if name in trial.params:
            others = {other: value for other, value in trial.params.items() if other != name}
            alike[repr(sorted(others.items()))].append(trial)
    groups = [group for group in alike.values() if len({repr(trial.params[name]) for trial in group}) > 1]
    values = {repr(trial.params[name]): trial.params[name] for group in groups for trial in group}
    numeric = all(isinstance(value, (int, float)) for value in values.values())
    return {
        "parameter": name,
        "groups": len(groups),
        "trials": sum(map(len, groups)),
        "values": sorted(values.values(), key=None if numeric else repr),
        "training_loss": _largest_difference(groups, _losses).get("loss"),
        "metrics": _largest_difference(groups, _metrics),
    }


def _losses(trial: FrozenTrial) -> Readings:
    return (("loss", step, loss) for step, loss in trial.user_attrs.get("curve", ()))


def _metrics(trial: FrozenTrial) -> Readings:
    measured = trial.user_attrs.get("measured", ())
    return ((name, step, value) for step, metrics in measured for name, value in metrics.items())


def _largest_difference(
    groups: Iterable[Sequence[FrozenTrial]], read: Callable[[FrozenTrial], Readings]
) -> dict[str, float]:
    largest: dict[str, float] = {}
    for group in groups:
        at: dict[tuple[str, int], list[float]] = defaultdict(list)
        for trial in group:
            for (name, step), value in {(name, step): value for name, step, value in read(trial)}.items():
                if value is not None and math.isfinite(value):
                    at[name, step].append(value)
        for (name, _), values in at.items():
            if len(values) > 1:
                largest[name] = max(largest.get(name, 0.0), max(values) - min(values))
    return largest
