"""What ``shared`` found, as numbers over seeds, files and tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.analysis.joint_training import SELECTIONS
from benchmarks.analysis.output import write_csv, write_json, write_plot

MEAN = "mean of tasks"
ARMS = {"none": "W and b of each task's own", "weight": "W shared, b of each task's own", "both": "W and b shared"}


def make(settings: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns everything: settings, parameters, scores over seeds, differences between arms, and all results.

    Args:
        settings: of the command.
        results: of each arm and seed.
    """
    arms = [arm for arm in ARMS if arm in settings["share"]]
    by_arm = {arm: {each["seed"]: each for each in results if each["arm"] == arm} for arm in arms}
    scores = {selection: {arm: scores_of(by_arm[arm], selection, settings) for arm in arms} for selection in SELECTIONS}
    return {
        "settings": settings,
        "base_sha256": results[0]["identity"]["base model's sha256"],
        "selections": SELECTIONS,
        "metrics": {row["task"]: f"{row['metric']}, {row['split']}" for row in results[0]["rows"]},
        "parameters": {arm: by_arm[arm][settings["seeds"][0]]["parameters"] for arm in arms},
        "scores": {
            selection: {arm: {task: spread(values) for task, values in found.items()} for arm, found in table.items()}
            for selection, table in scores.items()
        },
        "differences": {selection: differences(table) for selection, table in scores.items()},
        "results": list(results),
    }


def scores_of(
    results: Mapping[int, Mapping[str, Any]], selection: str, settings: Mapping[str, Any]
) -> dict[str, list[float | None]]:
    """Returns an arm's scores by task, and the mean of the tasks, each a list over seeds; None if undefined."""
    found: dict[str, list[float | None]] = {}
    for task in settings["tasks"]:
        found[task] = [
            next(row["value"] for row in results[seed]["rows"] if (row["selection"], row["task"]) == (selection, task))
            for seed in settings["seeds"]
        ]
    columns = zip(*found.values(), strict=True)
    found[MEAN] = [None if None in column else statistics.fmean(column) for column in columns]
    return found


def differences(scores: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[str, dict[str, Any]]:
    """Returns ``"ARM - FIRST"`` for each arm but the first: the differences of each seed's two scores."""
    first, *others = scores
    return {
        f"{arm} - {first}": {
            task: spread(
                [
                    None if None in (ours, theirs) else ours - theirs
                    for ours, theirs in zip(values, scores[first][task], strict=True)
                ]
            )
            for task, values in scores[arm].items()
        }
        for arm in others
    }


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Returns the values of the seeds, their mean and standard deviation (n - 1); None where one is undefined."""
    known = [value for value in values if value is not None]
    complete = len(known) == len(values)
    return {
        "mean": statistics.fmean(known) if complete else None,
        "std": statistics.stdev(known) if complete and len(known) > 1 else None,
        "values": list(values),
    }


def write(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes ``shared.json``, ``shared.csv`` and ``shared.html``."""
    write_json(folder / "shared.json", summary)
    rows = [row for result in summary["results"] for row in result["rows"]]
    parameters = summary["parameters"]
    write_csv(
        folder / "shared.csv",
        [
            {
                **{name: value for name, value in row.items() if name != "metrics"},
                **{f"{group}_parameters": count for group, count in parameters[row["arm"]].items()},
            }
            for row in rows
        ],
    )
    write_plot(folder / "shared.html", plot(summary))


def plot(summary: Mapping[str, Any]) -> Any:
    """Returns bars of the scores, a group for each task and a bar for each arm, one chart for each selection."""
    from plotly import graph_objects
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(SELECTIONS), cols=1, subplot_titles=[f"{k}: {v}" for k, v in SELECTIONS.items()])
    for row, table in enumerate(summary["scores"].values(), 1):
        for (arm, found), colour in zip(table.items(), qualitative.Plotly, strict=False):
            names = [f"{task}<br>{summary['metrics'].get(task, '')}" for task in found]
            bars = graph_objects.Bar(
                name=f"{arm}: {ARMS[arm]}",
                x=names,
                y=[values["mean"] for values in found.values()],
                error_y={"type": "data", "array": [values["std"] or 0.0 for values in found.values()]},
                marker_color=colour,
                legendgroup=arm,
                showlegend=row == 1,
            )
            figure.add_trace(bars, row=row, col=1)
    figure.update_layout(title={"text": "<br>".join(conditions(summary)), "font": {"size": 12}}, height=900)
    figure.update_layout(margin={"t": 140}, barmode="group")
    return figure


def conditions(summary: Mapping[str, Any]) -> list[str]:
    """Returns in words what was trained and on what it was scored."""
    settings = summary["settings"]
    seeds = settings["seeds"]
    limit = f", at most {settings['train_limit']} training examples a task" if "train_limit" in settings else ""
    over = "std over seeds with n - 1" if len(seeds) > 1 else "one seed, so no std"
    return [
        f"shared Hadamard adapters: {settings['model']}, tasks {' '.join(settings['tasks'])}, "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({' '.join(map(str, seeds))}), validation split, {over}",
        f"{settings['stage1_steps']} steps of heads, then {settings['steps']} of adapters and norms (heads: "
        f"{settings['head']}), {settings['batch_size']} examples of each task a step{limit}",
    ]


def table(summary: Mapping[str, Any], folder: Path) -> str:
    """Returns the summary for a person."""
    arms = summary["parameters"]
    lines = [*conditions(summary), "", "parameters, what tasks share counted once"]
    lines += grid(["", *next(iter(arms.values()))], [[arm, *map("{:,}".format, arms[arm].values())] for arm in arms])
    lines += ["", *(f"{arm}: {ARMS[arm]}" for arm in arms)]
    for selection, words in SELECTIONS.items():
        scores, apart = summary["scores"][selection], summary["differences"][selection]
        header = ["", *next(iter(scores.values()))]
        rows = [[arm, *map(cell, found.values())] for arm, found in scores.items()]
        rows += [[arms, *(cell(each, "+.4f") for each in found.values())] for arms, found in apart.items()]
        lines += ["", f"selected {selection}: {words}", *grid(header, rows)]
    metrics = ", ".join(f"{task} {words}" for task, words in summary["metrics"].items())
    note = "; differences are of the same seeds" if summary["differences"] else ""
    return "\n".join([*lines, "", f"metrics as fractions of 1: {metrics}{note}", f"files: {folder}"])


def cell(values: Mapping[str, Any], form: str = ".4f") -> str:
    """Returns ``0.5312 ± 0.0100``, without the second for one seed; ``-`` if undefined."""
    if values["mean"] is None:
        return "-"
    spread = "" if values["std"] is None else f" ± {values['std']:.4f}"
    return f"{values['mean']:{form}}{spread}"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines with aligned columns, the first to the left."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(
            f"{word:<{width}}" if column == 0 else f"{word:>{width}}"
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]
