"""A sweep in full: what is searched, by which sampler and pruner, in which study, towards what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.study import Study

from harness.config import RunConfig, to_tree
from harness.protocols import Rule
from harness.sweep.claims import Claims, open_study
from harness.sweep.space import Space, path_of
from harness.sweep.storage import open_storage
from harness.sweep.trial import Objective, directions, objective_names

Sampler = Literal["tpe", "random", "grid", "gp", "nsga2"]
Pruner = Literal["asha", "median", "none"]

CONFIG = "config"
"""User attribute of a study: the configuration of its final runs, but for what is searched."""

LEARNS = ("tpe", "gp", "nsga2")
"""The samplers that look at the results of earlier trials."""


@dataclass(frozen=True)
class Finals:
    """The runs that follow the trials: the best configuration, trained with several seeds and scored.

    Attributes:
        config: the best configuration, with the first seed.
        directory: where the run directories go.
        seeds: of the runs.
    """

    config: RunConfig
    directory: Path
    seeds: tuple[int, ...]

    def run(self, slot: int) -> RunConfig:
        """Returns the configuration of one of them."""
        seed = self.seeds[slot]
        return replace(self.config, seed=seed, output_dir=self.directory / f"seed{seed}")


@dataclass(frozen=True)
class Search:
    """What all who work on a sweep have in common; it can be pickled.

    Attributes:
        storage: as of ``--storage``.
        study: its name.
        slots: how many trials there are.
        config: the configuration of a trial, but for what is searched.
        space: what is searched.
        rule: what the quality of a trial is.
        objectives: what a trial is judged by.
        sampler_seed: what is drawn depends on it and on the slot.
        beat_seconds: between two heartbeats.
        grace_seconds: how long heartbeats may fail before a trial is put back.
        finals: the runs that these slots are, if they are no trials.
    """

    storage: str
    study: str
    slots: int
    config: RunConfig
    space: Space
    rule: Rule
    objectives: tuple[Objective, ...]
    sampler: Sampler
    pruner: Pruner
    sampler_seed: int
    beat_seconds: float
    grace_seconds: float
    finals: Finals | None = None

    def identity(self) -> dict[str, Any]:
        """Returns what must be the same for all who work on its study."""
        tree = common(self.config)
        for key in self.space.parameters:
            *path, last = path_of(key)
            table = tree
            for name in path:
                table = table[name]
            table.pop(last, None)
        return {
            **tree,
            "task_version": self.config.task_settings.version,
            "space": self.space.identity(),
            "sampler": self.sampler,
            "pruner": self.pruner,
            "sampler_seed": self.sampler_seed,
        }

    def followed_by(self, config: RunConfig, directory: Path, seeds: Sequence[int]) -> Search:
        """Returns the final runs of a configuration as slots of a study of their own.

        Args:
            config: the best one.
            directory: the sweep's.
            seeds: one for each run, the configuration's first.
        """
        name = mark_of_finals(config)
        return replace(
            self,
            study=f"{self.study}-{name}",
            slots=len(seeds),
            config=config,
            finals=Finals(config, directory / name, tuple(seeds)),
            objectives=("quality",),
        )


def common(config: RunConfig) -> dict[str, Any]:
    """Returns the settings that decide about numbers: folders may differ from machine to machine, and words too."""
    tree = to_tree(config)
    for key in ("output_dir", "description", "eval_batch_size"):
        tree.pop(key, None)
    tree.get("data", {}).pop("dir", None)
    return tree


def mark_of_finals(config: RunConfig) -> str:
    """Returns what marks the final runs of a configuration: the end of their study's name, and their folder."""
    digest = hashlib.sha256(json.dumps(common(config), sort_keys=True).encode())
    return f"final-{digest.hexdigest()[:8]}"


def own_storage(directory: Path) -> str:
    """Returns the storage of a sweep that is given none: a SQLite file in its folder."""
    return f"sqlite:///{directory / 'study.db'}"


def exists(found: Search) -> bool:
    """Whether the study is there; a file that would be its storage is not made.

    Raises:
        UserError: the storage cannot be opened.
    """
    return has_storage(found) and found.study in {
        each.study_name for each in open_storage(found.storage).get_all_studies()
    }


def has_storage(found: Search) -> bool:
    """Whether a sweep's storage may be there; False is the file that does not exist yet."""
    kind, _, path = found.storage.partition(":")
    return kind not in ("sqlite", "journal") or Path(path.removeprefix("///")).exists()


def join(found: Search, config: RunConfig, storage: BaseStorage | None = None) -> Study:
    """Creates a sweep's study, or joins it.

    Args:
        config: of its final runs, but for what is searched.
        storage: the sweep's, where it is open already.

    Raises:
        UserError: the storage cannot be opened, or the study is another sweep's.
    """
    names = objective_names(found.objectives, found.rule)
    ways = directions(found.objectives, found.rule)
    if found.finals is not None:
        names, ways = ["score"], ["maximize"]
    study = open_study(storage or open_storage(found.storage), found.study, ways, found.identity(), names)
    if CONFIG not in study.user_attrs:
        study.set_user_attr(CONFIG, to_tree(replace(config, output_dir=None)))
    return study


def claims(search: Search, study: Study) -> Claims:
    """Returns a worker's way to the slots of a sweep."""
    study.pruner = make_pruner(search.pruner)
    grid = search.space.grid() if search.sampler == "grid" and search.finals is None else None

    def fixed(slot: int) -> Mapping[str, Any] | None:
        return None if grid is None else search.space.to_params(grid[slot])

    return Claims(
        study,
        search.slots,
        sampler=lambda slot: make_sampler(search, slot),
        fixed=fixed,
        parameters=() if search.finals is not None else tuple(search.space.parameters),
        beat_seconds=search.beat_seconds,
        grace_seconds=search.grace_seconds,
    )


def make_sampler(search: Search, slot: int) -> optuna.samplers.BaseSampler:
    """Returns the sampler of one slot: what it draws depends on the slot, and on the results that there are."""
    seed = int(np.random.SeedSequence([search.sampler_seed, slot]).generate_state(1)[0])
    # a third of the trials is drawn at random before a sampler learns, ten at most
    first = min(10, max(3, search.slots // 3))
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=first, multivariate=True)
    if search.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=first, deterministic_objective=False)
    if search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, search.slots // 4)))
    return optuna.samplers.RandomSampler(seed=seed)


def make_pruner(pruner: Pruner) -> optuna.pruners.BasePruner:
    """Returns what ends trials early."""
    if pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(reduction_factor=3)
    if pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4)
    return optuna.pruners.NopPruner()
