"""The results of a matrix as files: one for each run that counts, with what was spent to find its settings.

They are written from the storage, so that every machine that works on a matrix has all of them, whoever made the runs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from harness import result_file
from harness.compare.command import Cell
from harness.compare.work import State
from harness.rundir import write_text
from harness.sweep.conclusion import settings_in_words
from harness.sweep.slots import SLOT

PREDICTIONS = ".predictions.jsonl"


def write(cell: Cell, state: State, directory: Path) -> None:
    """Writes ``TASK-ROW-seedN.json`` for each run of a cell.

    Predictions lie beside it as ``TASK-ROW-seedN.predictions.jsonl`` where the run was made on this machine.
    """
    spent = tuning(cell, state)
    for each in state.finals:
        if each.state != TrialState.COMPLETE:
            continue
        found = {**each.user_attrs["result"], **({"tuning": spent} if spent else {})}
        path = directory / f"{cell.file}-seed{found['seed']}.json"
        text = result_file.dumps(found, indent=1) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            directory.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        _copy_predictions(state, each, path)


def _copy_predictions(state: State, found: FrozenTrial, path: Path) -> None:
    assert state.following is not None
    assert state.following.finals is not None
    folder = state.following.finals.run(found.user_attrs[SLOT]).output_dir
    assert folder is not None
    source, target = folder / "predictions.jsonl", path.with_suffix(PREDICTIONS)
    if source.is_file() and not (target.is_file() and target.stat().st_mtime >= source.stat().st_mtime):
        shutil.copy2(source, target)


def tuning(cell: Cell, state: State) -> dict[str, Any] | None:
    """Returns what was spent on a cell's trials, as its results have it; None where there were none."""
    if state.best is None:
        return None
    several = f", mean over seeds {', '.join(map(str, cell.trial_seeds))}" if len(cell.trial_seeds) > 1 else ""
    return {
        "trials": len(state.trials),
        "failed": sum(each.state != TrialState.COMPLETE for each in state.trials),
        "steps": sum(each.user_attrs.get("steps", 0) for each in state.trials),
        "searched": cell.space.describe(),
        "sampler": cell.search.sampler,
        "metric": f"{cell.search.rule.metric}, {cell.search.rule.words}{several}",
        "value": state.best.value,
        "chosen": settings_in_words(state.best.params),
    }
