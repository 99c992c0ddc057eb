"""What a person sees of a matrix: the plan before it, and lines while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState

from harness.compare.command import Cell, Matrix
from harness.compare.probe import Probe
from harness.compare.work import State
from harness.console import clock
from harness.sweep.conclusion import settings_in_words
from harness.sweep.slots import FAILURE, SLOT
from harness.sweep.storage import without_password
from harness.sweep.words import aligned


def header(matrix: Matrix) -> str:
    """Returns what a matrix is, before anything of it is looked at."""
    command, cells = matrix.command, matrix.cells
    rows, tasks = len(matrix.plan.rows), len(matrix.plan.tasks)
    seeds = cells[0].seeds
    with_seeds = f" with each of {command.trial_seeds} seeds" if command.trial_seeds > 1 else ""
    searched = f"{command.search.replace('-', ' ')} searched by {cells[0].search.sampler}"
    tuned = (
        f"{command.budget} trials each{with_seeds}, {searched}"
        if command.budget
        else "settings as they are, nothing is tuned"
    )
    return "\n".join(
        [
            f"matrix {matrix.plan.name}: {rows} rows x {tasks} tasks x {len(seeds)} seeds "
            f"({' '.join(map(str, seeds))}); {tuned}",
            *([matrix.plan.description] if matrix.plan.description else []),
            *([f"trials of a task are judged by: {rules_in_words(cells)}"] if command.budget else []),
            f"storage: {without_password(cells[0].search.storage)}; files: {matrix.directory}",
        ]
    )


def rules_in_words(cells: Sequence[Cell]) -> str:
    """Returns each task's rule."""
    rules = {cell.task: cell.search.rule.words for cell in cells}
    return "; ".join(f"{task}: {words}" for task, words in rules.items())


def table(matrix: Matrix, states: Mapping[str, State], probes: Mapping[str, Probe]) -> str:
    """Returns the plan with what is there, a row for each row and a column for each task."""
    width = max(len(row.name) for row in matrix.plan.rows)
    header = [" " * width, *matrix.plan.tasks]
    rows = []
    for row in matrix.plan.rows:
        cells = [cell for cell in matrix.cells if cell.row == row]
        there = (_cell(cell, states[cell.name], probes[cell.name]) for cell in cells)
        rows.append([f"{row.name:<{width}}", *there])
    what = "trials + scored runs" if matrix.command.budget else "scored runs"
    return "\n".join([f"{what} that are there, of all:", *aligned(header, rows)])


def _cell(cell: Cell, state: State, probe: Probe) -> str:
    if state.failure or probe.cannot:
        return "-"
    trials = f"{len(state.trials)}/{cell.search.slots} + " if cell.search.slots else ""
    return f"{trials}{len(state.finals)}/{len(cell.seeds)}"


def reasons(cells: Sequence[Cell], states: Mapping[str, State], probes: Mapping[str, Probe]) -> list[str]:
    """Returns why cells cannot be run, and why runs failed."""
    lines = []
    for cell in cells:
        state, probe = states[cell.name], probes[cell.name]
        if probe.cannot:
            lines.append(f"{cell.name} is left out: {probe.cannot}")
        if state.failure:
            lines.append(f"{cell.name} has no runs: {state.failure}")
        lines += [f"{cell.name}: a run failed: {reason}" for reason in state.failures]
    return lines


def unequal(cells: Sequence[Cell], probes: Mapping[str, Probe]) -> list[str]:
    """Returns which tasks have rows that train for different numbers of steps."""
    lines = []
    for task in dict.fromkeys(cell.task for cell in cells):
        steps: dict[int, list[str]] = {}
        for cell in cells:
            count = probes[cell.name].steps  # 0 where a cell needed no trying out, or cannot be run
            if cell.task == task and count:
                steps.setdefault(count, []).append(cell.row.name)
        if len(steps) > 1:
            each = "; ".join(f"{number} of {', '.join(names)}" for number, names in sorted(steps.items()))
            lines.append(f"note: on {task} rows differ in their number of steps: {each}")
    return lines


def estimate(cells: Sequence[Cell], states: Mapping[str, State], probes: Mapping[str, Probe], workers: int) -> float:
    """Returns the seconds that are left on this machine.

    The trials and runs that a cell has tell best how long its others take; before there are any, the steps that were
    timed do, which leaves scoring out.
    """
    total = 0.0
    for cell in cells:
        state = states[cell.name]
        durations = [seconds for each in (*state.trials, *state.finals) if (seconds := seconds_of(each))]
        each = sum(durations) / len(durations) if durations else probes[cell.name].seconds
        total += state.left(cell) * each
    return total / workers


def seconds_of(found: FrozenTrial) -> float:
    """Returns how long a trial or a run took; one of a pack has its share of the passes."""
    if found.state != TrialState.COMPLETE:
        return 0.0
    if "seconds" in found.user_attrs:
        return float(found.user_attrs["seconds"]) + float(found.user_attrs.get("overhead_seconds", 0.0))
    return found.duration.total_seconds() if found.duration else 0.0


def ended(cell: Cell, found: FrozenTrial, final: bool) -> str:
    """Returns how a trial or a run ended."""
    complete = found.state == TrialState.COMPLETE
    how = f"{found.values[0]:.4f}" if complete else found.user_attrs.get(FAILURE, "pruned")
    if final:
        return f"{cell.name}, seed {cell.seeds[found.user_attrs[SLOT]]}: {how}"
    return f"{cell.name}, trial with {settings_in_words(found.params)}: {how}"


def time_left(seconds: float) -> str:
    """Returns an estimate in words."""
    return "" if not seconds else f", about {clock(seconds)} left"
