"""``python -m harness.sweep``: see :class:`harness.sweep.command.SweepCommand` for its flags."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from accelerate import PartialState
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from harness import cli, result, run, summary
from harness.config import RunConfig, to_tree
from harness.console import Console, clock, is_main_process, stdout_for_the_result
from harness.errors import UserError, run_command
from harness.recipes import from_tree
from harness.rundir import RunDirectory, write_text
from harness.sweep import command, findings, page, recipe, search, show, supervision, trial, worker
from harness.sweep.claims import filled_trials, find_study, open_study
from harness.sweep.command import Sweep, SweepCommand
from harness.sweep.domains import decode
from harness.sweep.slots import FAILURE
from harness.sweep.space import apply
from harness.sweep.storage import open_storage, without_password
from harness.sweep.studies import OBJECTIVES
from harness.sweep.worker import Work

CONFIG = "config"
"""User attribute of a study: the configuration of its final runs, but for what is searched."""


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    given, space = command.parse(argv)
    if not given.debug:
        run.quieten_libraries()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with stdout_for_the_result() as write_stdout:
        if given.show is not None:
            write_stdout(shown(given))
            return 0
        sweep = command.make(given, space, argv)
        try:
            told = run_sweep(sweep)
        except KeyboardInterrupt:
            if is_main_process():
                print(f"\nstopped; to go on: {command.PROG} {shlex.join(argv)}", file=sys.stderr)
            return 130
        if told is not None:
            write_stdout(told)
    return 0


def run_sweep(sweep: Sweep) -> str | None:
    """Returns what is printed at the end, in the main process."""
    console = Console(is_main_process())
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if together and (sweep.command.workers > 1 or sweep.command.pack != 1):
        raise UserError("started by a launcher, all processes train one trial together: leave out --workers and --pack")
    study = join(sweep.search, sweep.command.config) if is_main_process() else None
    console.say(header(sweep.search))
    job = Work(sweep.search, sweep.command.trials_per_process, debug=sweep.command.debug)
    train = in_all_processes if together else in_workers
    found = train(job, study, sweep, console)
    return None if found is None else conclusion(study, found, sweep.directory, sweep.command.json)


def in_workers(job: Work, study: Study, sweep: Sweep, console: Console) -> list[FrozenTrial]:
    """Has worker processes train all trials, then the final runs; returns the latter."""
    workers = sweep.command.workers
    automatic = sweep.command.pack == "auto"
    limit = command.pack_limit(sweep.search, workers) if automatic else 0
    job = replace(job, pack=1 if automatic else min(sweep.command.pack, sweep.search.slots))
    if len(filled_trials(study, sweep.search.slots)) < sweep.search.slots:
        words, size = supervision.answer(worker.try_out, job, limit)
        job = replace(job, pack=size)
        if size > 1:
            job = replace(job, trials=sweep.search.slots)
            words += f"\n{size} trials train together in each pass"
        console.say(words)
        supervise(job, study, worker.work, workers, console, lambda t: trial_in_words(study, t))
    best = best_trial(study, sweep.search)
    if best is None or not sweep.command.seeds:
        return []
    finals = sweep.finals(sweep.search.space.from_params(best.params))
    final_study = join(finals, finals.config)
    if len(filled_trials(final_study, finals.slots)) < finals.slots:
        seeds = sweep.command.seeds
        console.say(f"the best trial's settings are trained with {seeds} seed{'s' * (seeds > 1)} and scored")
    final_job = replace(job, search=finals, trials=1, pack=1)
    supervise(final_job, final_study, worker.work_on_finals, workers, console, final_in_words)
    return filled_trials(final_study, finals.slots)


def supervise(
    job: Work,
    study: Study,
    target: Callable[[Work], None],
    workers: int,
    console: Console,
    words: Callable[[FrozenTrial], str],
) -> None:
    """Keeps workers at work on a study until all of its slots are filled, and tells of each that is."""
    claims = search.claims(job.search, study)
    progress = Progress(job.search.slots, workers * job.pack, console, words)
    progress.tell(claims.filled(), first=True)
    busy = supervision.keep_busy(
        lambda number: supervision.start(target, worker.with_place(job, number, workers)),
        workers,
        claims.waiting,
        claims.unfinished,
    )
    for _ in busy:
        progress.tell(claims.filled())
    claims.close_spares()
    progress.tell(claims.filled())


def in_all_processes(job: Work, study: Study | None, sweep: Sweep, console: Console) -> list[FrozenTrial] | None:
    """The same in the processes that a launcher started, which train each trial together."""
    accelerator = worker.start(job)
    best: FrozenTrial | None = None
    with_claims = is_main_process()
    claims = search.claims(job.search, study) if with_claims else None
    progress = Progress(job.search.slots, 1, console, lambda t: trial_in_words(study, t)) if with_claims else None
    alone = worker.Alone(replace(job, trials=1), claims, accelerator)
    worker.until_finished(alone, claims, accelerator, lambda: progress.tell(claims.filled()))
    if study is not None:
        best = best_trial(study, sweep.search)
    best = worker.shared(accelerator, best)
    if best is None or not sweep.command.seeds:
        return []
    finals = sweep.finals(sweep.search.space.from_params(best.params))
    final_study = join(finals, finals.config) if with_claims else None
    final_claims = search.claims(finals, final_study) if with_claims else None
    finishing = worker.Finishing(replace(job, search=finals, trials=1), final_claims, accelerator)
    worker.until_finished(finishing, final_claims, accelerator, lambda: None)
    PartialState().destroy_process_group()
    return filled_trials(final_study, finals.slots) if final_study is not None else None


def join(found: search.Search, config: RunConfig) -> Study:
    """Creates a sweep's study, or joins it.

    Raises:
        UserError: the storage cannot be opened, or the study is another sweep's.
    """
    names = trial.objective_names(found.objectives, found.rule)
    directions = trial.directions(found.objectives, found.rule)
    if found.finals is not None:
        names, directions = ["score"], ["maximize"]
    study = open_study(open_storage(found.storage), found.study, directions, found.identity(), names)
    if CONFIG not in study.user_attrs:
        study.set_user_attr(CONFIG, to_tree(replace(config, output_dir=None)))
    return study


def header(found: search.Search) -> str:
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
    """Tells of trials as they end, with the best so far and the time left."""

    def __init__(self, slots: int, places: int, console: Console, words: Callable[[FrozenTrial], str]) -> None:
        self._slots, self._places, self._console, self._words = slots, places, console, words
        self._told: set[int] = set()
        self._started = time.monotonic()

    def tell(self, filled: Sequence[FrozenTrial], first: bool = False) -> None:
        """Tells of those that are new; of what was there at the beginning only how many they are."""
        new = [each for each in filled if each.number not in self._told]
        self._told.update(each.number for each in new)
        if first:
            if new:
                self._console.say(f"{len(new)} of {self._slots} are there already")
            return
        for each in new:
            left = show.time_left(filled, self._slots, self._places)
            rest = "" if not left else f", about {clock(left)} left"
            self._console.say(f"{len(self._told)} of {self._slots}: {self._words(each)}{rest}")


def trial_in_words(study: Study, found: FrozenTrial) -> str:
    """Returns how a trial ended, and the best one so far."""
    params = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.params.items()
    )
    if found.state == TrialState.COMPLETE:
        how = ", ".join(f"{value:.4f}" for value in found.values)
    else:
        how = found.user_attrs.get(FAILURE, "pruned")
    best = best_by_quality(study, filled_trials(study))
    so_far = ""
    if best is not None:
        so_far = f"; best {best.values[place_of_quality(study)]:.4f} (trial {best.user_attrs['slot']})"
    return f"trial {found.user_attrs['slot']} with {params}: {how}{so_far}"


def final_in_words(found: FrozenTrial) -> str:
    """Returns how a final run ended."""
    if found.state == TrialState.COMPLETE:
        return f"seed {found.user_attrs['result']['seed']}: {found.values[0]:.4f}"
    return found.user_attrs.get(FAILURE, "")


def best_trial(study: Study, found: search.Search) -> FrozenTrial | None:
    """Returns the trial of the best quality.

    Raises:
        UserError: every trial failed.
    """
    filled = filled_trials(study, found.slots)
    best = best_by_quality(study, filled)
    if best is None and filled:
        reasons = [each.user_attrs.get(FAILURE, "pruned") for each in filled]
        raise UserError(f"no trial of {found.study} has a value; the first one: {reasons[0]}")
    return best


def best_by_quality(study: Study, filled: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Returns the best complete trial by the metric on held-out examples, whatever the other objectives say."""
    complete = [each for each in filled if each.state == TrialState.COMPLETE]
    return findings.best(complete, study.directions, place_of_quality(study))


def place_of_quality(study: Study) -> int:
    """Returns which of the objectives the metric on held-out examples is."""
    return next(index for index, name in enumerate(study.user_attrs[OBJECTIVES]) if name.startswith("held-out"))


def conclusion(study: Study, finals: Sequence[FrozenTrial], directory: Path, as_json: bool) -> str:
    """Writes the sweep's files and returns what is printed."""
    directory.mkdir(parents=True, exist_ok=True)
    found = show.summary(study)
    results = [each.user_attrs["result"] for each in finals if each.state == TrialState.COMPLETE]
    found["finals"] = summary.make(results) if results else None
    found["failed_finals"] = [each.user_attrs[FAILURE] for each in finals if FAILURE in each.user_attrs]
    lines = [show.table(found), ""]
    path = directory / "best.toml"
    if write_recipe(study, found, path):
        config = found["identity"]
        flags = f"--method {config['method']} --task {config['task']}"
        lines.append(f"best trial as a recipe: python -m harness.run {flags} --recipe {path}")
    page.write(study, directory / "sweep.html")
    write_text(directory / "sweep.json", result.dumps(found, indent=1) + "\n")
    lines.append(f"page: {directory / 'sweep.html'}; numbers: {directory / 'sweep.json'}")
    lines += [f"a final run failed: {reason}" for reason in found["failed_finals"]]
    if results:
        folders = [RunDirectory(Path(each["config"]["output_dir"])) for each in results]
        several = len(results) > 1
        lines += ["", summary.table(results, folders) if several else result.table(results[0], folders[0].path)]
    return result.dumps(found) if as_json else "\n".join(lines)


def write_recipe(study: Study, found: Mapping[str, Any], path: Path) -> bool:
    """Writes the configuration of the best trial, of the best quality where there are several objectives."""
    attrs = study.user_attrs
    best = best_by_quality(study, filled_trials(study))
    if best is None:
        return False
    tree = dict(attrs[CONFIG])
    config = from_tree(tree.pop("method"), tree.pop("task"), tree, f"study {study.study_name}")
    hints = cli.keys(config)
    values = {key: decode(key, value, cli.plain(hints[key])) for key, value in best.params.items()}
    place = place_of_quality(study)
    comment = [
        f"The best of {found['trials']['filled']} trials of the sweep {study.study_name}: "
        f"{attrs[OBJECTIVES][place]} {best.values[place]:.6g} (trial {best.user_attrs['slot']}).",
    ]
    write_text(path, recipe.text(apply(config, values), comment))
    return True


def shown(given: SweepCommand) -> str:
    """Returns a study as it is now, and writes its files."""
    assert given.show is not None
    directory = given.config.output_dir or Path("runs") / "sweeps" / given.show
    storage = given.storage or command.own_storage(directory)
    if given.storage is None and not (directory / "study.db").is_file():
        raise UserError(f"--show {given.show}: there is no {directory / 'study.db'}: give the --storage that it is in")
    study = find_study(open_storage(storage), given.show)
    return conclusion(study, [], directory, given.json)


if __name__ == "__main__":
    sys.exit(run_command(main))
