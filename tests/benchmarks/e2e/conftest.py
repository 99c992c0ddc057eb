"""Tiny language models, built here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)


def _model(kind: str, vocabulary: int = 260) -> PreTrainedModel:
    """Returns a random model in float64, spread enough for its next tokens to differ in probability."""
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=vocabulary, n_positions=256, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3
        )
        model = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
        model = LlamaForCausalLM(config)
    return model.double().eval()


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return _model(request.param)


class Recorder:
    """A progress that remembers its bars: (description, total, unit, what they were advanced by)."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int, str, list[float]]] = []

    @contextlib.contextmanager
    def bar(self, description: str, total: int, unit: str):
        steps: list[float] = []
        self.bars.append((description, total, unit, steps))

        class Bar:
            def update(self, n: float = 1) -> None:
                steps.append(n)

            def set_postfix_str(self, s: str) -> None:
                pass

        yield Bar()


@pytest.fixture
def progress() -> Recorder:
    return Recorder()
