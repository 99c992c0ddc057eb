"""How a command refuses bad input: one sentence on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from harness.console import is_main_process


class UserError(Exception):
    """What the user gave cannot be used. The message is one sentence: what was found, where, what to do."""


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command's ``main`` and turns :class:`UserError` into its sentence on stderr and exit code 2.

    Args:
        main: takes the arguments without the program's name, returns the exit code.
        argv: the arguments; those of the process if None. ``--debug`` among them keeps the traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return main(arguments)
    except UserError as error:
        if "--debug" in arguments:
            raise
        if is_main_process():
            print(f"error: {error}", file=sys.stderr)
        return 2
