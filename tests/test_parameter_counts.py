"""Trained parameters on the papers' architectures, counted on models without weights: what tables may print.

The HUT paper prints 0.8M and 0.35M for LoRA; the counts below are what its settings give. HUT's own are in its
package's tests.
"""

import pytest
import torch
from peft import FourierFTConfig, LoraConfig, VeraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaModel,
)

from hadamard_adapter.method import Hadamard
from hadamard_core.accounting import count_parameters
from hadamard_core.targets import module_names


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


# The Hadamard adapter's paper prints 0.033 % and 0.022 % of BERT-base's 110M parameters. To four digits they are 0.0335
# and 0.0223, so it cuts off rather than rounds. The head that is trained before does not count.
@pytest.mark.parametrize(("layers", "each", "percent"), [(12, 18_432, 0.0335), (8, 12_288, 0.0223)])
@pytest.mark.parametrize("position", ["context", "projection"])
@pytest.mark.parametrize("norm", ["attention", "output"])
def test_hadamard_adapter_on_bert_base(layers, each, percent, position, norm):
    method = Hadamard(position=position, norm=norm, layers=(f"top:{layers}",))
    with torch.device("meta"):
        model = method.apply(BertForSequenceClassification(BertConfig()), "SEQ_CLS", ("classifier",))
        counts = count_parameters(model)
    assert (counts.adapter, counts.norm, counts.head) == (each, each, 0)
    assert counts.trained == {12: 36_864, 8: 24_576}[layers]
    assert round(100 * counts.trained / 110e6, 4) == percent
