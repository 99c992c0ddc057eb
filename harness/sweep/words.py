"""A sweep's summary in words: what was tuned, a table of its trials, why some failed, and what follows.

Everything here takes what :func:`harness.sweep.show.summary` returns, and gives text for a terminal and a page alike.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from harness.config import flatten
from harness.console import clock

WIDTH = 120
SHOWN_VALUES = 8
SHOWN_SETTINGS = (
    *("preset", "model", "seed", "data.train_limit", "data.eval_limit", "task.held_out", "stage1.epochs"),
    *("train.epochs", "train.max_steps", "train.batch_size", "train.schedule", "sampler", "pruner"),
)
"""What a person is told of the settings that all trials share; a study's attributes hold all of them."""
STATES = ("complete", "pruned", "diverged", "failed")
ASIDE = {
    "running": "still going on",
    "lost_attempts": "attempts that were lost with their process, and do not count",
    "spare_attempts": "attempts at what another one had finished, which do not count",
}


def wrapped(lines: Iterable[str]) -> list[str]:
    """Returns sentences as lines for a terminal."""
    return [
        part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    ]


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table as lines for a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]


def conditions(summary: Mapping[str, Any]) -> list[str]:
    """Returns what was tuned, on what, by how many trials and at what cost, as sentences."""
    identity, trials, budget = summary["identity"], summary["trials"], summary["budget"]
    objectives = summary["objectives"]
    searched = {name: _range_in_words(entry) for name, entry in summary["space"].items()} or identity.get("space", {})
    fixed = _fixed(identity, searched)
    states = ", ".join(f"{trials[state]} {state}" for state in STATES)
    aside = [f"; {words}: {trials[name]}" for name, words in ASIDE.items() if trials[name]]
    overhead = f", and {clock(budget['overhead_seconds'])} of overhead" if budget["overhead_seconds"] else ""
    shared = "; the time of a pass that trials share is divided among them" if _is_packed(summary) else ""
    held_out = "; held out are training examples set apart, never validation or test"
    return [
        f"sweep {summary['study']}: {identity.get('method', '?')} on {identity.get('task', '?')}",
        "objective: "
        + ", ".join(f"{entry['name']} ({entry['direction']})" for entry in objectives)
        + (held_out if any(re.match("held-out", entry["name"]) for entry in objectives) else ""),
        *(["searched: " + "; ".join(f"{name} {found}" for name, found in searched.items())] if searched else []),
        *(["all trials: " + ", ".join(f"{name} {value}" for name, value in fixed.items())] if fixed else []),
        f"trials: {trials['filled']} ({states})" + "".join(aside),
        f"budget: {budget['steps']:,} optimiser steps, {clock(budget['seconds'])} of training and evaluation (h:mm:ss)"
        + overhead
        + shared,
    ]


def _is_packed(summary: Mapping[str, Any]) -> bool:
    return any((row["pack"] or 1) > 1 for row in summary["rows"])


def _fixed(identity: Mapping[str, Any], searched: Collection[str]) -> dict[str, Any]:
    """Returns main settings that are the same for all trials under the names that a space gives them."""
    named = {
        re.sub(r"^(method|task)_settings\.|^stages\.", _section, name): value
        for name, value in flatten(identity).items()
    }
    return {name: named[name] for name in SHOWN_SETTINGS if name in named and name not in searched}


def _section(prefix: re.Match[str]) -> str:
    return f"{prefix[1]}." if prefix[1] else ""


def _range_in_words(entry: Mapping[str, Any]) -> str:
    ends = [_param(value, entry) for value in _ends(entry)]
    if is_fixed(entry):
        return ends[0]
    return "one of " + ", ".join(ends) if "choices" in entry else " to ".join(ends) + (" (log)" if entry["log"] else "")


def _ends(entry: Mapping[str, Any]) -> list[Any]:
    return entry["choices"] if "choices" in entry else [entry["low"], entry["high"]]


def is_fixed(entry: Mapping[str, Any]) -> bool:
    """Whether a parameter of a summary's space has but one value."""
    return len(set(map(repr, _ends(entry)))) == 1


def columns(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a table of all trials, best first in the first objective.

    Trials that are not complete follow; the last value that one reported, with its step, is in parentheses.
    """
    names, rows = [objective["name"] for objective in summary["objectives"]], summary["rows"]
    searched = {name: entry for name, entry in summary["space"].items() if not is_fixed(entry)}
    writers = value_writers(summary)
    renumbered = any(row["number"] != row["slot"] for row in rows)

    def cells(row: Mapping[str, Any]) -> list[str]:
        values = row["values"] or [None] * len(names)
        found = [write(value) for write, value in zip(writers, values, strict=True)]
        if row["last_reported"] and not row["values"]:
            step, value = row["last_reported"]
            found[0] = f"({writers[0](value)} at {step})"
        return [
            str(row["slot"]),
            *([str(row["number"])] if renumbered else []),
            row["state"],
            *found,
            *(_param(row["params"].get(name), entry) for name, entry in searched.items()),
            *(_count(row[name]) for name in ("steps", "trained_parameters")),
            "-" if row["seconds"] is None else f"{row['seconds']:,.1f}",
            *([_count(row["pack"])] if _is_packed(summary) else []),
        ]

    header = ["trial", *(["in Optuna"] if renumbered else []), "state", *names, *searched]
    header += ["steps", "trained", "seconds", *(["pack"] if _is_packed(summary) else [])]
    return header, [cells(row) for row in ranked(summary)]


def ranked(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the rows of a summary: complete ones by their first objective, then the others by state and slot."""
    sign = -1 if summary["objectives"][0]["direction"] == "maximize" else 1

    def place(row: Mapping[str, Any]) -> tuple[float, ...]:
        value = row["values"][0] if row["values"] else None
        return (STATES.index(row["state"]), math.inf if value is None else sign * value, row["slot"])

    return sorted(summary["rows"], key=place)


def value_writers(summary: Mapping[str, Any]) -> list[Callable[[float | None], str]]:
    """Returns how to write the values of each objective, so that those of one objective look alike."""
    values = [row["values"] for row in summary["rows"] if row["values"]]
    columns = zip(*values, strict=True) if values else [()] * len(summary["objectives"])
    return [_writer([value for value in column if value is not None]) for column in columns]


def _writer(known: Sequence[float]) -> Callable[[float | None], str]:
    largest = max(map(abs, known), default=1.0)
    counts = largest > 1 and all(value == int(value) for value in known)
    form = ",.0f" if counts else ".2e" if 0 < largest < 1e-2 else ".4f"
    return lambda value: "-" if value is None else format(value, form)


def _param(value: Any, entry: Mapping[str, Any]) -> str:
    if isinstance(value, float):
        small = any(isinstance(end, float) and 0 < abs(end) < 1e-2 for end in _ends(entry))
        return format(value, ".2e" if small else ".4g")
    return "-" if value is None else str(value)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def failures(summary: Mapping[str, Any]) -> list[str]:
    """Returns the reasons for which trials failed or diverged, with the trials that each applies to."""
    slots: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in summary["rows"]:
        if row["failure"]:
            slots[row["state"], row["failure"]].append(row["slot"])
    return [f"{state}: {_trials_in_words(found)}: {reason}" for (state, reason), found in slots.items()]


def _trials_in_words(slots: Sequence[int]) -> str:
    return f"trial{'s' if len(slots) > 1 else ''} {', '.join(map(str, slots))}"


def conclusions(summary: Mapping[str, Any]) -> list[str]:
    """Returns importance, what trials that differ in one parameter alone show, and the best, as sentences."""
    return [
        *map(_importance_in_words, summary["importance"]),
        *_influence_in_words(summary),
        *_best_in_words(summary),
    ]


def _importance_in_words(entry: Mapping[str, Any]) -> str:
    if entry["shares"] is None:
        return f"importance for {entry['objective']}: none, since {entry['reason']}"
    shares = ", ".join(f"{name} {share:.2f}" for name, share in entry["shares"].items())
    return (
        f"importance for {entry['objective']}: {shares} (fANOVA over {entry['trials']} complete trials, "
        "normalised to a sum of 1)"
    )


def _influence_in_words(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for entry in summary["without_influence"]:
        if not entry["groups"]:
            continue
        values = [_param(value, summary["space"][entry["parameter"]]) for value in entry["values"]]
        shown = values if len(values) <= SHOWN_VALUES else [*values[:2], "...", values[-1]]
        groups = f" in {entry['groups']} groups" if entry["groups"] > 1 else ""
        lines.append(
            f"trials that differ in {entry['parameter']} alone ({', '.join(shown)}): {entry['trials']} trials{groups}, "
            + _differences_in_words(entry)
        )
    rest = [entry["parameter"] for entry in summary["without_influence"] if not entry["groups"]]
    return [*lines, *([f"no two complete trials differ in one of these alone: {', '.join(rest)}"] if rest else [])]


def _differences_in_words(entry: Mapping[str, Any]) -> str:
    found = {f"held-out {name}": f"{value:.2g}" for name, value in entry["metrics"].items()}
    if entry["training_loss"] is not None:
        found = {"training loss curves": f"{entry['training_loss']:.2g}", **found}
    if not found:
        return "without a measurement at the same step"
    (first, most), *others = found.items()
    verb = "differs" if entry["training_loss"] is None else "differ"
    return ", ".join([f"{first} {verb} by at most {most}", *(f"{name} by {value}" for name, value in others)])


def _best_in_words(summary: Mapping[str, Any]) -> list[str]:
    by_slot = {row["slot"]: row for row in summary["rows"]}
    if summary["pareto_front"]:
        complete = summary["trials"]["complete"]
        front = [_trial_in_words(summary, by_slot[slot]) for slot in summary["pareto_front"]]
        return [f"Pareto front: {len(front)} of {complete} complete trials, which no other dominates", *front]
    if summary["best"] is None:
        return ["best: none, since no trial is complete"]
    return [f"best: {_trial_in_words(summary, by_slot[summary['best']])}"]


def _trial_in_words(summary: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    writers = value_writers(summary)
    pairs = zip(summary["objectives"], writers, row["values"], strict=True)
    values = ", ".join(f"{objective['name']} {write(value)}" for objective, write, value in pairs)
    params = ", ".join(f"{name} {_param(value, summary['space'][name])}" for name, value in row["params"].items())
    return f"trial {row['slot']}: {values}" + (f"; {params}" if params else "")
