"""A trained norm computes what the norm would with the changed weight, on every kind of norm, and can be taken back."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from hadamard_core.config import HadamardConfig
from hadamard_core.norm import TrainedNorm, is_norm

FEATURES = 6

NORMS = {
    "LayerNorm": lambda: nn.LayerNorm(FEATURES),
    "LayerNorm without bias": lambda: nn.LayerNorm(FEATURES, bias=False),
    "RMSNorm of torch": lambda: nn.RMSNorm(FEATURES),
    "RMSNorm of Llama": lambda: LlamaRMSNorm(FEATURES),
    "norm of T5": lambda: T5LayerNorm(FEATURES),
    "norm of Gemma": lambda: GemmaRMSNorm(FEATURES),  # multiplies by 1 + weight
}
every_norm = pytest.mark.parametrize("build", NORMS.values(), ids=NORMS)


class Changed(TrainedNorm):
    adapter_layer_names = ("changed_weight", "changed_bias")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def norm(build):
    """A frozen norm with random values."""
    base = build().requires_grad_(False)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_()
    return base


def adapted(base, *more, init_weights=False):
    """An adapter "default" on a copy of the norm, and further ones; all have random values."""
    layer = Changed(copy.deepcopy(base), "default", HadamardConfig(init_weights=init_weights))
    for name in more:
        layer.update_layer(name, HadamardConfig(init_weights=init_weights))
    return layer


def changed(base, layer, *adapters):
    """The norm itself with the values that these adapters mean."""
    result = copy.deepcopy(base)
    with torch.no_grad():
        for name in adapters:
            result.weight += layer.changed_weight[name]
            if getattr(result, "bias", None) is not None:
                result.bias += layer.changed_bias[name]
    return result


def values(layer):
    return {name: tensor.clone() for name, tensor in layer.get_base_layer().state_dict().items()}


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_starts_as_the_norm_bit_for_bit(build, dtype):
    base, x = norm(build).to(dtype), torch.randn(3, 4, FEATURES, dtype=dtype)
    assert torch.equal(adapted(base, init_weights=True)(x), base(x))


@every_norm
def test_is_the_norm_with_the_changed_values(build):
    base, x = norm(build), torch.randn(3, 4, FEATURES)
    layer = adapted(base)
    assert_close(layer(x), changed(base, layer, "default")(x))
    assert not torch.allclose(layer(x), base(x), atol=1e-2)


@every_norm
def test_gradients_are_those_of_the_unfrozen_norm(build):
    base = norm(build).double()
    layer = adapted(base).double()
    unfrozen = changed(base, layer, "default").requires_grad_(True)
    grad = torch.randn(3, 4, FEATURES).double()
    gradients = []
    for module, parameters in (
        (layer, [p for p in layer.parameters() if p.requires_grad]),
        (unfrozen, list(unfrozen.parameters())),
    ):
        x = torch.linspace(-2, 3, grad.numel()).double().sin().view(grad.shape).requires_grad_(True)
        gradients.append(torch.autograd.grad(module(x), [x, *parameters], grad))
    assert len(gradients[0]) == 1 + len(list(base.parameters()))
    for own, expected in zip(*gradients, strict=True):
        assert_close(own, expected, rtol=1e-12, atol=1e-12)


@every_norm
def test_changes_of_active_adapters_add_up(build):
    base, x = norm(build), torch.randn(3, 4, FEATURES)
    layer = adapted(base, "other")
    layer.set_adapter(["default", "other"])
    assert_close(layer(x), changed(base, layer, "default", "other")(x))


@every_norm
def test_each_sample_of_a_batch_has_its_adapter(build):
    base, x = norm(build), torch.randn(4, 5, FEATURES, requires_grad=True)
    layer = adapted(base, "other")
    layer.changed_weight["other"].requires_grad_(True)
    y = layer(x, adapter_names=["other", "__base__", "default", "other"])
    expected = [changed(base, layer, *names) for names in (["other"], [], ["default"], ["other"])]
    assert_close(y, torch.stack([module(sample) for module, sample in zip(expected, x, strict=True)]))

    layer.set_adapter("other")
    apart = layer(x[[0, 3]])
    parameters = [x, layer.changed_weight["other"]]
    for own, alone in zip(
        torch.autograd.grad(y[[0, 3]].square().sum(), parameters),
        torch.autograd.grad(apart.square().sum(), parameters),
        strict=True,
    ):
        assert_close(own, alone, rtol=1e-4, atol=1e-4)


@every_norm
@pytest.mark.filterwarnings("ignore:Already following adapters were merged")
def test_merging_is_the_same_and_unmerging_restores_every_bit(build):
    base, x = norm(build), torch.randn(3, 4, FEATURES)
    layer = adapted(base, "other")
    before, expected = values(layer), layer(x)
    layer.merge()
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.get_base_layer()(x), expected)
    layer.merge(adapter_names=["other"])
    assert_close(layer(x), changed(base, layer, "default", "other")(x))
    layer.unmerge()
    assert layer.merged_adapters == []
    assert torch.equal(layer(x), expected)
    for name, tensor in values(layer).items():
        assert torch.equal(tensor, before[name])


@every_norm
def test_disabling_gives_the_norm_back(build):
    base, x = norm(build), torch.randn(3, 4, FEATURES)
    layer = adapted(base)
    layer.merge()
    layer.enable_adapters(False)
    assert torch.equal(layer(x), base(x))


def test_unmerging_what_is_not_merged_changes_nothing():
    base, x = norm(NORMS["LayerNorm"]), torch.randn(3, FEATURES)
    layer = adapted(base)
    expected = layer(x)
    layer.unmerge()
    assert torch.equal(layer(x), expected)


@every_norm
def test_safe_merging_refuses_what_is_not_finite(build):
    layer = adapted(norm(build))
    before = values(layer)
    with torch.no_grad():
        layer.changed_weight["default"][0] = float("inf")
    with pytest.raises(ValueError, match="merged weight: the adapter default"):
        layer.merge(safe_merge=True)
    assert not layer.merged
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(layer).items())


def test_a_norm_without_bias_gets_none():
    layer = adapted(norm(NORMS["LayerNorm without bias"]))
    layer.merge()
    assert (len(layer.changed_weight), len(layer.changed_bias)) == (1, 0)
    assert layer.get_base_layer().bias is None


def test_16_bit_norms_have_changes_in_fp32():
    base, x = norm(NORMS["LayerNorm"]).bfloat16(), torch.randn(3, FEATURES).bfloat16()
    layer = adapted(base)
    assert {p.dtype for p in layer.parameters() if p.requires_grad} == {torch.float32}
    weight = (base.weight.float() + layer.changed_weight["default"]).bfloat16()
    bias = (base.bias.float() + layer.changed_bias["default"]).bfloat16()
    assert torch.equal(layer(x), nn.functional.layer_norm(x, (FEATURES,), weight, bias, base.eps))
    layer.merge()
    assert torch.equal(layer.get_base_layer().weight, weight)


@every_norm
@pytest.mark.parametrize("replaced", [False, True], ids=["hook", "forward replaced"])
def test_what_others_have_hooked_to_the_norm_runs(build, replaced):
    """As accelerate's hooks, which move the input to the device of the weights."""
    base, x = norm(build), torch.randn(2, 4, FEATURES)
    layer = adapted(base)
    expected = layer(2 * x + 1)
    inner = layer.get_base_layer()
    if replaced:
        forward = inner.forward
        inner.forward = lambda x: forward(2 * x + 1)
    else:
        inner.register_forward_pre_hook(lambda module, inputs: 2 * inputs[0] + 1)
    assert_close(layer(x), expected)
    assert_close(layer(x, adapter_names=["default", "default"]), expected)


@pytest.mark.parametrize("kind", ["RMSNorm of Llama", "norm of T5", "norm of Gemma"])
def test_norms_in_fp32_take_16_bit_input_in_mixed_batches_too(kind):
    """As in a model whose norms alone were kept in fp32: these norms themselves take such input."""
    base, x = norm(NORMS[kind]), torch.randn(2, 4, FEATURES).bfloat16()
    layer = adapted(base)
    y = layer(x, adapter_names=["default", "__base__"])
    assert_close(y, torch.stack([layer(x[0]), base(x[1])]))


def test_what_is_a_norm():
    assert all(is_norm(build()) for build in NORMS.values())
    assert is_norm(nn.GroupNorm(2, FEATURES))
    for module in (
        nn.BatchNorm1d(FEATURES),
        nn.InstanceNorm1d(FEATURES, affine=True),
        nn.LayerNorm(FEATURES, elementwise_affine=False),
        nn.LayerNorm((2, FEATURES)),
        nn.Linear(FEATURES, 1),
        nn.Identity(),
    ):
        assert not is_norm(module)


@pytest.mark.parametrize(
    "module", [nn.BatchNorm1d(FEATURES), nn.LayerNorm(FEATURES, elementwise_affine=False), nn.Linear(FEATURES, 1)]
)
def test_what_is_no_norm_is_refused(module):
    with pytest.raises(ValueError, match=rf"A {type(module).__name__} is no norm over the last dimension"):
        Changed(module, "default", HadamardConfig())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_batches_have_the_norms_own_dtype_under_autocast(dtype):
    base = norm(NORMS["LayerNorm"])
    layer = adapted(base, "other")
    x = torch.randn(3, 4, FEATURES, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, alone, frozen = layer(x, adapter_names=["default"] * 3), layer(x), base(x)
    assert mixed.dtype == alone.dtype == frozen.dtype
    rounding = {"atol": 1e-2, "rtol": 2e-2} if dtype == torch.bfloat16 else {}  # one rounding more, to 8 bits
    assert_close(mixed, alone, **rounding)


def test_hooks_on_a_norm_run_once():
    base, calls = norm(NORMS["RMSNorm of Llama"]), []
    layer = adapted(base)
    layer.get_base_layer().register_forward_hook(lambda *_: calls.append(1))
    layer(torch.randn(2, FEATURES, requires_grad=True)).sum().backward()
    assert calls == [1]
