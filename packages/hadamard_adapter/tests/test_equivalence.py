"""What the adapter is the same as: the formula on a plain model, a part of (IA)^3, a part of HUT."""

import copy

import pytest
import torch
from peft import IA3Config, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hadamard_adapter import HadamardAdapterConfig
from hadamard_core.orientation import weight_as_linear
from hadamard_core.targets import module_names
from hadamard_core.testing_models import MODELS

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 40,
    "initializer_range": 0.3,
    "attn_implementation": "eager",
}


def bert(**settings):
    return BertForSequenceClassification(BertConfig(**SIZES, **settings))


def llama(key_value_heads=4):
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=key_value_heads))


def randomised(model):
    """The model in evaluation, with random values where transformers starts with zeros (biases)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def inputs():
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(3, 40, (3, 7)), "attention_mask": mask}


def adapted(base, **fields):
    config = HadamardAdapterConfig(**{"norm": "none", "init_weights": False, **fields})
    return get_peft_model(copy.deepcopy(base), config).eval()


def projections(model):
    """The output projections, adapted or not, in the model's order."""
    return [model.get_submodule(name) for name in module_names(model, ["attention_output"])]


def w_and_b(model):
    """W and b of each layer; None for one that does not train."""
    containers = [(layer.hadamard_weight, layer.hadamard_bias) for layer in projections(model)]
    return [tuple(values["default"] if len(values) else None for values in each) for each in containers]


def scaled_and_shifted_values(base, model, value):
    """peft's (IA)^3 on the value projections with l_v = W, merged, and b added to their biases."""
    ia3 = get_peft_model(copy.deepcopy(base), IA3Config(target_modules=[value], feedforward_modules=[]))
    values = [ia3.get_submodule(name) for name in module_names(ia3, ["value"])]
    with torch.no_grad():
        for layer, (weight, _) in zip(values, w_and_b(model), strict=True):
            layer.ia3_l["default"].copy_(weight.view_as(layer.ia3_l["default"]))
    merged = ia3.merge_and_unload()
    with torch.no_grad():
        for name, (_, shift) in zip(module_names(merged, ["value"]), w_and_b(model), strict=True):
            layer = merged.get_submodule(name)
            if shift is not None:
                layer.bias = nn.Parameter(shift.clone() if layer.bias is None else layer.bias + shift)
    return merged


ARCHITECTURES = {"bert": (bert, "value"), "llama": (llama, "v_proj")}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", ARCHITECTURES)
def test_on_the_context_it_is_ia3s_scale_of_the_values_and_a_bias_of_theirs(case, bias, inputs):
    """The rows of a softmax sum to one, so that a shift of all values is the same shift of each context."""
    build, value = ARCHITECTURES[case]
    base = randomised(build())
    model = adapted(base, bias=bias)
    expected = scaled_and_shifted_values(base, model, value)
    logits = model(**inputs).logits
    assert (logits - base(**inputs).logits).abs().max() > 0.01
    assert_close(logits, expected.eval()(**inputs).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_with_attention_dropout_only_the_scale_is_the_same(bias, inputs):
    """Of rows with dropout the sum is not one, and what b adds to the values varies with it."""
    base = randomised(bert(attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.0, classifier_dropout=0.0))
    model = adapted(base, bias=bias)
    expected = scaled_and_shifted_values(base, model, "value")
    outputs = []
    for each in (model, expected, model.merge_and_unload()):
        torch.manual_seed(1)
        outputs.append(each.train()(**inputs).logits)
    by_adapter, by_values, by_merged = outputs
    assert_close(by_merged, by_adapter, rtol=1e-5, atol=1e-5)
    if bias:
        assert (by_adapter - by_values).abs().max() > 0.01
    else:
        assert_close(by_values, by_adapter, rtol=1e-5, atol=1e-5)


def test_where_heads_share_their_values_a_scale_of_these_can_do_less():
    """A single token attends to itself alone: its context repeats its values for each head that shares them.

    No scale or shift of the values can make these heads differ. W and b can.
    """
    base = randomised(llama(key_value_heads=2))
    model = adapted(base)
    ia3 = get_peft_model(copy.deepcopy(base), IA3Config(target_modules=["v_proj"], feedforward_modules=[])).eval()
    for parameter in ia3.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    apart = []
    for each in (ia3, model):
        seen = []
        innermost = getattr(projections(each)[0], "base_layer", projections(each)[0])
        innermost.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        each(input_ids=torch.tensor([[7]]))
        heads = seen[0].view(2, 2, 4)  # those that share values, in a row
        apart.append((heads[:, 0] - heads[:, 1]).abs().max().item())
    assert apart[0] == 0
    assert apart[1] > 0.01


def by_formula(base, model, position):
    """``A' = W * A + b`` written out on a copy of the model, with hooks on its output projections."""
    plain = copy.deepcopy(base)
    for layer, (weight, shift) in zip(projections(plain), w_and_b(model), strict=True):

        def before(_, inputs, weight=weight, shift=shift):
            return inputs[0] * weight + shift

        def after(_, inputs, output, weight=weight, shift=shift):
            return output * weight + shift

        if position == "context":
            layer.register_forward_pre_hook(before)
        else:
            layer.register_forward_hook(after)
    return plain


def by_hut(hut, base, model, position):
    """HUT on the output projections, with the parameters that make it the adapter."""
    config = hut.HutConfig(roles=("attention_output",), r=1)
    result = get_peft_model(copy.deepcopy(base), config).eval()
    for layer, (weight, shift) in zip(projections(result), w_and_b(model), strict=True):
        linear = layer.get_base_layer()
        matrix = weight_as_linear(linear)
        bias = torch.zeros(len(matrix)) if linear.bias is None else linear.bias
        values = {
            "context": (weight, torch.ones(len(matrix)), matrix @ shift),
            "projection": (torch.ones(matrix.shape[1]), weight, shift + (weight - 1) * bias),
        }
        m_a, gamma_m_b, beta = values[position]
        layer.hut_A["default"].copy_(m_a[:, None])
        layer.hut_B["default"].copy_(gamma_m_b[None])
        layer.hut_beta["default"].copy_(beta)
    return result


@pytest.mark.parametrize("position", ["context", "projection"])
@pytest.mark.parametrize("compute", ["weight", "activation"])
@pytest.mark.parametrize("case", ["bert", "gpt2", "llama"])
@torch.no_grad()
def test_it_is_the_formula_on_the_attention_output(case, compute, position):
    base = randomised(MODELS[case].build())
    x = MODELS[case].inputs(torch.Generator().manual_seed(1))
    model = adapted(base, position=position, compute=compute)
    assert (model(x).logits - base(x).logits).abs().max() > 0.01
    assert_close(model(x).logits, by_formula(base, model, position)(x).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", ["context", "projection"])
@pytest.mark.parametrize("case", ["bert", "gpt2", "llama"])
@torch.no_grad()
def test_hut_on_the_output_projection_contains_it(case, position):
    hut = pytest.importorskip("hut")
    base = randomised(MODELS[case].build())
    x = MODELS[case].inputs(torch.Generator().manual_seed(1))
    model = adapted(base, position=position)
    assert_close(model(x).logits, by_hut(hut, base, model, position)(x).logits, rtol=1e-5, atol=1e-5)
