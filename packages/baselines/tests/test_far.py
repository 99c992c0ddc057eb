"""FAR: which nodes learn, what their adapter computes, and its two stages from start to reloaded adapter."""

import copy
from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import linear
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForSequenceClassification
from transformers.pytorch_utils import Conv1D

from hadamard_baselines.changes import changes_of
from hadamard_baselines.far import FarConfig, learners, prime
from hadamard_baselines.methods.far import Far
from hadamard_core.accounting import bytes_saved_for_backward, count_parameters
from hadamard_core.testing import MethodContract
from hadamard_core.testing_models import MODELS, output


class TestFar(MethodContract):
    config_class = FarConfig
    exempt: ClassVar[Mapping[str, str]] = {
        "test_file_holds_the_adapter_alone": "The file holds the numbers of the learners as well."
    }


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return MODELS["bert"].inputs(torch.Generator().manual_seed(1))


def small(name="bert"):
    return MODELS[name].build().eval()


def train(model, x, labels, steps, rate=0.02):
    model.eval()  # losses are compared, so that nothing is dropped
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(output(model, x), labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def change(model):
    with torch.no_grad():
        for _, parameter, each in changes_of(model):
            getattr(each, parameter).normal_()


# -- learners ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retain", [0.1, 0.25, 1.0])
def test_learners_are_the_nodes_that_changed_most_of_each_projection(retain):
    model = nn.ModuleDict({"a": nn.Linear(6, 20), "b": Conv1D(20, 6), "c": nn.Linear(6, 20, bias=False)})
    before = {name: copy.deepcopy(module) for name, module in model.items()}
    prime(model, ["a", "b", "c"])
    change(model)
    after = {name: (module.weight.detach(), getattr(module, "bias", None)) for name, module in model.items()}
    found = learners(model, retain)
    for name, (weight, bias) in after.items():
        delta = weight - before[name].weight
        delta = delta.T if name == "b" else delta
        learning = delta.abs().sum(1) + (0 if bias is None else (bias - before[name].bias).abs())
        best = sorted(learning.argsort(descending=True)[: round(retain * 20)].tolist())
        index, values = found[name]["weight"]
        assert index.tolist() == best
        assert_close(values, delta[best])
        assert ("bias" in found[name]) == (bias is not None)
    assert not list(changes_of(model))
    assert torch.equal(model["a"].weight, before["a"].weight)


def test_of_equals_the_first_are_learners():
    model = nn.ModuleDict({"a": nn.Linear(3, 6)})
    prime(model, ["a"])
    assert learners(model, 0.5)["a"]["weight"].index.tolist() == [0, 1, 2]


# -- what the adapter computes ----------------------------------------------------------------------------------------


def test_equals_the_projection_cut_in_two():
    """The paper's reconfiguration: a trained projection of the learners beside a frozen one of the rest."""
    base = nn.Sequential(nn.Linear(6, 10)).double()
    model = get_peft_model(copy.deepcopy(base), FarConfig(target_modules=["0"], retain=0.3, init_weights=False))
    layer = model.base_model.model[0]
    index = layer.far_index["default"]
    rest = torch.tensor([node for node in range(10) if node not in index.tolist()])
    weight, bias = base[0].weight.detach(), base[0].bias.detach()
    learner = (weight[index] + layer.far_weight["default"]).detach().requires_grad_(True)
    learner_bias = (bias[index] + layer.far_bias["default"]).detach().requires_grad_(True)
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    both = torch.cat([linear(x, learner, learner_bias), linear(x, weight[rest], bias[rest])], -1)
    expected = both[..., torch.cat([index, rest]).argsort()]
    y = model(x)
    assert_close(y, expected)
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, layer.far_weight["default"], layer.far_bias["default"]), grad)
    theirs = torch.autograd.grad(expected, (x, learner, learner_bias), grad)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, check_dtype=False, atol=1e-6, rtol=1e-6)


def test_backward_pass_keeps_the_input_and_what_learners_add():
    model = get_peft_model(nn.Sequential(nn.Linear(32, 64)), FarConfig(target_modules=["0"]))
    layer = model.base_model.model[0]
    x = torch.randn(10, 32, requires_grad=True)
    kept_anyway = [*model.parameters(), *model.buffers(), x]
    assert bytes_saved_for_backward(lambda: layer(x), kept_anyway) == 10 * 6 * 4


def test_slices_of_a_fused_projection_keep_to_their_rows():
    model = get_peft_model(small("gpt2"), FarConfig(roles=["query", "value"], retain=1.0))
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    assert layer.far_index["default"].tolist() == [*range(16), *range(32, 48)]


def test_stages_keep_to_the_slices_of_a_fused_projection():
    base = small("gpt2")
    before = copy.deepcopy(base.transformer.h[0].attn.c_attn)
    method = Far(retain=0.25, roles=("query", "value"))
    model = method.enter("stage1", base, "CAUSAL_LM")
    change(model)
    primed = model.transformer.h[0].attn.c_attn.weight.detach()
    moved = (primed != before.weight).all(0)
    assert moved.tolist() == [True] * 16 + [False] * 16 + [True] * 16
    adapted = method.apply(model, "CAUSAL_LM")
    index = adapted.base_model.model.transformer.h[0].attn.c_attn.far_index["default"]
    assert len(index) == 8
    assert moved[index].all()
    after = adapted.merge_and_unload().transformer.h[0].attn.c_attn.weight
    assert_close(after[:, index], primed[:, index])


# -- stages -----------------------------------------------------------------------------------------------------------


def test_stages_from_start_to_reloaded_adapter(x, tmp_path):
    base = small()
    fresh = copy.deepcopy(base)
    labels = torch.tensor([0, 1, 2, 0])
    method = Far(retain=0.25)
    model = method.enter("stage1", base, "SEQ_CLS", ["classifier"])
    counts = count_parameters(model)
    assert (counts.adapter, counts.norm, counts.head) == (2 * (32 * 17 + 16 * 33), 0, 3 * 17)
    assert method.penalty(model) is None
    train(model, x, labels, 8)
    head = copy.deepcopy(model.classifier.state_dict())
    primed = {
        name: {parameter: getattr(model.get_submodule(name), parameter).detach() for parameter in ("weight", "bias")}
        for name in {name for name, _, _ in changes_of(model)}
    }

    model = method.apply(model, "SEQ_CLS", ["classifier"])
    counts = count_parameters(model)
    assert (counts.adapter, counts.norm, counts.head) == (2 * (8 * 17 + 4 * 33), 0, 3 * 17)
    merged = copy.deepcopy(model).merge_and_unload()
    for name, values in primed.items():
        layer, own = model.get_base_model().get_submodule(name), merged.get_submodule(name)
        index = layer.far_index["default"]
        rest = [node for node in range(len(values["bias"])) if node not in index.tolist()]
        for parameter in ("weight", "bias"):
            # learners go on from where priming left them, the others are pretrained
            assert_close(getattr(own, parameter)[index], values[parameter][index])
            pretrained = getattr(fresh.get_submodule(name), parameter)
            assert torch.equal(getattr(own, parameter)[rest], pretrained[rest])
    kept_head = model.base_model.model.classifier.modules_to_save["default"]
    assert all(torch.equal(kept_head.state_dict()[name], value) for name, value in head.items())

    losses = train(model, x, labels, 10)
    assert losses[-1] < losses[0]
    expected = output(model.eval(), x)
    method.save(model, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {tuple(tensor.shape) for key, tensor in stored.items() if "far_" in key} == {(8, 16), (8,), (4, 32), (4,)}
    loaded = method.load(copy.deepcopy(fresh), tmp_path)
    assert torch.equal(output(loaded.eval(), x), expected)
    assert_close(output(method.merge(loaded).eval(), x), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_other_architectures_have_the_same_size_before_and_after_priming(name):
    method, case = Far(), MODELS[name]
    model = case.build()
    placeholder = count_parameters(method.apply(copy.deepcopy(model), case.task_type))
    primed = method.enter("stage1", model, case.task_type)
    change(primed)
    assert count_parameters(method.apply(primed, case.task_type)) == placeholder


# -- numbers and bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_a_tenth_of_the_nodes_of_a_large_model(name):
    with torch.device("meta"):
        if name == "roberta":
            sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
            model = RobertaForSequenceClassification(RobertaConfig(**sizes, intermediate_size=4096, vocab_size=50265))
        else:
            model = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))
    counts = count_parameters(Far().apply(model, "SEQ_CLS"))
    assert counts.adapter == 24 * (410 * 1025 + 102 * 4097) == 20_115_456
    assert counts.norm == 0


@pytest.mark.parametrize("retain", [0.0, -1.0, 1.01])
def test_settings_without_sense_are_refused(retain):
    with pytest.raises(ValueError, match=f"--method.retain is {retain}"):
        Far(retain=retain)
    with pytest.raises(ValueError, match=f"retain is {retain} in FarConfig"):
        FarConfig(retain=retain)


def test_modules_that_are_no_projections_are_refused():
    with pytest.raises(ValueError, match="LayerNorm, which is not supported"):
        get_peft_model(small(), FarConfig(target_modules=["LayerNorm"]))
