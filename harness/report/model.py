"""What a report says: the data between what reads results and what shows them.

Results are sorted into *boards*: the runs on one board have the same task and version, base weights, start, data and
split, so that their numbers compare. A board has a *row* for each configuration, whose runs differ in the seed alone.
Published tables stand apart and are never mixed into measured numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Statistic:
    """One number over seeds.

    Attributes:
        values: seed -> value.
        mean: of the values, as the next four.
        std: standard deviation of a sample (n - 1); None for one value.
        median: the middle value.
        low: lower end of the 95 % bootstrap interval of the mean; None for one value.
        high: its upper end.
    """

    values: Mapping[int, float]
    mean: float
    std: float | None
    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """How a row differs from the reference row of its board, paired over the seeds that both have.

    Attributes:
        row: id of the row.
        reference: id of the row that it is compared with.
        which: the way parameters were selected, a key of :attr:`Board.selections`.
        metric: what differs.
        seeds: those that both rows have.
        mean: row minus reference; None without a common seed.
        low: lower end of the 95 % interval (Student's t of the paired differences); None below two seeds.
        high: its upper end.
        within_noise: whether the interval holds 0, or there is none.
    """

    row: str
    reference: str
    which: str
    metric: str
    seeds: Sequence[int]
    mean: float | None
    low: float | None
    high: float | None
    within_noise: bool


@dataclass(frozen=True)
class Ratio:
    """A cost as a ratio, measured side by side in one process; the median with its 95 % interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Costs:
    """What a configuration costs; None where it was not measured.

    Attributes:
        checkpoint_bytes: of what is saved after training.
        step: time of a training step over that of the frozen model (gradients of activations only).
        step_memory_bytes: peak memory of a training step above the loaded model, or what is saved for the backward
            pass where the device counts no peaks.
        flops_formula: of one forward of all adapted matrices by the HUT paper's formula, where it has one.
        flops_counted: of one training step's matrix products, as PyTorch counts them.
        merged_forward: time of a forward with the adapter merged over that of the base model.
        conditions: on what all this was measured, in words.
        source: the file that it comes from.
        notes: what else a reader has to know, such as that the method cannot merge.
    """

    checkpoint_bytes: int | None = None
    step: Ratio | None = None
    step_memory_bytes: int | None = None
    flops_formula: int | None = None
    flops_counted: int | None = None
    merged_forward: Ratio | None = None
    conditions: str = ""
    source: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Tuning:
    """What was spent to find a configuration.

    Attributes:
        trials: how many were made.
        failed: how many of them diverged or failed.
        steps: optimiser steps of all of them together.
        searched: the space, in words.
        sampler: how values were drawn.
        metric: what they were judged by, and on what.
        value: of the best one.
    """

    trials: int
    failed: int
    steps: int
    searched: str
    sampler: str
    metric: str
    value: float | None


@dataclass(frozen=True)
class Row:
    """A configuration on a board.

    Attributes:
        id: unique in the report.
        method: its name.
        label: the method, and the settings in which it differs from other rows of the method on its board.
        settings: the settings in the label, dotted key -> value in words.
        learning_rate: of the last stage.
        steps: optimiser steps over all stages.
        batch_size: of the last stage.
        runs: ids of its runs, by seed.
        parameters: ``adapter``, ``norm``, ``head``, ``frozen``, ``trained``, ``total``.
        quality: way of selection -> metric -> the number over seeds.
        held_out_loss: the lowest loss on the held-out part, if one was measured.
        costs: what it costs.
        tuning: what was spent to find it; None if its settings were given.
    """

    id: str
    method: str
    label: str
    settings: Mapping[str, str]
    learning_rate: float
    steps: int
    batch_size: int
    runs: Sequence[str]
    parameters: Mapping[str, int]
    quality: Mapping[str, Mapping[str, Statistic]]
    held_out_loss: Statistic | None
    costs: Costs
    tuning: Tuning | None


@dataclass(frozen=True)
class Board:
    """Rows whose numbers compare.

    Attributes:
        id: unique in the report.
        name: what it is called: task, model, and what tells it from other boards of both.
        task: its name; ``version`` is that of its meaning.
        model: the base model's name; ``weights`` is the sha256 of its weights.
        setting: data, start and everything else that the rows have in common, in words.
        split: where the scores come from; ``examples`` is how many there are.
        selections: way of selection -> how it selects, in words: ``held_out``, ``published``, ``last``.
        metrics: all of the task.
        metric: the one that the task is judged by; more is better.
        seeds: all seeds of its rows.
        rows: best first by the mean of ``metric`` in the first way of selection.
        reference: id of the row that others are compared with.
        differences: of all other rows to it, in each way of selection, by ``metric``.
        notes: what a reader has to know, such as rows that differ in steps.
    """

    id: str
    name: str
    task: str
    version: int
    model: str
    weights: str
    setting: str
    split: str
    examples: int
    selections: Mapping[str, str]
    metrics: Sequence[str]
    metric: str
    seeds: Sequence[int]
    rows: Sequence[Row]
    reference: str
    differences: Sequence[Difference]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Average:
    """The mean over tasks of the metric that each is judged by, of one label, seed by seed.

    Attributes:
        label: the rows' label, which is the same on all boards.
        model: the boards' base model.
        boards: ids of the boards.
        which: the way of selection.
        quality: over the seeds that the rows have on all boards.
        rows: ids of the rows, in the boards' order.
    """

    label: str
    model: str
    boards: Sequence[str]
    which: str
    quality: Statistic
    rows: Sequence[str]


@dataclass(frozen=True)
class RunEntry:
    """A run that the report was made from.

    Attributes:
        id: unique in the report.
        file: where its result was read, as a person gave the path.
        board: id of its board; ``row`` is that of its row.
        method: its name; ``task`` and ``seed`` are the run's, too.
        result: the content of its ``result.json``.
        predictions: the file with its predictions, None if there is none.
    """

    id: str
    file: str
    board: str
    row: str
    method: str
    task: str
    seed: int
    result: Mapping[str, Any]
    predictions: str | None = None


@dataclass(frozen=True)
class PublishedCell:
    """A number as a paper prints it.

    Attributes:
        value: in the table's own scale; None where the paper has none.
        spread: what the paper prints after the plus-minus sign, None if nothing.
        correct: what it should be where the paper is known to be wrong.
        note: what is known to be wrong about it.
    """

    value: float | None
    spread: float | None = None
    correct: float | None = None
    note: str = ""


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table.

    Attributes:
        label: as printed.
        cells: column -> number.
        method: the method's name in this harness; empty if there is none.
        settings: those of the method, dotted key -> value.
        parameters: trained parameters as printed (0.8 million: 800000), None if not printed.
        counted: the same counted by this project, None if not known.
        copied: whether the paper copied the row from earlier work.
        note: what is known to be wrong about it.
    """

    label: str
    cells: Mapping[str, PublishedCell]
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    counted: int | None = None
    copied: bool = False
    note: str = ""


@dataclass(frozen=True)
class PublishedColumn:
    """A column of a published table.

    Attributes:
        name: as printed.
        task: the task's name in this harness; empty for a column that no task has, such as an average.
        metric: the metric's name in this harness.
        scale: what a value of this harness is multiplied by to be in the table's scale: 100 for per cent.
    """

    name: str
    task: str = ""
    metric: str = ""
    scale: float = 100.0


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper.

    Attributes:
        id: unique among all tables: ``hut-table-1``.
        title: what it shows.
        source: paper and number of the table.
        model: the base model.
        setting: split, seeds, selection and what else is stated of how the numbers were made, in words.
        columns: in their order.
        rows: in their order.
        notes: what is known to be wrong or open about the table as a whole.
    """

    id: str
    title: str
    source: str
    model: str
    setting: str
    columns: Sequence[PublishedColumn]
    rows: Sequence[PublishedRow]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Skipped:
    """A file that is no result, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Everything that a report shows."""

    boards: Sequence[Board]
    averages: Sequence[Average]
    runs: Sequence[RunEntry]
    published: Sequence[PublishedTable]
    skipped: Sequence[Skipped]
