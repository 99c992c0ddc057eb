"""The adapter as a method of the comparison harness: its two stages, the head between them, the layers."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close

from hadamard_adapter import HadamardAdapterConfig, HadamardLinear, HadamardNorm
from hadamard_adapter.method import Hadamard
from hadamard_core.accounting import count_parameters
from hadamard_core.testing_models import MODELS, output

HEAD = 3 * 16 + 3
ADAPTER = NORMS = 2 * 2 * 16


@pytest.fixture
def base():
    torch.manual_seed(0)
    return MODELS["bert"].build().eval()


@pytest.fixture
def x():
    return MODELS["bert"].inputs(torch.Generator().manual_seed(1))


def change(model):
    """Stands for training: moves everything that requires a gradient."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def trained(model):
    counts = count_parameters(model)
    return counts.adapter, counts.norm, counts.head


def test_stages_are_the_head_and_then_the_adapter(base):
    first, second = Hadamard.stages
    assert (first.name, first.needs_head) == ("stage1", True)
    assert (second.name, second.needs_head) == ("stage2", False)
    method = Hadamard()
    model = method.enter("stage1", base, "SEQ_CLS", ("classifier",))
    assert trained(model) == (0, 0, HEAD)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"classifier.weight", "classifier.bias"}
    assert trained(method.apply(model, "SEQ_CLS", ("classifier",))) == (ADAPTER, NORMS, 0)


@pytest.mark.parametrize(("head", "expected"), [("freeze", 0), ("train", HEAD)])
def test_the_head_of_stage_2_is_that_of_stage_1(base, x, head, expected):
    method = Hadamard(head=head)
    model = method.enter("stage1", base, "SEQ_CLS", ("classifier",))
    change(model)
    learned, logits = model.classifier.weight.detach().clone(), output(model, x)
    model = method.apply(model, "SEQ_CLS", ("classifier",)).eval()
    assert trained(model) == (ADAPTER, NORMS, expected)
    assert torch.equal(output(model, x), logits)
    change(model)
    now = model.base_model.model.classifier.modules_to_save["default"].weight
    assert torch.equal(now, learned) == (head == "freeze")


def test_without_a_head_there_is_only_the_adapter():
    model = Hadamard().apply(MODELS["gpt2"].build(), "CAUSAL_LM")
    assert trained(model) == (ADAPTER, NORMS, 0)


@pytest.mark.parametrize("head", ["freeze", "train"])
def test_the_saved_adapter_holds_the_head_and_needs_nothing_but_peft(base, x, head, tmp_path):
    fresh = copy.deepcopy(base)
    method = Hadamard(head=head)
    model = method.enter("stage1", base, "SEQ_CLS", ("classifier",))
    change(model)
    model = method.apply(model, "SEQ_CLS", ("classifier",)).eval()
    change(model)
    method.save(model, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == ADAPTER + NORMS + HEAD
    expected = output(model, x)
    assert (expected - output(fresh, x)).abs().max() > 0.1
    for loaded in (
        method.load(copy.deepcopy(fresh), tmp_path),
        PeftModel.from_pretrained(copy.deepcopy(fresh), str(tmp_path)),
    ):
        assert torch.equal(output(loaded.eval(), x), expected)
    assert_close(output(method.merge(loaded), x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(("top:1",), [1]), (("bottom:1",), [0]), (("top:2",), [0, 1]), ((1,), [1]), (("0-1",), [0, 1]), (None, None)],
)
@pytest.mark.parametrize("target_modules", [None, ("attention.output.dense",)])
def test_layers(base, layers, expected, target_modules):
    method = Hadamard(layers=layers, target_modules=target_modules)
    assert method.peft_config(base, "SEQ_CLS").layers_to_transform == expected
    model = method.apply(base, "SEQ_CLS")
    adapted = [name for name, module in model.named_modules() if isinstance(module, (HadamardLinear, HadamardNorm))]
    assert {int(name.split(".layer.")[1][0]) for name in adapted} == set(expected or [0, 1])
    assert len(adapted) == 2 * len(expected or [0, 1])


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (("top:3",), "layers has 'top:3', but there are 2 layers"),
        ((2,), "layers has 2, but the layers are 0 to 1"),
        (("1-2",), "layers has '1-2', but the layers are 0 to 1"),
    ],
)
def test_layers_that_are_not_there(base, layers, words):
    with pytest.raises(ValueError, match=words):
        Hadamard(layers=layers).apply(base, "SEQ_CLS")


@pytest.mark.parametrize("layers", [(), ("upper:2",)])
def test_what_is_no_selection_of_layers_is_refused_at_once(layers):
    with pytest.raises(ValueError, match="give numbers, ranges"):
        Hadamard(layers=layers)


def test_every_setting_reaches_the_config(base):
    settings = {"position": "projection", "norm": "output", "weight": False, "compute": "activation"}
    config = Hadamard(**settings, roles=("encoder.attention_output",)).peft_config(base, "SEQ_CLS")
    assert {name: getattr(config, name) for name in settings} == settings
    assert (config.roles, config.task_type, config.bias) == (("encoder.attention_output",), "SEQ_CLS", True)
    config = Hadamard(target_modules=("dense",), norm_modules=("LayerNorm",)).peft_config(base, "SEQ_CLS")
    assert (config.roles, config.target_modules, config.norm_modules) == (None, {"dense"}, {"LayerNorm"})


def test_its_defaults_are_those_of_the_config(base):
    assert Hadamard().peft_config(base, "SEQ_CLS").to_dict() == HadamardAdapterConfig(task_type="SEQ_CLS").to_dict()
