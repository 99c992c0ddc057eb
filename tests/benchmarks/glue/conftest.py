"""Small folders of every GLUE task, in each form that GLUE comes in; their texts are invented."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.glue import tasks
from benchmarks.glue.declaration import Declaration

DECLARATIONS = {
    task.declaration.name: task.declaration
    for task in (
        tasks.CoLA,
        tasks.SST2,
        tasks.MRPC,
        tasks.STSB,
        tasks.QQP,
        tasks.MNLI,
        tasks.QNLI,
        tasks.RTE,
        tasks.WNLI,
    )
}

# the columns of the original files, written down again here so that they check those of the declarations
HEADERS = {
    "cola": "source label mark sentence",
    "sst2": "sentence label",
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 label1 gold_label",
    "qnli": "index question sentence label",
    "rte": "index sentence1 sentence2 label",
    "wnli": "index sentence1 sentence2 label",
}
TEXTS = {"mrpc": ("#1 String", "#2 String"), "mnli": ("sentence1", "sentence2")}
LABELS = {"mrpc": "Quality", "stsb": "score", "qqp": "is_duplicate", "mnli": "gold_label"}
LABELS_IN_WORDS = ("mnli", "qnli", "rte")

WORDS = ("the", "a", "red", "old", "cat", "dog", "café", "sees", "likes", '"', "and", "it's")
CLASS_WORDS = ("no", "yes", "maybe")


def examples(declaration: Declaration, split: str, rows: int) -> list[tuple[tuple[str, ...], int | float]]:
    """Returns texts and labels; a word in the last text tells the class, how often it is there the score."""
    chance = random.Random(f"{declaration.name} {split}")
    made = []
    for row in range(rows):
        texts = [" ".join(chance.choices(WORDS, k=chance.randint(3, 8))) for _ in declaration.columns]
        if declaration.is_regression:
            label = (row * 7 % 26) / 5
            texts[-1] += " very" * round(label) + " alike"
        else:
            label = row % len(declaration.labels)
            texts[-1] += f" {CLASS_WORDS[label]} "  # the blank at the end belongs to the text
        made.append((tuple(texts), label))
    return made


def parquet_table(declaration: Declaration, rows: list[tuple[tuple[str, ...], int | float]]) -> pa.Table:
    """Returns a table with the columns, types and features of the hub's files."""
    columns = dict(zip(declaration.columns, map(list, zip(*(texts for texts, _ in rows), strict=True)), strict=True))
    features = {column: {"dtype": "string", "_type": "Value"} for column in columns}
    features["label"] = {"dtype": "float32", "_type": "Value"}
    if not declaration.is_regression:
        features["label"] = {"names": list(declaration.labels), "_type": "ClassLabel"}
    return pa.table(
        {
            **columns,
            "label": pa.array([label for _, label in rows], pa.float32() if declaration.is_regression else pa.int64()),
            "idx": pa.array(range(len(rows)), pa.int32()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def original_lines(declaration: Declaration, rows: list[tuple[tuple[str, ...], int | float]], first: int = 0):
    """Yields the lines of an original file, the header first, without their ends."""
    name = declaration.name
    header = HEADERS[name].split("|" if "|" in HEADERS[name] else " ")
    if name != "cola":
        yield "\t".join(header)
    for row, (texts, label) in enumerate(rows, first):
        fields = {column: f"{column}-{row}" for column in header}
        fields |= dict(zip(TEXTS.get(name, declaration.columns), texts, strict=True))
        if declaration.is_regression:
            written = f"{label:.3f}"
        else:
            written = declaration.labels[label] if name in LABELS_IN_WORDS else str(label)
        yield "\t".join((fields | {LABELS.get(name, "label"): written}).values())


def write_lines(path: Path, lines, encoding: str = "utf-8") -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)


def write_unsplit_mrpc(folder: Path, declaration: Declaration, train: int, validation: int) -> None:
    """Writes what Microsoft gives, with the rows of the two splits mixed, and the ids of those of validation."""
    header, *lines = original_lines(declaration, examples(declaration, "train", train))
    ids = []
    for row, line in enumerate(
        list(original_lines(declaration, examples(declaration, "validation", validation), 900))[1:]
    ):
        lines.insert(row * 3, line)
        ids.append("\t".join(line.split("\t")[1:3]))
    write_lines(folder / "msr_paraphrase_train.txt", [header, *lines], encoding="utf-8-sig")
    write_lines(folder / "dev_ids.tsv", ids)


@pytest.fixture(scope="session")
def declarations() -> dict[str, Declaration]:
    """The nine tasks by name."""
    return DECLARATIONS


@pytest.fixture
def glue_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a task into a folder of GLUE and returns that; several tasks of one form share it.

    The arguments are the task's declaration or name; the form, ``parquet`` as on the hub, ``original`` as GLUE's own
    script leaves it, or for MRPC ``unsplit`` as Microsoft gives it; and the rows of train and of each other split.
    """

    def write(task: Declaration | str, form: str = "parquet", train: int = 24, validation: int = 8) -> Path:
        declaration = DECLARATIONS[task] if isinstance(task, str) else task
        folder = tmp_path / form / (declaration.name if form == "parquet" else declaration.folder)
        folder.mkdir(parents=True, exist_ok=True)
        if form == "unsplit":
            write_unsplit_mrpc(folder, declaration, train, validation)
            return folder.parent
        for split in declaration.sizes:
            rows = examples(declaration, split, train if split == "train" else validation)
            if form == "parquet":
                pq.write_table(parquet_table(declaration, rows), folder / f"{split}.parquet")
            else:
                name = split.replace("validation", "dev")
                write_lines(folder / f"{name}.tsv", original_lines(declaration, rows))
        return folder.parent

    return write
