"""Tables of committed results: ``python -m benchmarks.tables FOLDER`` prints them as Markdown.

A folder holds the ``result.json`` files of runs that belong together, under any names, or the ``sweep.json`` files of
sweeps (:mod:`benchmarks.sweep_tables`). Of a method's learning rates the
one is shown whose runs did best on the held-out part; the validation split has no say in it. The second table shows all
that were tried. ``benchmarks/README.md`` holds what this prints, which a test checks.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks import sweep_tables
from harness import result_file
from harness.config import flatten
from harness.errors import UserError, run_command
from harness.report.identity import shared_data

Result = Mapping[str, Any]
HELD_OUT, PUBLISHED = "held_out", "published"


@dataclass(frozen=True)
class Settings:
    """Prints the results in a folder as Markdown tables."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder with the result.json files of runs, under any names that end in .json."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        task: the task's name.
        method: the method's name, with the settings in which its runs on this task differ.
        rate: the learning rate.
        runs: the results, by seed.
    """

    task: str
    method: str
    rate: float
    runs: tuple[Result, ...]

    def held_out(self, seed: int) -> float | None:
        """Returns the measurement on the held-out part that selected the parameters of a seed's run."""
        found = [run["evaluations"][HELD_OUT]["selection"]["value"] for run in self.runs if run["seed"] == seed]
        return found[0] if found else None

    def held_out_loss(self, seed: int) -> float:
        """Returns the lowest loss on the held-out part in a seed's run; infinite if none was measured."""
        (run,) = (run for run in self.runs if run["seed"] == seed)
        losses = [entry.get(HELD_OUT, {}).get("loss") for entry in run["train"].get("measurements", ())]
        return min((loss for loss in losses if loss is not None), default=math.inf)

    @property
    def seeds(self) -> list[int]:
        return [run["seed"] for run in self.runs]


def what_was_measured(run: Result) -> dict[str, Any]:
    """Returns what the runs of a task have to share, whatever the method, to stand in one table."""
    return {
        "version of the task": run["task"]["version"],
        "base model's sha256": run["model"]["sha256"],
        "start": run["init_from"],
        "data": shared_data(run),
        "number of steps": sum(stage.get("steps", 0) for stage in run.get("stages", [run["train"]])),
        "batch size": run["train"]["batch_size"],
    }


def settings_of(run: Result) -> dict[str, Any]:
    """Returns what the runs of a method and learning rate have to share besides."""
    return {name: value for name, value in run["config"].items() if name not in ("seed", "output_dir", "description")}


def require_equal(paths: Sequence[Path], described: Sequence[Mapping[str, Any]]) -> None:
    """Refuses runs that differ in what was described, naming it and two of the files."""
    for path, other in zip(paths, described, strict=True):
        for name in other.keys() | described[0].keys():
            if other.get(name) != described[0].get(name):
                raise UserError(f"{paths[0].name} and {path.name} do not belong in one table: their {name} differs")


def read_groups(folder: Path) -> list[Group]:
    """Returns the runs of a folder, grouped.

    Raises:
        UserError: there are none, one is damaged, or runs of one task or group differ in more than they may.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"{folder} holds no results: give a folder with the result.json files of runs")
    runs = {path: result_file.read(path) for path in paths}
    labels = method_labels(runs)
    by_task: dict[str, list[Path]] = {}
    groups: dict[tuple[str, str, float], list[Path]] = {}
    for path, run in runs.items():
        if not {HELD_OUT, PUBLISHED} <= run["evaluations"].keys():
            raise UserError(
                f"{path} has not both columns, held_out and published: run it with --score held_out published"
            )
        key = (run["task"]["name"], labels[path], run["config"]["train"]["learning_rate"])
        by_task.setdefault(key[0], []).append(path)
        groups.setdefault(key, []).append(path)
    for members in by_task.values():
        require_equal(members, [what_was_measured(runs[path]) for path in members])
    for members in groups.values():
        require_equal(members, [settings_of(runs[path]) for path in members])
        seeds = [runs[path]["seed"] for path in members]
        if len(set(seeds)) < len(seeds):
            raise UserError(
                f"{', '.join(path.name for path in members)}: two of them are of one seed, so one is a copy"
            )
    return [
        Group(*key, tuple(sorted((runs[path] for path in members), key=lambda run: run["seed"])))
        for key, members in sorted(groups.items())
    ]


def method_labels(runs: Mapping[Path, Result]) -> dict[Path, str]:
    """Returns the method of each run, with those of its settings that not all its runs on the same task have."""
    settings = {
        path: flatten({**run["config"].get("method_settings", {}), **run["config"].get("stages", {})})
        for path, run in runs.items()
    }
    labels = {}
    for path, run in runs.items():
        alike = [
            settings[other]
            for other, its in runs.items()
            if (its["task"]["name"], its["method"]["name"]) == (run["task"]["name"], run["method"]["name"])
        ]
        own = settings[path]
        differ = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        labels[path] = ", ".join([run["method"]["name"], *(f"{key} {in_words(own[key])}" for key in differ)])
    return labels


def in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def chosen(groups: Sequence[Group]) -> Group:
    """Returns the group with the best mean on the held-out part over the seeds that all have.

    Of equals, as where no rate learned enough to tell, it is the one with the lower loss there; then the lower rate.
    """
    shared = sorted(set.intersection(*(set(group.seeds) for group in groups)))
    if not shared:
        raise UserError(f"the learning rates of {groups[0].method} on {groups[0].task} have no seed in common")

    def quality(group: Group) -> tuple[float, float, float]:
        values = [group.held_out(seed) for seed in shared]
        mean = statistics.fmean(-1.0 if value is None else value for value in values)
        return mean, -statistics.fmean(group.held_out_loss(seed) for seed in shared), -group.rate

    return max(groups, key=quality)


def main_table(groups: Sequence[Group]) -> list[str]:
    """Returns a row for each task and method: both columns, and what stands behind them."""
    lines = [
        "| task | method | learning rate | adapter + norm | head | metric | held-out | as published "
        "| lowest held-out loss | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task, method in dict.fromkeys((group.task, group.method) for group in groups):
        group = chosen([other for other in groups if (other.task, other.method) == (task, method)])
        counts = group.runs[0]["parameters"]
        metrics = [name for name in group.runs[0]["evaluations"][HELD_OUT]["metrics"] if not name.startswith("loss")]
        cells = [
            task,
            method,
            f"{group.rate:g}",
            f"{counts['adapter'] + counts['norm']:,}",
            f"{counts['head']:,}",
            ", ".join(metrics),
            *(
                ", ".join(
                    spread([run["evaluations"][which]["metrics"].get(name) for run in group.runs]) for name in metrics
                )
                for which in (HELD_OUT, PUBLISHED)
            ),
            spread([loss if math.isfinite(loss) else None for loss in map(group.held_out_loss, group.seeds)]),
            f"{len(group.runs)} ({' '.join(map(str, group.seeds))})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def spread(values: Sequence[float | None]) -> str:
    """Returns ``mean ± standard deviation``; a metric that was not computed in some run has none."""
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return "not computed"
    if len(present) == 1:
        return f"{present[0]:.4f}"
    return f"{statistics.fmean(present):.4f} ± {statistics.stdev(present):.4f}"


def search_table(groups: Sequence[Group]) -> list[str]:
    """Returns a row for each method of which several learning rates were tried: their values on the held-out part."""
    lines = ["| task | method | seed | value on the held-out part at each learning rate |", "|---|---|---|---|"]
    for task, method in dict.fromkeys((group.task, group.method) for group in groups):
        tried = [group for group in groups if (group.task, group.method) == (task, method)]
        if len(tried) < 2:
            continue
        best = chosen(tried)
        for seed in sorted(set.intersection(*(set(group.seeds) for group in tried))):
            cells = []
            for group in tried:
                value = group.held_out(seed)
                mark = "**" if group is best else ""
                cells.append(f"{mark}{group.rate:g}: {'none' if value is None else format(value, '.4f')}{mark}")
            lines.append(f"| {task} | {method} | {seed} | {', '.join(cells)} |")
    return lines


def tables(folder: Path) -> str:
    """Returns a folder's tables as Markdown: of runs, or of sweeps.

    Raises:
        UserError: the folder holds neither, or what does not belong together.
    """
    paths = sorted(folder.glob("*.json"))
    if paths and sweep_tables.is_sweep(paths[0]):
        return sweep_tables.tables(paths)
    groups = read_groups(folder)
    searched = search_table(groups)
    return "\n".join([*main_table(groups), *(["", *searched] if len(searched) > 2 else [])])


def main(argv: Sequence[str]) -> int:
    settings = tyro.cli(Settings, args=argv, prog="python -m benchmarks.tables")
    print(tables(settings.folder))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
