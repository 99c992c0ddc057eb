"""``python -m benchmarks.analysis shared``: one Hadamard adapter for several tasks, beside an adapter for each.

Chen et al. (CIKM 2023, arXiv:2407.11033) leave shared adapters as future work. Up to three arms are trained on the same
tasks of GLUE, from the same start, with the same examples in the same order, for the same number of steps: ``none``,
each task has W and b of its own; ``weight``, all share W; ``both``, all share W and b. Norms and heads are each task's
own. Every step takes a batch of each task; the first stage, which trains the heads on the frozen model, is common to
the arms. ``none`` is the same as training each task alone (see :mod:`benchmarks.analysis.joint_training`).

What is scored is read back from disk by plain peft, on each task's validation split, once for each way to select a
step. ``together`` selects one step for all tasks; what an arm shares is then one set of vectors, the same in the files
of all tasks. ``each`` is the rule of the harness's ``held_out`` column; tasks may take their vectors from different
steps, so what was shared in training need not be equal in those files.

Written to ``--output-dir``: ``shared.json`` (everything), ``shared.csv`` (a row for each score), ``shared.html`` (a
plot), ``ARM/seedS/TASK`` (adapters selected together) and ``ARM/seedS/each/TASK``. ``ARM/seedS`` appears whole or not
at all, and an arm's seed that is finished is not trained again.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel

from benchmarks.analysis import joint, joint_report
from benchmarks.analysis.joint import JointTask
from benchmarks.analysis.joint_training import EACH, EVAL_BATCH, TOGETHER, Training, restore, train
from benchmarks.analysis.output import prepare, write_json
from benchmarks.tables import in_words
from hadamard_core.accounting import count_parameters
from harness.config import DataConfig, TrainConfig, flag_of, to_tree
from harness.console import Console
from harness.errors import UserError, one_line
from harness.rundir import RunDirectory
from harness.scoring import read_back
from harness.stages import stage_seed
from harness.training import fingerprint, seed_everything

FORMAT = "hadamard-bench shared 1"
RESULT = "result.json"
NOT_COMPARED = ("share", "seeds", "output_dir", "data_dir")
"""Settings that may differ when a command goes on in a directory: they say what is run there, or where things lie."""


@dataclass(frozen=True)
class Settings:
    """Trains Hadamard adapters on several tasks at once, with and without shared W and b, and compares them."""

    tasks: tuple[str, ...] = ("cola", "mrpc", "rte", "stsb")
    """The tasks of GLUE, two at least."""
    share: tuple[Literal["none", "weight", "both"], ...] = ("none", "weight", "both")
    """What the tasks have in common: nothing, W, or W and b. Each choice is trained and scored."""
    steps: int = 600
    """Optimiser steps of stage 2, which trains adapters and norms; each takes a batch of every task."""
    stage1_steps: int = 200
    """Optimiser steps of stage 1, which trains the heads on the frozen model."""
    batch_size: int = 8
    """Examples of each task in one step."""
    micro_batch_size: int | None = None
    """Examples, of all tasks, in one forward pass; those of like length meet, so that a small number means little
    padding. It changes time alone, but for other draws of dropout. All of a step at once if not given."""
    learning_rate: float = 1e-2
    """Peak learning rate of AdamW in stage 2."""
    stage1_learning_rate: float = 1e-2
    """The same in stage 1."""
    warmup_ratio: float = 0.06
    """Share of a stage's steps in which the learning rate rises from 0; it falls linearly to 0 afterwards."""
    head: Literal["freeze", "train"] = "freeze"
    """What becomes of the heads in stage 2: they stay as stage 1 has left them, or go on training."""
    seeds: tuple[int, ...] = (0,)
    """Each fixes the start of the heads, the order of examples, and dropout."""
    model: str = "minilm-l6"
    """The base model: an offline model's name, a folder, or a name on the model hub."""
    data_dir: Path | None = None
    """Folder that holds GLUE; from the model hub if not given."""
    max_length: int = 128
    """Tokens of an example; longer ones are cut."""
    held_out: float = 0.1
    """Share of each task's training examples that is not trained on and selects the step."""
    train_limit: int | None = None
    """Use a subset of this many training examples of each task, drawn by the seed; all of them if not given."""
    eval_every: int = 100
    """Measure the held-out parts every so many steps of stage 2, and at its end."""
    output_dir: Path = Path("runs/shared")
    """Where results and adapters are written; started again there, the command goes on with what is missing."""


def main(settings: Settings) -> None:
    """Trains and scores what is missing, writes the files and prints the tables.

    Raises:
        UserError: anything the user gave cannot be used.
    """
    check(settings)
    prepare(settings.output_dir)
    console = Console(speaks=True)
    with RunDirectory(settings.output_dir) as directory:
        directory.lock()
        check_directory(settings)
        found = [result for seed in settings.seeds for result in run_seed(settings, seed, console)]
    summary = joint_report.make(to_tree(settings), found)
    joint_report.write(settings.output_dir, summary)
    print(joint_report.table(summary, settings.output_dir))


def check(settings: Settings) -> None:
    """Refuses values that cannot be run.

    Raises:
        UserError: naming the flag.
    """
    for flag, values in (("--tasks", settings.tasks), ("--share", settings.share), ("--seeds", settings.seeds)):
        repeated = sorted({str(value) for value in values if values.count(value) > 1})
        if repeated:
            raise UserError(f"{flag} names {', '.join(repeated)} more than once: give each one once")
        if not values:
            raise UserError(f"{flag} is empty: give one at least")
    if len(settings.tasks) < 2:
        raise UserError(f"--tasks {settings.tasks[0]} is one task, and adapters are shared by two at least: name more")
    for task in settings.tasks:
        joint.glue_task(task)
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        **dict.fromkeys(("steps", "stage1_steps", "batch_size", "eval_every"), (lambda n: n >= 1, "at least 1")),
        **dict.fromkeys(("train_limit", "micro_batch_size"), (lambda n: n is None or n >= 1, "at least 1")),
        **dict.fromkeys(("learning_rate", "stage1_learning_rate"), (lambda x: 0 < x < math.inf, "above 0")),
        "warmup_ratio": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
        "held_out": (lambda x: 0 < x < 1, "above 0 and below 1, since the held-out part selects the step"),
        "max_length": (lambda n: n >= 8, "at least 8"),
        "seeds": (lambda seeds: all(0 <= seed < 2**32 for seed in seeds), "between 0 and 4294967295"),
    }
    for name, (holds, rule) in rules.items():
        value = getattr(settings, name)
        if not holds(value):
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(f"{flag_of(name)} is {shown}: it must be {rule}")


def check_directory(settings: Settings) -> None:
    """Refuses a directory of other settings; notes those of a new one.

    Raises:
        UserError: the directory holds something else.
    """
    path = settings.output_dir / "settings.json"
    now = {name: value for name, value in to_tree(settings).items() if name not in NOT_COMPARED}
    if not path.is_file():
        if any(entry.name != f".{path.name}.new" for entry in settings.output_dir.iterdir()):
            raise UserError(
                f"--output-dir {settings.output_dir} holds files and no settings.json of this command: choose another"
            )
        write_json(path, {"format": FORMAT, **now})
        return
    stored = read(path)
    for name in sorted(now.keys() | stored.keys()):
        before, after = stored.get(name, "not given"), now.get(name, "not given")
        if before != after:
            raise UserError(
                f"--output-dir {settings.output_dir} holds results with {flag_of(name)} {in_words(before)}, and here "
                f"it is {in_words(after)}: choose another directory, or give the same settings"
            )


def read(path: Path) -> dict[str, Any]:
    """Returns one of this command's JSON files without its mark.

    Raises:
        UserError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({one_line(error)}): choose another --output-dir") from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise UserError(f"{path} was not written by this version of this command: choose another --output-dir")
    return found


def run_seed(settings: Settings, seed: int, console: Console) -> list[dict[str, Any]]:
    """Returns the results of one seed, one for each arm; trains those that are not there.

    Raises:
        UserError: model or data cannot be used, or are not those of the results that are there.
    """
    data = DataConfig(dir=settings.data_dir, train_limit=settings.train_limit)
    tasks = joint.read_tasks(settings.tasks, settings.model, data, seed, settings.max_length, settings.held_out)
    known = identity(tasks)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    start: PeftModel | None = None
    results = []
    for arm in settings.share:
        path = settings.output_dir / arm / f"seed{seed}" / RESULT
        if path.is_file():
            result = read(path)
            require_same(path, result["identity"], known)
            console.say(f"{arm}, seed {seed}: finished before, taken from {path}")
        else:
            if start is None:
                start = train_heads(settings, tasks, seed, device, console)
            result = run_arm(settings, arm, tasks, seed, copy.deepcopy(start), known, device, console)
        results.append(result)
    return results


def identity(tasks: Sequence[JointTask]) -> dict[str, str]:
    """Returns what the results of a seed have to share beside the settings, in words."""
    found = {"base model's sha256": tasks[0].base.fingerprint}
    for task in tasks:
        found[f"version of {task.name}"] = str(task.loaded.task.version)
        found[f"sha256 of the training data of {task.name}"] = fingerprint(task.workload.train)
    return found


def require_same(path: Path, stored: dict[str, str], now: dict[str, str]) -> None:
    """Refuses a result of another model or other data.

    Raises:
        UserError: naming what differs.
    """
    for what, value in now.items():
        if stored.get(what) != value:
            raise UserError(f"{path}: the {what} is not the same now: restore it, or choose another --output-dir")


def stage_config(settings: Settings, stage: Literal[1, 2]) -> TrainConfig:
    """Returns the settings of a stage; only the second is measured, and neither clips gradients."""
    first = stage == 1
    return TrainConfig(
        learning_rate=settings.stage1_learning_rate if first else settings.learning_rate,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        max_steps=settings.stage1_steps if first else settings.steps,
        warmup_ratio=settings.warmup_ratio,
        max_grad_norm=None,
        eval_every="never" if first else settings.eval_every,
    )


def train_heads(
    settings: Settings, tasks: Sequence[JointTask], seed: int, device: torch.device, console: Console
) -> PeftModel:
    """Returns the model with which all arms of a seed begin: nothing shared, heads trained, adapters as they start."""
    model = joint.build(tasks).to(device)
    joint.train_only(model, adapters=False, heads=True)
    own_seed, label = stage_seed(seed, 0), f"seed {seed}, stage 1: heads"
    train(model, tasks, stage_config(settings, 1), own_seed, device, console, label, "--stage1-learning-rate")
    return model


def run_arm(
    settings: Settings,
    arm: str,
    tasks: Sequence[JointTask],
    seed: int,
    model: PeftModel,
    known: dict[str, str],
    device: torch.device,
    console: Console,
) -> dict[str, Any]:
    """Trains an arm from what :func:`train_heads` returned, writes ``ARM/seedS`` and returns its result."""
    joint.share(model, settings.tasks, arm)
    joint.train_only(model, adapters=True, heads=True)
    counts = count_parameters(model)
    joint.train_only(model, adapters=True, heads=settings.head == "train")
    label = f"{arm}, seed {seed}, stage 2"
    training = train(model, tasks, stage_config(settings, 2), seed, device, console, label, "--learning-rate")
    result = {
        "arm": arm,
        "seed": seed,
        "identity": known,
        "parameters": {"adapter": counts.adapter, "norm": counts.norm, "head": counts.head, "trained": counts.trained},
        "data": {task.name: dict(task.loaded.facts) for task in tasks},
        "measurements": training.measurements,
    }

    def fill(folder: Path) -> None:
        write_adapters(folder, model, training)
        result["rows"] = score(folder, arm, tasks, seed, training, device, console)
        write_json(folder / RESULT, {"format": FORMAT, **result})

    prepare(settings.output_dir / arm)
    RunDirectory(settings.output_dir / arm).write_folder(f"seed{seed}", fill)
    return result


def adapter_folder(folder: Path, selection: str) -> Path:
    """Returns the folder, below that of an arm's seed, that holds the adapters of a selection."""
    return folder if selection == TOGETHER else folder / selection


def write_adapters(folder: Path, model: PeftModel, training: Training) -> None:
    """Writes each task's adapter for each selection."""
    for selection, chosen in training.selected.items():
        for task, entry in chosen.items():
            restore(model, training.kept[entry["step"]])
            joint.save(model, task, adapter_folder(folder, selection))


def score(
    folder: Path,
    arm: str,
    tasks: Sequence[JointTask],
    seed: int,
    training: Training,
    device: torch.device,
    console: Console,
) -> list[dict[str, Any]]:
    """Returns a row for each selection and task, of the adapter as it is read back; of two equal steps one is read."""
    rows = []
    for task in tasks:
        scored: dict[int, dict[str, float | None]] = {}
        metric, split = main_metric(task)
        for selection in (TOGETHER, EACH):
            entry = training.selected[selection][task.name]
            if entry["step"] not in scored:
                path = adapter_folder(folder, selection) / task.name
                scored[entry["step"]] = evaluate(task, path, seed, device, console)
            metrics = scored[entry["step"]]
            rows.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "task": task.name,
                    "selection": selection,
                    "step": entry["step"],
                    "split": split,
                    "metric": metric,
                    "value": metrics[metric],
                    "held_out": entry["value"],
                    "examples": task.loaded.facts[f"{split}_examples"],
                    "metrics": metrics,
                }
            )
    return rows


def main_metric(task: JointTask) -> tuple[str, str]:
    """Returns the name of the score that stands for a task, and its split; of MNLI's two parts, the matched one."""
    declaration = task.loaded.task.declaration
    split = declaration.evaluated[0]
    return declaration.metric + split.removeprefix("validation"), split


def evaluate(task: JointTask, path: Path, seed: int, device: torch.device, console: Console) -> dict[str, float | None]:
    """Returns the metrics of an adapter, read from disk and merged, on validation; None for one that is undefined."""
    model = read_back(joint.METHOD, task.base, path, device)
    seed_everything(seed)
    with torch.no_grad():
        found = task.loaded.evaluate(model, task.workload.tokenizer, "validation", EVAL_BATCH, console)
    return {name: value if math.isfinite(value) else None for name, value in found.metrics.items()}
