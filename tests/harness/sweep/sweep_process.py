"""Targets of forked processes: the command where it may be killed with all its workers, or be one of several."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path

from harness.config import to_tree
from harness.errors import run_command
from harness.sweep import supervision, trial
from harness.sweep.__main__ import main


def in_group(argv: list[str], folder: str) -> None:
    """Runs the command in a process group of its own, which its workers belong to."""
    os.setsid()
    supervision.context = lambda: multiprocessing.get_context("fork")  # another fork server would import for seconds
    supervision.LOOK_SECONDS = 0.05
    _run(argv, folder, "")


def together(argv: list[str], folder: str, environment: dict[str, str], rank: str) -> None:
    """Runs the command as one of several processes; writes the configuration of each trial to ``trialsRANK``."""
    os.environ.update(environment)
    train = trial.train

    def noted(config, *arguments):
        with open(Path(folder) / f"trials{rank}", "a") as file:
            file.write(json.dumps(to_tree(config)) + "\n")
        return train(config, *arguments)

    trial.train = noted
    _run(argv, folder, rank)


def _run(argv: list[str], folder: str, rank: str) -> None:
    os.chdir(folder)
    for stream, name in ((1, f"stdout{rank}"), (2, f"stderr{rank}")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.exit(run_command(main, argv))
