"""What a method promises, checked on tiny random models.

Each check builds what it needs, and says what is wrong by any exception. What a method cannot do by its nature it says
in its attribute ``cannot``; the tests compare both, and the table of ``docs/methods`` is what the checks found.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn

from hadamard_core.accounting import trained_by_group
from hadamard_core.testing_models import WIDER, ModelCase, output
from harness.errors import one_line
from harness.protocols import Method

TASKS = {"encoder": ("bert", ("classifier",)), "decoder": ("gpt2", ())}
"""The models that the checks run on, and the modules that are trained whatever the method: one of each kind of task."""


@dataclass
class Trial:
    """A method on a tiny model.

    Attributes:
        base: the model.
        x: a batch of token ids for it.
        heads: names of its modules that are trained whatever the method.
    """

    method: Method
    case: ModelCase
    base: nn.Module
    x: Tensor
    heads: Sequence[str]

    def fresh(self) -> nn.Module:
        """A copy of the model."""
        return copy.deepcopy(self.base)

    def adapted(self, base: nn.Module | None = None, random: bool = True) -> nn.Module:
        """The method on a copy of the model; what trains is moved off its start if it is to be random."""
        model = self.fresh() if base is None else copy.deepcopy(base)
        torch.manual_seed(1)
        model = self.method.apply(model, self.case.task_type, self.heads).eval()
        if random:
            move(model)
        return model

    def loaded(self, model: nn.Module) -> nn.Module:
        """What comes back from the disk into a fresh copy of the model."""
        with tempfile.TemporaryDirectory() as folder:
            self.method.save(model, Path(folder))
            return self.method.load(self.fresh(), Path(folder)).eval()


def move(model: nn.Module) -> None:
    """Adds noise to all that trains."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter.dtype))


def make_trial(method: Method, model: str, heads: Sequence[str]) -> Trial:
    """Returns a method with its tiny model, whose biases and norms are not where they start."""
    case = WIDER[model]
    torch.manual_seed(0)
    base = case.build().eval()
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return Trial(method, case, base, case.inputs(torch.Generator().manual_seed(1)), tuple(heads))


def _same(found: Tensor, expected: Tensor, atol: float = 1e-4, rtol: float = 1e-3) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


def _peft(model: nn.Module) -> PeftModel:
    assert isinstance(model, PeftModel), "it is no peft model"
    return model


def starts_as_the_base_model(trial: Trial) -> None:
    _same(output(trial.adapted(random=False), trial.x), output(trial.base, trial.x), atol=1e-5)


def trains_all_that_it_says(trial: Trial) -> None:
    model = trial.adapted()
    output(model, trial.x).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} got no gradient"
            assert parameter.grad.isfinite().all(), f"{name} got a gradient that is not finite"


def comes_back_from_disk(trial: Trial) -> None:
    model = trial.adapted()
    expected = output(model, trial.x)
    assert not torch.allclose(expected, output(trial.base, trial.x), atol=1e-4), "random values change nothing"
    loaded = trial.loaded(model)
    assert not any(parameter.requires_grad for parameter in loaded.parameters()), "what was loaded trains"
    _same(output(loaded, trial.x), expected)


def merges(trial: Trial) -> None:
    model = trial.adapted()
    expected = output(model, trial.x)
    merged = trial.method.merge(trial.loaded(model))
    assert type(merged) is type(trial.base), f"what is merged is a {type(merged).__name__}"
    _same(output(merged, trial.x), expected)


def is_switched_off(trial: Trial) -> None:
    model = _peft(trial.adapted())
    before = output(model, trial.x)
    with model.disable_adapter():
        _same(output(model, trial.x), output(trial.base, trial.x))
    _same(output(model, trial.x), before)


def with_another(trial: Trial) -> tuple[PeftModel, Tensor]:
    """A model with the adapters ``default`` and ``other``, and what it computes with the second."""
    model = _peft(trial.adapted())
    config = trial.method.peft_config(trial.fresh(), trial.case.task_type)
    config.modules_to_save = list(trial.heads) or None
    model.add_adapter("other", config)
    model.set_adapter("other")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".other" in name and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), output(model, trial.x)


def stands_beside_another(trial: Trial) -> None:
    alone = output(trial.adapted(), trial.x)
    model, other = with_another(trial)
    model.set_adapter("default")
    _same(output(model, trial.x), alone)
    assert not torch.allclose(other, alone, atol=1e-4), "the other adapter computes the same"


def mixes_in_a_batch(trial: Trial) -> None:
    model, other = with_another(trial)
    model.set_adapter("default")
    alone = output(model, trial.x)
    names = ["default" if row % 2 else "other" for row in range(len(trial.x))]
    found = output(model, trial.x, adapter_names=names)
    _same(found[1::2], alone[1::2])
    _same(found[::2], other[::2])


def keeps_fp32_on_bf16(trial: Trial) -> None:
    model = trial.adapted(trial.fresh().to(torch.bfloat16), random=False)
    groups = trained_by_group(model)
    trained = [*groups["adapter"], *groups["norm"]]
    assert {parameter.dtype for parameter in trained} == {torch.float32}, "adapters are not fp32"
    output(model, trial.x).float().square().sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in trained)


def checkpoints_activations(trial: Trial) -> None:
    found = []
    for checkpointing in (False, True):
        model = trial.adapted()
        if checkpointing:
            inner = model.get_base_model() if isinstance(model, PeftModel) else model
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        output(model, trial.x, use_cache=False).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        _same(found[1][name], gradient, atol=1e-4 * max(1.0, gradient.abs().max().item()))


@dataclass(frozen=True)
class Promise:
    """A promise: how a table heads it, what it says, and its check."""

    heading: str
    words: str
    check: Callable[[Trial], None]


PROMISES = {
    "start": Promise("start", "training starts from the base model's function", starts_as_the_base_model),
    "train": Promise("trains", "all that it says it trains gets a gradient", trains_all_that_it_says),
    "reload": Promise("reload", "read from disk into a fresh base model, it computes the same", comes_back_from_disk),
    "merge": Promise("merge", "it folds into the weights of a plain model of the same function", merges),
    "switch": Promise("off", "`disable_adapter` gives the base model's function", is_switched_off),
    "several": Promise("several", "several adapters are switched on one base model", stands_beside_another),
    "mix": Promise("mixed", "each sample of a batch has its own adapter (`adapter_names`)", mixes_in_a_batch),
    "bf16": Promise("bf16", "adapters are fp32 on a bf16 base model", keeps_fp32_on_bf16),
    "checkpointing": Promise(
        "checkpointing", "gradients are the same with activation checkpointing", checkpoints_activations
    ),
}
"""By name, in the order of a table."""


def check(method: Method, kind: str, promise: str) -> str:
    """Checks one promise on one kind of model.

    Returns:
        Empty if it holds, else what was wrong, in a line.
    """
    model, heads = TASKS[kind]
    with _quiet():
        try:
            PROMISES[promise].check(make_trial(method, model, heads))
        except Exception as error:  # whatever goes wrong, the promise does not hold
            return one_line(error)[:300] or type(error).__name__
    return ""


def supports(method: Method, kind: str) -> str:
    """Returns why a method cannot act on a kind of model, in its own words; empty if it can."""
    model, heads = TASKS[kind]
    with _quiet():
        try:
            make_trial(method, model, heads).adapted(random=False)
        except ValueError as error:
            return one_line(error)
    return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
