"""Whatever cannot be used is refused with one sentence and exit code 2, before anything is begun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer


def assert_one_sentence(code: int, out: str, err: str, says: str) -> None:
    """Checks for one line on stderr that says what is wrong, nothing on stdout, and exit code 2."""
    assert code == 2, err
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert says in line


@pytest.fixture
def refused(run_here, checkpoint, glue_folder, tmp_path):
    """Checks that a run is refused and nothing is written."""

    def check(says: str, *flags: str, task: str = "mrpc", model: Path | None = None, folder: Path | None = None):
        data = folder or glue_folder(task)
        model = model or checkpoint("bert")
        argv = ["--method", "lora", "--task", task, "--model", str(model), "--data.dir", str(data)]
        code, out, err = run_here([*argv, "--output-dir", "out", *flags])
        assert_one_sentence(code, out, err, says)
        assert not (tmp_path / "out").exists()

    return check


def change_lines(path: Path, number: int, change) -> None:
    """Changes a line of a file, counted from 1."""
    lines = path.read_text().split("\n")
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines))


class TestData:
    def test_a_folder_without_the_task(self, refused, glue_folder):
        refused("has no MRPC", task="mrpc", folder=glue_folder("rte"))

    def test_no_folder(self, refused, tmp_path):
        refused("there is no such folder", folder=tmp_path / "nowhere")

    def test_a_missing_column_of_parquet(self, refused, glue_folder):
        folder = glue_folder("mrpc")
        file = folder / "mrpc" / "train.parquet"
        pq.write_table(pq.read_table(file).drop_columns(["sentence2"]), file)
        refused("train.parquet", folder=folder)

    def test_a_missing_column_of_tsv(self, refused, glue_folder):
        folder = glue_folder("mrpc", "original")
        change_lines(folder / "MRPC" / "dev.tsv", 1, lambda line: line.replace("#2 String", "text"))
        refused("'#2 String'", folder=folder)

    def test_a_label_outside_its_set_names_file_and_line(self, refused, glue_folder):
        folder = glue_folder("mrpc", "original")
        change_lines(folder / "MRPC" / "train.tsv", 5, lambda line: "7" + line[1:])
        refused("train.tsv, line 5: its label '7' is not one of 0 (not_equivalent), 1 (equivalent)", folder=folder)

    def test_a_label_outside_its_set_names_file_and_row(self, refused, glue_folder):
        folder = glue_folder("stsb")
        file = folder / "stsb" / "validation.parquet"
        table = pq.read_table(file)
        place = table.schema.get_field_index("label")
        labels = [5.5 if row == 3 else label for row, label in enumerate(table["label"].to_pylist())]
        field = table.schema.field("label")
        pq.write_table(table.set_column(place, field, pa.array(labels, field.type)), file)
        refused("validation.parquet, row 4: its label 5.5 is not a number from 0 to 5", task="stsb", folder=folder)

    def test_an_empty_text(self, refused, glue_folder):
        folder = glue_folder("cola", "original")
        change_lines(folder / "CoLA" / "dev.tsv", 3, lambda line: "\t".join([*line.split("\t")[:3], "  "]))
        refused("dev.tsv, line 3: a text is empty", task="cola", folder=folder)

    def test_another_delimiter(self, refused, glue_folder):
        folder = glue_folder("mrpc", "original")
        file = folder / "MRPC" / "train.tsv"
        file.write_text(file.read_text().replace("\t", ","))
        refused("train.tsv, line 1: it is not separated by tabs", folder=folder)

    def test_no_folder_and_no_hub(self, checkpoint, tmp_path):
        """In a process of its own, since the hub's client reads its settings once."""
        argv = ["--method", "lora", "--task", "mrpc", "--model", str(checkpoint("bert")), "--output-dir", "out"]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "empty"),
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-m", "harness.run", *argv],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert_one_sentence(done.returncode, done.stdout, done.stderr, "give --data.dir FOLDER")
        assert not (tmp_path / "out").exists()


class TestHead:
    def test_of_another_number_of_classes(self, refused, checkpoint):
        refused("has 3 classes (a, b, c) and mrpc has 2", model=checkpoint("bert", ("a", "b", "c")))

    def test_for_mnli_in_another_order(self, refused, checkpoint):
        model = checkpoint("bert", ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"))
        refused("numbers its labels contradiction, neutral, entailment and mnli", task="mnli", model=model)

    def test_of_another_number_of_classes_can_be_started_afresh(self, run_here, checkpoint, glue_folder):
        model = checkpoint("bert", ("a", "b", "c"))
        argv = ["--method", "head", "--task", "mrpc", "--model", str(model), "--data.dir", str(glue_folder("mrpc"))]
        few = ["--train.max-steps", "1", "--train.batch-size", "4", "--output-dir", "out"]
        code, _, err = run_here([*argv, *few, "--new-head"])
        assert code == 0, err
        result = json.loads(Path("out", "result.json").read_text())
        assert result["model"]["arguments"]["num_labels"] == 2
        assert "classifier.weight" in result["model"]["new_parameters"]


class TestDecoderTokenizers:
    def test_with_neither_padding_nor_end(self, refused, checkpoint, tmp_path):
        folder = shutil.copytree(checkpoint("gpt2"), tmp_path / "model")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.eos_token = None
        tokenizer.save_pretrained(folder)
        refused("neither a padding token nor an end token", model=folder)

    def test_without_padding_pads_with_the_end_token_and_says_so(self, run_here, checkpoint, glue_folder):
        data, model = glue_folder("mrpc"), checkpoint("gpt2")
        argv = ["--method", "lora", "--task", "mrpc", "--model", str(model), "--data.dir", str(data)]
        few = ["--train.max-steps", "1", "--train.batch-size", "4", "--output-dir", "out"]
        code, _, err = run_here([*argv, *few])
        assert code == 0, err
        (note,) = [line for line in err.splitlines() if line.startswith("note: ")]
        assert "no padding token" in note
        assert "'<end>' (0)" in note
        assert json.loads(Path("out", "result.json").read_text())["model"]["notes"] == [note.removeprefix("note: ")]


A_SETTING_THAT_CANNOT_BE = {
    "the split without labels": (["--split", "test"], "--split test: task mrpc is scored on validation"),
    "selecting by nothing": (["--score", "held_out", "--task.held-out", "0"], "--score held_out: with these settings"),
    "more than all held out": (["--task.held-out", "1.5"], "--task.held-out is 1.5"),
    "all but nothing held out": (["--task.held-out", "0.99"], "leaves none to train on"),
    "more tokens than positions": (["--task.max-length", "1000"], "more than the 512 tokens that the model reads"),
    "fewer tokens than any example": (["--task.max-length", "4"], "--task.max-length is 4"),
    "a batch larger than what is left": (["--train.batch-size", "22"], "21 training examples"),
    "a rule of another task": (["--score", "best"], "--score best"),
}


@pytest.mark.parametrize(("flags", "says"), A_SETTING_THAT_CANNOT_BE.values(), ids=A_SETTING_THAT_CANNOT_BE.keys())
def test_a_setting_that_cannot_be(flags, says, refused):
    refused(says, *flags)


def test_smoothing_over_the_classes_of_a_regression(run_here, checkpoint, glue_folder):
    """The task learns of it in the first step, so there is a run directory."""
    data, model = glue_folder("stsb"), checkpoint("bert")
    argv = ["--method", "lora", "--task", "stsb", "--model", str(model), "--data.dir", str(data)]
    flags = ["--train.batch-size", "4", "--train.label-smoothing", "0.1", "--output-dir", "out"]
    code, out, err = run_here([*argv, *flags])
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert_one_sentence(code, out, line, "--train.label-smoothing 0.1: stsb is a regression")
