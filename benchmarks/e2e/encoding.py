"""From a meaning representation (MR) and its reference to token ids, and to padded batches.

One example is ``prompt + separator + completion + end``. Prompt and completion are encoded apart, so that the ids of
the prompt are the same in training and in decoding, whatever follows; the completion starts with a space, because that
is how a word inside a text is spelled in GPT-2's vocabulary and its kin. The end is the tokenizer's end-of-text token.

The two input forms, for ``name[Blue Spice], eatType[pub], priceRange[£20-25], familyFriendly[no]``:

* ``"mr"``: that string as published, then a line break.
* ``"lora"``: ``name : Blue Spice | Type : pub | price : £ 20 - 25 | family friendly : no``, then the tokenizer's
  begin-of-text token: the form of the files that the LoRA repository trains on (Hu et al., arXiv 2106.09685;
  github.com/microsoft/LoRA, examples/NLG). Its references are tokenised too (``friendly .``); ours are the originals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.errors import UserError

InputForm = Literal["mr", "lora"]

IGNORED = -100
"""The label of a position that predicts nothing: prompt and padding (torch's default ``ignore_index``)."""

_SLOT = re.compile(r"(?P<name>[^\[\],]+)\[(?P<value>[^\[\]]*)\](?:, *|$)")
_LORA_NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


def slots(meaning_representation: str) -> list[tuple[str, str]]:
    """Returns the (name, value) pairs of an MR, in its order.

    Raises:
        UserError: the text is not a list of ``name[value]``.
    """
    pairs = []
    position = 0
    while match := _SLOT.match(meaning_representation, position):
        pairs.append((match["name"].strip(), match["value"].strip()))
        position = match.end()
    if position < len(meaning_representation) or not pairs:
        raise UserError(
            f"the meaning representation {meaning_representation!r} cannot be read at character {position}: "
            "it must be slots such as name[Blue Spice], separated by commas"
        )
    return pairs


def render(meaning_representation: str, form: InputForm) -> str:
    """Returns the text that a model is given for an MR, without the separator."""
    if form == "mr":
        return meaning_representation
    return " | ".join(
        f"{_LORA_NAMES.get(name, name)} : {_spaced(value)}" for name, value in slots(meaning_representation)
    )


def _spaced(value: str) -> str:
    """Sets a value's currency and range signs apart, as a word tokeniser does: ``£20-25`` becomes ``£ 20 - 25``."""
    return " ".join(re.sub(r"([£-])", r" \1 ", value).split())


def encode_prompt(tokenizer: PreTrainedTokenizerBase, meaning_representation: str, form: InputForm) -> list[int]:
    """Returns the ids of an MR in an input form, separator included.

    Raises:
        UserError: the tokenizer makes no tokens of it.
    """
    if form == "mr":
        return _tokens(tokenizer, render(meaning_representation, form) + "\n")
    separator = end_of_text(tokenizer) if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [*_tokens(tokenizer, render(meaning_representation, form)), separator]


def encode_completion(tokenizer: PreTrainedTokenizerBase, reference: str) -> list[int]:
    """Returns the ids of a reference and its end token; white space in the reference is made single spaces.

    (Two train references hold a line break, and a line break ends a text that is decoded.)

    Raises:
        UserError: the tokenizer makes no tokens of it.
    """
    return [*_tokens(tokenizer, " " + " ".join(reference.split())), end_of_text(tokenizer)]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} makes no tokens of {text!r}: "
            "give a --model whose tokenizer can read the data"
        )
    return ids


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id that ends a text.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-text token: "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer.eos_token_id


def encode_example(
    tokenizer: PreTrainedTokenizerBase, meaning_representation: str, reference: str, form: InputForm
) -> dict[str, list[int]]:
    """Returns ``input_ids`` and ``labels`` of one row; the labels of the prompt are :data:`IGNORED`."""
    prompt = encode_prompt(tokenizer, meaning_representation, form)
    completion = encode_completion(tokenizer, reference)
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def right_pad(features: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
    """Returns ``input_ids``, ``attention_mask`` and ``labels`` of shape ``(len(features), longest)``.

    The filler is id 0 and not the tokenizer's padding token, which GPT-2 does not have: it is masked and has no label.
    """
    width = max(len(feature["input_ids"]) for feature in features)

    def padded(name: str, filler: int) -> list[list[int]]:
        return [[*feature[name], *[filler] * (width - len(feature[name]))] for feature in features]

    lengths = torch.tensor([len(feature["input_ids"]) for feature in features])
    return {
        "input_ids": torch.tensor(padded("input_ids", 0)),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "labels": torch.tensor(padded("labels", IGNORED)),
    }


def left_pad(prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Returns ``input_ids`` and ``attention_mask`` of shape ``(len(prompts), longest)``, the last tokens aligned."""
    width = max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return {
        "input_ids": torch.tensor([[*[0] * (width - len(prompt)), *prompt] for prompt in prompts]),
        "attention_mask": (torch.arange(width) >= width - lengths[:, None]).long(),
    }
