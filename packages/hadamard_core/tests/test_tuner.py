"""Which modules of a model an adapter is put on, as peft asks about them one by one."""

import copy
import warnings
from dataclasses import dataclass

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer, inspect_matched_modules
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from hadamard_core.config import HadamardConfig
from hadamard_core.layer import ScaledLinear, Vectors
from hadamard_core.registration import peft_type, register
from hadamard_core.testing_models import MODELS
from hadamard_core.tuner import HadamardTuner


@dataclass
class OutConfig(HadamardConfig):
    def __post_init__(self):
        super().__post_init__()
        self.peft_type = peft_type("contract_out")


class OutLinear(ScaledLinear):
    adapter_layer_names = ("contract_out_scale",)

    def create_parameters(self, adapter_name, config, sizes):
        self.contract_out_scale[adapter_name] = nn.Parameter(torch.ones(sum(sizes)))

    def vectors(self, adapter_name):
        sizes = [own.size(self.out_features) for own in self.slices[adapter_name] or ()] or [self.out_features]
        return [Vectors(scale_out=part) for part in self.contract_out_scale[adapter_name].split(sizes)]


class OutModel(HadamardTuner):
    prefix = "contract_out_"
    tuner_layer_cls = OutLinear


register("contract_out", OutConfig, OutModel)


def adapted_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def matched(model, adapter_name):
    return inspect_matched_modules(model.base_model, adapter_name)["matched"]


@pytest.mark.parametrize(
    ("name", "inner", "expected"),
    [
        ("bert", "bert", ["encoder.layer.1.attention.self.query", "encoder.layer.1.attention.self.value"]),
        ("llama", "model", ["layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"]),
        ("gpt2", "transformer", ["h.1.attn.c_attn"]),
    ],
)
@pytest.mark.parametrize("layers", [[1], 1])
def test_layers_are_counted_in_a_model_with_and_without_head(name, inner, expected, layers):
    model = MODELS[name].build()
    bare = get_peft_model(copy.deepcopy(getattr(model, inner)), OutConfig(layers_to_transform=layers))
    whole = get_peft_model(model, OutConfig(layers_to_transform=layers))

    assert adapted_names(bare) == [f"base_model.model.{found}" for found in expected]
    assert adapted_names(whole) == [f"base_model.model.{inner}.{found}" for found in expected]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"layers_to_transform": [99]},
            r"layers_to_transform=\[99\], but the layers with roles query, value are 0 to 1;",
        ),
        ({"layers_to_transform": [0], "layers_pattern": "nolayer"}, r"layers_pattern='nolayer', but no module"),
    ],
)
def test_layers_that_are_not_there_are_named_before_the_model_changes(fields, words):
    model = MODELS["bert"].build()
    with pytest.raises(ValueError, match=words):
        get_peft_model(model, OutConfig(**fields))
    assert adapted_names(model) == []


@pytest.mark.parametrize("target", [{"roles": ["query"]}, {"target_modules": ["query"]}])
def test_modules_to_exclude_are_those_of_the_model_whatever_names_the_targets(target):
    """peft warns of exclude_modules that are nowhere in the model, not of those that are no targets anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no modules were excluded")
        model = get_peft_model(MODELS["bert"].build(), OutConfig(exclude_modules=["key"], **target))
    assert len(adapted_names(model)) == 2
    with pytest.warns(UserWarning, match="no modules were excluded"):
        get_peft_model(MODELS["bert"].build(), OutConfig(exclude_modules=["nowhere"], **target))


@pytest.mark.parametrize("exclude", [["query"], r".*\.query", ["bert.encoder.layer.0.attention.self.query"]])
def test_excluded_targets_are_left_out(exclude):
    model = get_peft_model(MODELS["bert"].build(), OutConfig(exclude_modules=exclude))

    assert not any(name.endswith("0.attention.self.query") for name in adapted_names(model))
    assert sum(name.endswith("value") for name in adapted_names(model)) == 2


def test_modules_to_save_are_no_targets():
    model = get_peft_model(MODELS["bert"].build(), OutConfig(modules_to_save=["query"]))

    assert [name.rpartition(".")[2] for name in adapted_names(model)] == ["value", "value"]


def test_a_head_of_several_layers_that_was_saved_whole_is_there_after_merging():
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    base = RobertaForSequenceClassification(config)
    model = get_peft_model(base, OutConfig(modules_to_save=["classifier"])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 if "modules_to_save" in name else 0.1)
    x = torch.arange(3, 9)[None]
    expected = model(x).logits
    merged = model.merge_and_unload()
    assert not any("modules_to_save" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(merged(x).logits, expected)


def test_each_of_several_adapters_keeps_its_targets():
    model = get_peft_model(MODELS["gpt2"].build(), OutConfig())
    model.add_adapter("by_name", OutConfig(target_modules=["c_fc"]))
    model.add_adapter("by_role", OutConfig(roles=["attention_output"], layers_to_transform=[1]))

    for each in (model, copy.deepcopy(model)):
        assert matched(each, "default") == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
        assert matched(each, "by_name") == ["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"]
        assert matched(each, "by_role") == ["transformer.h.1.attn.c_proj"]


def test_one_config_finds_its_own_targets_in_each_model():
    config = OutConfig()
    bert, gpt2 = (inject_adapter_in_model(config, MODELS[name].build()) for name in ("bert", "gpt2"))

    assert [len(adapted_names(model)) for model in (bert, gpt2)] == [4, 2]
