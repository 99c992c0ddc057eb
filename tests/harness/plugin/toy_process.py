"""The target of a forked process: runs the harness there, where it may be killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.errors import run_command
from harness.run import main


def run(argv: list[str], folder: str, fault: str) -> None:
    os.chdir(folder)
    os.environ["TOY_FAULT"] = fault
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.exit(run_command(main, argv))
