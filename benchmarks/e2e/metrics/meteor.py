"""METEOR 1.5 (Denkowski and Lavie, 2014) as pycocoevalcap has it: the original program, kept running on a pipe.

It takes lines ``SCORE ||| reference ||| ... ||| hypothesis`` and answers each with the counts of that alignment; one
line ``EVAL ||| counts ||| counts ...`` is answered with one score for each, then with the score of the corpus. Loading
its paraphrase table takes most of the time, so the program is started before there is anything to score.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from benchmarks.e2e.metrics.java import JavaError, java_command

# Room for the paraphrase table from the start, rather than collecting again and again while it loads. One collector
# thread: half the memory of the default collector, and the other core stays free for Python.
_JVM_OPTIONS = ("-Xms1G", "-Xmx2G", "-XX:+UseSerialGC")
_METEOR_OPTIONS = ("-", "-", "-stdio", "-l", "en", "-norm")


class Meteor:
    """A running METEOR process; a context manager that ends it.

    Raises:
        JavaError: if there is no Java.
    """

    def __init__(self) -> None:
        command = [*java_command(), *_JVM_OPTIONS, "-jar", str(_jar()), *_METEOR_OPTIONS]
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 -- closed in __exit__, with the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, encoding="utf-8"
        )

    def __enter__(self) -> Meteor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._messages.close()

    def compute(
        self,
        hypotheses: Sequence[str],
        references: Sequence[Sequence[str]],
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[float, list[float]]:
        """Returns METEOR of the corpus and of each output, between 0 and 1.

        Args:
            hypotheses: the outputs as Penn Treebank tokens with spaces between, see ``ptb.py``.
            references: for each output, its references in the same form.
            progress: called with the number of outputs aligned so far and their total, once an output.

        Raises:
            JavaError: if the process ends early.
        """
        requests = [
            " ||| ".join(["SCORE", *group, hypothesis.replace("|||", "").replace("  ", " ")])
            for hypothesis, group in zip(hypotheses, references, strict=True)
        ]
        # Written from a thread: both pipes would fill if all were written before the first answer is read.
        writer = threading.Thread(target=self._write, args=(requests,), daemon=True)
        writer.start()
        counts = []
        for done in range(1, len(requests) + 1):
            counts.append(self._read())
            if progress:
                progress(done, len(requests))
        writer.join()
        self._write([" ||| ".join(["EVAL", *counts])])
        each = [float(self._read()) for _ in requests]
        return float(self._read()), each

    def _write(self, lines: Sequence[str]) -> None:
        try:
            self._process.stdin.writelines(f"{line}\n" for line in lines)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended: reading its answer says so, with its reason

    def _read(self) -> str:
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            self._process.wait()
            self._messages.seek(0)
            said = self._messages.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise JavaError(f"METEOR ended with code {self._process.returncode} before all was scored: {said[-1]}")
        return line.strip()


def signature(references: str, tokenizer: str) -> str:
    """Says how METEOR was computed; ``references`` describes the references."""
    options = f"lang:en|norm:yes|version:1.5|pycocoevalcap:{version('pycocoevalcap')}"
    return f"meteor|{references}|case:lc|tok:{tokenizer}|{options}"


def _jar() -> Path:
    return Path(find_spec("pycocoevalcap.meteor.meteor").origin).parent / "meteor-1.5.jar"
