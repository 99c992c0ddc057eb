"""A classifier on a decoder reads the last token of a text: what the text is padded with and to must not matter."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from harness import models
from harness.errors import UserError

CLASSIFIER = "AutoModelForSequenceClassification"
TEXTS = ["a", "b a d", "h g f e d c b a", "a b"]
# fp32 sums over other widths of padding
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def decoder(tiny_model, tmp_path):
    """Makes a GPT-2 classifier whose configuration names a padding token, with the tiny model's tokenizer."""

    def make(pad_token_id: int | None):
        folder = tmp_path / "decoder"
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=10, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
        )
        config.pad_token_id, config.num_labels = pad_token_id, 3
        GPT2ForSequenceClassification(config).save_pretrained(folder)
        for file in tiny_model.glob("tokenizer*"):
            shutil.copy(file, folder)
        return models.find(str(folder), CLASSIFIER, 0, say=print)

    return make


def logits(model, tokenizer, texts):
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


# 0 is the end token, which pads, and 2 is the letter a
@pytest.mark.parametrize("pad_token_id", [None, 0, 2])
def test_logits_do_not_depend_on_the_company(pad_token_id, decoder):
    base = decoder(pad_token_id)
    model, tokenizer = base.fresh(), base.tokenizer()
    alone = torch.cat([logits(model, tokenizer, [text]) for text in TEXTS])
    assert len(alone.unique(dim=0)) == len(TEXTS)
    for company in ([0, 1], [3, 2, 1, 0], [2, 0]):
        together = logits(model, tokenizer, [TEXTS[index] for index in company])
        torch.testing.assert_close(together, alone[company], **TOLERANCE)


@pytest.mark.parametrize(("pad_token_id", "says"), [(None, "the model names no padding token"), (2, "another padding")])
def test_the_run_says_how_it_pads(pad_token_id, says, decoder):
    base = decoder(pad_token_id)
    base.fresh()
    (note,) = [note for note in base.notes if "padding" in note]
    assert says in note
    assert "padded with the tokenizer's '<end>' (0)" in note


def test_nothing_is_said_where_model_and_tokenizer_agree(decoder):
    base = decoder(0)
    base.fresh()
    assert not any("padding" in note for note in base.notes)


def test_the_note_reaches_the_screen_and_the_result(decoder, run_here, arguments):
    base = decoder(None)
    code, _, err = run_here([*arguments("--task", "toy-classes", "--task.classes", "3"), "--model", base.name])
    assert code == 0, err
    assert "note: the model names no padding token" in err
    with open("out/result.json") as file:
        notes = json.load(file)["model"]["notes"]
    assert len(notes) == 2
    assert all(f"note: {note}" in err for note in notes)
    assert "the head is the checkpoint's own" in notes[0]


def test_a_tokenizer_that_has_nothing_to_pad_with_is_one_sentence(decoder):
    base = decoder(None)
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(base.folder)
    with pytest.raises(UserError, match=f"--model {base.name}: its tokenizer has neither a padding token nor an end"):
        base.fresh()
