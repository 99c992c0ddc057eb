"""For tests: ours and peft's own side by side, two models with the same base and the same adapter values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as StockLoraLinear
from peft.tuners.vera.layer import Linear as StockVeraLinear
from torch import Tensor, nn

import hadamard_baselines
from hadamard_core.testing_models import MODELS, ModelCase, output

TARGETS = {
    "linear": ["first", "second"],
    "conv1d": ["projection"],
    "gpt2": ["c_attn", "c_proj"],
    "bert": ["query", "value"],
    "llama": ["q_proj", "v_proj", "down_proj"],
}


@dataclass(frozen=True)
class Kind:
    """A method in both versions, and how its fields are called."""

    ours: type[PeftConfig]
    stock: type[PeftConfig]
    our_layer: type[nn.Module]
    stock_layer: type[nn.Module]
    dropout: str
    settings: Mapping[str, Any]


KINDS = {
    "lora": Kind(
        hadamard_baselines.LoraConfig,
        peft.LoraConfig,
        hadamard_baselines.LoraLinear,
        StockLoraLinear,
        "lora_dropout",
        {"r": 3, "lora_alpha": 5},
    ),
    "vera": Kind(
        hadamard_baselines.VeraConfig,
        peft.VeraConfig,
        hadamard_baselines.VeraLinear,
        StockVeraLinear,
        "vera_dropout",
        {"r": 5, "d_initial": 0.3},
    ),
}


@dataclass
class Pair:
    """A method on a model, and the same by peft."""

    kind: Kind
    case: ModelCase
    base: nn.Module
    ours: PeftModel
    stock: PeftModel
    x: Tensor

    def __iter__(self):
        return iter((self.ours, self.stock))

    def add_adapter(self, name: str, **settings: Any) -> None:
        for model, config in ((self.ours, self.kind.ours), (self.stock, self.kind.stock)):
            target_modules = list(model.peft_config["default"].target_modules)
            model.add_adapter(name, config(**{**self.kind.settings, "target_modules": target_modules, **settings}))
        self.share_values()

    def share_values(self) -> None:
        """Gives both models the same random adapter values."""
        generator = torch.Generator().manual_seed(7)
        prefix = self.ours.base_model.prefix
        with torch.no_grad():
            for (name, a), (other, b) in zip(self.ours.named_parameters(), self.stock.named_parameters(), strict=True):
                assert name == other
                if prefix in name:
                    a.copy_(0.3 * torch.randn(a.shape, generator=generator))
                    b.copy_(a)

    def check_equal(self, atol: float = 1e-10, rtol: float = 1e-8, seed: int | None = None) -> None:
        """Compares outputs and all gradients."""
        results = []
        for model in self:
            model.zero_grad()
            if seed is not None:
                torch.manual_seed(seed)
            y = output(model, self.x)
            y.float().square().mean().backward()
            results.append((y, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
        (y, grads), (stock_y, stock_grads) = results
        assert y.dtype == stock_y.dtype
        torch.testing.assert_close(y, stock_y, atol=atol, rtol=rtol)
        assert grads.keys() == stock_grads.keys()
        assert any(grad is not None and grad.abs().max() > 0 for grad in grads.values())
        for name, grad in grads.items():
            if stock_grads[name] is None:
                assert grad is None, name
            else:
                torch.testing.assert_close(grad, stock_grads[name], atol=atol, rtol=rtol, msg=lambda m, n=name: n + m)


def layers(model: nn.Module, kind: Kind) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind.stock_layer)]


def make_pair(kind_name: str, case_name: str = "bert", dtype: torch.dtype = torch.float64, **settings: Any) -> Pair:
    kind, case = KINDS[kind_name], MODELS[case_name]
    torch.manual_seed(0)
    base = case.build().to(dtype)
    x = case.inputs(torch.Generator().manual_seed(1))
    x = x.to(dtype) if x.is_floating_point() else x
    fields = {**kind.settings, "target_modules": TARGETS[case_name], "task_type": case.task_type, **settings}
    if case_name in ("conv1d", "gpt2"):
        fields["fan_in_fan_out"] = True
    models = [get_peft_model(copy.deepcopy(base), config(**fields)).eval() for config in (kind.ours, kind.stock)]
    if dtype == torch.float64:
        models = [model.double() for model in models]
    pair = Pair(kind, case, base, *models, x)
    pair.share_values()
    return pair
