"""What a person sees while a run goes on: lines and bars on stderr, never on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tqdm import tqdm


def is_main_process() -> bool:
    """Whether this process is the one that speaks, writes and scores, also before torch.distributed is up."""
    return int(os.environ.get("RANK", "0")) == 0


class LineBar:
    """A bar for logs: one plain line at each tenth of the way."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done, self._postfix = 0.0, ""
        self._start = time.monotonic()

    def update(self, n: float = 1) -> None:
        tenths_before = int(10 * self._done / self._total)
        self._done += n
        if int(10 * self._done / self._total) > tenths_before:
            seconds = time.monotonic() - self._start
            left = seconds / self._done * (self._total - self._done)
            postfix = f", {self._postfix}" if self._postfix else ""
            print(
                f"{self._description}: {self._done:.0f}/{self._total} {self._unit}{postfix}, "
                f"{clock(seconds)} gone, {clock(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def set_postfix_str(self, s: str) -> None:
        self._postfix = s


class SilentBar:
    """The bar of a process that does not speak."""

    def update(self, n: float = 1) -> None:
        pass

    def set_postfix_str(self, s: str) -> None:
        pass


@dataclass(frozen=True)
class Console:
    """Implements :class:`harness.protocols.Progress`."""

    speaks: bool

    def say(self, text: str) -> None:
        """Prints a line."""
        if self.speaks:
            tqdm.write(text, file=sys.stderr)  # above an open bar, not through it

    @contextlib.contextmanager
    def bar(self, description: str, total: int, unit: str) -> Iterator[Any]:
        """Opens a bar: of tqdm on a terminal, a line now and then in a log."""
        if not self.speaks or total < 1:
            yield SilentBar()
        elif sys.stderr.isatty():
            with tqdm(desc=description, total=total, unit=f" {unit}", file=sys.stderr, dynamic_ncols=True) as bar:
                yield bar
        else:
            yield LineBar(description, total, unit)


@contextlib.contextmanager
def stdout_for_the_result() -> Iterator[Callable[[str], None]]:
    """Sends all that anybody prints, child processes too, to stderr; gives the one way to the real stdout."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr), os.fdopen(real, "w", encoding="utf-8", closefd=False) as out:

            def write(text: str) -> None:
                out.write(text + "\n")
                out.flush()

            yield write
    finally:
        os.dup2(real, 1)
        os.close(real)


def clock(seconds: float) -> str:
    """Returns ``H:MM:SS``."""
    return str(timedelta(seconds=round(seconds)))
