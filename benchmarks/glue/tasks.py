"""The nine tasks of GLUE, as declarations. What a task's ``version`` counts: changes of what its numbers mean.

Row counts are those of the dataset card of ``nyu-mll/glue``, label orders those of its features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.glue.declaration import Declaration
from benchmarks.glue.task import Glue

SENTENCES = ("sentence1", "sentence2")


@dataclass(frozen=True)
class CoLA(Glue):
    """CoLA: is this English sentence grammatical? Matthews correlation."""

    version: ClassVar[int] = 1
    declaration: ClassVar[Declaration] = Declaration(
        name="cola",
        folder="CoLA",
        columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        sizes={"train": 8551, "validation": 1043},
        metric="matthews_correlation",
        original_header=("source", "label", "mark", "sentence"),
    )


@dataclass(frozen=True)
class SST2(Glue):
    """SST-2: does this piece of a film review like the film? Accuracy."""

    version: ClassVar[int] = 1
    declaration: ClassVar[Declaration] = Declaration(
        name="sst2",
        folder="SST-2",
        columns=("sentence",),
        labels=("negative", "positive"),
        sizes={"train": 67349, "validation": 872},
        metric="accuracy",
    )


@dataclass(frozen=True)
class MRPC(Glue):
    """MRPC: do these two news sentences say the same? Accuracy and F1."""

    version: ClassVar[int] = 1
    declaration: ClassVar[Declaration] = Declaration(
        name="mrpc",
        folder="MRPC",
        columns=SENTENCES,
        labels=("not_equivalent", "equivalent"),
        sizes={"train": 3668, "validation": 408},
        metric="accuracy",
        original_columns=("#1 String", "#2 String"),
        original_label="Quality",
    )


@dataclass(frozen=True)
class STSB(Glue):
    """STS-B: how alike are these two sentences, from 0 to 5? Pearson and Spearman correlation of a regression."""

    version: ClassVar[int] = 1
    declaration: ClassVar[Declaration] = Declaration(
        name="stsb",
        folder="STS-B",
        columns=SENTENCES,
        labels=(),
        sizes={"train": 5749, "validation": 1500},
        metric="pearson",
        original_label="score",
    )


@dataclass(frozen=True)
class QQP(Glue):
    """QQP: do these two questions on Quora ask the same? Accuracy and F1."""

    version: ClassVar[int] = 1
    declaration: ClassVar[Declaration] = Declaration(
        name="qqp",
        folder="QQP",
        columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        sizes={"train": 363846, "validation": 40430},
        metric="accuracy",
        original_label="is_duplicate",
        empty_texts=2,
        has_short_lines=True,
    )


@dataclass(frozen=True)
class MNLI(Glue):
    """MNLI: does a text entail, contradict or neither another? Accuracy, matched and mismatched genres apart."""

    version: ClassVar[int] = 1
    declaration: ClassVar[Declaration] = Declaration(
        name="mnli",
        folder="MNLI",
        columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        sizes={"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
        metric="accuracy",
        original_columns=SENTENCES,
        original_label="gold_label",
    )


@dataclass(frozen=True)
class QNLI(Glue):
    """QNLI: does this sentence answer the question? Accuracy."""

    version: ClassVar[int] = 1
    declaration: ClassVar[Declaration] = Declaration(
        name="qnli",
        folder="QNLI",
        columns=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        sizes={"train": 104743, "validation": 5463},
        metric="accuracy",
    )


@dataclass(frozen=True)
class RTE(Glue):
    """RTE: does the first text entail the second? Accuracy."""

    version: ClassVar[int] = 1
    declaration: ClassVar[Declaration] = Declaration(
        name="rte",
        folder="RTE",
        columns=SENTENCES,
        labels=("entailment", "not_entailment"),
        sizes={"train": 2490, "validation": 277},
        metric="accuracy",
    )


@dataclass(frozen=True)
class WNLI(Glue):
    """WNLI: does the pronoun stand for this noun? Accuracy."""

    version: ClassVar[int] = 1
    declaration: ClassVar[Declaration] = Declaration(
        name="wnli",
        folder="WNLI",
        columns=SENTENCES,
        labels=("not_entailment", "entailment"),
        sizes={"train": 635, "validation": 71},
        metric="accuracy",
    )
