"""Trained parameters on the papers' architectures, counted on models without weights: what tables may print.

The HUT paper prints 0.8M and 0.35M for LoRA; the counts below are what its settings give. Those of the methods that
have a package are in that package's tests.
"""

import pytest
import torch
from peft import FourierFTConfig, LoraConfig, VeraConfig, get_peft_model
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaModel

from hadamard_core.accounting import count_parameters
from hadamard_core.targets import find_targets, module_names


def roberta_large():
    config = RobertaConfig(
        vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    return RobertaModel(config, add_pooling_layer=False)


def gpt2_medium():
    return GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))


@pytest.mark.parametrize(
    ("build", "config_class", "settings", "expected"),
    [
        pytest.param(roberta_large, LoraConfig, {"r": 8}, 786_432, id="LoRA, RoBERTa-large"),
        pytest.param(gpt2_medium, LoraConfig, {"r": 4}, 393_216, id="LoRA, GPT-2 medium"),
        pytest.param(roberta_large, VeraConfig, {"r": 256}, 61_440, id="VeRA, RoBERTa-large"),
        pytest.param(roberta_large, FourierFTConfig, {"n_frequency": 1000}, 48_000, id="FourierFT, RoBERTa-large"),
    ],
)
def test_query_and_value(build, config_class, settings, expected):
    with torch.device("meta"):
        model = build()
        config = config_class(target_modules=module_names(model, ["query", "value"]), **settings)
        counts = count_parameters(get_peft_model(model, config))
    assert (counts.adapter, counts.norm, counts.head) == (expected, 0, 0)


@pytest.mark.parametrize(("layers", "expected"), [(12, 36_864), (8, 24_576)])
def test_scale_and_shift_of_the_attention_output_with_one_norm_a_layer(layers, expected):
    """The Hadamard adapter's 0.033 % and 0.022 % of BERT-base, from the roles that it will act on."""
    with torch.device("meta"):
        model = BertModel(BertConfig())
    outputs = [model.get_submodule(name) for name in find_targets(model, ["attention_output"])][:layers]
    norms = [model.get_submodule(name) for name in find_targets(model, ["attention_norm"])][:layers]
    trained = sum(2 * output.in_features for output in outputs) + sum(p.numel() for n in norms for p in n.parameters())
    assert trained == expected
