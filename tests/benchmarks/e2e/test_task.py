"""What the task promises: which rows, which loss, one text for each distinct meaning representation."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.e2e import metrics, task
from benchmarks.e2e.data import Example, load_split
from benchmarks.e2e.encoding import IGNORED, encode_prompt
from benchmarks.e2e.task import E2E, LoadedE2E, subset
from harness.config import DataConfig
from harness.errors import UserError
from harness.recipes import tomllib

ROWS = [
    Example("name[Blue Spice], eatType[pub]", "Blue Spice is a pub."),
    Example("name[Blue Spice], eatType[pub]", "There is a pub called Blue Spice."),
    Example("name[Zizzi], food[Italian], familyFriendly[yes]", "Zizzi is Italian and welcomes families."),
    Example("name[A]", "A."),
]
GROUPS = {
    "name[Zizzi], food[Italian], familyFriendly[yes]": ["Zizzi is Italian."],
    "name[A]": ["A.", "It is A."],
    "name[Blue Spice], eatType[pub]": ["Blue Spice is a pub."],
}


@pytest.fixture(scope="module")
def loaded() -> LoadedE2E:
    settings = E2E(num_beams=2, max_new_tokens=6)
    return LoadedE2E(settings, {"train": ROWS, "validation": ROWS[:2]}, {"test": GROUPS, "validation": GROUPS}, {})


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_is_the_sum_over_completions_and_end_tokens(model, tokenizer, loaded, label_smoothing):
    """Against the formula: -(1 - s) log p(target) - s mean(log p), from all logits, one row at a time, unpadded."""
    features = loaded.encode(tokenizer, "train")
    expected, targets = [], []
    for row, feature in zip(ROWS, features, strict=True):
        prompt = len(encode_prompt(tokenizer, row.meaning_representation, "lora"))
        ids = feature["input_ids"]
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        expected.append(0.0)
        targets.append(len(ids) - prompt)
        for position in range(prompt, len(ids)):
            spread = log_p[position - 1].mean()
            expected[-1] -= (1 - label_smoothing) * log_p[position - 1, ids[position]] + label_smoothing * spread
        assert ids[-1] == tokenizer.eos_token_id
    losses, counts = loaded.losses(model, loaded.collate(tokenizer, features), label_smoothing=label_smoothing)
    # the loss is taken in float32
    torch.testing.assert_close(losses.double(), torch.stack(expected), rtol=1e-5, atol=0)
    assert (counts.tolist(), counts.dtype) == (targets, torch.int64)


def test_an_example_longer_than_the_context_is_refused(make_tokenizer, loaded):
    tokenizer = make_tokenizer()
    longest = max(len(feature["input_ids"]) for feature in loaded.encode(tokenizer, "train"))
    tokenizer.model_max_length = longest
    assert len(loaded.encode(tokenizer, "train")) == len(ROWS)
    tokenizer.model_max_length = longest - 1
    with pytest.raises(UserError, match=f"the longest example of the train split has {longest} tokens .* --model"):
        loaded.encode(tokenizer, "train")


@pytest.mark.parametrize(("missing", "remedy"), [(1, "--task.max-new-tokens 5 or less"), (6, "a --model")])
def test_texts_that_could_outgrow_the_context_are_refused_before_training(missing, remedy, make_tokenizer, loaded):
    tokenizer = make_tokenizer()
    short = dataclasses.replace(loaded, rows={"train": ROWS[3:]})
    prompt = max(len(encode_prompt(tokenizer, text, "lora")) for text in GROUPS)
    tokenizer.model_max_length = prompt + loaded.task.max_new_tokens
    assert len(short.encode(tokenizer, "train")) == 1
    tokenizer.model_max_length -= missing
    with pytest.raises(UserError, match=f"the longest input of the test split has {prompt} tokens, .*: give {remedy}"):
        short.encode(tokenizer, "train")


def test_what_a_preset_says_of_itself_holds_whatever_a_flag_changes():
    """The header shows model and counts as they are; the sentence names only those of the papers."""
    for recipe in E2E.recipes.glob("*.toml"):
        description = tomllib.loads(recipe.read_text(encoding="utf-8"))["description"].partition("the papers, which")[0]
        assert not re.search(r"SmolLM|GPT|beams|examples|inputs|steps|epochs", description), recipe.name
        assert "not" in description


def test_loss_does_not_see_what_the_prompt_predicts(model, tokenizer, loaded):
    """Gradients flow through the prompt, but an example whose completion is cut off adds nothing."""
    features = loaded.encode(tokenizer, "train")
    whole, counts = loaded.losses(model, loaded.collate(tokenizer, features[:2]), label_smoothing=0.0)
    silent = {"input_ids": features[2]["input_ids"], "labels": [IGNORED] * len(features[2]["labels"])}
    padded, same = loaded.losses(model, loaded.collate(tokenizer, [*features[:2], silent]), label_smoothing=0.0)
    torch.testing.assert_close(padded, torch.cat([whole, torch.zeros(1)]), rtol=1e-5, atol=0)
    assert same.tolist() == [*counts.tolist(), 0]


def test_loss_is_the_same_through_a_peft_wrapper(model, tokenizer, loaded):
    batch = loaded.collate(tokenizer, loaded.encode(tokenizer, "train"))
    expected, _ = loaded.losses(model, batch, label_smoothing=0.1)
    name = "c_attn" if model.config.model_type == "gpt2" else "q_proj"
    adapted = get_peft_model(
        model, LoraConfig(target_modules=[name], task_type="CAUSAL_LM", fan_in_fan_out=name == "c_attn")
    )
    losses, _ = loaded.losses(adapted.eval(), batch, label_smoothing=0.1)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    losses.sum().backward()
    assert any(parameter.grad is not None for parameter in adapted.parameters())
    adapted.unload()


def test_each_distinct_meaning_representation_is_decoded_once(model, tokenizer, loaded, progress, monkeypatch):
    seen = {}

    def score(hypotheses, references, *, progress):
        seen.update(hypotheses=list(hypotheses), references=[list(group) for group in references])
        progress(1, 3)
        progress(3, 3)
        return metrics.Scores({"bleu": 0.5}, {"meteor": "no Java"}, {"bleu": "signature"})

    monkeypatch.setattr(metrics, "score", score)
    evaluation = loaded.evaluate(model, tokenizer, "test", 2, progress)
    assert [line["meaning_representation"] for line in evaluation.predictions] == list(GROUPS)
    assert [line["references"] for line in evaluation.predictions] == list(GROUPS.values()) == seen["references"]
    assert [line["hypothesis"] for line in evaluation.predictions] == seen["hypotheses"]
    assert evaluation.predictions[1]["prompt"] == "name : A<|begin|>"
    assert (evaluation.metrics, evaluation.unavailable) == ({"bleu": 0.5}, {"meteor": "no Java"})
    assert [(name, sum(steps)) for name, _, _, steps in progress.bars] == [("decoding", 3), ("scoring", 3)]


def test_all_rows_are_used_without_limits():
    loaded = E2E().load(DataConfig(), seed=0)
    assert (len(loaded.rows["train"]), len(loaded.rows["validation"])) == (42061, 4672)
    assert (len(loaded.decoded["validation"]), len(loaded.decoded["test"])) == (547, 630)
    assert sum(map(len, loaded.decoded["test"].values())) == 4693
    assert (loaded.facts["train_examples"], loaded.facts["train_subset"]) == (42061, "all")
    assert loaded.facts["available"]["test"] == {"examples": 4693, "meaning_representations": 630}


def test_limits_select_by_the_right_seed():
    """Training rows by the run's seed, evaluation by a constant: every run is scored on the same inputs."""
    limited = DataConfig(train_limit=20, eval_limit=10)
    first, second = E2E().load(limited, seed=1), E2E().load(limited, seed=2)
    assert first.rows["train"] != second.rows["train"]
    assert first.rows["validation"] == second.rows["validation"]
    assert first.decoded == second.decoded
    assert [len(first.decoded[name]) for name in ("validation", "test")] == [10, 10]
    assert E2E().load(limited, seed=1) == first
    assert first.facts["train_subset"] == "drawn by seed 1"
    references = {row.meaning_representation for row in load_split("test")}
    assert set(first.decoded["test"]) <= references


def test_a_smaller_subset_is_part_of_a_larger_one_and_keeps_the_order():
    items = list(range(100))
    small, large = subset(items, 10, seed=3), subset(items, 40, seed=3)
    assert set(small) < set(large)
    assert small == sorted(small)
    assert len(large) == 40
    assert subset(items, 10, seed=4) != small
    assert subset(items, 100, seed=3) == subset(items, None, seed=3) == items


def test_the_subset_is_pinned():
    """The rows behind committed results; a change here needs a new task version."""
    assert subset(range(630), 5, task.EVALUATION_SEED) == [16, 203, 325, 437, 486]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_beams", 0),
        ("max_new_tokens", 0),
        ("length_penalty", -0.1),
        ("length_penalty", float("nan")),
        ("no_repeat_ngram_size", -1),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_their_flag(field, value):
    with pytest.raises(ValueError, match=f"--task.{field.replace('_', '-')} is {value}"):
        dataclasses.replace(E2E(), **{field: value})


class TestHeldOut:
    def test_all_texts_of_an_input_go_to_one_side(self):
        loaded = E2E(held_out=0.1).load(DataConfig(), 0)
        train, held = loaded.rows["train"], loaded.rows["held_out"]
        meanings = [{row.meaning_representation for row in rows} for rows in (train, held)]
        assert not meanings[0] & meanings[1]
        assert len(meanings[1]) == math.ceil(0.1 * sum(map(len, meanings)))
        everything = E2E().load(DataConfig(), 0).rows["train"]
        assert Counter(train) + Counter(held) == Counter(everything)
        assert loaded.facts["held_out_examples"] == len(held)

    def test_is_the_same_for_every_seed_and_limit(self):
        whole = E2E(held_out=0.1).load(DataConfig(), 0)
        limited = E2E(held_out=0.1).load(DataConfig(train_limit=20, eval_limit=30), 7)
        assert len(limited.rows["train"]) == 20
        assert len(limited.rows["held_out"]) == 30
        assert set(limited.rows["held_out"]) <= set(whole.rows["held_out"])
        assert set(limited.rows["train"]) <= set(whole.rows["train"])
        other = E2E(held_out=0.1, held_out_seed=1).load(DataConfig(), 0)
        assert set(other.rows["held_out"]) != set(whole.rows["held_out"])

    def test_selects_by_its_loss(self):
        assert E2E().rules.keys() == {"best"}
        rule = E2E(held_out=0.25).rules["held_out"]
        assert (rule.split, rule.metric, rule.higher_is_better) == ("held_out", "loss", False)
        assert rule.words == "lowest loss on the 25 % of train's inputs that are held out"

    @pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
    def test_needs_a_share_below_one(self, share):
        with pytest.raises(ValueError, match=r"--task\.held-out is .*: it must be at least 0 and below 1"):
            E2E(held_out=share)
