"""Small random models for tests: custom modules and one transformers model of each kind of projection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D


class TwoLinear(nn.Module):
    """A custom model with projections of different shapes, one without a bias, and a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 24)
        self.norm = nn.LayerNorm(24)
        self.second = nn.Linear(24, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.relu(self.norm(self.first(x))))))


class OneConv1D(nn.Module):
    """A custom model whose projection stores its weight the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 10)
        self.projection = Conv1D(14, 10)
        nn.init.normal_(self.projection.bias)
        self.head = nn.Linear(14, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.projection(self.embedding(ids))))


# Weights are large, so that what an adapter changes inside is seen in the output.
def _sizes(width: int, spread: float) -> dict[str, Any]:
    return {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "initializer_range": spread,
    }


def _gpt2(width: int = 16, spread: float = 0.5) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(n_embd=width, n_layer=2, n_head=2, vocab_size=40, n_positions=64, initializer_range=spread)
    )


def _bert(width: int = 16, spread: float = 0.5) -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(**_sizes(width, spread), num_labels=3))


def _llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**_sizes(16, 0.5), num_key_value_heads=1))


def _ids(generator: torch.Generator) -> Tensor:
    return torch.randint(3, 20, (4, 7), generator=generator)


@dataclass(frozen=True)
class ModelCase:
    """A model to adapt.

    Attributes:
        build: makes it, random.
        inputs: makes its input from a generator.
        adapt: fields of the config that say what to adapt; none for a transformers model, whose roles are known.
        head: a module that can go into ``modules_to_save``.
        task_type: a value of ``peft.TaskType``.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]
    adapt: Mapping[str, Any]
    head: str
    task_type: str | None = None


MODELS: dict[str, ModelCase] = {
    "linear": ModelCase(
        TwoLinear, lambda g: torch.randn(5, 10, generator=g), {"target_modules": ["first", "second"]}, "head"
    ),
    "conv1d": ModelCase(OneConv1D, _ids, {"target_modules": ["projection"]}, "head"),
    "gpt2": ModelCase(_gpt2, _ids, {}, "transformer.ln_f", "CAUSAL_LM"),
    "bert": ModelCase(_bert, _ids, {}, "classifier", "SEQ_CLS"),
    "llama": ModelCase(_llama, _ids, {}, "model.norm", "CAUSAL_LM"),
}


WIDER: dict[str, ModelCase] = {
    "bert": replace(MODELS["bert"], build=lambda: _bert(32, 0.3)),
    "gpt2": replace(MODELS["gpt2"], build=lambda: _gpt2(32, 0.3)),
}
"""An encoder and a decoder wide enough for every method's own settings."""


def output(model: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
    """What a model computes: logits, in fp32 for comparison."""
    result = model(x, **kwargs)
    return getattr(result, "logits", result)
