"""What a sweep comes to: its best trial, and the table, recipe, numbers and page that it leaves."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from harness import cli, result, result_file, summary
from harness.config import RunConfig
from harness.errors import UserError
from harness.recipes import from_tree
from harness.rundir import RunDirectory, write_text
from harness.sweep import findings, page, recipe, show
from harness.sweep.claims import filled_trials, find_study
from harness.sweep.domains import decode
from harness.sweep.search import CONFIG, mark_of_finals, own_storage
from harness.sweep.slots import FAILURE, SLOT
from harness.sweep.space import apply
from harness.sweep.storage import open_storage
from harness.sweep.studies import OBJECTIVES


def best_trial(study: Study, slots: int) -> FrozenTrial | None:
    """Returns the trial of the best quality among the first ``slots``; None if there is no trial.

    Raises:
        UserError: every trial failed.
    """
    filled = filled_trials(study, slots)
    best = best_by_quality(study, filled)
    if best is None and filled:
        raise no_value(study, filled)
    return best


def no_value(study: Study, filled: Sequence[FrozenTrial]) -> UserError:
    """Returns why there is no best trial."""
    reasons = [reason for each in filled if (reason := each.user_attrs.get(FAILURE))]
    return UserError(
        f"no trial of {study.study_name} has a value; the first one: {reasons[0] if reasons else 'pruned'}"
    )


def best_by_quality(study: Study, filled: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Returns the best complete trial by the metric on held-out examples, whatever the other objectives say."""
    complete = [each for each in filled if each.state == TrialState.COMPLETE]
    return findings.best(complete, study.directions, place_of_quality(study))


def place_of_quality(study: Study) -> int:
    """Returns which of the objectives the metric on held-out examples is; the first one for final runs."""
    names = enumerate(study.user_attrs[OBJECTIVES])
    return next((index for index, name in names if name.startswith("held-out")), 0)


def configured(study: Study, best: FrozenTrial) -> RunConfig:
    """Returns the configuration of a trial's final runs, as the study has it."""
    tree = dict(study.user_attrs[CONFIG])
    config = from_tree(tree.pop("method"), tree.pop("task"), tree, f"study {study.study_name}")
    hints = cli.keys(config)
    return apply(config, {key: decode(key, value, cli.plain(hints[key])) for key, value in best.params.items()})


def settings_in_words(params: Mapping[str, Any]) -> str:
    """Returns what was searched as ``train.learning_rate 0.00118, method.r 8``."""
    pairs = params.items()
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in pairs)


def conclude(study: Study, finals: Sequence[FrozenTrial], directory: Path, as_json: bool) -> str:
    """Writes the sweep's files and returns what is printed.

    Args:
        finals: the final runs of the best trial, as trials of their own study.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = show.summary(study)
    results = [each.user_attrs["result"] for each in finals if each.state == TrialState.COMPLETE]
    found["finals"] = summary.make(results) if results else None
    found["failed_finals"] = [each.user_attrs[FAILURE] for each in finals if FAILURE in each.user_attrs]
    lines = [show.table(found), ""]
    best = best_by_quality(study, filled_trials(study))
    if best is not None:
        lines.append(write_recipe(study, best, found, directory / "best.toml"))
    page.write(study, directory / "sweep.html")
    write_text(directory / "sweep.json", result_file.dumps(found, indent=1) + "\n")
    lines.append(f"page: {directory / 'sweep.html'}; numbers: {directory / 'sweep.json'}")
    lines += [f"a final run failed: {reason}" for reason in found["failed_finals"]]
    if results:
        folders = [RunDirectory(Path(each["config"]["output_dir"])) for each in results]
        several = len(results) > 1
        lines += ["", summary.table(results, folders) if several else result.table(results[0], folders[0].path)]
    return result_file.dumps(found) if as_json else "\n".join(lines)


def write_recipe(study: Study, best: FrozenTrial, found: Mapping[str, Any], path: Path) -> str:
    """Writes a trial's configuration as a recipe; returns how it is trained again."""
    config = configured(study, best)
    place = place_of_quality(study)
    settings = settings_in_words(best.params)
    comment = [
        f"The best of {found['trials']['filled']} trials of the sweep {study.study_name}: "
        f"{study.user_attrs[OBJECTIVES][place]} {best.values[place]:.6g} (trial {best.user_attrs[SLOT]}), with "
        f"{settings}. What is the default is not written down.",
    ]
    write_text(path, recipe.text(config, comment))
    command = ["python", "-m", "harness.run", "--method", config.method, "--task", config.task, "--recipe", str(path)]
    if config.data.dir is not None:
        command += ["--data.dir", str(config.data.dir)]
    return f"best trial as a recipe: {shlex.join(command)}"


def shown(name: str, storage: str | None, directory: Path | None, as_json: bool) -> str:
    """Returns a study as it is now, and writes its files.

    Args:
        name: of the study.
        storage: where it is; the sweep's own file if None.
        directory: the sweep's folder; the usual one if None.

    Raises:
        UserError: there is no such study.
    """
    directory = directory or Path("runs") / "sweeps" / name
    if storage is None and not (directory / "study.db").is_file():
        raise UserError(f"--show {name}: there is no {directory / 'study.db'}: give the --storage that it is in")
    opened = open_storage(storage or own_storage(directory))
    study = find_study(opened, name)
    show.objectives_of(study)  # refuses a study that is no sweep's
    best = best_by_quality(study, filled_trials(study))
    finals: list[FrozenTrial] = []
    if best is not None:
        of_best = f"{name}-{mark_of_finals(configured(study, best))}"
        if of_best in {each.study_name for each in opened.get_all_studies()}:
            finals = filled_trials(find_study(opened, of_best))
    return conclude(study, finals, directory, as_json)
