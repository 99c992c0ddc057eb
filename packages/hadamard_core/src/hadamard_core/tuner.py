"""The tuner that all methods share: finds the modules to adapt, by peft's rules or by role, and wraps them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from hadamard_core.adapter_layer import NO_ADAPTER, AdapterLayer, AdapterOfSamples
from hadamard_core.config import HadamardConfig
from hadamard_core.layer import ScaledLinear
from hadamard_core.orientation import has_known_forward, is_supported
from hadamard_core.targets import Target, find_targets


class HadamardTuner(BaseTuner):
    """Base of the tuners of the family.

    Subclasses set ``prefix``, the prefix of their layers' parameter containers, and ``tuner_layer_cls``, a
    :class:`~hadamard_core.layer.ScaledLinear`. One that adapts norms besides overrides :meth:`layer_class`.

    Mixed batches: the model takes peft's argument ``adapter_names``, in ``forward`` and ``generate``: a list with the
    adapter of each sample, ``"__base__"`` for none, which takes the place of the active adapters. One product with each
    frozen weight serves all of them. Unlike in peft's LoRA this also trains: every adapter named gets the gradients of
    its own samples (``model.set_requires_grad`` says which adapters do).
    """

    tuner_layer_cls: type[AdapterLayer]
    # peft's table of default modules for each architecture; roles are the default here.
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    # The config whose roles were looked up last, and what was found: peft asks about one module at a time.
    _found: tuple[HadamardConfig, dict[str, Target]] | None = None

    def _prepare_adapter_config(self, peft_config: HadamardConfig, model_config: dict) -> HadamardConfig:
        self._found = None  # The model may have changed since.
        self._targets(peft_config)
        return peft_config

    def _targets(self, peft_config: HadamardConfig) -> dict[str, Target]:
        """The modules that a config names by role; none if it has ``target_modules``."""
        if peft_config.target_modules is not None:
            return {}
        if self._found is None or self._found[0] is not peft_config:
            fields = (peft_config.roles, peft_config.layers_to_transform, peft_config.layers_pattern)
            self._found = peft_config, find_targets(self.model, *fields)
        return self._found[1]

    def _check_target_module_exists(self, peft_config: HadamardConfig, key: str) -> Any:
        if peft_config.target_modules is not None:
            return check_target_module_exists(peft_config, key)
        return check_name(peft_config, key, [key] if key in self._targets(peft_config) else [])

    def _create_and_replace(
        self,
        peft_config: HadamardConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        found = self._targets(peft_config).get(current_key)
        slices = None if found is None else found.slices
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, slices)
            return
        layer_class = self.layer_class(target)
        if issubclass(layer_class, ScaledLinear):
            self._check_projection(target, current_key, parent)
        new_module = layer_class(target, adapter_name, peft_config, slices)
        if adapter_name not in self.active_adapters:
            new_module.requires_grad_(False)
        self._replace_module(parent, target_name, new_module, target)

    def layer_class(self, target: nn.Module) -> type[AdapterLayer]:
        """The layer that adapts a module."""
        return self.tuner_layer_cls

    def _check_projection(self, target: nn.Module, current_key: str, parent: nn.Module) -> None:
        if not is_supported(target):
            raise ValueError(
                f"Target module {current_key} is a {type(target).__name__}, which is not supported; target nn.Linear "
                "or transformers' Conv1D modules, or leave it out with exclude_modules."
            )
        if not has_known_forward(target):
            raise ValueError(
                f"Target module {current_key} is a {type(target).__name__}, whose forward is its own, so that its "
                "weight does not tell what it computes; leave it out with exclude_modules."
            )
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(
                f"Target module {current_key} belongs to an nn.MultiheadAttention, which uses its weight without "
                "calling it, so that an adapter would do nothing; leave it out with exclude_modules."
            )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, ModulesToSaveWrapper):
            # peft's own asks the trained copy for its weight; a head of several layers, such as RoBERTa's, has none
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hands ``adapter_names`` to the layers during a call of the model; peft's hook for it."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        self._check_adapter_names(names)
        beams = kwargs.get("num_beams") or 1
        # With beam search the decoder sees each sample as often as there are beams, the encoder once.
        encoder = self.model.get_encoder() if hasattr(self.model, "get_encoder") else None
        in_encoder = set() if encoder is None or encoder is self.model else set(encoder.modules())
        of_samples, of_beams = AdapterOfSamples(names), AdapterOfSamples(n for n in names for _ in range(beams))
        with ExitStack() as stack:
            for module in self.modules():
                if isinstance(module, (AdapterLayer, AuxiliaryTrainingWrapper)):
                    own = of_samples if module in in_encoder else of_beams
                    stack.enter_context(_argument(module, own))
            yield

    def _check_adapter_names(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"adapter_names is {names!r}; give a list with the name of an adapter for each sample.")
        unknown = sorted(set(names) - set(self.peft_config) - {NO_ADAPTER})
        if unknown:
            raise ValueError(
                f"adapter_names has {', '.join(map(repr, unknown))}, which the model does not have; it has "
                f"{', '.join(map(repr, self.peft_config))}, and {NO_ADAPTER!r} stands for none."
            )
        if self.training and any(getattr(m, "gradient_checkpointing", False) for m in self.model.modules()):
            raise ValueError(
                "adapter_names is given in training with gradient checkpointing, which computes layers again when the "
                "names are no longer known; disable one of the two."
            )

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        if autocast_adapter_dtype:
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
            return
        for module in self.model.modules():
            if isinstance(module, self.tuner_layer_cls) and adapter_name in module.slices:
                module.cast_adapter_to_base_layer(adapter_name)


def check_name(peft_config: HadamardConfig, key: str, names: Any, **rules: Any) -> Any:
    """What peft says of a module if the config named these: whether it is adapted, not, or excluded.

    peft wants to know of each module, also of those that are not adapted, whether it is excluded.

    Args:
        key: the module's name.
        names: as of ``target_modules``.
        rules: further fields of a config that narrow it, such as ``layers_to_transform``.
    """
    by_name = SimpleNamespace(
        exclude_modules=peft_config.exclude_modules,
        modules_to_save=peft_config.modules_to_save,
        target_modules=names,
        **rules,
    )
    return check_target_module_exists(by_name, key)


@contextmanager
def _argument(module: nn.Module, names: AdapterOfSamples) -> Iterator[None]:
    """Gives every call of ``module`` the argument ``adapter_names``."""

    def add(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "adapter_names": names}

    handle = module.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
