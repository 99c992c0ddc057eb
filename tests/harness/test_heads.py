"""Heads: what a classifier has beyond its checkpoint is trained whole with every method, saved, and read back."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hadamard_baselines.methods.low_rank import Lora
from hadamard_core.accounting import count_parameters
from harness import models
from harness.errors import UserError
from harness.methods import Full, Head

CLASSIFIER = "AutoModelForSequenceClassification"
BERT_LIKE = {
    "vocab_size": 10,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}
# family -> checkpoint without a classifier's head, and the names of what a classifier needs to train whole
FAMILIES = {
    "bert": (lambda: BertForMaskedLM(BertConfig(**BERT_LIKE)), ("classifier", "bert.pooler.dense")),
    "distilbert": (
        lambda: DistilBertForMaskedLM(
            DistilBertConfig(
                vocab_size=10, dim=8, n_layers=1, n_heads=2, hidden_dim=8, max_position_embeddings=20, pad_token_id=0
            )
        ),
        ("pre_classifier", "classifier"),
    ),
    "deberta-v2": (
        lambda: DebertaV2ForMaskedLM(DebertaV2Config(**BERT_LIKE, pooler_hidden_size=8)),
        ("pooler", "classifier"),
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2, n_positions=20, bos_token_id=0, eos_token_id=0)
        ),
        ("score",),
    ),
    "roberta": (lambda: RobertaForMaskedLM(RobertaConfig(**BERT_LIKE)), ("classifier",)),
    "electra": (lambda: ElectraForPreTraining(ElectraConfig(**BERT_LIKE, embedding_size=8)), ("classifier",)),
}
BATCH = {"input_ids": torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]]), "attention_mask": torch.ones(2, 4, dtype=torch.long)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, tiny_model):
    """The folders of the families' checkpoints, each with the tiny model's tokenizer."""
    root = tmp_path_factory.mktemp("checkpoints")
    for family, (make, _) in FAMILIES.items():
        torch.manual_seed(0)
        make().save_pretrained(root / family)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(root / family)
    return root


@pytest.fixture
def find(checkpoints):
    """Finds a family's checkpoint for a classifier of two classes."""

    def run(family, classes=2, **settings):
        base = models.find(str(checkpoints / family), CLASSIFIER, 0, say=print, **settings)
        base.model_kwargs = {"num_labels": classes}
        return base

    return run


def outputs(model):
    with torch.no_grad():
        return model.eval()(**BATCH).logits


def disturb(model):
    """Moves what is trained, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


def trained_names(model):
    """The names of the trained parameters as the bare model has them, without the method's own."""
    wrapped = {
        name.removeprefix("base_model.model.") for name, tensor in model.named_parameters() if tensor.requires_grad
    }
    return {name.replace(".modules_to_save.default", "") for name in wrapped if ".lora_" not in name}


def below(model, modules):
    return {f"{module}.{name}" for module in modules for name, _ in model.get_submodule(module).named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_and_what_the_checkpoint_lacks_are_to_be_saved(family, find):
    base = find(family)
    assert set(base.modules_to_save(base.fresh())) == set(FAMILIES[family][1])


@pytest.mark.parametrize("method", [Lora(r=2), Head(), Full()], ids=lambda method: type(method).__name__.lower())
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_trained_saved_and_read_back(family, method, find, tmp_path):
    base = find(family)
    bare = base.fresh()
    modules = base.modules_to_save(bare)
    head = below(bare, modules)
    everything = {name for name, _ in bare.named_parameters()}
    untouched = outputs(bare)
    model = method.apply(bare, "SEQ_CLS", modules)
    assert trained_names(model) == (everything if isinstance(method, Full) else head)
    assert count_parameters(model).head == sum(base.fresh().get_parameter(name).numel() for name in head)
    disturb(model)
    expected = outputs(model)
    assert not torch.allclose(expected, untouched)
    method.save(model, tmp_path)
    loaded = method.load(base.fresh(), tmp_path)
    assert torch.equal(outputs(loaded), expected)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(outputs(method.merge(loaded)), expected, rtol=1e-5, atol=1e-6)


def test_a_pooler_of_the_checkpoint_is_not_trained(find, checkpoints, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints / "bert")
    model.save_pretrained(tmp_path / "whole")
    AutoTokenizer.from_pretrained(checkpoints / "bert").save_pretrained(tmp_path / "whole")
    base = find(tmp_path / "whole")
    assert base.modules_to_save(base.fresh()) == ("classifier",)


def test_a_language_model_has_nothing_of_its_own_to_save(tiny_model):
    base = models.find(str(tiny_model), "AutoModelForCausalLM", 0, say=print)
    assert base.modules_to_save(base.fresh()) == ()


class TestHeadMethod:
    def test_only_the_head_is_written(self, run_here, arguments):
        code, _, err = run_here(arguments("--task", "toy-classes", method="head"))
        assert code == 0, err
        with open("out/result.json") as file:
            counts = json.load(file)["parameters"]
        assert (counts["adapter"], counts["norm"], counts["head"]) == (0, 0, 2 * 16)
        assert load_file("out/adapter/head.safetensors").keys() == {"score.weight"}

    def test_a_language_model_is_refused(self, run_here, arguments, assert_refused):
        assert_refused(
            *run_here(arguments(method="head")), "--method head: the model of this task has no head of its own"
        )


class TestNewHead:
    @pytest.fixture(params=["bert", "distilbert", "deberta-v2", "gpt2"])
    def trained(self, request, checkpoints, tmp_path):
        """The folder of a classifier of three classes, and what it holds."""
        folder = tmp_path / request.param
        torch.manual_seed(5)
        model = AutoModelForSequenceClassification.from_pretrained(checkpoints / request.param, num_labels=3)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(checkpoints / request.param).save_pretrained(folder)
        return folder, model

    def heads(self, base):
        model = base.fresh()
        return model, {name: model.get_submodule(name).state_dict() for name in base.modules_to_save(model)}

    @pytest.mark.parametrize("classes", [3, 2])
    def test_it_replaces_the_checkpoint_s(self, classes, trained, find):
        folder, checkpoint = trained
        base = find(folder, classes, new_head=True)
        model, heads = self.heads(base)
        again = self.heads(base)[1]
        assert outputs(model).shape == (2, classes)
        assert set(base.new_parameters) == {f"{name}.{key}" for name, state in heads.items() for key in state}
        for name, state in heads.items():
            theirs = checkpoint.get_submodule(name).state_dict()
            assert not any(torch.equal(theirs[key], state[key]) for key in state if key.endswith("weight"))
            assert all(torch.equal(again[name][key], state[key]) for key in state)
        backbone = model.base_model.state_dict()
        assert all(torch.equal(backbone[name], tensor) for name, tensor in checkpoint.base_model.state_dict().items())

    def test_without_it_the_checkpoint_s_stays(self, trained, find):
        folder, checkpoint = trained
        checkpoint.config.pad_token_id = 0
        base = find(folder, 3)
        assert torch.equal(outputs(base.fresh()), outputs(checkpoint))
        assert base.new_parameters == ()

    def test_another_seed_starts_another_head(self, trained, find):
        folder, _ = trained
        base = find(folder, 3, new_head=True)
        first = self.heads(base)[1]
        base.seed = 1
        second = self.heads(base)[1]
        assert any(not torch.equal(first[name][key], second[name][key]) for name in first for key in first[name])


def test_a_backbone_of_another_size_is_refused_with_a_new_head_too(find, checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints / "bert", tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 12}))
    with pytest.raises(UserError, match=f"--model {folder}.*belong together"):
        find(folder, new_head=True).fresh()


def test_a_new_head_of_a_language_model_is_refused(run_here, arguments, assert_refused):
    assert_refused(*run_here(arguments("--new-head")), "--new-head is for tasks whose model has a head of its own")
