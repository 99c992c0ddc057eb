"""peft's prefix tuning and prompt tuning, made to act alike on every model and in every batch.

Prefix tuning (Li and Liang 2021, arXiv:2101.00190) trains the keys and values of each layer at positions in front of
the text, prompt tuning (Lester, Al-Rfou and Constant 2021, arXiv:2104.08691) their embeddings. Configs, parameters and
files are peft's. What differs from ``peft.get_peft_model`` of peft 0.21 with transformers 5 is the call of the model:

* prompt tuning keeps the texts' position ids, which peft drops: a text that is padded on the left generates the same
  alone and in a batch;
* prompt tuning on a decoder computes the keys and values of the prompt once for a batch, and not for each sample, since
  a prompt does not see the text; so logits stand where the tokens are, and a classifier finds its last token, where
  peft's reads the last position, padding or not;
* prompt tuning on an encoder puts the prompt behind the first token, ``[CLS]``, which is what the pooler reads;
* a prefix is computed for one sample and repeated, so that a saved one gives the same numbers bit for bit;
* disabling works on encoders, and takes trained heads out of use;
* gradient checkpointing is refused where transformers would leave out what stands in front.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForQuestionAnswering,
    PeftModelForSequenceClassification,
    PeftType,
    PromptLearningConfig,
)
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import PreTrainedModel

from hadamard_baselines.positions_in_front import (
    States,
    check_context,
    check_gradient_checkpointing,
    kind_of,
    repeated,
    states_of,
    with_positions_in_front,
)


class VirtualTokens(PeftModel):
    """What the models below share; comes before peft's class in their bases.

    Raises:
        ValueError: positions cannot be put in front of this model, or it computes layers again in the backward pass.
    """

    def _setup_prompt_encoder(self, adapter_name: str) -> None:
        self._kind = kind_of(self.base_model)
        config = self.peft_config[adapter_name]
        if not self._is_inside_text(config):
            check_gradient_checkpointing(self.base_model)
        elif isinstance(self, PeftModelForQuestionAnswering):
            raise ValueError(
                "A prompt stands between the tokens of an encoder, where answers to questions are looked for; use "
                "prefix tuning."
            )
        super()._setup_prompt_encoder(adapter_name)

    def _is_inside_text(self, config: PromptLearningConfig) -> bool:
        return config.peft_type == PeftType.PROMPT_TUNING and self._kind == "encoder"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes and returns what the base model does; logits stand where its tokens are."""
        names = inspect.signature(self.base_model.forward).parameters
        return self.base_model(**self._with_virtual_tokens({**dict(zip(names, args, strict=False)), **kwargs}))

    def _with_virtual_tokens(self, given: dict[str, Any]) -> dict[str, Any]:
        if self._adapters_disabled:
            return given
        if given.get("adapter_names") is not None:
            raise ValueError("adapter_names is given, but virtual tokens are those of one adapter; leave it out.")
        config = self.active_peft_config
        if self._is_inside_text(config):
            return self._with_prompt_behind_first(given, config.num_virtual_tokens)
        return with_positions_in_front(self.base_model, given, config.num_virtual_tokens, self._states)

    def _states(self, batch: int) -> States:
        # of one sample, since it is the same for all: what encodes a prefix may be a large MLP
        prompt = self.get_prompt(batch_size=1)
        if isinstance(prompt, Tensor):
            return repeated(states_of(self.base_model, prompt.to(self.base_model.dtype)), batch)
        return repeated([(layer.keys, layer.values) for layer in prompt.layers], batch)

    def _with_prompt_behind_first(self, given: dict[str, Any], count: int) -> dict[str, Any]:
        if given.get("position_ids") is not None:
            raise ValueError("position_ids are given, but a prompt stands between the tokens; leave them out.")
        embeddings = given.get("inputs_embeds")
        if embeddings is None:
            embeddings = self.base_model.get_input_embeddings()(given["input_ids"])
        batch, length = embeddings.shape[:2]
        check_context(self.base_model, count + length)
        prompt = self.get_prompt(batch_size=1).to(embeddings.dtype).expand(batch, -1, -1)
        changed = {"input_ids": None, "inputs_embeds": _behind_first(embeddings, prompt)}
        for name in ("attention_mask", "token_type_ids"):  # the prompt has those of the first token
            if (values := given.get(name)) is not None:
                changed[name] = _behind_first(values, values[:, :1].expand(-1, count))
        return {**given, **changed}

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """As peft's, which does not do for encoders, and leaves trained copies of modules, such as the head, in use."""
        copies = [module for module in self.base_model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        enabled = [module for module in copies if not module.disable_adapters]
        trained = [parameter for module in enabled for parameter in module.parameters() if parameter.requires_grad]
        was_disabled, self._adapters_disabled = self._adapters_disabled, True
        for module in enabled:
            module.enable_adapters(False)
        try:
            yield
        finally:
            self._adapters_disabled = was_disabled
            for module in enabled:
                module.enable_adapters(True)
                module.requires_grad_(False)  # peft gives a gradient to what is enabled
            for parameter in trained:
                parameter.requires_grad_(True)


def _behind_first(tensor: Tensor, inserted: Tensor) -> Tensor:
    return torch.cat([tensor[:, :1], inserted, tensor[:, 1:]], dim=1)


class VirtualTokensForCausalLM(VirtualTokens, PeftModelForCausalLM):
    """A language model with virtual tokens."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        # peft hands it to the backbone where that is called ``model``, and generate looks for it in the whole model
        self.base_model.generation_config = self.generation_config
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._with_virtual_tokens(self.base_model_prepare_inputs_for_generation(*args, **kwargs))


class VirtualTokensForSequenceClassification(VirtualTokens, PeftModelForSequenceClassification):
    """A classifier with virtual tokens."""


class VirtualTokensForQuestionAnswering(VirtualTokens, PeftModelForQuestionAnswering):
    """A model that finds answers in a text, with virtual tokens."""


MODELS = MappingProxyType(
    {
        "CAUSAL_LM": VirtualTokensForCausalLM,
        "SEQ_CLS": VirtualTokensForSequenceClassification,
        "QUESTION_ANS": VirtualTokensForQuestionAnswering,
    }
)
"""The model for each task type."""


def with_virtual_tokens(model: PreTrainedModel, config: PromptLearningConfig) -> VirtualTokens:
    """What ``peft.get_peft_model`` is for the configs of prefix and prompt tuning; the model is changed in place.

    Raises:
        ValueError: there is no model for the config's task type, or it does not go with this model.
    """
    if config.task_type not in MODELS:
        raise ValueError(
            f"Virtual tokens are not known for the task type {config.task_type}; it must be one of {', '.join(MODELS)}."
        )
    config.base_model_name_or_path = model.__dict__.get("name_or_path") or None
    return MODELS[config.task_type](model, config)


def load_virtual_tokens(base: PreTrainedModel, directory: Path) -> VirtualTokens:
    """Returns ``base`` with what ``save_pretrained`` wrote to a directory; nothing in it requires a gradient."""
    config = PeftConfig.from_pretrained(str(directory))
    config.inference_mode = True  # a file holds the encoded prompt, not what encodes it
    model = with_virtual_tokens(base, config)
    model.load_adapter(str(directory), "default")
    return model.requires_grad_(False)
