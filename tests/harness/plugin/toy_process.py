"""The target of a forked process: runs the harness there, where it may be killed or be one of several."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.errors import run_command
from harness.run import main


def run(argv: list[str], folder: str, environment: dict[str, str], rank: str = "") -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for stream, name in ((1, f"stdout{rank}"), (2, f"stderr{rank}")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.exit(run_command(main, argv))
