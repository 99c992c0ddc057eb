"""What there is to compare: each method with its paper, where it acts, and what it trains, counted."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hadamard_core.accounting import ParameterCounts, count_parameters
from harness import registry
from harness.errors import one_line


@dataclass(frozen=True)
class Architecture:
    """A model to count on, without weights.

    Attributes:
        build: makes it; on the device ``meta`` that takes no memory.
        heads: names of its modules that are trained whatever the method.
    """

    build: Callable[[], PreTrainedModel]
    task_type: str
    heads: tuple[str, ...]


def _roberta_large() -> PreTrainedModel:
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=50265,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            max_position_embeddings=514,
            type_vocab_size=1,
        )
    )


def _gpt2_medium() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))


ARCHITECTURES = {
    "RoBERTa-large": Architecture(_roberta_large, "SEQ_CLS", ("classifier",)),
    "GPT-2 medium": Architecture(_gpt2_medium, "CAUSAL_LM", ()),
}
"""The models of the HUT paper's tables, with the size of its tasks' models."""


def counted(method: Any, architecture: str) -> ParameterCounts:
    """Returns what a method trains on one of :data:`ARCHITECTURES`.

    Raises:
        ValueError: it cannot act on it.
    """
    on = ARCHITECTURES[architecture]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return count_parameters(method.apply(on.build(), on.task_type, on.heads))


def acts_on(method: Any) -> str:
    """Returns the parts of a model that a method changes, in words."""
    return getattr(method, "acts_on", "") or ", ".join(getattr(method, "roles", ()))


def merges(method: Any) -> bool:
    """Whether what a method trains can be folded into the model's weights."""
    return "merge" not in getattr(method, "cannot", ())


def listing() -> str:
    """Returns what ``--list`` prints: the methods as a table, and the tasks with their presets.

    One that cannot be used is listed with the reason, so that it does not hide the others.
    """
    names = list(ARCHITECTURES)
    rows = [("method", *names, "merges", "acts on", "paper")]
    broken = []
    for name, entry in registry.entries("method").items():
        try:
            method = entry.load()()
            counts = [_count_in_words(method, architecture) for architecture in names]
            rows.append((name, *counts, "yes" if merges(method) else "no", acts_on(method), method.paper))
        except registry.IMPORT_ERRORS as error:
            broken.append(_broken(name, entry, error))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["methods, with the parameters that they train on two models, without the head (adapter + norms)"]
    lines += ["  " + "  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]
    lines += broken
    lines.append("tasks")
    for name, entry in registry.entries("task").items():
        try:
            task = entry.load()
            about = (inspect.getdoc(task) or "").partition("\n")[0]
            lines.append(f"  {name:<12} {about}")
            presets = ", ".join(registry.presets(task))
            lines.append(f"  {'':<12} presets: {presets}; from {registry.distribution(entry)}")
        except registry.IMPORT_ERRORS as error:
            lines.append(_broken(name, entry, error))
    return "\n".join(lines)


def _count_in_words(method: Any, architecture: str) -> str:
    try:
        counts = counted(method, architecture)
    except (ValueError, NotImplementedError):
        return "-"
    return f"{counts.adapter:,}" + (f" + {counts.norm:,}" if counts.norm else "")


def _broken(name: str, entry: Any, error: Exception) -> str:
    reason = f"{type(error).__name__}: {one_line(error)}"
    return f"  {name:<12} broken, cannot be used\n  {'':<12} {reason}; from {registry.distribution(entry)}"
