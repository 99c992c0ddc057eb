"""Penn Treebank tokens as the COCO caption code has them: Stanford's tokeniser, lower case, without punctuation."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

from benchmarks.e2e.metrics import ptb_python
from benchmarks.e2e.metrics.java import JavaError, java_command

_OPTIONS = ("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8")


@dataclass(frozen=True)
class Tokenized:
    """Outputs and the references of each as tokens with spaces between, and the name of what made them."""

    hypotheses: list[str]
    references: list[list[str]]
    tokenizer: str


def tokenize_all(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tokenized:
    """Runs Stanford's tokeniser, or without Java the same rules in Python (``ptb_python.py``).

    Raises:
        JavaError: if the tokeniser fails, or there is no Java and a text is beyond the rules in Python.
    """
    flat = [reference for group in references for reference in group]
    try:
        command = java_command()
    except JavaError as no_java:
        try:
            tokens = [[ptb_python.tokenize(line) for line in lines] for lines in (hypotheses, flat)]
        except ptb_python.UnsureError as unsure:
            raise JavaError(
                f"{no_java} (the tokeniser in Python, used without Java, does not cover {unsure})"
            ) from None
        tokenizer = "ptb-python"
    else:
        tokens = _run_stanford(command, hypotheses, flat)
        tokenizer = "ptb-corenlp-3.4.1"
    remaining = iter(tokens[1])
    return Tokenized(tokens[0], [[next(remaining) for _ in group] for group in references], tokenizer)


def _run_stanford(command: Sequence[str], *texts: Sequence[str]) -> list[list[str]]:
    """Tokenises several lists of lines in one start of Java.

    The tokeniser looks across line ends (does the abbreviation before it end a sentence?), so that a line's tokens can
    depend on the next line. Each list is therefore one file in its order, as in the official script.
    """
    with tempfile.TemporaryDirectory() as directory:
        for number, lines in enumerate(texts):
            Path(directory, f"{number}.txt").write_bytes("\n".join(lines).encode())
        pairs = "".join(f"{number}.txt\t{number}.tokens\n" for number in range(len(texts)))
        Path(directory, "files").write_text(pairs, encoding="ascii")
        jar = Path(find_spec("pycocoevalcap.tokenizer.ptbtokenizer").origin).parent / STANFORD_CORENLP_3_4_1_JAR
        run = subprocess.run(
            [*command, "-XX:+UseSerialGC", "-cp", str(jar), *_OPTIONS, "-ioFileList", "files"],
            cwd=directory,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        outputs = [Path(directory, f"{number}.tokens") for number in range(len(texts))]
        if run.returncode or not all(output.exists() for output in outputs):
            said = run.stderr.strip().splitlines() or ["it said nothing"]
            raise JavaError(f"the Penn Treebank tokeniser ended with code {run.returncode}: {said[-1]}")
        return [_read(output, len(lines)) for output, lines in zip(outputs, texts, strict=True)]


def _read(path: Path, count: int) -> list[str]:
    # Not splitlines: a token may hold a character that Python, unlike the tokeniser, takes for a line end.
    lines = path.read_bytes().decode("utf-8").split("\n")
    if len(lines) < count:
        raise JavaError(f"the Penn Treebank tokeniser gave {len(lines)} lines for {count}")
    return [
        " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATIONS) for line in lines[:count]
    ]
