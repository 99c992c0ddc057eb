"""How a command refuses bad input: one sentence on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from safetensors import SafetensorError

from harness.console import is_main_process


class UserError(Exception):
    """What the user gave cannot be used. The message is one sentence: what was found, where, what to do."""


def one_line(error: BaseException) -> str:
    """Returns an exception's text as one line without a final full stop."""
    return " ".join(str(error).split()).rstrip(".")


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command's ``main``; what the user can mend becomes a sentence on stderr and exit code 2.

    That is a :class:`UserError`, and a file that cannot be read or written, wherever that comes up.

    Args:
        main: takes the arguments without the program's name, returns the exit code.
        argv: the arguments; those of the process if None. ``--debug`` among them keeps the traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has read enough; Python would complain about it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (UserError, OSError, SafetensorError) as error:
        if "--debug" in arguments:
            raise
        if is_main_process():
            advice = "" if isinstance(error, UserError) else ": see to its permissions and to space on the disk"
            print(f"error: {one_line(error)}{advice}", file=sys.stderr)
        return 2
