"""``result.json``: what it holds, and how a person reads it.

Every number stands with its unit, split, number of examples and seeds, and how the parameters were selected.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hadamard_core.accounting import ParameterCounts
from harness import registry
from harness.checkpoint import History
from harness.config import RunConfig, to_tree
from harness.errors import UserError, one_line
from harness.models import Base
from harness.protocols import Evaluation, LoadedTask, Task
from harness.training import Plan

SCHEMA_VERSION = 1

SELECTED_BY = {"last": "the last step", "best": "lowest validation loss"}


def make(
    config: RunConfig,
    task: Task,
    loaded: LoadedTask,
    base: Base,
    counts: ParameterCounts,
    history: History,
    plan: Plan,
    processes: int,
    device: torch.device,
    evaluations: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the content of ``result.json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "method": _named("method", config.method),
        "task": {**_named("task", config.task), "version": task.version},
        "preset": config.preset,
        "description": config.description,
        "model": {
            "name": config.model,
            "source": base.source,
            "sha256": base.fingerprint,
            "new_parameters": list(base.new_parameters),
        },
        "seed": config.seed,
        "config": to_tree(config),
        "data": to_tree(dict(loaded.facts)),
        "parameters": {**asdict(counts), "trained": counts.trained, "total": counts.total},
        "train": {
            "steps": history.step,
            "epochs": history.step / plan.order.steps_per_epoch,
            "examples": history.step * config.train.batch_size,
            "targets": history.targets,
            "batch_size": config.train.batch_size,
            "micro_batch_size": plan.micro_batch,
            "processes": processes,
            "final_loss": history.losses[-1]["loss"],
            "loss_curve": history.losses,
            "validation_curve": history.validation,
            "seconds": round(history.seconds, 3),
        },
        "evaluations": dict(evaluations),
        "environment": environment(device),
    }


def _named(kind: registry.Kind, name: str) -> dict[str, str]:
    return {"name": name, "distribution": registry.distribution(registry.get_entry(kind, name))}


def environment(device: torch.device) -> dict[str, Any]:
    """Returns the versions and the machine that the numbers come from."""
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        "platform": platform.platform(),
        "device": cuda or device.type,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def evaluation_entry(evaluation: Evaluation, which: str, step: int, split: str, seconds: float) -> dict[str, Any]:
    """Returns one of ``evaluations``; a metric that is not finite moves to the unavailable ones with its value."""
    finite = {name: float(value) for name, value in evaluation.metrics.items() if math.isfinite(value)}
    odd = {name: f"came out as {value}" for name, value in evaluation.metrics.items() if name not in finite}
    return {
        "selected_by": SELECTED_BY[which],
        "step": step,
        "split": split,
        "examples": len(evaluation.predictions),
        "metrics": finite,
        "unavailable": {**evaluation.unavailable, **odd},
        "signatures": dict(evaluation.signatures),
        "seconds": round(seconds, 3),
    }


def dumps(result: Mapping[str, Any], indent: int | None = None) -> str:
    """Returns JSON that holds no NaN."""
    return json.dumps(result, indent=indent, ensure_ascii=False, allow_nan=False)


def read(path: Path) -> dict[str, Any]:
    """Reads a ``result.json``.

    Raises:
        UserError: it is damaged or of another schema version.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {one_line(error)}") from error
    if not isinstance(result, dict) or result.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} is not a result of schema version {SCHEMA_VERSION}, the one this harness reads")
    if missing := {"method", "task", "model", "seed", "parameters", "train", "evaluations"} - result.keys():
        raise UserError(f"{path} is damaged: it has no {min(missing)!r}; --overwrite starts the run afresh")
    return result


def table(result: Mapping[str, Any], directory: Path) -> str:
    """Returns the result for a person."""
    counts, train = result["parameters"], result["train"]
    share = 100 * counts["trained"] / counts["total"]
    lines = [
        f"{result['method']['name']} on {result['task']['name']} (version {result['task']['version']}), "
        f"preset {result['preset']}, model {result['model']['name']}, 1 seed ({result['seed']})",
        *([result["description"]] if result["description"] else []),
        f"trained parameters: {counts['trained']:,} of {counts['total']:,} ({share:.3g} %): adapter "
        f"{counts['adapter']:,}, norm {counts['norm']:,}, head {counts['head']:,}",
        f"training: {train['steps']} steps of {train['batch_size']} examples, {train['targets']:,} targets, "
        f"{train['seconds']:.0f} s, final loss {train['final_loss']:.4f} a target",
    ]
    for which, entry in result["evaluations"].items():
        lines += ["", *_evaluation(which, entry)]
    return "\n".join([*lines, "", f"files: {directory}"])


def _evaluation(which: str, entry: Mapping[str, Any]) -> list[str]:
    if "same_as" in entry:
        return [f"{which} ({entry['selected_by']}): step {entry['step']}, the same parameters as {entry['same_as']}"]
    lines = [
        f"{entry['split']} split, {entry['examples']} examples, {which} parameters (step {entry['step']}, selected by "
        f"{entry['selected_by']}), scored in {entry['seconds']:.0f} s"
    ]
    width = max(map(len, [*entry["metrics"], *entry["unavailable"]]), default=0)
    for name, value in entry["metrics"].items():
        signature = entry["signatures"].get(name, "")
        lines.append(f"  {name:<{width}}  {value:>8.4f}  {signature}".rstrip())
    for name, reason in entry["unavailable"].items():
        lines.append(f"  {name:<{width}}  not computed: {reason}")
    return lines


def header(config: RunConfig, base: Base, counts: ParameterCounts, loaded: LoadedTask, steps: int) -> str:
    """Returns what a run says before it starts."""
    share = 100 * counts.trained / counts.total
    sizes = ", ".join(
        f"{name.replace('_', ' ')} {value:,}" for name, value in loaded.facts.items() if type(value) is int
    )
    lines = [
        f"{config.method} on {config.task}, preset {config.preset}, seed {config.seed}",
        *([config.description] if config.description else []),
        f"model: {config.model} ({base.source}; sha256 {base.fingerprint[:12]})",
        f"trained: {counts.trained:,} of {counts.total:,} parameters ({share:.3g} %)",
        f"data: {sizes}",
        f"steps: {steps} of {config.train.batch_size} examples; then the {config.split} split is scored",
    ]
    if base.new_parameters:
        names = ", ".join(base.new_parameters[:4]) + (", ..." if len(base.new_parameters) > 4 else "")
        lines.append(f"not in the checkpoint, so they start at random: {names}")
    return "\n".join(lines)
