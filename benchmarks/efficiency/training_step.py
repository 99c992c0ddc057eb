"""What a training step costs over the frozen model: ``python -m benchmarks.efficiency.training_step``.

Four layers of RoBERTa-large's shape with random weights, forward and backward on one batch. The floor is the same
frozen model with gradients of activations only, which no adapter can go below. All variants get the same inputs, with
gradients down to the embeddings, and run in turn, each as often first as the others, so that a busy machine slows all
of them alike; the figures are medians of the ratios to the floor of the same turn. Bytes saved for backward are
counted by ``saved_tensors_hooks``, each storage once, parameters and inputs left out.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from hadamard_core.accounting import bytes_saved_for_backward
from hut import HutConfig


@dataclass(frozen=True)
class Settings:
    """Measures the cost of a training step over the frozen model."""

    layers: int = 4
    """Number of layers of RoBERTa-large's shape (hidden 1024, 16 heads, feed-forward 4096)."""
    batch_size: int = 8
    """Sequences in a batch."""
    length: int = 128
    """Tokens in a sequence."""
    turns: int = 25
    """Measured turns; in each, every variant runs once."""
    threads: int | None = None
    """Threads of PyTorch; its default if not given."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as one line of JSON."""


def variants(settings: Settings) -> dict[str, nn.Module]:
    """The models to compare, with equal frozen weights; the first is the floor."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=1000,
        hidden_size=1024,
        num_hidden_layers=settings.layers,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=settings.length + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    base = RobertaModel(config, add_pooling_layer=False).requires_grad_(False)
    lora = LoraConfig(r=8, target_modules=["query", "value"], init_lora_weights=False)
    hut = {way: HutConfig(r=8, compute=way, init_weights=False) for way in ("weight", "activation")}
    return {
        "floor (activation gradients)": base,
        "hut r=8, compute=weight": get_peft_model(copy.deepcopy(base), hut["weight"]),
        "hut r=8, compute=activation": get_peft_model(copy.deepcopy(base), hut["activation"]),
        "peft lora r=8": get_peft_model(copy.deepcopy(base), lora),
    }


def measure(settings: Settings) -> dict[str, dict[str, float]]:
    """Seconds and ratios of a step, and bytes saved for backward, for each variant."""
    models = variants(settings)
    embeddings = torch.randn(settings.batch_size, settings.length, 1024)
    target = torch.randn_like(embeddings)

    def forward(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: (model(inputs_embeds=embeddings.clone().requires_grad_()).last_hidden_state * target).sum()

    def step(model: nn.Module) -> float:
        """Seconds of a step that follows another of the same model, as in training: memory is as that one left it."""
        for _ in range(2):
            start = time.perf_counter()
            forward(model)().backward()
            seconds = time.perf_counter() - start
            model.zero_grad()
        return seconds

    for model in models.values():
        model.train()
        step(model)
    floor, *_ = names = list(models)
    turns = []
    for turn in range(settings.turns):
        # Each comes first in its turn as often as the others: what ran before leaves caches and memory as it likes.
        first = turn % len(names)
        turns.append({name: step(models[name]) for name in names[first:] + names[:first]})
    saved = {
        name: bytes_saved_for_backward(forward(model), [*model.parameters(), embeddings, target])
        for name, model in models.items()
    }
    return {
        name: {
            "seconds": statistics.median(turn[name] for turn in turns),
            "ratio_to_floor": statistics.median(turn[name] / turn[floor] for turn in turns),
            "bytes_saved": saved[name],
            "bytes_over_floor": saved[name] - saved[floor],
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        for name, model in models.items()
    }


def main(argv: Sequence[str]) -> int:
    settings = tyro.cli(Settings, args=argv, prog="python -m benchmarks.efficiency.training_step")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    results = measure(settings)
    if settings.json:
        print(json.dumps({"settings": settings.__dict__, "torch": torch.__version__, "variants": results}))
        return 0
    print(
        f"{settings.layers} layers of RoBERTa-large's shape, random weights, fp32, CPU, {torch.get_num_threads()} "
        f"threads, batch {settings.batch_size} x {settings.length}, medians of {settings.turns} interleaved turns, "
        f"torch {torch.__version__}"
    )
    print(f"{'':30} {'step':>8} {'to floor':>9} {'saved':>10} {'over floor':>11} {'trained':>9}")
    for name, row in results.items():
        print(
            f"{name:30} {row['seconds']:6.3f} s {row['ratio_to_floor']:9.3f} {row['bytes_saved'] / 2**20:6.1f} MiB "
            f"{row['bytes_over_floor'] / 2**20:7.1f} MiB {row['trained']:9,}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
