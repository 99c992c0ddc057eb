"""The groups of trained parameters divide what is trained, and are those whose sizes are counted."""

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from hadamard_core.accounting import count_parameters, trained_by_group
from hadamard_core.targets import module_names

SIZES = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8},
    "deberta-v2": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8},
    "distilbert": {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 8},
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2},
}
SIZES["deberta-v2"]["pooler_hidden_size"] = 8


def build(model_type, auto=AutoModelForSequenceClassification):
    return auto.from_config(AutoConfig.for_model(model_type, vocab_size=30, **SIZES[model_type]))


def lora(base, **settings):
    return get_peft_model(base, LoraConfig(r=2, target_modules=module_names(base, ["query", "value"]), **settings))


def norms(base):
    return get_peft_model(base, LNTuningConfig(target_modules=module_names(base, ["output_norm"])))


WAYS = {
    "frozen": lambda base: base.requires_grad_(False),
    "everything": lambda base: base,
    "lora": lora,
    "lora and head": lambda base: lora(base, task_type="SEQ_CLS"),
    "norms": norms,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model_type", SIZES)
def test_the_groups_divide_what_is_trained(model_type, way):
    model = WAYS[way](build(model_type))
    groups = trained_by_group(model)
    grouped = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    counts = count_parameters(model)
    sizes = {group: sum(parameter.numel() for parameter in parameters) for group, parameters in groups.items()}
    assert sizes == {"adapter": counts.adapter, "norm": counts.norm, "head": counts.head}


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("bert", {"bert.pooler.dense", "classifier"}),
        ("deberta-v2", {"pooler.dense", "classifier"}),
        ("distilbert", {"pre_classifier", "classifier"}),
        ("gpt2", {"score"}),
    ],
)
def test_a_pooler_belongs_to_the_head(model_type, head):
    model = build(model_type)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = {names[id(parameter)] for parameter in trained_by_group(model)["head"]}
    assert {name.rpartition(".")[0] for name in grouped} == head


def test_a_trained_copy_is_in_the_group_and_its_original_is_not():
    model = lora(build("bert"), modules_to_save=["classifier", "bert.pooler.dense"])
    head = {id(parameter) for parameter in trained_by_group(model)["head"]}
    copies = [model.base_model.model.classifier, model.base_model.model.bert.pooler.dense]
    assert head == {id(parameter) for copy in copies for parameter in copy.modules_to_save.parameters()}


def test_a_tied_weight_is_in_one_group_only():
    model = build("gpt2", AutoModelForCausalLM)
    assert model.lm_head.weight is model.transformer.wte.weight
    groups = trained_by_group(model)
    assert groups["head"] == []
    assert sum(parameter is model.lm_head.weight for parameter in groups["adapter"]) == 1


def test_a_module_outside_of_transformers_has_groups_too():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    model[0].bias.requires_grad_(False)
    groups = trained_by_group(model)
    assert [id(parameter) for parameter in groups["adapter"]] == [id(model[0].weight)]
    assert {id(parameter) for parameter in groups["norm"]} == {id(model[1].weight), id(model[1].bias)}
    assert groups["head"] == []
