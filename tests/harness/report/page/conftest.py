"""Reports of runs that never took place, made without reading results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from harness.report.model import (
    Average,
    Board,
    Costs,
    Difference,
    PublishedCell,
    PublishedColumn,
    PublishedRow,
    PublishedTable,
    Ratio,
    Report,
    Row,
    RunEntry,
    Skipped,
    Statistic,
    Tuning,
)

METRIC = "accuracy"
WAYS = {"held_out": "highest accuracy on what is held out", "published": "highest accuracy on the validation split"}


def statistic(values: dict[int, float]) -> Statistic:
    numbers = list(values.values())
    several = len(numbers) > 1
    return Statistic(
        values=values,
        mean=statistics.fmean(numbers),
        std=statistics.stdev(numbers) if several else None,
        median=statistics.median(numbers),
        low=min(numbers) if several else None,
        high=max(numbers) if several else None,
    )


def result(method: str, task: str, seed: int, scores: dict[str, float], points: int) -> dict[str, Any]:
    evaluation = {"split": "validation", "examples": 90, "step": 9, "unavailable": {}, "signatures": {METRIC: "a|v:1"}}
    return {
        "schema_version": 2,
        "method": {"name": method, "distribution": "toys 1.0"},
        "task": {"name": task, "distribution": "toys 1.0", "version": 1},
        "preset": "quick",
        "description": "Made up.",
        "model": {"name": "tiny", "source": "folder", "sha256": "0" * 64},
        "init_from": None,
        "seed": seed,
        "config": {
            "method": method,
            "seed": seed,
            "output_dir": f"runs/{method}-{seed}",
            "method_settings": {"r": 8, "roles": ["query", "value"]},
            "train": {"learning_rate": 0.01, "batch_size": 4},
        },
        "data": {"dataset": "toys", "train_examples": 400},
        "parameters": {"adapter": 100, "norm": 20, "head": 3, "frozen": 5000, "trained": 123, "total": 5123},
        "train": {
            "steps": points,
            "batch_size": 4,
            "final_loss": 0.5,
            "seconds": 12.5,
            "loss_curve": [{"step": at + 1, "loss": 1 / (at + 1)} for at in range(points)],
            "measurements": [
                {"step": at + 1, "held_out": {METRIC: at / points, "loss": 0.4}} for at in range(0, points, 5)
            ],
        },
        "evaluations": {
            which: {**evaluation, "selected_by": words, "metrics": {METRIC: scores[which], "loss": 0.3}}
            for which, words in WAYS.items()
        },
        "environment": {"python": "3.11", "device": "cpu"},
    }


def make_board(
    at: int, labels: Sequence[str], seeds: Sequence[int], predictions: str | None, points: int
) -> tuple[Board, list[RunEntry]]:
    identifier, task = f"board-{at}", f"toy{at}"
    rows, runs = [], []
    for place, label in enumerate(labels):
        scores = {
            which: {seed: 0.9 - 0.01 * place + 0.001 * seed - 0.0001 * way for seed in seeds[: 1 + (place + 2) % 3]}
            for way, which in enumerate(WAYS)
        }
        own = list(scores["held_out"])
        ids = [f"{identifier}-run-{place}-{seed}" for seed in own]
        rows.append(
            Row(
                id=f"{identifier}-row-{place}",
                method=label,
                label=label,
                settings={"method.r": "8"},
                learning_rate=0.01,
                steps=points,
                batch_size=4,
                runs=ids,
                parameters={
                    "adapter": 100 * 3**place if place < 30 else place,
                    "norm": 0,
                    "head": 3,
                    "frozen": 5000,
                    "trained": 103,
                    "total": 5123,
                },
                quality={
                    which: {METRIC: statistic(values), "loss": statistic(dict.fromkeys(values, 0.3))}
                    for which, values in scores.items()
                },
                held_out_loss=statistic(dict.fromkeys(own, 0.4)),
                costs=Costs(
                    4096, Ratio(1.5 + place, 1.4 + place, 1.6 + place), 10**6, None, 10**9, None, "a toy", "c.json"
                ),
                tuning=Tuning(7, 1, 700, "learning rate 0.001 to 0.1", "TPE", "held_out accuracy", 0.9),
            )
        )
        for seed, name in zip(own, ids, strict=True):
            own_scores = {which: values[seed] for which, values in scores.items()}
            found = result(label, task, seed, own_scores, points)
            file = f"runs/{task}/{label}-{seed}/result.json"
            runs.append(RunEntry(name, file, identifier, rows[-1].id, label, task, seed, found, predictions))
    differences = [
        Difference(row.id, rows[0].id, which, METRIC, [seeds[0]], -0.01, -0.02, 0.01, True)
        for row in rows[1:]
        for which in WAYS
    ]
    board = Board(
        id=identifier,
        name=f"{task} · tiny",
        task=task,
        version=1,
        model="tiny",
        weights="0" * 64,
        setting="dataset toys",
        split="validation",
        examples=90,
        selections=WAYS,
        metrics=[METRIC, "loss"],
        metric=METRIC,
        seeds=list(seeds),
        rows=rows,
        reference=rows[0].id,
        differences=differences,
        notes=["rows differ in their seeds"],
    )
    return board, runs


def make_report(
    labels: Sequence[str] = ("alpha", "beta", "gamma", "delta"),
    boards: int = 2,
    seeds: Sequence[int] = (1, 2, 3),
    predictions: str | None = None,
    points: int = 50,
) -> Report:
    """A report of boards that all have the same rows; the second row of each has one seed, the third one two."""
    made = [make_board(at, labels, seeds, predictions, points) for at in range(boards)]
    all_boards = [board for board, _ in made]
    averages = [
        Average(
            label=label,
            model="tiny",
            boards=[board.id for board in all_boards],
            which="held_out",
            quality=all_boards[0].rows[place].quality["held_out"][METRIC],
            rows=[board.rows[place].id for board in all_boards],
        )
        for place, label in enumerate(labels)
        if boards
    ]
    printed = PublishedTable(
        id="paper-table-1",
        title="Toys with a large model",
        source="A paper, Table 1",
        model="large",
        setting="validation split, 5 seeds",
        columns=[PublishedColumn("Toy", "toy0", METRIC), PublishedColumn("avg")],
        rows=[
            PublishedRow(
                "FT", {"Toy": PublishedCell(91.5, 0.3, 72.9, "swapped"), "avg": PublishedCell(88)}, labels[0], {}, 900
            ),
            PublishedRow("Other", {"Toy": PublishedCell(87.0)}, parameters=40, copied=True),
        ],
        notes=["not of one setting"],
    )
    runs = [run for _, found in made for run in found]
    return Report(all_boards, averages, runs, [printed], [Skipped("notes.json", "it is no result")])


@pytest.fixture(scope="session")
def report() -> Callable[..., Report]:
    return make_report
