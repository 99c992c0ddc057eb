"""Many adapters of one frozen model that train in one pass, each with a head of its own.

An adapter of the Hadamard family is a few vectors, so that a batch with samples of K adapters needs the same products
with frozen weights as any other batch; what differs is which vectors a sample is multiplied by. Low-rank adapters would
need a product of their own each (PLoRA and others group these in one kernel).

Nothing couples the adapters of a pack: each sample goes through one of them, so that the gradient of a sum of losses
is, for each adapter, that of its own samples' losses.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from hadamard_core.adapter_layer import AdapterLayer
from hadamard_core.tuner import HadamardTuner

ADAPTER, HEAD = "adapter", "head"


class MixedHeads(ModulesToSaveWrapper):
    """peft's copies of a head, one for each adapter, which in a mixed batch may be of any kind and differ in outputs.

    peft's own takes linear layers with equal outputs. Here rows of narrower heads end in zeros. There are no samples
    without adapter.
    """

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        if adapter_names is None:
            return super().forward(*args, **kwargs)
        self._check_forward_args(*args, adapter_names=adapter_names)
        return self._mixed_batch_forward(*args, adapter_names=adapter_names, **kwargs)

    def _mixed_batch_forward(self, input: Tensor, *args: Any, adapter_names: Sequence[str], **kwargs: Any) -> Tensor:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(adapter_names):
            rows.setdefault(name, []).append(row)
        if len(rows) == 1:
            return self.modules_to_save[adapter_names[0]](input, *args, **kwargs)
        outputs = [self.modules_to_save[name](input[own], *args, **kwargs) for name, own in rows.items()]
        widest = max(output.shape[-1] for output in outputs)
        together = torch.cat([F.pad(output, (0, widest - output.shape[-1])) for output in outputs])
        place = torch.tensor([row for own in rows.values() for row in own], device=together.device)
        return together[place.argsort()]


class AdapterPack:
    """A model whose adapters come and go while others train.

    A call of :attr:`model` takes peft's ``adapter_names``, the adapter of each sample. Which parameters require a
    gradient is said by :meth:`train`; one that is added trains nothing at first.

    Args:
        model: the base model, which is frozen and changed in place.
        heads: names of its modules that each adapter has a copy of, such as the head.
    """

    def __init__(self, model: PreTrainedModel, heads: Sequence[str] = ()) -> None:
        self._base, self._heads = model, tuple(heads)
        self._start = {name: copy.deepcopy(model.get_submodule(name).state_dict()) for name in heads}
        self._model: PeftModel | None = None
        self._names: list[str] = []
        self._leftover: list[str] = []

    @property
    def model(self) -> PeftModel:
        """The model with the adapters, once there was one."""
        assert self._model is not None, "add an adapter first"
        return self._model

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that are here, in the order in which they came."""
        return tuple(self._names)

    def add(self, name: str, config: PeftConfig, heads: Mapping[str, Mapping[str, Tensor]] | None = None) -> None:
        """Adds an adapter.

        Args:
            name: what ``adapter_names`` calls it: letters, digits and underscores.
            config: of a method whose tuner is a ``HadamardTuner``. What it says of ``modules_to_save`` is replaced.
            heads: the state each of its heads starts from, by the head's name; that of the base model if None.

        Raises:
            ValueError: the adapters of this method are not vectors, there is one of this name, or the method cannot act
                on the model.
        """
        if name in self._names or name in self._leftover:
            raise ValueError(f"There is an adapter {name!r} in the pack already; give another name.")
        config.modules_to_save = list(self._heads) or None
        if self._model is None:
            adapted = get_peft_model(self._base, config, adapter_name=name)
            if not isinstance(adapted.base_model, HadamardTuner):
                raise ValueError(
                    f"Adapters of {type(config).__name__} are not vectors that scale and shift, so that they do not "
                    "train in one pass; train them one after another."
                )
            for head in self._heads:
                own = MixedHeads(adapted.base_model.model.get_submodule(head).original_module, name)
                adapted.base_model.model.set_submodule(head, own)
            self._model = adapted
        else:
            with self._flags_kept():
                self._model.add_adapter(name, config)
                self._delete_leftovers(now_active=name)
        self._names.append(name)
        for head, start in (heads or self._start).items():
            self._model.base_model.model.get_submodule(head).modules_to_save[name].load_state_dict(start)
        self.train(name, ())

    def remove(self, name: str) -> None:
        """Removes an adapter and its heads; the memory of the last one is kept until another is added."""
        self.train(name, ())
        self._names.remove(name)
        self._leftover.append(name)
        if self._names:  # peft's models do not do without any adapter
            with self._flags_kept():
                self._delete_leftovers(now_active=self._names[0])

    def _delete_leftovers(self, now_active: str) -> None:
        for name in self._leftover:
            self.model.delete_adapter(name)
        self.model.set_adapter(now_active)
        self._leftover.clear()

    @contextmanager
    def _flags_kept(self) -> Iterator[None]:
        """Puts back which parameters require a gradient: peft gives it to the adapter that is active."""
        every = [parameter for name in self._names for parameter in self.parameters(name).values()]
        flags = [parameter.requires_grad for parameter in every]
        try:
            yield
        finally:
            for parameter, flag in zip(every, flags, strict=True):
                parameter.requires_grad_(flag)

    def parameters(self, name: str, groups: Collection[str] = (ADAPTER, HEAD)) -> dict[str, nn.Parameter]:
        """Returns the parameters of an adapter with what it changes in norms, of its heads, or of both, by name."""
        found: dict[str, nn.Parameter] = {}
        for path, module in self.model.named_modules():
            if isinstance(module, AdapterLayer) and ADAPTER in groups:
                for container in module.adapter_layer_names:
                    parameters = getattr(module, container)
                    if name in parameters:
                        found[f"{path}.{container}.{name}"] = parameters[name]
            elif isinstance(module, ModulesToSaveWrapper) and HEAD in groups:
                own = module.modules_to_save[name].named_parameters(f"{path}.modules_to_save.{name}")
                found.update(own)
        return found

    def train(self, name: str, groups: Collection[str]) -> None:
        """Says which parameters of an adapter require a gradient: of the groups ``"adapter"`` and ``"head"``."""
        for group in (ADAPTER, HEAD):
            for parameter in self.parameters(name, (group,)).values():
                parameter.requires_grad_(group in groups)
                if group not in groups:
                    parameter.grad = None

    @contextmanager
    def alone(self, name: str) -> Iterator[PeftModel]:
        """Gives the model as it is while no other adapter requires a gradient: what makes an optimiser may look."""
        with self._flags_kept():
            for other in self._names:
                if other != name:
                    for parameter in self.parameters(other).values():
                        parameter.requires_grad_(False)
            yield self.model
