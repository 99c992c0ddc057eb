"""What is to do in a matrix, and a process that does some of it.

A cell goes through two phases, each with slots in a study of its own that any number of processes and machines share
(:mod:`harness.sweep.claims`): its trials, then the runs that are scored. Whoever looks finds the first cell with
something to do; nobody assigns work, and whoever is killed is missed by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from harness.compare.command import Cell
from harness.errors import UserError
from harness.sweep import findings, search
from harness.sweep.claims import Claims, filled_trials
from harness.sweep.conclusion import no_value
from harness.sweep.finals import work_on_finals
from harness.sweep.search import Search
from harness.sweep.slots import FAILURE, SLOT
from harness.sweep.space import SEED, apply
from harness.sweep.storage import open_storage
from harness.sweep.worker import Work, work


@dataclass(frozen=True)
class Best:
    """The best settings of a cell's trials.

    Attributes:
        params: what was searched, as Optuna's parameters.
        value: the mean over the trials' seeds.
    """

    params: Mapping[str, Any]
    value: float


@dataclass(frozen=True)
class State:
    """How far a cell is.

    Attributes:
        trials: those that count, by slot.
        best: the settings that the runs have; None while trials are missing, and where there are none.
        finals: the same of the runs that are scored; empty while trials are missing.
        failure: why there will be no runs, if so.
        following: the slots of these runs, None while trials are missing.
    """

    trials: tuple[FrozenTrial, ...] = ()
    best: Best | None = None
    finals: tuple[FrozenTrial, ...] = ()
    failure: str = ""
    following: Search | None = None

    def left(self, cell: Cell) -> int:
        """Returns how many trials and runs are missing."""
        trials = cell.search.slots - len(self.trials)
        return 0 if self.failure else trials + len(cell.seeds) - len(self.finals)

    @property
    def failures(self) -> list[str]:
        """Why runs that are scored failed."""
        reasons = [each.user_attrs.get(FAILURE, "") for each in self.finals if each.state != TrialState.COMPLETE]
        return [reason for reason in reasons if reason]


class Overview:
    """The cells as this process sees them in the storage.

    Args:
        storage: as of ``--storage``; it is opened, and studies are made in it by :meth:`to_do` alone.
    """

    def __init__(self, cells: Sequence[Cell], storage: str) -> None:
        self.cells = cells
        self._storage: BaseStorage = open_storage(storage)
        self._studies: dict[str, Study] = {}
        self._claims: dict[str, Claims] = {}
        self._done: dict[str, State] = {}

    def state(self, cell: Cell) -> State:
        """Returns how far a cell is.

        Raises:
            UserError: it was begun with other settings or seeds.
        """
        if cell.name in self._done:
            return self._done[cell.name]
        trials = self._filled(cell, cell.search) if cell.search.slots else ()
        if len(trials) < cell.search.slots:
            return State(trials)
        try:
            best = best_settings(self._join(cell, cell.search), trials) if trials else None
        except UserError as error:
            state = State(trials, failure=str(error))
        else:
            following = _following(cell, best)
            finals = self._filled(cell, following)
            _check_seeds(cell, finals)
            state = State(trials, best, finals, following=following)
        if not state.left(cell):
            self._done[cell.name] = state
        return state

    def to_do(self, cell: Cell) -> Claims | None:
        """Returns the slots that a cell has to fill next, its study made if there is none; None if nothing is left."""
        state = self.state(cell)
        if not state.left(cell):
            return None
        found = state.following or cell.search
        if found.study not in self._claims:
            self._claims[found.study] = search.claims(found, self._join(cell, found))
        return self._claims[found.study]

    def close_spares(self) -> None:
        """Closes what nobody needs of studies that are complete."""
        for claims in self._claims.values():
            claims.close_spares()

    def _join(self, cell: Cell, found: Search) -> Study:
        """Makes one of a cell's two studies, or joins it.

        Raises:
            UserError: it was made with other settings.
        """
        if found.study not in self._studies:
            config = cell.config if found.finals is None else found.config
            self._studies[found.study] = search.join(found, config, self._storage)
        return self._studies[found.study]

    def _filled(self, cell: Cell, found: Search) -> tuple[FrozenTrial, ...]:
        known = found.study in self._studies
        if not known and found.study not in {each.study_name for each in self._storage.get_all_studies()}:
            return ()
        return tuple(filled_trials(self._join(cell, found), found.slots))


def best_settings(study: Study, trials: Sequence[FrozenTrial]) -> Best:
    """Returns the settings that are best on the mean over seeds; those that failed with one of them do not count.

    Raises:
        UserError: all of them failed.
    """
    tried: dict[tuple[tuple[str, Any], ...], list[FrozenTrial]] = {}
    for each in trials:
        tried.setdefault(tuple((key, value) for key, value in each.params.items() if key != SEED), []).append(each)
    complete = [(params, own) for params, own in tried.items() if all(map(_is_complete, own))]
    if not complete:
        raise no_value(study, trials)

    def merit(found: tuple[Any, Sequence[FrozenTrial]]) -> list[float]:
        return [
            fmean(column) for column in zip(*(findings.merit(each, study.directions) for each in found[1]), strict=True)
        ]

    params, own = min(complete, key=merit)
    return Best(dict(params), fmean(each.values[0] for each in own))


def _is_complete(found: FrozenTrial) -> bool:
    return found.state == TrialState.COMPLETE


def _following(cell: Cell, best: Best | None) -> Search:
    """Returns the runs of a cell whose trials are complete, with the best settings."""
    values = cell.space.from_params(best.params) if best is not None else {}
    return cell.search.followed_by(apply(cell.config, values), cell.directory, cell.seeds)


def _check_seeds(cell: Cell, finals: Sequence[FrozenTrial]) -> None:
    for each in finals:
        if each.state != TrialState.COMPLETE:
            continue
        slot, seed = each.user_attrs[SLOT], each.user_attrs["result"]["seed"]
        if seed != cell.seeds[slot]:
            raise UserError(
                f"--seeds {' '.join(map(str, cell.seeds))}: run {slot + 1} of {cell.name} was made with seed {seed}: "
                "begin with the seeds of before, or give another --output-dir"
            )


@dataclass(frozen=True)
class Job:
    """What a worker of a matrix has to know; it can be pickled.

    Attributes:
        cells: in the order in which they are worked on.
        work: how it works; its search is that of any cell.
        packs: names of the cells whose trials can train together.
    """

    cells: tuple[Cell, ...]
    work: Work
    packs: frozenset[str] = frozenset()


def work_on_cells(job: Job) -> None:
    """Works on the first cell with something to do, and ends: its settings are those of the process."""
    overview = Overview(job.cells, job.work.search.storage)
    for cell in job.cells:
        claims = overview.to_do(cell)
        if claims is None or not claims.waiting():
            continue
        state = overview.state(cell)
        if state.following is not None:
            work_on_finals(replace(job.work, search=state.following, trials=1, pack=1))
        else:
            pack = min(job.work.pack, cell.search.slots) if cell.name in job.packs else 1
            trials = cell.search.slots if pack > 1 else job.work.trials
            work(replace(job.work, search=cell.search, pack=pack, trials=trials))
        return
