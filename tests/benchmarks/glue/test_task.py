"""What GLUE's tasks compute: loss, measurements and metrics, the parts of the data, and what heads they accept."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.glue import metrics
from benchmarks.glue.task import Glue
from benchmarks.glue.tasks import MNLI, MRPC, RTE, STSB, CoLA
from harness.config import DataConfig
from harness.console import Console
from harness.errors import UserError
from harness.models import find
from harness.order import by_length
from harness.workload import in_order, lengths, measure

KINDS = ["bert", "roberta", "gpt2"]
SILENT = Console(speaks=False)

# fp32; padding changes the order of sums over some tens of terms
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def load(glue_folder):
    """Loads a task's synthetic data: the settings, rows and limits are keyword arguments."""

    def build(task=MRPC, *, seed=0, train=24, validation=8, train_limit=None, eval_limit=None, **settings):
        folder = glue_folder(task.declaration.name, train=train, validation=validation)
        limits = {"train_limit": train_limit, "eval_limit": eval_limit}
        return task(**settings).load(DataConfig(dir=folder, **limits), seed)

    return build


@pytest.fixture
def classifier(checkpoint):
    """Returns a tiny model with a random head for a loaded task, and its tokenizer."""

    def build(kind, loaded):
        folder = checkpoint(kind)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        config = AutoConfig.from_pretrained(folder)
        config.pad_token_id = tokenizer.pad_token_id
        for name, value in loaded.model_kwargs(None).items():
            setattr(config, name, value)
        torch.manual_seed(1)
        return AutoModelForSequenceClassification.from_config(config).eval(), tokenizer

    return build


def logits_alone(model, tokenizer, examples) -> torch.Tensor:
    """Returns the logits of each example by itself, without padding."""
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*texts, return_tensors="pt")).logits for texts in examples.texts])


def measured(loaded, model, tokenizer, split, batch_size) -> torch.Tensor:
    features = loaded.encode(tokenizer, split)
    batches = by_length(lengths(features), batch_size)
    parts = list(measure(model, loaded, tokenizer, features, batches, torch.device("cpu")))
    return in_order(parts, len(features))


class TestLoss:
    @pytest.mark.parametrize("task", [CoLA, MNLI], ids=["2 classes", "3 classes"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_classes_is_the_cross_entropy_of_each_example(self, kind, smoothing, task, load, classifier):
        loaded = load(task)
        model, tokenizer = classifier(kind, loaded)
        batch = loaded.collate(tokenizer, loaded.encode(tokenizer, "train"))
        losses, targets = loaded.losses(model, batch, label_smoothing=smoothing)

        examples = loaded.examples["train"]
        logs = logits_alone(model, tokenizer, examples).log_softmax(dim=1)
        of_label = logs[torch.arange(len(logs)), torch.tensor(examples.labels)]
        expected = -((1 - smoothing) * of_label + smoothing * logs.mean(dim=1))
        torch.testing.assert_close(losses, expected, **TOLERANCE)
        assert targets.tolist() == [1] * len(examples.labels) == [1] * 21
        assert targets.dtype == torch.int64

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_scores_is_the_squared_error_of_each_example(self, kind, load, classifier):
        loaded = load(STSB)
        model, tokenizer = classifier(kind, loaded)
        batch = loaded.collate(tokenizer, loaded.encode(tokenizer, "train"))
        losses, targets = loaded.losses(model, batch, label_smoothing=0.0)
        examples = loaded.examples["train"]
        errors = logits_alone(model, tokenizer, examples)[:, 0] - torch.tensor(examples.labels)
        torch.testing.assert_close(losses, errors**2, **TOLERANCE)
        assert targets.tolist() == [1] * len(examples.labels)

    def test_reaches_the_head(self, load, classifier):
        loaded = load()
        model, tokenizer = classifier("bert", loaded)
        batch = loaded.collate(tokenizer, loaded.encode(tokenizer, "train"))
        loaded.losses(model, batch, label_smoothing=0.0)[0].sum().backward()
        assert model.classifier.weight.grad.abs().sum() > 0

    def test_of_scores_has_nothing_to_smooth(self, load, classifier):
        loaded = load(STSB)
        model, tokenizer = classifier("bert", loaded)
        batch = loaded.collate(tokenizer, loaded.encode(tokenizer, "train"))
        with pytest.raises(UserError, match=r"--train\.label-smoothing 0\.1: stsb is a regression"):
            loaded.losses(model, batch, label_smoothing=0.1)


class TestMeasurement:
    @pytest.mark.parametrize("task", [CoLA, MRPC], ids=["texts", "pairs"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_classes_is_that_of_each_example_alone(self, kind, task, load, classifier):
        loaded = load(task, validation=20)
        model, tokenizer = classifier(kind, loaded)
        rows = measured(loaded, model, tokenizer, "validation", batch_size=7)

        examples = loaded.examples["validation"]
        logits, labels = logits_alone(model, tokenizer, examples), torch.tensor(examples.labels)
        torch.testing.assert_close(rows[:, 1:].float(), logits, **TOLERANCE)
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(rows[:, 0].float(), losses, **TOLERANCE)
        predictions = logits.argmax(dim=1).tolist()
        assert len(set(predictions)) == 2  # a model that says one thing could be in any order
        found = loaded.summarise("validation", rows)
        assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-4)
        expected = metrics.compute(task.declaration.name, predictions, examples.labels)
        assert {name: found[name] for name in expected} == expected
        assert found.keys() == {"loss", *expected}

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_scores_is_that_of_each_example_alone(self, kind, load, classifier):
        loaded = load(STSB, validation=20)
        model, tokenizer = classifier(kind, loaded)
        rows = measured(loaded, model, tokenizer, "validation", batch_size=7)
        examples = loaded.examples["validation"]
        scores = logits_alone(model, tokenizer, examples)[:, 0]
        found = loaded.summarise("validation", rows)
        expected = metrics.compute("stsb", scores.tolist(), examples.labels)
        assert found["loss"] == pytest.approx(float(((scores - torch.tensor(examples.labels)) ** 2).mean()), rel=1e-4)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize("task", [MRPC, STSB, MNLI], ids=lambda task: task.declaration.name)
    @pytest.mark.parametrize("side", ["right", "left"])
    @pytest.mark.parametrize("kind", [*KINDS, "distilbert", "llama"])
    def test_does_not_depend_on_the_batch_size_or_the_tokenizers_side(self, kind, side, task, load, classifier):
        loaded = load(task, validation=20)
        model, tokenizer = classifier(kind, loaded)
        tokenizer.padding_side = side
        one, seven = (loaded.evaluate(model, tokenizer, "validation", size, SILENT) for size in (1, 7))
        assert one.metrics == pytest.approx(seven.metrics, abs=1e-4)
        for alone, among in zip(one.predictions, seven.predictions, strict=True):
            assert alone["logits"] == pytest.approx(among["logits"], rel=1e-4, abs=1e-5)

    def test_of_what_is_not_finite_selects_nothing(self, load):
        rows = torch.full((8, 3), math.nan, dtype=torch.float64)
        found = load(CoLA).summarise("validation", rows)
        assert found.keys() == {"loss", "matthews_correlation"}
        assert all(math.isnan(value) for value in found.values())

    def test_scores_are_no_classes(self, load, classifier):
        loaded = load(STSB, validation=20)
        model, tokenizer = classifier("bert", loaded)
        assert model.num_labels == 1
        predictions = loaded.evaluate(model, tokenizer, "validation", 7, SILENT).predictions
        assert all([entry["prediction"]] == entry["logits"] for entry in predictions)
        assert len({entry["prediction"] for entry in predictions}) > 2
        assert any(not entry["prediction"].is_integer() for entry in predictions)

    def test_predictions_are_in_the_order_of_the_data(self, load, classifier):
        loaded = load(MRPC, validation=20)
        model, tokenizer = classifier("bert", loaded)
        predictions = loaded.evaluate(model, tokenizer, "validation", 7, SILENT).predictions
        examples = loaded.examples["validation"]
        assert [(entry["idx"], entry["label"]) for entry in predictions] == list(
            zip(examples.idx, examples.labels, strict=True)
        )
        assert all(entry["prediction"] == max((0, 1), key=entry["logits"].__getitem__) for entry in predictions)


class TestMnli:
    def test_its_two_parts_are_scored_apart(self, load, classifier):
        loaded = load(MNLI, validation=20)
        model, tokenizer = classifier("bert", loaded)
        evaluation = loaded.evaluate(model, tokenizer, "validation", 7, SILENT)
        assert evaluation.metrics.keys() == {
            "loss_matched",
            "accuracy_matched",
            "loss_mismatched",
            "accuracy_mismatched",
        }
        assert evaluation.metrics["loss_matched"] != evaluation.metrics["loss_mismatched"]
        assert evaluation.signatures.keys() == {"accuracy_matched", "accuracy_mismatched"}
        for part in ("matched", "mismatched"):
            found = loaded.summarise(f"validation_{part}", measured(loaded, model, tokenizer, f"validation_{part}", 20))
            assert evaluation.metrics[f"accuracy_{part}"] == found["accuracy"]
            assert evaluation.metrics[f"loss_{part}"] == pytest.approx(found["loss"], rel=1e-4)
        counts = Counter(entry["split"] for entry in evaluation.predictions)
        assert counts == {"validation_matched": 20, "validation_mismatched": 20}

    def test_the_matched_part_selects(self):
        assert MNLI().rules["published"].split == "validation_matched"


class TestRules:
    @pytest.mark.parametrize("task", [CoLA, STSB, MRPC], ids=lambda task: task.declaration.name)
    def test_there_are_two(self, task):
        rules = task().rules
        assert list(rules) == ["published", "held_out"]
        assert [rule.split for rule in rules.values()] == ["validation", "held_out"]
        for rule in rules.values():
            assert rule.metric == task.declaration.metric
            assert rule.higher_is_better
        assert "which is also what is reported" in rules["published"].words
        assert "10 % of train that are held out" in rules["held_out"].words

    def test_without_a_held_out_part_one_remains(self):
        assert list(CoLA(held_out=0.0).rules) == ["published"]


def texts_of(loaded, split) -> set[int]:
    """Returns which rows of its file a part of the data has."""
    return set(loaded.examples[split].idx)


class TestHeldOut:
    @pytest.mark.parametrize(
        ("rows", "share", "held"), [(24, 0.1, 3), (20, 0.1, 2), (21, 0.1, 3), (24, 0.5, 12), (24, 0.01, 1)]
    )
    def test_it_is_the_share_rounded_up_and_the_rest_is_trained_on(self, rows, share, held, load):
        loaded = load(train=rows, held_out=share)
        assert len(texts_of(loaded, "held_out")) == held
        assert texts_of(loaded, "held_out").isdisjoint(texts_of(loaded, "train"))
        assert texts_of(loaded, "held_out") | texts_of(loaded, "train") == set(range(rows))
        assert loaded.facts["held_out"].startswith(f"{held} of {rows} ")
        assert (loaded.facts["train_examples"], loaded.facts["held_out_examples"]) == (rows - held, held)

    def test_it_is_the_same_for_every_seed(self, load):
        first, second = (load(seed=seed, train_limit=9) for seed in (0, 1))
        assert first.examples["held_out"] == second.examples["held_out"]
        assert first.examples["train"] != second.examples["train"]

    def test_its_own_seed_changes_it(self, load):
        assert texts_of(load(train=40), "held_out") != texts_of(load(train=40, held_out_seed=1), "held_out")

    @pytest.mark.parametrize("limit", [1, 9, 20])
    def test_a_limited_training_set_never_has_a_part_of_it(self, limit, load):
        loaded = load(train_limit=limit)
        assert len(texts_of(loaded, "train")) == limit
        assert texts_of(loaded, "train") < texts_of(load(), "train")

    def test_limits_hold_for_all_that_is_evaluated_and_not_for_the_seed(self, load):
        loaded = load(MNLI, train=60, eval_limit=3, seed=5)
        assert {name: len(split.labels) for name, split in loaded.examples.items()} == {
            "train": 54,
            "held_out": 3,
            "validation_matched": 3,
            "validation_mismatched": 3,
        }
        again = load(MNLI, train=60, eval_limit=3, seed=6)
        assert loaded.examples["validation_matched"] == again.examples["validation_matched"]
        assert texts_of(loaded, "held_out") < texts_of(load(MNLI, train=60), "held_out")

    def test_none_trains_on_all(self, load):
        loaded = load(held_out=0.0)
        assert "held_out" not in loaded.examples
        assert texts_of(loaded, "train") == set(range(24))

    def test_all_leaves_nothing(self, load):
        with pytest.raises(UserError, match=r"--task\.held-out 0\.99 of 24 training examples leaves none"):
            load(held_out=0.99)

    @pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, math.nan])
    def test_what_is_no_share_is_refused(self, share):
        with pytest.raises(ValueError, match=r"--task\.held-out"):
            CoLA(held_out=share)


class TestLength:
    @pytest.mark.parametrize("kind", KINDS)
    def test_longer_examples_are_cut_and_counted(self, kind, load, classifier):
        whole, short = load(MRPC), load(MRPC, max_length=14)
        _, tokenizer = classifier(kind, whole)
        lengths_of_all = lengths(whole.encode(tokenizer, "train"))
        expected = sum(length > 14 for length in lengths_of_all)
        assert 0 < expected < len(lengths_of_all)
        features = short.encode(tokenizer, "train")
        assert lengths(features) == tuple(min(length, 14) for length in lengths_of_all)
        assert short.facts["cut_to_max_length"] == {"train": expected}
        assert whole.facts["cut_to_max_length"] == {"train": 0}

    def test_of_a_pair_the_longer_text_is_cut(self, load, classifier):
        loaded = load(MRPC, max_length=8)
        _, tokenizer = classifier("bert", loaded)
        for feature, (first, second) in zip(
            loaded.encode(tokenizer, "train"), loaded.examples["train"].texts, strict=True
        ):
            kept = [feature["token_type_ids"].count(part) for part in (0, 1)]  # with 2 and 1 special tokens
            assert kept[0] + kept[1] == 8
            assert min(len(first.split()), 2) <= kept[0] - 2 <= 3
            assert min(len(second.split()), 2) <= kept[1] - 1 <= 3

    def test_more_than_the_model_reads_is_refused(self, load, checkpoint):
        base = find(str(checkpoint("bert")), "AutoModelForSequenceClassification", 0, say=print)
        tokenizer = base.tokenizer()
        load(max_length=512).encode(tokenizer, "train")
        with pytest.raises(UserError, match=r"--task\.max-length 513 is more than the 512 tokens that the model reads"):
            load(max_length=513).encode(tokenizer, "train")

    def test_less_than_special_tokens_need_is_refused(self):
        with pytest.raises(ValueError, match=r"--task\.max-length is 7"):
            CoLA(max_length=7)

    def test_features_hold_what_the_model_reads(self, load, classifier):
        loaded = load()
        _, tokenizer = classifier("bert", loaded)
        (names,) = {tuple(sorted(feature)) for feature in loaded.encode(tokenizer, "train")}
        assert names == ("attention_mask", "input_ids", "labels", "token_type_ids")


@pytest.fixture
def head(checkpoint):
    """Returns the configuration of a checkpoint whose head has these classes."""
    return lambda *labels: AutoConfig.from_pretrained(checkpoint("bert", labels))


class TestHead:
    @pytest.mark.parametrize("task", Glue.__subclasses__(), ids=lambda task: task.declaration.name)
    def test_it_gets_the_tasks_labels(self, task, load):
        fields = load(task).model_kwargs(None)
        labels = task.declaration.labels
        if task is STSB:
            assert fields == {"num_labels": 1, "problem_type": "regression"}
        else:
            assert fields["num_labels"] == len(labels)
            assert [fields["id2label"][number] for number in range(len(labels))] == list(labels)
            assert fields["label2id"] == {label: number for number, label in fields["id2label"].items()}
            assert fields["problem_type"] == "single_label_classification"

    @pytest.mark.parametrize(
        ("task", "theirs", "says"),
        [
            (MRPC, ("A", "B", "C"), r"has 3 classes \(a, b, c\) and mrpc has 2 \(not_equivalent, equivalent\)"),
            (MNLI, ("yes", "no"), r"has 2 classes \(yes, no\) and mnli has 3"),
            (STSB, ("yes", "no"), r"has 2 classes \(yes, no\) and stsb has 1 \(a score\)"),
        ],
        ids=["mrpc", "mnli", "stsb"],
    )
    def test_of_another_size_is_refused(self, task, theirs, says, load, head):
        with pytest.raises(UserError, match=rf"{says}.*--new-head"):
            load(task).model_kwargs(head(*theirs))

    @pytest.mark.parametrize(
        ("task", "theirs"),
        [
            (MNLI, ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")),
            (MNLI, ("contradiction", "entailment", "neutral")),
            (RTE, ("not_entailment", "entailment")),
        ],
    )
    def test_that_numbers_its_classes_otherwise_is_refused(self, task, theirs, load, head):
        ours = ", ".join(task.declaration.labels)
        says = rf"numbers its labels {', '.join(theirs).lower()} and {task.declaration.name} {ours}, so every score"
        with pytest.raises(UserError, match=says):
            load(task).model_kwargs(head(*theirs))

    @pytest.mark.parametrize(
        "theirs",
        [("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), ("LABEL_0", "LABEL_1", "LABEL_2")],
        ids=["another case", "names that say nothing"],
    )
    def test_that_fits_is_accepted(self, theirs, load, head):
        loaded = load(MNLI)
        assert loaded.model_kwargs(head(*theirs)) == loaded.model_kwargs(None)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("task", [MNLI, STSB], ids=lambda task: task.declaration.name)
    def test_a_language_model_has_none_that_could_be_wrong(self, task, kind, load, checkpoint):
        loaded = load(task)
        assert loaded.model_kwargs(AutoConfig.from_pretrained(checkpoint(kind))) == loaded.model_kwargs(None)
