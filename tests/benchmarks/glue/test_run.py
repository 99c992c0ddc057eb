"""Whole runs on synthetic GLUE: what the result says, and that its adapters are what a user of peft loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hut  # noqa: F401  what makes peft know the method
from benchmarks.glue import metrics
from hadamard_core.fused import split_for

METHODS = ["hut", "lora", "vera", "head", "full"]

# fp32; batching, merging and dividing the work change the order of sums, and training amplifies it
TOLERANCE = {"rel": 1e-4, "abs": 1e-4}


@pytest.fixture
def arguments(checkpoint, glue_folder):
    """The flags of a small run of the quick preset."""

    def build(task: str, *more: str, method: str = "lora", kind: str = "bert", out: str = "out") -> list[str]:
        folder = glue_folder(task, train=40, validation=12)
        flags = ["--method", method, "--task", task, "--model", str(checkpoint(kind)), "--data.dir", str(folder)]
        small = ["--train.batch-size", "6", "--train.max-steps", "12", "--train.eval-every", "3"]
        return [*flags, "--output-dir", out, *small, *more]

    return build


@pytest.fixture
def run(run_here, arguments):
    """Runs and returns the result, the run directory and what stood on stderr."""

    def build(task: str, *more: str, out: str = "out", **settings: str) -> tuple[dict, Path, str]:
        code, _, err = run_here(arguments(task, *more, out=out, **settings))
        assert code == 0, err
        return json.loads(Path(out, "result.json").read_text()), Path(out), err

    return build


def read_predictions(folder: Path, which: str = "") -> list[dict]:
    return [json.loads(line) for line in (folder / f"predictions{which}.jsonl").read_text().splitlines()]


class TestResult:
    @pytest.mark.parametrize("method", METHODS)
    def test_it_has_both_columns_and_says_how_each_was_selected(self, method, run):
        result, _, err = run("mrpc", method=method)
        assert list(result["evaluations"]) == ["held_out", "published"]
        steps = {entry["step"]: entry for entry in result["train"]["measurements"]}
        assert sorted(steps) == [3, 6, 9, 12]
        for name, split in (("held_out", "held_out"), ("published", "validation")):
            entry = result["evaluations"][name]
            best = max(steps, key=lambda step: steps[step][split]["accuracy"])  # the first of equals
            assert entry["step"] == best
            assert entry["selection"] == {
                "split": split,
                "metric": "accuracy",
                "value": steps[best][split]["accuracy"],
            }
            assert entry["split"] == "validation"
            assert entry["examples"] == 12
            assert entry["metrics"].keys() == {"loss", "accuracy", "f1"}
            assert entry["signatures"].keys() == {"accuracy", "f1"}
        assert "held out" in result["evaluations"]["held_out"]["selected_by"]
        assert "which is also what is reported" in result["evaluations"]["published"]["selected_by"]
        assert "train has 40 rows, the official split has 3,668" in err

    def test_the_published_column_is_the_score_that_selected_it(self, run):
        """It is measured in training, and again from the adapter on disk."""
        entry = run("mrpc", method="full")[0]["evaluations"]["published"]
        assert entry["metrics"]["accuracy"] == entry["selection"]["value"]

    @pytest.mark.parametrize("method", METHODS)
    def test_parameters_are_counted_by_group_with_the_head_apart(self, method, run):
        counts = run("cola", "--train.max-steps", "1", method=method)[0]["parameters"]
        width, layers, classes = 16, 2, 2
        pooler_and_classifier = (width + 1) * width + (width + 1) * classes
        assert counts["head"] == pooler_and_classifier
        rank = 8
        assert (
            counts["adapter"]
            == {
                "hut": layers * 2 * (2 * rank * width + 2 * width),
                "lora": layers * 2 * 2 * rank * width,
                "vera": layers * 2 * (256 + width),
                "head": 0,
                "full": counts["adapter"],
            }[method]
        )
        norms = (1 + 2 * layers) * 2 * width
        assert counts["norm"] == (norms if method == "full" else 0)
        assert (counts["frozen"] == 0) == (method == "full")
        assert counts["trained"] == counts["adapter"] + counts["norm"] + counts["head"]
        assert counts["total"] == counts["trained"] + counts["frozen"]

    def test_without_a_held_out_part_there_is_one_column(self, run):
        result, _, _ = run("mrpc", "--task.held-out", "0", "--score", "published")
        assert list(result["evaluations"]) == ["published"]
        assert result["data"]["train_examples"] == 40
        assert all(entry.keys() == {"step", "validation"} for entry in result["train"]["measurements"])

    def test_cut_examples_are_counted(self, run):
        cut = run("mrpc", "--task.max-length", "14")[0]["data"]["cut_to_max_length"]
        assert cut.keys() == {"train", "held_out", "validation"}
        assert 0 < cut["train"] < 36
        assert run("mrpc", "--overwrite")[0]["data"]["cut_to_max_length"]["train"] == 0

    def test_training_moves_the_head_of_every_method(self, run):
        for method in METHODS:
            _, folder, _ = run("cola", method=method, out=method)
            (file,) = (folder / "adapter").glob("*.safetensors")
            trained = load_file(file)
            heads = [tensor for name, tensor in trained.items() if name.endswith("classifier.bias")]
            assert len(heads) == 1
            assert heads[0].abs().max() > 0  # where it starts


class TestPredictions:
    @pytest.mark.parametrize("task", ["cola", "mrpc", "stsb", "mnli"])
    def test_they_give_the_metrics_again(self, task, run):
        result, folder, _ = run(task, "--score", "last")
        (entry,) = result["evaluations"].values()
        predictions = read_predictions(folder)
        assert len(predictions) == entry["examples"] == (24 if task == "mnli" else 12)
        found = {}
        for split in {line["split"]: None for line in predictions}:
            lines = [line for line in predictions if line["split"] == split]
            scores = metrics.compute(task, [line["prediction"] for line in lines], [line["label"] for line in lines])
            found.update({name + split.removeprefix("validation"): value for name, value in scores.items()})
        assert found == {name: value for name, value in entry["metrics"].items() if not name.startswith("loss")}

    def test_each_column_has_its_own(self, run):
        result, folder, _ = run("mrpc", "--score", "published", "last", method="full")
        entries = result["evaluations"]
        assert entries["published"]["step"] != entries["last"]["step"] == 12
        for name, suffix in (("published", ""), ("last", "-last")):
            lines = read_predictions(folder, suffix)
            found = metrics.compute("mrpc", [x["prediction"] for x in lines], [x["label"] for x in lines])
            assert found["accuracy"] == entries[name]["metrics"]["accuracy"]

    @pytest.mark.parametrize("task", ["mrpc", "stsb"])
    def test_the_batch_size_of_evaluation_changes_nothing(self, task, run):
        one, seven = (run(task, "--eval-batch-size", size, out=size) for size in ("1", "7"))
        for ours, theirs in zip(one[0]["train"]["measurements"], seven[0]["train"]["measurements"], strict=True):
            assert ours["held_out"] == pytest.approx(theirs["held_out"], **TOLERANCE)
            assert ours["validation"] == pytest.approx(theirs["validation"], **TOLERANCE)
        for name, entry in one[0]["evaluations"].items():
            assert entry["step"] == seven[0]["evaluations"][name]["step"]
            assert entry["metrics"] == pytest.approx(seven[0]["evaluations"][name]["metrics"], **TOLERANCE)
        for ours, theirs in zip(*(read_predictions(folder) for _, folder, _ in (one, seven)), strict=True):
            assert ours["logits"] == pytest.approx(theirs["logits"], **TOLERANCE)


def test_two_processes_equal_one(run, arguments, tmp_path):
    # dropout draws other numbers where the batch is cut in another way
    flags = ["--train.model-dropout", "0", "--train.micro-batch-size", "1"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "harness.run"]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments("mrpc", *flags, "--json", method="hut", out="two")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    two, one = json.loads(done.stdout), run("mrpc", *flags, method="hut")[0]
    assert (two["train"]["processes"], one["train"]["processes"]) == (2, 1)
    for ours, theirs in zip(two["train"]["loss_curve"], one["train"]["loss_curve"], strict=True):
        assert (ours["step"], ours["learning_rate"]) == (theirs["step"], theirs["learning_rate"])
        assert ours["loss"] == pytest.approx(theirs["loss"], **TOLERANCE)
    for ours, theirs in zip(two["train"]["measurements"], one["train"]["measurements"], strict=True):
        for split in ("held_out", "validation"):
            assert ours[split] == pytest.approx(theirs[split], **TOLERANCE)
    assert list(two["evaluations"]) == list(one["evaluations"])
    for name, entry in two["evaluations"].items():
        assert entry["step"] == one["evaluations"][name]["step"]
        assert entry["metrics"] == pytest.approx(one["evaluations"][name]["metrics"], **TOLERANCE)


class TestPlainPeft:
    """The adapter in transformers and peft alone, as a user would write it."""

    @pytest.mark.parametrize(
        ("method", "kind", "task", "labels"),
        [
            ("hut", "bert", "mrpc", 2),
            ("lora", "bert", "mnli", 3),
            ("hut", "roberta", "mnli", 3),
            ("lora", "roberta", "stsb", 1),
            ("hut", "gpt2", "stsb", 1),
            ("lora", "gpt2", "mrpc", 2),
            ("hut", "gpt2", "mnli", 3),
            ("lora", "distilbert", "mrpc", 2),
        ],
    )
    def test_it_gives_the_stored_predictions(self, task, labels, method, kind, run, checkpoint, glue_folder):
        _, folder, _ = run(task, method=method, kind=kind)
        stored = read_predictions(folder)

        model = AutoModelForSequenceClassification.from_pretrained(checkpoint(kind), num_labels=labels)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint(kind))
        if kind == "gpt2":
            model.config.pad_token_id = tokenizer.eos_token_id
            split_for(model, PeftConfig.from_pretrained(folder / "adapter").target_modules or ())
        model = PeftModel.from_pretrained(model, folder / "adapter").eval()
        for line, texts in zip(stored, validation_texts(task, glue_folder), strict=True):
            with torch.no_grad():
                logits = model(**tokenizer(*texts, return_tensors="pt")).logits[0]
            assert logits.tolist() == pytest.approx(line["logits"], **TOLERANCE)
            predicted = logits[0].item() if task == "stsb" else int(logits.argmax())
            assert predicted == pytest.approx(line["prediction"], **TOLERANCE)
        assert len({json.dumps(line["logits"]) for line in stored}) > 6  # it does read the texts


def validation_texts(task, glue_folder) -> list[tuple[str, str]]:
    """Returns what stands in the files, read without the repository's code."""
    import pyarrow.parquet as pq

    columns = ["premise", "hypothesis"] if task == "mnli" else ["sentence1", "sentence2"]
    folder = glue_folder(task, train=40, validation=12) / task
    texts = []
    for file in sorted(folder.glob("validation*.parquet")):
        table = pq.read_table(file)
        texts += zip(*(table[column].to_pylist() for column in columns), strict=True)
    return texts
