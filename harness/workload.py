"""A task's examples as a tokenizer encodes them, and how a model is measured on them.

Each example is measured once, in batches that do not depend on the number of processes, and what was measured is put
back in the split's order before any metric sees it. So neither batch size nor processes change a metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from harness.order import by_length
from harness.protocols import LoadedTask

Features = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Workload:
    """What training reads.

    Attributes:
        train: the features that are learned from.
        measured: split -> features that the model is measured on in training; empty if it never is.
    """

    task: LoadedTask
    tokenizer: PreTrainedTokenizerBase
    train: Features
    measured: Mapping[str, Features]

    def batch(self, examples: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Returns some of the training examples as one padded batch on the device."""
        return collate(self.task, self.tokenizer, [self.train[example] for example in examples], device)

    def measure(self, model: nn.Module, split: str, batch_size: int, accelerator: Accelerator) -> Mapping[str, float]:
        """Returns the task's metrics on one of the measured splits; all processes share the work and get the result."""
        features = self.measured[split]
        mine = by_length(lengths(features), batch_size)[accelerator.process_index :: accelerator.num_processes]
        parts = list(measure(model, self.task, self.tokenizer, features, mine, accelerator.device))
        return self.task.summarise(split, in_order(gather_object(parts), len(features)))


def measure(
    model: nn.Module,
    task: LoadedTask,
    tokenizer: PreTrainedTokenizerBase,
    features: Features,
    batches: Sequence[Sequence[int]],
    device: torch.device,
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yields, for each batch of examples, the examples and their rows of measurements, float64 on the CPU."""
    model.eval()
    for examples in batches:
        batch = collate(task, tokenizer, [features[example] for example in examples], device)
        with torch.no_grad():
            rows = task.measure(model, batch)
        yield examples, rows.cpu().double()


def collate(
    task: LoadedTask, tokenizer: PreTrainedTokenizerBase, features: Features, device: torch.device
) -> dict[str, Tensor]:
    """Returns one padded batch on the device."""
    batch = task.collate(tokenizer, features)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def in_order(parts: Sequence[tuple[Sequence[int], Tensor]], count: int) -> Tensor:
    """Returns the rows of all examples (count, columns) from the batches they were measured in."""
    examples = [example for batch, _ in parts for example in batch]
    assert sorted(examples) == list(range(count)), "each example is measured once"
    rows = torch.cat([part for _, part in parts])
    ordered = torch.empty_like(rows)
    ordered[torch.tensor(examples)] = rows
    return ordered


def lengths(features: Features) -> tuple[int, ...]:
    """Returns the number of tokens of each example."""
    return tuple(len(feature["input_ids"]) for feature in features)
