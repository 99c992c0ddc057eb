"""A method's part in training: what it adds to the loss of a step, and what it does to the model after one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from harness.training import StageTraining


class Hooks:
    """A method's part in the training of a stage; nothing for one without hooks.

    Args:
        method: the run's method.
        model: what is trained, without what Accelerate puts around it.
        training: the stage; its ``of_method`` is put back.
    """

    def __init__(self, method: Any, model: nn.Module, training: StageTraining) -> None:
        self._method = method if hasattr(method, "begin_training") else None
        self._model, self._training = model, training
        if self._method is not None:
            self._method.begin_training(model, training.plan.total)
            if training.history.step:
                state = {key: tensor.to(next(model.parameters()).device) for key, tensor in training.of_method.items()}
                self._method.restore_training_state(model, state)

    def add_penalty(self, targets: int, processes: int) -> None:
        """Adds the gradients of the method's penalty to those of the sum of losses, which is divided afterwards."""
        penalty = None if self._method is None else self._method.penalty(self._model)
        if penalty is None:
            return
        parameters = self._training.parameters
        # not backward, which a DistributedDataParallel would take for its own
        gradients = torch.autograd.grad(penalty * (max(targets, 1) / processes), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def after_step(self, step: int) -> None:
        """Lets the method act on the model after an optimiser step."""
        if self._method is not None:
            self._method.after_step(self._model, step)

    def state(self) -> Mapping[str, Tensor]:
        """What a checkpoint has to hold for the method."""
        return {} if self._method is None else self._method.training_state(self._model)
