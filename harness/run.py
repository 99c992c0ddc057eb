"""``python -m harness.run --method NAME --task NAME``: from recipe to result, once or once for each seed.

recipe + command line -> configuration -> data -> base model -> method -> training -> files on disk -> a fresh base
model that reads them -> scores -> ``result.json`` and a table. What is scored never comes from memory.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from huggingface_hub.utils import disable_progress_bars
from torch import nn

from harness import catalogue, cli, init_from, result, result_file, scoring, stages, summary
from harness.checkpoint import CheckpointStore, History
from harness.config import RunConfig, default_output_dir, validate
from harness.console import Console, is_main_process, stdout_for_the_result
from harness.errors import UserError, run_command
from harness.preparation import Setup, prepare
from harness.rundir import RunDirectory, same_configuration, write_text
from harness.training import fingerprint, train, unprepared


def main(argv: Sequence[str]) -> int:
    """Runs the command; see :class:`harness.cli.CommandLine` for its flags."""
    command = cli.parse(argv)
    if command.list:
        print(catalogue.listing())
        return 0
    if not command.debug:
        quieten_libraries()
    runs = one_for_each_seed(command)
    directories = [RunDirectory(run.config.output_dir or default_output_dir(run.config)) for run in runs]
    try:
        with contextlib.ExitStack() as stack:
            write_stdout = stack.enter_context(stdout_for_the_result())
            for run, directory in zip(runs, directories, strict=True):
                stack.enter_context(directory)
                check(run, directory)
            done = []
            for run, directory in zip(runs, directories, strict=True):
                try:
                    done.append(execute(run, directory, lambda: begin(runs, directories)))
                except UserError as error:
                    raise UserError(f"seed {run.config.seed}: {error}" if command.seeds else str(error)) from error
            if PartialState._shared_state:
                PartialState().destroy_process_group()
            if not is_main_process():
                return 0
            if command.seeds:
                write_stdout(
                    result_file.dumps(summary.make(done)) if command.json else summary.table(done, directories)
                )
            else:
                write_stdout(result_file.dumps(done[0]) if command.json else result.table(done[0], directories[0].path))
    except KeyboardInterrupt:
        if is_main_process():
            again = shlex.join([*(word for word in argv if word not in ("--overwrite", "--resume")), "--resume"])
            how = (
                f"to go on: python -m harness.run {again}"
                if any(directory.begun for directory in directories)
                else "nothing was begun"
            )
            print(f"\nstopped; {how}", file=sys.stderr)
        return 130
    return 0


def one_for_each_seed(command: cli.CommandLine) -> list[cli.CommandLine]:
    """Returns the command itself, or one for each of ``--seeds``: in ``--output-dir``, each in a folder of its own."""
    if not command.seeds:
        return [command]
    runs = []
    for seed in command.seeds:
        config = replace(command.config, seed=seed)
        if config.output_dir is not None:
            config = replace(config, output_dir=config.output_dir / f"seed{seed}")
        directory = config.output_dir or default_output_dir(config)
        begun = (directory / "config.toml").is_file()
        runs.append(replace(command, config=config, resume=command.resume and begun))
    return runs


def check(command: cli.CommandLine, directory: RunDirectory) -> None:
    """Refuses what cannot run, before anything is begun.

    Raises:
        UserError: in words.
    """
    validate(command.config)
    if command.resume and command.overwrite:
        raise UserError("--resume goes on with a run and --overwrite deletes it: give one of them")
    if command.resume:
        same_configuration(command.config, directory.path)
    elif is_main_process():
        directory.check_free(command.overwrite)
    if command.config.init_from and command.config.init_from.resolve() == directory.path.resolve():
        raise UserError(f"--init-from {directory.path} is the run directory itself: give another --output-dir")


def begin(runs: Sequence[cli.CommandLine], directories: Sequence[RunDirectory]) -> None:
    """Makes the directories of all runs that are not resumed, so that what one of them held is nobody's result now."""
    for run, directory in zip(runs, directories, strict=True):
        if not (run.resume or directory.begun):
            directory.create(run.config, run.overwrite)


def execute(
    command: cli.CommandLine, directory: RunDirectory, begin: Callable[[], None], quiet: bool = False
) -> dict[str, Any] | None:
    """Returns the result of one run in the main process, None in the others, which wait there for the main one.

    Args:
        begin: called once everything is read and nothing speaks against the run.
        quiet: say nothing of how it goes.

    Raises:
        UserError: anything the user gave cannot be used.
    """
    config = command.config
    if command.resume:
        directory.begun = True
        if is_main_process():
            directory.lock()
        if directory.result.is_file():
            return show_finished(directory) if is_main_process() else None

    accelerator = make_accelerator(config)
    console = Console(accelerator.is_main_process and not quiet)
    setup = prepare(config, accelerator, console)
    start = None
    if config.init_from:
        model = stages.applied(config, setup.stages, setup.model, setup.modules_to_save)
        start = init_from.copy_trained(config, setup.base, model)
    console.say(result.header(config, setup, start))
    known = identity(config, setup, start, accelerator.num_processes)
    folders = [*(directory.stage_checkpoint(stage.name) for stage in setup.stages[:-1]), directory.checkpoint]
    stores = [CheckpointStore(folder, known) for folder in folders]
    if accelerator.is_main_process:
        begin()
        if command.resume and not any(store.exists() for store in stores):
            console.say("the run was stopped before its first checkpoint, so it starts from the beginning")
    accelerator.wait_for_everyone()

    try:
        model, histories = train_stages(setup, config, stores, accelerator, console)
        done = None
        if accelerator.is_main_process:
            setup.model = None
            written = scoring.write_adapters(config, model, histories[-1], stores[-1], directory)
            model = None
            accelerator.free_memory()
            gc.collect()
            evaluations = scoring.score(config, setup, written, histories[-1], accelerator.device, directory, console)
            saved = scoring.weight_bytes(written[0][1])
            done = result.make(config, setup, start, histories, accelerator, evaluations, saved)
            write_text(directory.result, result_file.dumps(done, indent=1) + "\n")
            for store in stores:
                store.delete()
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU's memory does not suffice: give a smaller --train.micro-batch-size or --eval-batch-size"
        ) from error
    accelerator.wait_for_everyone()
    return done


def train_stages(
    setup: Setup,
    config: RunConfig,
    stores: Sequence[CheckpointStore | None],
    accelerator: Accelerator,
    console: Console,
    on_measured: Callable[[History], None] | None = None,
) -> tuple[nn.Module, list[History | None]]:
    """Trains one stage after another, each from its checkpoint if there is one.

    Args:
        stores: of each stage; None for one without checkpoints.
        on_measured: as of :func:`harness.training.train`, in the last stage.

    Returns:
        The trained model, and what happened in each stage; None for one that is skipped.
    """
    model, histories = setup.model, []
    for stage, store in zip(setup.stages, stores, strict=True):
        if stage.skipped:
            histories.append(None)
            continue
        last = stage is setup.stages[-1]
        if stage.name:
            model = stages.enter(stage.config, stage.name, model, setup.modules_to_save)
            if last and config.init_from:
                init_from.copy_trained(config, setup.base, model)
            console.say(f"{stage.name}: {stage.trains}")
        watcher = on_measured if last else None
        history = train(model, setup.workload, stage, accelerator, store, console, watcher)
        histories.append(history)
        model = unprepared(model, accelerator)
        if not last:
            accelerator.free_memory()
    return model, histories


def identity(config: RunConfig, setup: Setup, start: Mapping[str, Any] | None, processes: int) -> dict[str, str]:
    """Returns what must be the same when a run goes on, in words."""
    return {
        "base model's sha256": setup.base.fingerprint,
        "task's version": str(config.task_settings.version),
        "training data's sha256": fingerprint(setup.workload.train),
        "number of processes": str(processes),
        **({"sha256 of what --init-from holds": start["sha256"]} if start else {}),
    }


def show_finished(directory: RunDirectory) -> dict[str, Any]:
    """Returns the stored result of a run that has ended; nothing is computed."""
    print(f"this run is finished: {directory.result} is shown, nothing is trained", file=sys.stderr)
    # they are still there if the run was killed while deleting them
    for folder in (directory.checkpoint, *directory.path.glob(directory.stage_checkpoint("*").name)):
        CheckpointStore(folder, {}).delete()
    return result_file.read(directory.result)


def make_accelerator(config: RunConfig) -> Accelerator:
    """Returns the Accelerator: a GPU if there is one, several processes if a launcher started them."""
    # the other processes wait while the main one scores, for hours with a large model
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    return Accelerator(
        mixed_precision=config.train.mixed_precision,
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[patience],
    )


def quieten_libraries() -> None:
    """Keeps warnings and loading bars of the libraries off the screen; --debug leaves them on."""
    warnings.simplefilter("ignore")
    if not sys.stderr.isatty():
        disable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(run_command(main))
