"""Methods that put trained positions in front of the text: prefix tuning, prompt tuning and PreLayer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from peft import PeftModel, PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from torch import nn
from transformers import PreTrainedModel

from hadamard_baselines.methods.base import require_at_least
from hadamard_baselines.positions_in_front import CANNOT_MERGE
from hadamard_baselines.prelayer import PrelayerConfig
from hadamard_baselines.virtual_tokens import load_virtual_tokens, with_virtual_tokens
from hadamard_core.method import PeftMethod
from hadamard_core.search_space import Choices, Domain, LogUniform

_CANNOT = MappingProxyType(
    {
        "start": "a text that attends to more computes something else",
        "merge": "positions in front of the text are no part of a weight",
        "checkpointing": "what stands in front is in a cache, which transformers leaves out when it checkpoints",
    }
)


class _InFront(PeftMethod):
    acts_on: ClassVar[str] = "positions in front of the text, in every layer"
    cannot: ClassVar[Mapping[str, str]] = _CANNOT

    tokens: int

    def __post_init__(self) -> None:
        require_at_least("tokens", self.tokens, 1)

    def merge(self, model: PeftModel) -> nn.Module:
        raise ValueError(CANNOT_MERGE)


class _VirtualTokens(_InFront):
    cannot: ClassVar[Mapping[str, str]] = MappingProxyType(
        {**_CANNOT, "mix": "peft's prompt encoders make one prompt for the whole batch"}
    )

    def peft_config(self, model: PreTrainedModel, task_type: str) -> PromptLearningConfig:
        raise NotImplementedError

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> PeftModel:
        config = self.peft_config(model, task_type)
        config.modules_to_save = list(modules_to_save) or None
        return with_virtual_tokens(model, config)

    def load(self, base: PreTrainedModel, directory: Path) -> PeftModel:
        return load_virtual_tokens(base, directory)


@dataclass(frozen=True)
class Prefix(_VirtualTokens):
    """Prefix tuning: trains keys and values of positions in front of the text, in every layer.

    It trains more than it stores: with ``reparametrise`` an embedding of each position goes through an MLP, which ends
    in the keys and values of all layers and is thrown away once they are known. On GPT-2 medium at the defaults
    25,744,896 parameters train and 245,760 numbers are stored. What is stored cannot be trained on as it was.
    """

    paper: ClassVar[str] = "Li and Liang 2021, arXiv:2101.00190"
    # The paper's rates are 5e-5 to 8e-5 for the MLP on table-to-text, and small budgets want more; keys and values
    # that train themselves are normal numbers at the start, which 1e-2 moves in some hundred steps.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(5e-5, 1e-2), "method.tokens": Choices((5, 10, 20))}
    )
    """The learning rate, and the length of the prefix: on table-to-text the paper finds the best at about 10."""

    tokens: int = 5
    """Positions in front of the text; 5 is what the paper has on E2E."""
    hidden: int = 512
    """Width of the MLP inside; 512 is what the paper has on table-to-text."""
    reparametrise: bool = True
    """Train an MLP that makes the prefix; if not, the keys and values themselves, which the paper finds unstable."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("hidden", self.hidden, 1)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> PrefixTuningConfig:
        return PrefixTuningConfig(
            num_virtual_tokens=self.tokens,
            encoder_hidden_size=self.hidden,
            prefix_projection=self.reparametrise,
            task_type=task_type,
        )


@dataclass(frozen=True)
class Prompt(_VirtualTokens):
    """Prompt tuning: trains embeddings of positions in front of the text.

    On an encoder they stand behind the first token, ``[CLS]``, whose output the classifier reads; that is the one place
    where activation checkpointing goes with it.
    """

    acts_on: ClassVar[str] = "the embeddings of positions in front of the text"

    paper: ClassVar[str] = "Lester, Al-Rfou and Constant 2021, arXiv:2104.08691"
    # The paper's rate is 0.3, with Adafactor. With AdamW a step moves every entry by about the rate, and entries of
    # GPT-2's embeddings are about 0.1 in size, so that lower rates have to be in it.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-3, 1.0), "method.tokens": Choices((5, 20, 100))}
    )
    """The learning rate, and the length of the prompt out of the paper's 1 to 150."""

    tokens: int = 20
    """Positions of the prompt; the paper's default is 100, and more than 20 gain little there."""
    sample_vocabulary: bool = True
    """Start from embeddings of tokens drawn from the vocabulary; if not, from normal random numbers."""

    def peft_config(self, model: PreTrainedModel, task_type: str) -> PromptTuningConfig:
        return PromptTuningConfig(
            num_virtual_tokens=self.tokens,
            prompt_tuning_init="SAMPLE_VOCAB" if self.sample_vocabulary else "RANDOM",
            token_dim=model.get_input_embeddings().weight.shape[-1],
            task_type=task_type,
        )


@dataclass(frozen=True)
class Prelayer(_InFront):
    """PreLayer: trains what enters every layer at positions in front of the text.

    It has tokens * hidden size * layers parameters, and starts from what the frozen model computes of tokens drawn from
    its vocabulary.
    """

    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    # The paper gives no rate. Activations begin as large as the model's own, and what a layer makes of them depends on
    # their direction where it begins with a norm: of 1e-3, 1e-2 and 1e-1 the highest learned fastest on SmolLM2-135M.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-3, 3e-1), "method.tokens": Choices((4, 14, 32))}
    )
    """The learning rate, and the number of positions."""

    tokens: int = 14
    """Positions in front of the text; 14 make the paper's 0.35M parameters on GPT-2 medium."""

    def peft_config(self, model: PreTrainedModel, task_type: str) -> PrelayerConfig:
        return PrelayerConfig(num_virtual_tokens=self.tokens, task_type=task_type)
