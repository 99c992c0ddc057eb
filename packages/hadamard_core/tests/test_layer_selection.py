"""What a selection of layers names, and what it is answered with where it names nothing."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel

from hadamard_core.layer_selection import check_selection, layer_numbers, select_layers
from hadamard_core.testing_models import MODELS

TWELVE = range(12)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([3], [3]),
        (["3"], [3]),
        ([0, 11], [0, 11]),
        (["2-5"], [2, 3, 4, 5]),
        (["4-4"], [4]),
        (["top:3"], [9, 10, 11]),
        (["top:12"], list(TWELVE)),
        (["bottom:3"], [0, 1, 2]),
        (["every:4"], [0, 4, 8]),
        (["every:1"], list(TWELVE)),
        (["every:99"], [0]),
        (["top:1", "bottom:1", 5, "7-8"], [0, 5, 7, 8, 11]),
        (["1-3", "2-4", 3], [1, 2, 3, 4]),
    ],
)
def test_selections_of_twelve_layers(parts, expected):
    assert select_layers(parts, TWELVE) == expected


def test_layers_that_are_not_in_a_row_are_taken_as_they_are_there():
    known = [7, 1, 3, 5]
    assert select_layers(["top:2"], known) == [5, 7]
    assert select_layers(["every:2"], known) == [1, 5]
    with pytest.raises(ValueError, match="layers has '3-5', but the layers are 1, 3, 5, 7"):
        select_layers(["3-5"], known)


@pytest.mark.parametrize("part", ["five", "", "-1", -1, "2-", "-2", "2-3-4", "top", "top:", "top:-1", "upper:2", 1.5])
def test_words_that_are_no_selection_are_named_before_any_model_is_there(part):
    with pytest.raises(ValueError, match=rf"layers has {part!r}; give numbers, ranges such as 2-5, top:N"):
        check_selection([0, part])


@pytest.mark.parametrize("part", ["top:0", "bottom:0", "every:0"])
def test_none_of_the_layers_is_no_selection(part):
    with pytest.raises(ValueError, match=f"layers has '{part}'; the number must be at least 1"):
        check_selection([part])


def test_an_empty_selection_is_refused():
    with pytest.raises(ValueError, match=r"layers is empty; give numbers, .* or leave it out"):
        check_selection([])


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (12, "layers has 12, but the layers are 0 to 11"),
        ("10-12", "layers has '10-12', but the layers are 0 to 11"),
        ("5-2", "layers has '5-2'; a range goes from the lower number to the higher"),
        ("top:13", "layers has 'top:13', but there are 12 layers"),
        ("bottom:13", "layers has 'bottom:13', but there are 12 layers"),
    ],
)
def test_layers_that_are_not_there_are_named(part, words):
    with pytest.raises(ValueError, match=words):
        select_layers([0, part], TWELVE)


@pytest.mark.parametrize("case", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("roles", [("attention_output",), ("query", "value"), None])
def test_numbers_of_the_layers(case, roles):
    assert layer_numbers(MODELS[case].build(), roles) == [0, 1]


def test_numbers_are_those_of_the_layers_that_have_the_roles():
    settings = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "vocab_size": 10}
    with torch.device("meta"):
        t5 = AutoModel.from_config(AutoConfig.for_model("t5", num_layers=2, num_decoder_layers=3, **settings))
    assert layer_numbers(t5, ("encoder.query",)) == [0, 1]
    assert layer_numbers(t5, ("cross.query",)) == [0, 1, 2]
    assert layer_numbers(t5, ("query",)) == [0, 1, 2]


@pytest.mark.parametrize("roles", [("query",), None])
def test_a_model_has_the_same_layers_when_it_is_adapted(roles):
    model = MODELS["bert"].build()
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["query"]))
    assert layer_numbers(adapted, roles) == layer_numbers(model, roles) == [0, 1]


def test_layers_of_a_custom_model_are_the_first_numbers_in_its_names():
    layer = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2) for _ in range(5)])})
    model = nn.ModuleDict({"layers": nn.ModuleList([layer, copy.deepcopy(layer)]), "head": nn.Linear(2, 2)})
    assert layer_numbers(model, None) == [0, 1]


def test_a_model_without_layers_or_without_the_role_is_refused():
    with pytest.raises(ValueError, match="a TwoLinear has no numbered layers; leave it out"):
        layer_numbers(MODELS["linear"].build(), None)
    with pytest.raises(ValueError, match="ffn_gate"):
        layer_numbers(MODELS["bert"].build(), ("ffn_gate",))
