"""``python -m harness.run --method NAME --task NAME``: one run, from recipe to result.

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
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from huggingface_hub.utils import disable_progress_bars
from torch import nn

from hadamard_core.accounting import count_parameters
from harness import cli, models, registry, result
from harness.checkpoint import CheckpointStore, History
from harness.config import RunConfig, default_output_dir, validate
from harness.console import Console, is_main_process, stdout_for_the_result
from harness.errors import UserError, one_line, run_command
from harness.protocols import Method, Task
from harness.rundir import RunDirectory, same_configuration, write_text
from harness.training import fingerprint, make_plan, seed_everything, train


def main(argv: Sequence[str]) -> int:
    """Runs the command; see :class:`harness.cli.CommandLine` for its flags."""
    command = cli.parse(argv)
    if command.list:
        print(registry.listing())
        return 0
    if not command.debug:
        quieten_libraries()
    directory = RunDirectory(command.config.output_dir or default_output_dir(command.config))
    try:
        with stdout_for_the_result() as write_stdout, directory:
            done = run(command, directory)
            if done is not None:
                write_stdout(result.dumps(done) if command.json else result.table(done, directory.path))
    except KeyboardInterrupt:
        if is_main_process():
            again = shlex.join([*(word for word in argv if word not in ("--overwrite", "--resume")), "--resume"])
            how = f"to go on: python -m harness.run {again}" if directory.begun else "nothing was begun"
            print(f"\nstopped; {how}", file=sys.stderr)
        return 130
    return 0


def run(command: cli.CommandLine, directory: RunDirectory) -> dict[str, Any] | None:
    """Returns the result in the main process, None in the others, which end when training has ended.

    Raises:
        UserError: anything the user gave cannot be used.
    """
    config = command.config
    validate(config)
    if command.resume and command.overwrite:
        raise UserError("--resume goes on with a run and --overwrite deletes it: give one of them")
    if command.resume:
        same_configuration(config, directory.path)
        directory.begun = True
        if is_main_process():
            directory.lock()
        if directory.result.is_file():
            return show_finished(directory) if is_main_process() else None
    elif is_main_process():
        directory.check_free(command.overwrite)

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
            loaded.model_kwargs(),
            allow_pickle=config.allow_pickle,
            trust_remote_code=config.trust_remote_code,
            say=console.say,
        )
    model = base.fresh(config.train.model_dropout)
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokenizer = base.tokenizer()
    seed_everything(config.seed)
    try:
        model = method.apply(model, task.task_type)
    except ValueError as error:
        raise UserError(f"--method {config.method}: {one_line(error)}") from error
    counts = count_parameters(model)
    if counts.trained == 0:
        raise UserError(f"--method {config.method} leaves nothing to train with these settings")

    features = loaded.encode(tokenizer, "train")
    validation = loaded.encode(tokenizer, "validation") if config.train.eval_every != "never" else []
    plan = make_plan(features, config.train, config.seed, accelerator.num_processes)
    console.say(result.header(config, base, counts, loaded, plan.total))
    identity = {
        "base model's sha256": base.fingerprint,
        "task's version": str(task.version),
        "training data's sha256": fingerprint(features),
        "number of processes": str(accelerator.num_processes),
    }
    store = CheckpointStore(directory.checkpoint, identity)
    if accelerator.is_main_process:
        if not command.resume:
            directory.create(config, command.overwrite)
        elif not store.exists():
            console.say("the run was stopped before its first checkpoint, so it starts from the beginning")
    accelerator.wait_for_everyone()

    try:
        history = train(model, loaded, features, validation, config.train, plan, accelerator, store, console)
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU's memory does not suffice: give a smaller --train.micro-batch-size") from error
    if not accelerator.is_main_process:
        accelerator.end_training()
        return None
    steps = write_adapters(config, accelerator.unwrap_model(model, keep_fp32_wrapper=False), history, store, directory)
    processes, device = accelerator.num_processes, accelerator.device
    accelerator.end_training()
    del model, accelerator
    gc.collect()

    evaluations = {}
    for which, folder, step in steps:
        twin = next((name for name, _, other in steps[: len(evaluations)] if other == step), None)
        if twin is not None:
            evaluations[which] = {"selected_by": result.SELECTED_BY[which], "step": step, "same_as": twin}
            continue
        started = time.monotonic()
        scored = read_back(method, base, folder, device)
        seed_everything(config.seed)
        with torch.no_grad():
            evaluation = loaded.evaluate(scored, tokenizer, config.split, console)
        evaluations[which] = result.evaluation_entry(evaluation, which, step, config.split, time.monotonic() - started)
        directory.write_lines(f"predictions{folder.name.removeprefix('adapter')}.jsonl", evaluation.predictions)
    done = result.make(config, task, loaded, base, counts, history, plan, processes, device, evaluations)
    write_text(directory.result, result.dumps(done, indent=1) + "\n")
    store.delete()
    return done


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
    # in this order, since reading the best parameters overwrites the last ones in the model
    for which in sorted(set(config.score), reverse=True):
        if which == "best":
            store.restore_best(model, history)
        name = "adapter" if which == config.score[0] else f"adapter-{which}"
        step = int(history.best["step"]) if which == "best" else history.step
        folder = directory.write_folder(name, lambda folder: config.method_settings.save(model, folder))
        written.append((which, folder, step))
    return sorted(written, key=lambda entry: config.score.index(entry[0]))


def read_back(method: Method, base: models.Base, folder: Path, device: torch.device) -> nn.Module:
    """Returns a fresh base model with what ``folder`` holds folded into its weights, ready to be scored."""
    model = method.merge(method.load(base.fresh(), folder))
    return model.eval().requires_grad_(False).to(device)


def make_accelerator(config: RunConfig) -> Accelerator:
    """Returns the Accelerator: a GPU if there is one, several processes if a launcher started them."""
    return Accelerator(mixed_precision=config.train.mixed_precision, cpu=not torch.accelerator.is_available())


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
