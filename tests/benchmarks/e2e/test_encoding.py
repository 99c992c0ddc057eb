"""What a model is given, token by token."""

from __future__ import annotations

import pytest
import torch

from benchmarks.e2e.encoding import (
    IGNORED,
    encode_completion,
    encode_example,
    encode_prompt,
    left_pad,
    render,
    right_pad,
    slots,
)
from harness.errors import UserError

MEANING = (
    "name[Blue Spice], eatType[coffee shop], food[Fast food], priceRange[£20-25], customer rating[3 out of 5], "
    "area[city centre], familyFriendly[no], near[Café Brazil]"
)


def test_the_published_form_is_the_published_string():
    assert render(MEANING, "mr") == MEANING


def test_the_lora_form_is_what_the_lora_repository_trains_on():
    assert render(MEANING, "lora") == (
        "name : Blue Spice | Type : coffee shop | food : Fast food | price : £ 20 - 25 | customer rating : 3 out of 5"
        " | area : city centre | family friendly : no | near : Café Brazil"
    )


@pytest.mark.parametrize(
    ("value", "written"), [("less than £20", "less than £ 20"), ("more than £30", "more than £ 30"), ("high", "high")]
)
def test_prices_in_the_lora_form(value, written):
    assert render(f"name[A], priceRange[{value}]", "lora") == f"name : A | price : {written}"


def test_slots_keep_the_order_of_the_meaning_representation():
    assert slots("near[A, B], name[C]") == [("near", "A, B"), ("name", "C")]


@pytest.mark.parametrize("text", ["", "name", "name[A", "name[A], food", "name[A] food[B]"])
def test_what_is_no_meaning_representation_is_named(text):
    with pytest.raises(UserError, match="cannot be read at character"):
        slots(text)


def test_separators(tokenizer, make_tokenizer):
    assert tokenizer.decode(encode_prompt(tokenizer, "name[A]", "mr")) == "name[A]\n"
    assert tokenizer.decode(encode_prompt(tokenizer, "name[A]", "lora")) == "name : A<|begin|>"
    assert (
        make_tokenizer(begin=False).decode(encode_prompt(make_tokenizer(begin=False), "name[A]", "lora"))
        == "name : A<|end|>"
    )


def test_a_completion_starts_with_a_space_and_ends_with_the_end_token(tokenizer):
    assert tokenizer.decode(encode_completion(tokenizer, "Near \r\n  the  river.")) == " Near the river.<|end|>"


@pytest.mark.parametrize("form", ["mr", "lora"])
def test_an_example_starts_with_exactly_the_prompt_that_is_decoded_from(tokenizer, form):
    example = encode_example(tokenizer, MEANING, "A coffee shop.", form)
    prompt = encode_prompt(tokenizer, MEANING, form)
    completion = encode_completion(tokenizer, "A coffee shop.")
    assert example["input_ids"] == prompt + completion
    assert example["labels"] == [IGNORED] * len(prompt) + completion


def test_a_tokenizer_without_an_end_token_is_refused(make_tokenizer):
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        encode_completion(endless, "A.")


def test_texts_that_a_tokenizer_makes_nothing_of_are_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "encode", lambda text, add_special_tokens: [])
    for form in ("mr", "lora"):
        with pytest.raises(UserError, match="makes no tokens of 'name"):
            encode_prompt(tokenizer, "name[A]", form)
    with pytest.raises(UserError, match=r"makes no tokens of ' A\.'"):
        encode_completion(tokenizer, "A.")


def test_padding_on_the_right_is_masked_and_has_no_labels():
    batch = right_pad([{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}])
    assert batch["input_ids"].shape == (2, 3)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]


def test_padding_on_the_left_aligns_the_ends():
    batch = left_pad([[5, 6, 7], [8]])
    assert batch["input_ids"][:, -1].tolist() == [7, 8]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["attention_mask"].dtype == torch.long
