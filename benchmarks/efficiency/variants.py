"""The rows: one model for each method, over one set of frozen weights.

Rows of peft, and those that are compared with them, adapt query and value. The Hadamard adapter is on the attention's
output and trains the norm of the attention's block besides; scale and shift is the part before the output projection by
itself. The other methods of the harness act where their papers have them, with the harness's defaults. Trained values
start as the method has them and then get the same noise, so that no row has the easy case of all ones or zeros; LoRA
and VeRA of this repository have the settings of peft's own.

On a fused projection (GPT-2's ``c_attn``) HUT adapts the slices of query and value, and a row of peft all of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear

import hadamard_baselines
from benchmarks.efficiency.models import ROLES, share_weights, with_own_gradients
from hadamard_adapter import HadamardAdapterConfig
from hadamard_core.functional import scale_shift
from hadamard_core.orientation import features, weight_as_linear
from hadamard_core.targets import find_targets, module_names
from harness import registry
from harness.errors import UserError, one_line
from hut import HutConfig
from hut.layer import HutLinear

FLOOR = "floor"
LORA_RANK = 8
VERA_RANK = 256
_NOISE = 0.02


class AutogradHutLinear(HutLinear):
    """HUT as its paper writes it: the weight is scaled by tensor operations, and autograd does the rest."""

    def forward(self, x: Tensor) -> Tensor:
        base = self.get_base_layer()
        weight, bias = weight_as_linear(base), base.bias
        (adapter,) = self.active_adapters
        if self.slices[adapter] is None:
            (vectors,) = self.vectors(adapter)
            scaled = weight * torch.outer(vectors.scale_out, vectors.scale_in)
            bias = vectors.shift if bias is None else bias + vectors.shift
        else:
            scaled, bias = self._scaled_slices(adapter, weight, bias)
        return linear(x, scaled.to(x.dtype), bias.to(x.dtype))

    def _scaled_slices(self, adapter: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        scaled = weight.float()
        bias = scaled.new_zeros(len(weight)) if bias is None else bias.float()
        for own, vectors in zip(self.slices[adapter], self.vectors(adapter), strict=True):
            rows = own.index(self.out_features).to(weight.device)
            outer = torch.outer(vectors.scale_out, vectors.scale_in)
            scaled = scaled.index_copy(0, rows, weight[rows] * outer)
            bias = bias.index_add(0, rows, vectors.shift)
        return scaled, bias


class ScaleShift(nn.Module):
    """``x * scale + shift``: the Hadamard adapter."""

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size, device=device))
        self.shift = nn.Parameter(torch.zeros(size, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return scale_shift(x, self.scale, self.shift)


def _floor(model: nn.Module) -> nn.Module:
    return model


def _full(model: nn.Module) -> nn.Module:
    return with_own_gradients(model)


def _scale_shift(model: nn.Module) -> nn.Module:
    for name in module_names(model, ("attention_output",)):
        projection = model.get_submodule(name)
        adapter = ScaleShift(features(projection)[0], projection.weight.device)
        model.set_submodule(name, nn.Sequential(adapter, projection))
    return model


def _hut(compute: str, r: int = 8) -> Callable[[nn.Module], nn.Module]:
    return lambda model: get_peft_model(model, HutConfig(r=r, roles=ROLES, compute=compute))


def _hadamard(**options: Any) -> Callable[[nn.Module], nn.Module]:
    return lambda model: get_peft_model(model, HadamardAdapterConfig(**options))


def _hut_by_autograd(model: nn.Module) -> nn.Module:
    adapted = _hut("weight")(model)
    for module in adapted.modules():
        if isinstance(module, HutLinear):
            module.__class__ = AutogradHutLinear
    return adapted


def _of_peft(config: type[PeftConfig], **options: Any) -> Callable[[nn.Module], nn.Module]:
    """A method configured by peft's names of modules."""

    def build(model: nn.Module) -> nn.Module:
        return get_peft_model(model, config(target_modules=module_names(model, ROLES), **options))

    return build


def _lora(config: type[PeftConfig], r: int = LORA_RANK, **options: Any) -> Callable[[nn.Module], nn.Module]:
    return _of_peft(config, r=r, lora_alpha=2 * r, lora_dropout=0.0, **options)


def _of_harness(name: str) -> Callable[[nn.Module], nn.Module]:
    """A method as the harness applies it, with its defaults; its last stage if it has stages."""
    return lambda model: registry.load("method", name)().apply(model, "FEATURE_EXTRACTION")


@dataclass(frozen=True)
class Variant:
    """A row: what it is called in a table, and how it adapts a copy of the frozen model."""

    label: str
    build: Callable[[nn.Module], nn.Module]


VARIANTS = {
    FLOOR: Variant("floor: frozen, gradients of activations", _floor),
    "hut": Variant("HUT r=8", _hut("auto")),
    "hut-weight": Variant("HUT r=8, weight way", _hut("weight")),
    "hut-activation": Variant("HUT r=8, activation way", _hut("activation")),
    "hut-autograd": Variant("HUT r=8, weights through autograd", _hut_by_autograd),
    "hadamard": Variant("Hadamard adapter", _hadamard()),
    "hadamard-weight": Variant("Hadamard adapter, weight way", _hadamard(compute="weight")),
    "hadamard-projection": Variant("Hadamard adapter after projection", _hadamard(position="projection")),
    "scale-shift": Variant("scale and shift of attention output", _scale_shift),
    "lora": Variant("LoRA r=8", _lora(hadamard_baselines.LoraConfig)),
    "vera": Variant("VeRA r=256", _of_peft(hadamard_baselines.VeraConfig, r=VERA_RANK)),
    "peft-lora": Variant("peft's LoRA r=8", _lora(peft.LoraConfig)),
    "peft-vera": Variant("peft's VeRA r=256", _of_peft(peft.VeraConfig, r=VERA_RANK)),
    "peft-ia3": Variant("peft's IA3", _of_peft(peft.IA3Config, feedforward_modules=[])),
    "peft-fourierft": Variant("peft's FourierFT n=1000", _of_peft(peft.FourierFTConfig, n_frequency=1000)),
    "peft-hira": Variant("peft's HiRA r=8", _of_peft(peft.HiraConfig, r=8)),
    "peft-dora": Variant("peft's DoRA r=8", _lora(peft.LoraConfig, use_dora=True)),
    "full": Variant("full fine-tuning", _full),
}
"""By short name, in the order of a table."""

# They train a part of the model itself, or need a task and room for more positions than a batch has.
_NO_ROWS = ("head", "top2", "prefix", "prompt", "prelayer")

VARIANTS |= {
    name: Variant(f"{name}, defaults", _of_harness(name))
    for name in registry.entries("method")
    if name not in {*VARIANTS, *_NO_ROWS}
}

RANKED: dict[str, Callable[[int], Callable[[nn.Module], nn.Module]]] = {
    "hut": lambda r: _hut("auto", r),
    "lora": lambda r: _lora(hadamard_baselines.LoraConfig, r),
    "peft-lora": lambda r: _lora(peft.LoraConfig, r),
}
"""Methods whose cost is measured over the rank."""


def make(name: str, base: nn.Module, seed: int) -> nn.Module:
    """Returns the model of a row, which shares its frozen weights with ``base``.

    Raises:
        UserError: the method cannot adapt this model.
    """
    return adapt(VARIANTS[name].build, share_weights(base), seed, name)


def adapt(build: Callable[[nn.Module], nn.Module], model: nn.Module, seed: int, name: str) -> nn.Module:
    """Returns what ``build`` makes of a model, with noise on what trains.

    Raises:
        UserError: ``build`` refuses the model.
    """
    torch.manual_seed(seed)
    try:
        adapted = build(model)
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{name} cannot adapt this model ({one_line(error)}): choose other rows by --only") from error
    if build is not _full:  # its values are those of the frozen model
        add_noise(adapted, seed)
    return adapted.train()


@torch.no_grad()
def add_noise(model: nn.Module, seed: int) -> None:
    """Moves trained values off where they start; equal shapes in equal order get equal noise."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * _NOISE
            parameter.add_(noise.to(parameter.device, parameter.dtype))


def notes(base: nn.Module) -> str:
    """Returns what a reader of a table has to know about the rows on this model; nothing on most."""
    if all(target.slices is None for target in find_targets(base, ROLES).values()):
        return ""
    return "\n\nFused projections: HUT adapts the slices of query and value, the methods of peft the whole."


def trained_parameters(model: nn.Module) -> int:
    """Returns how many numbers train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def checkpoint_bytes(model: nn.Module) -> int:
    """Returns the bytes of the safetensors that ``save_pretrained`` writes; of a bare model, what trains."""
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(model, PeftModel):
            model.save_pretrained(folder, save_embedding_layers=False)
        else:
            save_file(trained, Path(folder) / "model.safetensors")
        return sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
