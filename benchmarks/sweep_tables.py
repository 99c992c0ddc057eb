"""Tables of committed sweeps: what ``python -m benchmarks.tables`` prints of a folder with their ``sweep.json`` files.

Sweeps that stand in one table had the same budget: as many trials, as many optimiser steps for each, the same examples
and held-out part, the same sampler and pruner. Anything else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import flatten
from harness.errors import UserError

Sweep = Mapping[str, Any]
HELD_OUT = "held_out"
SHARED = ("task", "task_version", "model", "seed", "train.batch_size", "sampler", "sampler_seed", "pruner")
"""What the sweeps of a table have in common, beside data, steps and numbers of trials."""


def is_sweep(path: Path) -> bool:
    """Whether a file is a sweep's, rather than a run's."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and {"study", "rows", "objectives"} <= found.keys()


def budget(found: Sweep) -> dict[str, Any]:
    """Returns what the sweeps of a table have to share."""
    settings = flatten(found["identity"])
    shared = {
        name: value
        for name, value in settings.items()
        if name.startswith(("data.", "task_settings.")) or name in SHARED
    }
    finals = found["finals"]
    return {
        **shared,
        "number of trials": len(found["rows"]),
        "steps of a trial": max(row["steps"] or 0 for row in found["rows"]),
        "seeds of the final runs": None if finals is None else finals["seeds"],
    }


def require_equal(paths: Sequence[Path], sweeps: Sequence[Sweep]) -> None:
    """Refuses sweeps that had another budget than the first one.

    Raises:
        UserError: naming what differs.
    """
    first = budget(sweeps[0])
    for path, found in zip(paths[1:], sweeps[1:], strict=True):
        other = budget(found)
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise UserError(
                    f"{paths[0].name} and {path.name} cannot stand in one table: the {name} is {first.get(name)} in "
                    f"one and {other.get(name)} in the other"
                )


def tables(paths: Sequence[Path]) -> str:
    """Returns the tables of sweeps as Markdown: the best of each, then all trials, then what a parameter changes."""
    sweeps = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    require_equal(paths, sweeps)
    return "\n".join([*_best(sweeps), "", *_trials(sweeps), *_without_influence(sweeps)])


def _best(sweeps: Sequence[Sweep]) -> list[str]:
    objective = sweeps[0]["objectives"][0]["name"]
    header = ["method", "searched", "trials", "steps of a trial", "best settings", f"its {objective}", "scored"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for found in sweeps:
        searched = "; ".join(f"{name} {words}" for name, words in found["identity"]["space"].items() if " " in words)
        by_slot = {row["slot"]: row for row in found["rows"]}
        best = by_slot[found["best"]]
        states = ", ".join(f"{found['trials'][state]} {state}" for state in ("pruned", "diverged", "failed"))
        cells = [
            found["identity"]["method"],
            searched.replace("|", "or"),
            f"{len(found['rows'])} ({states})",
            f"{max(row['steps'] or 0 for row in found['rows']):,}",
            _params(best),
            f"{best['values'][0]:.4f}",
            _scored(found),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _scored(found: Sweep) -> str:
    finals = found["finals"]
    if finals is None:
        return "-"
    metric = found["objectives"][0]["name"].removeprefix("held-out ")
    values = finals["summary"][HELD_OUT]["metrics"][metric]
    spread = "" if values["std"] is None else f" ± {values['std']:.4f}"
    return f"{values['mean']:.4f}{spread}, seeds {' '.join(map(str, finals['seeds']))}"


def _trials(sweeps: Sequence[Sweep]) -> list[str]:
    lines = ["| method | trials, best first: value (settings) |", "|---|---|"]
    for found in sweeps:
        higher = found["objectives"][0]["direction"] == "maximize"
        complete = [row for row in found["rows"] if row["state"] == "complete"]
        complete.sort(key=lambda row: (-row["values"][0] if higher else row["values"][0], row["slot"]))
        told = [f"{row['values'][0]:.4f} ({_params(row)})" for row in complete]
        told += [f"{row['state']} ({_params(row)})" for row in found["rows"] if row["state"] != "complete"]
        lines.append(f"| {found['identity']['method']} | {'; '.join(told)} |")
    return lines


def _params(row: Mapping[str, Any]) -> str:
    told = []
    for name, value in sorted(row["params"].items(), reverse=True):
        shown = f"{value:.3g}" if isinstance(value, float) else value
        told.append(f"{name.removeprefix('train.').removeprefix('method.')} {shown}")
    return ", ".join(told)


def _listed(values: Sequence[Any]) -> str:
    """Returns values in words; of many numbers how many they are, and their ends."""
    shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
    return f"{len(shown)} values from {shown[0]} to {shown[-1]}" if len(shown) > 6 else ", ".join(shown)


def _without_influence(sweeps: Sequence[Sweep]) -> list[str]:
    lines = []
    for found in sweeps:
        for entry in found["without_influence"]:
            if entry["groups"] and entry["training_loss"] is not None:
                metrics = ", ".join(f"held-out {name} by {value:.2g}" for name, value in entry["metrics"].items())
                values = _listed(entry["values"])
                lines.append(
                    f"* {found['identity']['method']}: {entry['trials']} trials that differ in {entry['parameter']} "
                    f"alone ({values}): training loss curves differ by at most {entry['training_loss']:.2g}, {metrics}."
                )
    return ["", *lines] if lines else []
