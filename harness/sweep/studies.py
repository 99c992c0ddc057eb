"""Creates, joins and finds the study of a sweep."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import Study

from harness.errors import UserError
from harness.registry import closest

IDENTITY = "identity"
"""User attribute of a study: what must be the same for all who work on it."""
OBJECTIVES = "objectives"
"""User attribute of a study: the names of its values."""
CREATOR_SECONDS = 2.0
"""How long whoever finds a study without an identity leaves its creator time to write it."""


def open_study(
    storage: BaseStorage,
    name: str,
    directions: Sequence[str],
    identity: Mapping[str, Any],
    objectives: Sequence[str],
) -> Study:
    """Creates the study of a sweep, or joins it.

    Args:
        storage: what :func:`harness.sweep.storage.open_storage` returned.
        name: of the study.
        directions: "minimize" or "maximize" for each objective.
        identity: what must be the same for all who work on the study, as JSON knows it.
        objectives: their names.

    Raises:
        UserError: a study of this name is another sweep's, or no sweep's at all.
    """
    with _quiet():
        try:
            study = optuna.create_study(study_name=name, storage=storage, directions=directions)
            give_up = 0.0
        except DuplicatedStudyError:
            study = optuna.load_study(study_name=name, storage=storage)
            give_up = time.monotonic() + CREATOR_SECONDS
    # The creator writes the identity at once; where it was killed before, the next one does.
    while not _has_identity(study):
        if time.monotonic() > give_up:
            study.set_user_attr(OBJECTIVES, list(objectives))
            study.set_user_attr(IDENTITY, dict(identity))
        else:
            time.sleep(0.05)
    attrs = study.user_attrs
    theirs = {**attrs[IDENTITY], OBJECTIVES: attrs.get(OBJECTIVES), "directions": _directions(study)}
    ours = {**identity, OBJECTIVES: list(objectives), "directions": list(directions)}
    _compare(name, _flat(theirs), _flat(json.loads(json.dumps(ours))))
    return study


def find_study(storage: BaseStorage, name: str) -> Study:
    """Returns a study that exists.

    Raises:
        UserError: there is none of this name; the sentence names those that are there.
    """
    names = [study.study_name for study in storage.get_all_studies()]
    if name not in names:
        there = f"the studies there are {', '.join(names)}" if names else "no study has been started there"
        raise UserError(f"the storage holds no study {name}{closest(name, names)}: {there}")
    return optuna.load_study(study_name=name, storage=storage)


def _has_identity(study: Study) -> bool:
    trials = study.get_trials(deepcopy=False)  # before the attributes: who writes those creates trials afterwards
    if IDENTITY in study.user_attrs:
        return True
    if trials:
        raise UserError(
            f"--study {study.study_name}: the storage has a study of this name that no sweep made: "
            "give the sweep another name"
        )
    return False


def _directions(study: Study) -> list[str]:
    return [direction.name.lower() for direction in study.directions]


def _compare(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key in [*ours, *theirs]:
        there, here = (json.dumps(values[key]) if key in values else "not set" for values in (theirs, ours))
        if there != here:
            raise UserError(
                f"--study {name}: {key} is {there} in the study and {here} in this sweep: "
                "give the sweep another name by --study, or the same settings"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted key -> value, without nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna from telling on stderr that a study has been created."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
