"""What LoRA has beyond one plain adapter goes peft's way, and comes out as peft's."""

import peft
import pytest
import torch
from peft import get_peft_model
from torch import nn

import hadamard_baselines
from hadamard_baselines import LoraConfig, LoraLinear
from hadamard_baselines.testing import make_pair
from hadamard_core.testing_models import output


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_bias": True},
        {"bias": "lora_only"},
        {"bias": "all"},
        {"rank_pattern": {"query": 1}, "alpha_pattern": {"value": 9}},
    ],
    ids=str,
)
def test_options(settings):
    make_pair("lora", **settings).check_equal()


def test_an_initialisation_that_changes_the_base():
    pair = make_pair("lora", dtype=torch.float32, init_lora_weights="pissa")
    pair.check_equal(atol=1e-5, rtol=1e-4)


def test_scaling_is_read_at_each_call():
    pair = make_pair("lora")
    before = output(pair.ours, pair.x)
    for model in pair:
        for module in model.modules():
            if isinstance(module, peft.tuners.lora.layer.LoraLayer):
                module.scale_layer(3.0)
    assert not torch.allclose(output(pair.ours, pair.x), before)
    pair.check_equal()


def test_batches_that_mix_adapters():
    pair = make_pair("lora", "llama")
    pair.add_adapter("other")
    names = ["default", "other", "__base__", "other"]
    results = []
    for model in pair:
        model.double().eval()
        with torch.no_grad():
            results.append(model(pair.x, adapter_names=names).logits)
    torch.testing.assert_close(results[0], results[1])
    with torch.no_grad():
        torch.testing.assert_close(results[0][:1], output(pair.ours, pair.x[:1]))


def test_weighted_adapter():
    pair = make_pair("lora", "llama")
    pair.add_adapter("other")
    for model in pair:
        model.add_weighted_adapter(["default", "other"], [0.3, 0.7], "both", combination_type="cat")
        model.double()
        model.set_adapter("both")
    torch.testing.assert_close(output(pair.ours, pair.x), output(pair.stock, pair.x))
    assert type(pair.ours.peft_config["both"]) is LoraConfig


def test_a_hooked_adapter_is_called():
    """As fully sharded and tensor parallel training do, which gather its weights in the call."""
    pair = make_pair("lora", "linear")
    seen = []
    pair.ours.base_model.model.second.lora_A["default"].register_forward_pre_hook(lambda *args: seen.append(1))
    pair.check_equal()
    assert seen == [1]


def test_parameters_of_a_module_are_targeted_as_by_stock():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, x):
            return self.proj(x)

    model = get_peft_model(Experts(), LoraConfig(r=2, target_modules=[], target_parameters=["proj.weight"]))
    assert type(model.base_model.model.proj) is peft.tuners.lora.layer.ParamWrapper


def test_embeddings_stay_with_stock():
    model = get_peft_model(
        nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0", "1"])
    )
    embedding, projection = model.base_model.model
    assert type(embedding) is peft.tuners.lora.layer.Embedding
    assert type(projection) is LoraLinear


@pytest.mark.parametrize("stored_as_conv1d", [False, True])
def test_fan_in_fan_out_is_settled_with_a_warning(stored_as_conv1d):
    layer = hadamard_baselines.lora.Conv1D(4, 4) if stored_as_conv1d else nn.Linear(4, 4)
    config = LoraConfig(r=2, target_modules=["0"], fan_in_fan_out=not stored_as_conv1d)
    with pytest.warns(UserWarning, match=f"it is set to {stored_as_conv1d}"):
        get_peft_model(nn.Sequential(layer), config)
    assert config.fan_in_fan_out is stored_as_conv1d
