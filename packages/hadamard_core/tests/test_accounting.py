import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from hadamard_core.accounting import (
    ParameterCounts,
    bytes_saved_for_backward,
    count_parameters,
    trained_by_group,
)
from hadamard_core.config import HadamardConfig
from hadamard_core.norm import TrainedNorm
from hadamard_core.targets import module_names


def model(auto=AutoModelForSequenceClassification, model_type="bert", **settings):
    """BERT-base and its like in full size, without weights."""
    with torch.device("meta"):
        return auto.from_config(AutoConfig.for_model(model_type, **settings))


BACKBONE = 109_482_240  # BERT-base with its pooler
HEAD = 768 * 2 + 2
LORA = 24 * 8 * (768 + 768)


def lora(base, **settings):
    return get_peft_model(base, LoraConfig(r=8, target_modules=module_names(base, ["query", "value"]), **settings))


def test_a_frozen_model_and_one_trained_in_full():
    base = model()
    norms = 25 * 2 * 768
    pooler = 768 * 768 + 768  # serves the head alone

    assert count_parameters(base) == ParameterCounts(BACKBONE - norms - pooler, norms, HEAD + pooler, 0)
    base.requires_grad_(False)
    assert count_parameters(base) == ParameterCounts(0, 0, 0, BACKBONE + HEAD)
    assert count_parameters(base).total == base.num_parameters()


def test_an_adapter_counts_beside_the_frozen_model():
    counts = count_parameters(lora(model()))

    assert counts == ParameterCounts(LORA, 0, 0, BACKBONE + HEAD)
    assert counts.trained == LORA


def test_trained_copies_replace_what_they_copy():
    base = model()
    adapted = lora(base, modules_to_save=["classifier", *module_names(base, ["attention_norm"])])
    norms = 12 * 2 * 768

    assert count_parameters(adapted) == ParameterCounts(LORA, norms, HEAD, BACKBONE - norms)


def test_adapters_and_copies_that_do_not_train_are_left_out():
    base = model()
    adapted = lora(base, modules_to_save=["classifier"])
    adapted.add_adapter("second", LoraConfig(r=16, target_modules=["query"], modules_to_save=["classifier"]))
    trained_first = ParameterCounts(LORA, 0, HEAD, BACKBONE)

    assert count_parameters(adapted) == trained_first
    adapted.set_adapter("second")
    assert count_parameters(adapted) == ParameterCounts(12 * 16 * (768 + 768), 0, HEAD, BACKBONE)
    adapted.requires_grad_(False)
    assert count_parameters(adapted) == ParameterCounts(0, 0, 0, BACKBONE + HEAD)


def test_an_adapter_on_a_head_is_an_adapter():
    adapted = get_peft_model(model(), LoraConfig(r=4, target_modules=["classifier"]))

    assert count_parameters(adapted) == ParameterCounts(4 * (768 + 2), 0, 0, BACKBONE + HEAD)


def test_peft_tuning_norms_counts_as_norms():
    base = model()
    adapted = get_peft_model(base, LNTuningConfig(target_modules=module_names(base, ["output_norm"])))

    assert count_parameters(adapted).norm == count_parameters(adapted).trained == 12 * 2 * 768


class ChangedNorm(TrainedNorm):
    adapter_layer_names = ("changed_weight", "changed_bias")


@pytest.mark.parametrize("bias", [True, False])
def test_what_a_norm_is_changed_by_counts_as_a_norm_and_the_norm_as_frozen(bias):
    custom = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, bias=bias)).requires_grad_(False)
    custom[1] = layer = ChangedNorm(custom[1], "default", HadamardConfig())
    own = 4 * (1 + bias)

    assert count_parameters(custom) == ParameterCounts(adapter=0, norm=own, head=0, frozen=20 + own)
    assert trained_by_group(custom)["norm"] == [p for p in layer.parameters() if p.requires_grad]
    layer.update_layer("second", HadamardConfig())
    layer.set_adapter("second")
    assert count_parameters(custom).norm == own


def test_rms_norms_are_norms():
    llama = model(AutoModel, "llama", hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)

    assert count_parameters(llama).norm == (2 * 3 + 1) * 64


@pytest.mark.parametrize(
    ("auto", "model_type", "own_of_head"),
    [
        (AutoModelForCausalLM, "gpt2", 0),
        (AutoModelForSeq2SeqLM, "t5", 0),
        (AutoModelForMaskedLM, "roberta", 768 * 768 + 3 * 768 + 50265),
    ],
)
def test_tied_weights_count_once_and_in_the_backbone(auto, model_type, own_of_head):
    tied = model(auto, model_type, vocab_size=50265)

    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert count_parameters(tied).total == tied.num_parameters()
    assert count_parameters(tied).head == own_of_head


@pytest.mark.parametrize(("auto", "model_type"), [(AutoModelForCausalLM, "gpt2"), (AutoModelForSeq2SeqLM, "t5")])
def test_an_untied_output_embedding_is_a_head(auto, model_type):
    untied = model(auto, model_type)
    untied.lm_head.weight = nn.Parameter(torch.empty_like(untied.lm_head.weight))

    assert count_parameters(untied).head == untied.lm_head.weight.numel()


def test_any_module_is_counted_with_the_heads_peft_saves():
    custom = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)))
    adapted = get_peft_model(custom, LoraConfig(r=1, target_modules=["0"], modules_to_save=["2"]))

    assert count_parameters(adapted) == ParameterCounts(adapter=8, norm=0, head=8 + 10, frozen=20 + 8)


def test_a_linear_layer_saves_its_input():
    layer, x = nn.Linear(8, 3), torch.ones(5, 8)

    assert bytes_saved_for_backward(lambda: layer(x), layer.parameters()) == x.nbytes
    assert bytes_saved_for_backward(lambda: layer(x), [*layer.parameters(), x]) == 0


def test_a_storage_counts_once_however_often_it_is_saved():
    x = torch.ones(6, 4, requires_grad=True)

    assert bytes_saved_for_backward(lambda: x[:2] * x.T[:, :2].T) == x.nbytes


def test_every_new_activation_counts():
    x = torch.ones(1000, requires_grad=True)

    # sigmoid saves its result; each is made after the Python name of the last was dropped
    assert bytes_saved_for_backward(lambda: x.sigmoid().sigmoid().sigmoid()) == 3 * x.nbytes


def test_frozen_weights_save_nothing_for_their_gradient():
    layer = nn.Linear(8, 3).requires_grad_(False)
    x = torch.ones(5, 8, requires_grad=True)

    assert bytes_saved_for_backward(lambda: layer(x), layer.parameters()) == 0


def test_checkpointed_activations_are_not_counted():
    x = torch.ones(1000, requires_grad=True)

    def twice(x):
        return x.sigmoid().sigmoid()

    assert bytes_saved_for_backward(lambda: checkpoint(twice, x, use_reentrant=False), [x]) == 0
    assert bytes_saved_for_backward(lambda: twice(x), [x]) == 2 * x.nbytes


def test_bytes_are_counted_without_memory():
    with torch.device("meta"):
        x = torch.ones(1000, requires_grad=True)

        assert bytes_saved_for_backward(lambda: x.sigmoid().sigmoid()) == 2 * x.nbytes
