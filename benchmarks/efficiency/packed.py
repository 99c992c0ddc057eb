"""Trials that train together against the same trials one after another: ``python -m benchmarks.efficiency.packed``.

K trials of a method, each with a batch of its own, take the same number of steps in two ways: one after another by the
harness's training loop, and together by that of a sweep's packs. Both ways do everything that a step does: order of
examples, batches, loss, clipping, optimiser, schedule; making the models ready is not timed. How far their last losses
differ is told. The model has random weights, which decide nothing about time, and no dropout::

    python -m benchmarks.efficiency.packed --batch-size 4 --length 32
    python -m benchmarks.efficiency.packed --device cuda --dtype bfloat16 --batch-size 8 --length 128
    python -m benchmarks.efficiency.packed --device cuda --dtype bfloat16 --model-config roberta-large --length 128
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.efficiency.models import build_config
from benchmarks.efficiency.report import conditions, table, write_json
from benchmarks.efficiency.settings import ModelSettings, chosen, parse
from benchmarks.efficiency.timing import Ratio, median_seconds, paired, wait_for
from hadamard_adapter.method import Hadamard
from harness import recipes
from harness.base import Base
from harness.checkpoint import History
from harness.config import RunConfig, TrainConfig
from harness.console import Console
from harness.errors import run_command
from harness.preparation import Setup, with_method
from harness.run import train_stages
from harness.sweep.pack import Pack
from harness.workload import Workload
from hut.method import Hut

METHODS = {"hut": Hut, "hadamard": Hadamard}
HEAD = "classifier"


@dataclass(frozen=True)
class PackedSettings(ModelSettings):
    """Measures how many trials an hour come from training them together."""

    model_config: str = "minilm-l6"
    """A shape by its name, the path of a config.json (or of its folder), or a model type of transformers; weights are
    random."""
    layers: int | None = None
    """Number of layers; the configuration's if not given."""
    batch_size: int = 4
    """Examples in a batch of one trial."""
    length: int = 32
    """Tokens in an example."""
    pack: tuple[int, ...] = (8,)
    """How many trials train together."""
    turns: int = 9
    """Measured turns; in each, both ways have their own."""
    steps: int = 20
    """Optimiser steps of each trial in a turn."""


@dataclass(frozen=True)
class Tokens:
    """A task of random tokens with two classes."""

    version: ClassVar[int] = 1
    task_type: ClassVar[str] = "SEQ_CLS"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    rules: ClassVar[dict[str, Any]] = {}


class LoadedTokens:
    """Examples of equal length: nothing is padded, so that both ways compute the same."""

    facts: ClassVar[dict[str, Any]] = {}
    warnings: ClassVar[tuple[str, ...]] = ()

    def collate(self, tokenizer: None, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return {name: torch.tensor([feature[name] for feature in features]) for name in ("input_ids", "labels")}

    def losses(self, model: nn.Module, batch: dict[str, Tensor], *, label_smoothing: float) -> tuple[Tensor, Tensor]:
        mask = torch.ones_like(batch["input_ids"])
        logits = model(input_ids=batch["input_ids"], attention_mask=mask).logits.float()
        return F.cross_entropy(logits, batch["labels"], reduction="none"), torch.ones_like(batch["labels"])


@dataclass(frozen=True)
class Row:
    """Both ways for one method and one size of packs.

    Attributes:
        separate: median seconds of all trials one after another.
        together: median seconds of the pack.
        throughput: trials an hour together over those one after another, paired by turn.
        difference: the largest difference of a trial's last loss between the two ways.
    """

    method: str
    pack: int
    separate: float
    together: float
    throughput: Ratio
    difference: float


def measure(settings: PackedSettings, method: str, pack: int) -> Row:
    """Times both ways in turn."""
    model = build(settings)
    features = examples(settings, model.config.vocab_size)
    accelerator = Accelerator(cpu=settings.torch_device.type == "cpu")
    trials = configurations(settings, method, pack)
    ways = {
        "separate": lambda: alone(model, features, trials, accelerator),
        "together": lambda: together(model, features, trials, accelerator),
    }
    turns, losses = [], {}
    for turn in range(settings.turns + 1):
        seconds = {}
        for name in sorted(ways, reverse=turn % 2 == 0):
            train = ways[name]()
            wait_for(settings.torch_device)
            started = time.perf_counter()
            losses[name] = train()
            wait_for(settings.torch_device)
            seconds[name] = time.perf_counter() - started
        turns += [seconds] if turn else []  # the first one warms up
    difference = max(abs(ours - theirs) for ours, theirs in zip(losses["separate"], losses["together"], strict=True))
    medians = [median_seconds(turns, name) for name in ("separate", "together")]
    return Row(method, pack, *medians, paired(turns, "separate", "together"), difference)


def build(settings: PackedSettings) -> PreTrainedModel:
    """Returns a model with a head for two classes."""
    config = build_config(settings.model_config, settings.override, settings.layers, settings.length)
    config.num_labels = 2
    torch.manual_seed(settings.seed)
    model = AutoModelForSequenceClassification.from_config(config)
    return model.to(settings.torch_device, settings.torch_dtype).requires_grad_(False)


def examples(settings: PackedSettings, vocabulary: int) -> list[dict[str, Any]]:
    """Returns the training examples."""
    random = torch.Generator().manual_seed(settings.seed)
    count = settings.batch_size * settings.steps
    ids = torch.randint(5, vocabulary, (count, settings.length), generator=random).tolist()
    labels = torch.randint(2, (count,), generator=random).tolist()
    return [{"input_ids": own, "labels": label} for own, label in zip(ids, labels, strict=True)]


def configurations(settings: PackedSettings, method: str, pack: int) -> list[RunConfig]:
    """Returns the trials, which differ in their learning rates."""
    config = recipes.bare(method, METHODS[method], "tokens", Tokens, "none")
    train = TrainConfig(batch_size=settings.batch_size, max_steps=settings.steps, eval_every="never")
    rates = [1e-3 * 1.2**number for number in range(pack)]
    return [replace(config, seed=settings.seed, train=replace(train, learning_rate=rate)) for rate in rates]


def setup(model: PreTrainedModel, features: Sequence[dict[str, Any]]) -> Setup:
    """Returns a fresh model with the same weights, and the examples."""
    base = Base("random", "random weights", Path(), "", Tokens.auto_class, 0)
    return Setup(base, copy.deepcopy(model), (HEAD,), Workload(LoadedTokens(), None, features, {}), ())


def alone(
    model: PreTrainedModel, features: Sequence[dict[str, Any]], trials: Sequence[RunConfig], accelerator: Accelerator
) -> Callable[[], list[float]]:
    """Prepares the trials as runs of their own; returns what trains them, and then returns their last losses."""
    ready = [with_method(setup(model, features), config, {}, accelerator) for config in trials]

    def train() -> list[float]:
        found = []
        for each, config in zip(ready, trials, strict=True):
            _, histories = train_stages(each, config, [None] * len(each.stages), accelerator, Console(False))
            accelerator.free_memory()
            found.append(last_loss(histories[-1]))
        return found

    return train


def together(
    model: PreTrainedModel, features: Sequence[dict[str, Any]], trials: Sequence[RunConfig], accelerator: Accelerator
) -> Callable[[], list[float]]:
    """The same for all trials in one pack."""
    pack = Pack(setup(model, features), trials[0], {}, accelerator, Console(False))
    members = [pack.add(f"trial_{number}", config, lambda history: None) for number, config in enumerate(trials)]

    def train() -> list[float]:
        while pack.trials:
            pack.step()
        for member in members:
            if member.error is not None:
                raise member.error
        return [last_loss(member.history) for member in members]

    return train


def last_loss(history: History | None) -> float:
    assert history is not None
    return history.losses[-1]["loss"]


def main(argv: Sequence[str]) -> int:
    settings = parse(PackedSettings, "packed", argv)
    methods = chosen(settings.only, list(METHODS), "")
    rows = [measure(settings, method, pack) for method in methods for pack in settings.pack]
    print(
        f"{conditions(settings)}; medians of {settings.turns} interleaved turns of {settings.steps} steps a trial, for "
        "hadamard in each of two stages"
    )
    cells = [
        [
            f"{row.method}, {row.pack} trials",
            f"{row.separate:.2f} s",
            f"{row.together:.2f} s",
            row.throughput.text,
            f"{row.difference:.1e}",
        ]
        for row in rows
    ]
    print(table(["", "one after another", "together", "trials an hour, ratio [95 %]", "losses differ by"], cells))
    write_json("packed", settings, {"rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
