"""``python -m harness.sweep``: see :class:`harness.sweep.command.SweepCommand` for its flags."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import optuna
from accelerate import PartialState
from optuna.study import Study
from optuna.trial import FrozenTrial

from harness import run
from harness.console import Console, is_main_process, stdout_for_the_result
from harness.errors import UserError, run_command
from harness.sweep import command, search, supervision, worker
from harness.sweep.claims import filled_trials
from harness.sweep.command import Sweep
from harness.sweep.conclusion import best_trial, conclude, shown
from harness.sweep.finals import Finishing, work_on_finals
from harness.sweep.progress import Progress, final_in_words, header, trial_in_words
from harness.sweep.search import Search
from harness.sweep.storage import without_password
from harness.sweep.worker import Work


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    given, space = command.parse(argv)
    if not given.debug:
        run.quieten_libraries()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with stdout_for_the_result() as write_stdout:
        if given.show is not None:
            write_stdout(shown(given.show, given.storage, given.config.output_dir, given.json))
            return 0
        sweep = command.make(given, space, argv)
        try:
            told = run_sweep(sweep)
        except KeyboardInterrupt:
            if is_main_process():
                again = shlex.join(map(without_password, argv))
                print(f"\nstopped; to go on: {command.PROG} {again}", file=sys.stderr)
            return 130
        if PartialState._shared_state:
            PartialState().destroy_process_group()
        if told is not None:
            write_stdout(told)
    return 0


def run_sweep(sweep: Sweep) -> str | None:
    """Returns what is printed at the end, in the main process."""
    console = Console(is_main_process())
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if together and (sweep.command.workers > 1 or sweep.command.pack != 1):
        raise UserError("started by a launcher, all processes train one trial together: leave out --workers and --pack")
    console.say(header(sweep.search))
    job = Work(sweep.search, sweep.command.trials_per_process, debug=sweep.command.debug)
    train = in_all_processes if together else in_workers
    study, finals = train(job, sweep, console)
    return None if study is None else conclude(study, finals, sweep.directory, sweep.command.json)


def in_workers(job: Work, sweep: Sweep, console: Console) -> tuple[Study, list[FrozenTrial]]:
    """Has worker processes train all trials, then the final runs; returns the study and the latter."""
    workers, found = sweep.command.workers, sweep.search
    automatic = sweep.command.pack == "auto"
    limit = command.pack_limit(found, workers) if automatic else 0
    job = replace(job, pack=1 if automatic else min(sweep.command.pack, found.slots))
    # Whatever cannot work is refused before there is a study, which would keep to the settings it began with.
    study = search.join(found, sweep.command.config) if search.exists(found) else None
    if study is None or len(filled_trials(study, found.slots)) < found.slots:
        words, size = supervision.answer(worker.try_out, job, limit)
        job = replace(job, pack=size)
        if size > 1:
            job = replace(job, trials=found.slots)
            words += f"\n{size} trials train together in each pass"
        console.say(words)
        study = study or search.join(found, sweep.command.config)
    supervise(job, study, worker.work, workers, console, lambda t: trial_in_words(study, t))
    finals = finals_of(sweep, best_trial(study, found.slots))
    if finals is None:
        return study, []
    final_study = search.join(finals, finals.config)
    console.say(f"the best trial's settings are trained with {seeds_in_words(finals.slots)} and scored")
    final_job = replace(job, search=finals, trials=1, pack=1)
    supervise(final_job, final_study, work_on_finals, workers, console, final_in_words)
    return study, filled_trials(final_study, finals.slots)


def seeds_in_words(count: int) -> str:
    return f"{count} seed{'s' * (count > 1)}"


def finals_of(sweep: Sweep, best: FrozenTrial | None) -> Search | None:
    """Returns the final runs of the best trial, None if there are none."""
    if best is None or not sweep.command.seeds:
        return None
    return sweep.finals(sweep.search.space.from_params(best.params))


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


def in_all_processes(job: Work, sweep: Sweep, console: Console) -> tuple[Study | None, list[FrozenTrial]]:
    """The same in the processes that a launcher started, which train each trial together; no study but in the main one.

    What only the main process finds out, an error too, it shares: the others are waiting for an answer.
    """
    accelerator, found = worker.start(job), sweep.search

    def in_main(action: Callable[[], object]) -> object:
        return worker.shared(accelerator, worker.attempt(action) if is_main_process() else None)

    def join() -> Study | None:
        joined: list[Study] = []
        in_main(lambda: joined.append(search.join(found, sweep.command.config)))
        return joined[0] if joined else None

    study = join() if in_main(lambda: search.exists(found)) else None
    if in_main(lambda: study is None or len(filled_trials(study, found.slots)) < found.slots):
        console.say(worker.try_out(job, 0)[0])
        study = join()
    claims = search.claims(found, study) if study is not None else None
    progress = Progress(found.slots, 1, console, lambda t: trial_in_words(study, t))
    if claims is not None:
        progress.tell(claims.filled(), first=True)
    alone = worker.Alone(replace(job, trials=1), claims, accelerator)
    worker.until_finished(alone, claims, accelerator, lambda: progress.tell(claims.filled()))
    finals = finals_of(sweep, in_main(lambda: best_trial(study, found.slots)))
    if finals is None:
        return study, []
    final_study = search.join(finals, finals.config) if study is not None else None
    final_claims = search.claims(finals, final_study) if final_study is not None else None
    finishing = Finishing(replace(job, search=finals, trials=1), final_claims, accelerator)
    worker.until_finished(finishing, final_claims, accelerator, lambda: None)
    return study, [] if final_study is None else filled_trials(final_study, finals.slots)


if __name__ == "__main__":
    sys.exit(run_command(main))
