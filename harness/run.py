"""``python -m harness.run --method NAME --task NAME``: from recipe to result, once or once for each seed.

recipe + command line -> configuration -> data -> base model -> method -> training -> files on disk -> a fresh base
model that reads them -> scores -> ``result.json`` and a table. What is scored never comes from memory.
"""

from __future__ import annotations

import gc
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from huggingface_hub.utils import disable_progress_bars
from torch import nn
from transformers import PreTrainedTokenizerBase

from hadamard_core.accounting import count_parameters
from harness import cli, init_from, models, registry, result, summary
from harness.base import Base
from harness.checkpoint import CheckpointStore, History
from harness.config import RunConfig, default_output_dir, validate
from harness.console import Console, is_main_process, stdout_for_the_result
from harness.errors import UserError, one_line, run_command
from harness.protocols import LoadedTask, Method, Task
from harness.rundir import RunDirectory, same_configuration, write_text
from harness.training import fingerprint, make_plan, seed_everything, train
from harness.workload import Workload


def main(argv: Sequence[str]) -> int:
    """Runs the command; see :class:`harness.cli.CommandLine` for its flags."""
    command = cli.parse(argv)
    if command.list:
        print(registry.listing())
        return 0
    if not command.debug:
        quieten_libraries()
    runs = one_for_each_seed(command)
    directories = [RunDirectory(run.config.output_dir or default_output_dir(run.config)) for run in runs]
    begun = False
    try:
        with stdout_for_the_result() as write_stdout:
            for run, directory in zip(runs, directories, strict=True):
                check(run, directory)
            done = []
            for run, directory in zip(runs, directories, strict=True):
                with directory:
                    try:
                        done.append(execute(run, directory))
                    finally:
                        begun = begun or directory.begun
            if PartialState._shared_state:
                PartialState().destroy_process_group()
            if not is_main_process():
                return 0
            if command.seeds:
                write_stdout(result.dumps(summary.make(done)) if command.json else summary.table(done, directories))
            else:
                write_stdout(result.dumps(done[0]) if command.json else result.table(done[0], directories[0].path))
    except KeyboardInterrupt:
        if is_main_process():
            again = shlex.join([*(word for word in argv if word not in ("--overwrite", "--resume")), "--resume"])
            how = f"to go on: python -m harness.run {again}" if begun else "nothing was begun"
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
        begun = directory.is_dir() and any(directory.iterdir())
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


def execute(command: cli.CommandLine, directory: RunDirectory) -> dict[str, Any] | None:
    """Returns the result of one run in the main process, None in the others, which wait there for the main one.

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
    console = Console(accelerator.is_main_process)
    task: Task = config.task_settings
    method: Method = config.method_settings
    loaded = task.load(config.data, config.seed)
    with accelerator.main_process_first():
        base = models.find(
            config.model,
            task.auto_class,
            config.seed,
            new_head=config.new_head,
            allow_pickle=config.allow_pickle,
            trust_remote_code=config.trust_remote_code,
            say=console.say,
        )
    base.model_kwargs = loaded.model_kwargs(None if config.new_head else base.checkpoint_config())
    model = base.fresh(config.train.model_dropout)
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokenizer = base.tokenizer()
    seed_everything(config.seed)
    try:
        model = method.apply(model, task.task_type, base.modules_to_save(model))
    except ValueError as error:
        raise UserError(f"--method {config.method}: {one_line(error)}") from error
    counts = count_parameters(model)
    if counts.trained == 0:
        raise UserError(f"--method {config.method} leaves nothing to train with these settings")
    start = init_from.copy_trained(config, base, model) if config.init_from else None

    splits = {rule.split for rule in task.rules.values()} if config.train.eval_every != "never" else ()
    measured = {split: loaded.encode(tokenizer, split) for split in sorted(splits)}
    workload = Workload(loaded, tokenizer, loaded.encode(tokenizer, "train"), measured)
    plan = make_plan(workload.train, config.train, config.seed, accelerator.num_processes)
    console.say(result.header(config, base, counts, loaded, start, plan.total))
    identity = {
        "base model's sha256": base.fingerprint,
        "task's version": str(task.version),
        "training data's sha256": fingerprint(workload.train),
        "number of processes": str(accelerator.num_processes),
        **({"sha256 of what --init-from holds": start["sha256"]} if start else {}),
    }
    store = CheckpointStore(directory.checkpoint, identity)
    if accelerator.is_main_process:
        if not command.resume:
            directory.create(config, command.overwrite)
        elif not store.exists():
            console.say("the run was stopped before its first checkpoint, so it starts from the beginning")
    accelerator.wait_for_everyone()

    try:
        history = train(model, workload, config, plan, accelerator, store, console)
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU's memory does not suffice: give a smaller --train.micro-batch-size") from error
    processes, device = accelerator.num_processes, accelerator.device
    done = None
    if accelerator.is_main_process:
        steps = write_adapters(
            config, accelerator.unwrap_model(model, keep_fp32_wrapper=False), history, store, directory
        )
        del model
        accelerator.free_memory()
        gc.collect()
        evaluations = score(config, loaded, base, tokenizer, steps, history, device, directory, console)
        done = result.make(config, task, loaded, base, counts, start, history, plan, processes, device, evaluations)
        write_text(directory.result, result.dumps(done, indent=1) + "\n")
        store.delete()
    accelerator.wait_for_everyone()
    return done


def score(
    config: RunConfig,
    loaded: LoadedTask,
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    steps: Sequence[tuple[str, Path, int]],
    history: History,
    device: torch.device,
    directory: RunDirectory,
    console: Console,
) -> dict[str, Any]:
    """Returns the ``evaluations`` of the result; parameters that two rules select are scored once."""
    evaluations: dict[str, Any] = {}
    scored_steps: dict[int, tuple[str, dict[str, Any]]] = {}
    for which, folder, step in steps:
        chosen = result.selection(which, config.task_settings.rules, history)
        if step in scored_steps:
            twin, entry = scored_steps[step]
            evaluations[which] = {**chosen, **entry, "same_as": twin, "seconds": 0.0}
        else:
            started = time.monotonic()
            scored = read_back(config.method_settings, base, folder, device)
            seed_everything(config.seed)
            with torch.no_grad():
                evaluation = loaded.evaluate(scored, tokenizer, config.split, config.eval_batch_size, console)
            entry = result.evaluation_entry(evaluation, step, config.split, time.monotonic() - started)
            directory.write_lines(f"predictions{folder.name.removeprefix('adapter')}.jsonl", evaluation.predictions)
            scored_steps[step] = (which, entry)
            evaluations[which] = {**chosen, **entry}
    return evaluations


def show_finished(directory: RunDirectory) -> dict[str, Any]:
    """Returns the stored result of a run that has ended; nothing is computed."""
    print(f"this run is finished: {directory.result} is shown, nothing is trained", file=sys.stderr)
    CheckpointStore(directory.checkpoint, {}).delete()  # it is still there if the run was killed while deleting it
    return result.read(directory.result)


def write_adapters(
    config: RunConfig, model: nn.Module, history: History, store: CheckpointStore, directory: RunDirectory
) -> list[tuple[str, Path, int]]:
    """Writes ``adapter/`` for the first of ``score`` and ``adapter-WHICH/`` for another; returns which, where, step."""
    written = []
    # the last ones first, since reading others overwrites them in the model
    for which in sorted(set(config.score), key=lambda which: which != "last"):
        if which != "last":
            store.restore_best(model, history, which)
        name = "adapter" if which == config.score[0] else f"adapter-{which}"
        step = history.step if which == "last" else history.best[which]["step"]
        folder = directory.write_folder(name, lambda folder: config.method_settings.save(model, folder))
        written.append((which, folder, step))
    return sorted(written, key=lambda entry: config.score.index(entry[0]))


def read_back(method: Method, base: Base, folder: Path, device: torch.device) -> nn.Module:
    """Returns a fresh base model with what ``folder`` holds folded into its weights, ready to be scored."""
    model = method.merge(method.load(base.fresh(), folder))
    return model.eval().requires_grad_(False).to(device)


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
