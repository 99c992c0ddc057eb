"""What turns a peft config into a method of the comparison harness.

A method package offers, under the entry point group ``hadamard.methods``, a frozen dataclass whose fields are the
method's settings. For a peft method this base class does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel


class PeftMethod:
    """Applies, saves, loads and merges a method of peft; subclasses are frozen dataclasses with :meth:`peft_config`.

    Attributes:
        paper: where the method is described.
    """

    paper: ClassVar[str]

    def peft_config(self, model: PreTrainedModel, task_type: str) -> PeftConfig:
        """The config for ``get_peft_model``.

        Args:
            model: the base model.
            task_type: a value of ``peft.TaskType``.

        Raises:
            ValueError: these settings do not fit, in themselves or for this model.
        """
        raise NotImplementedError

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> PeftModel:
        config = self.peft_config(model, task_type)
        if modules_to_save:
            config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *modules_to_save]))
        return get_peft_model(model, config)

    def save(self, model: PeftModel, directory: Path) -> None:
        model.save_pretrained(str(directory))

    def load(self, base: PreTrainedModel, directory: Path) -> PeftModel:
        return PeftModel.from_pretrained(base, str(directory))

    def merge(self, model: PeftModel) -> nn.Module:
        return model.merge_and_unload()
