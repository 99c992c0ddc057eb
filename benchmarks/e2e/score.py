"""Scores a file of E2E outputs: ``python -m benchmarks.e2e.score HYPOTHESES.txt [--split test | --references FILE]``.

The file has one output a line, for each distinct meaning representation (MR) of the split in its order. The scores, and
how files are read, are those of the official script (tuetschek/e2e-metrics, ``measure_scores.py``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from benchmarks.e2e.data import group_by_meaning_representation, load_split
from benchmarks.e2e.metrics import EXTRA_COLUMNS, METRICS, Scores, score
from harness.errors import UserError, run_command

SPLITS = ("dev", "test")


class _Parser(argparse.ArgumentParser):
    """Refuses in one sentence, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code.

    Raises:
        UserError: what was given cannot be scored.
    """
    arguments = _parser().parse_args(argv)
    split = arguments.split or "test"
    if arguments.references:
        groups = read_references(arguments.references)
        source = str(arguments.references)
        if max(map(len, groups)) == 1:
            source += " (one reference for each hypothesis)"
    else:
        groups = list(group_by_meaning_representation(load_split(split)).values())
        source = f"E2E {split} split"
    hypotheses = read_hypotheses(arguments.hypotheses, expected=len(groups))
    if len(hypotheses) != len(groups):
        raise UserError(
            f"{arguments.hypotheses} has {len(hypotheses)} lines, {source} has {len(groups)} groups of references: "
            "give one hypothesis a line for each group, in that order"
        )
    with tqdm(total=len(groups), desc="METEOR", unit="output", leave=False, disable=None) as bar:
        scores = score(hypotheses, groups, progress=lambda done, total: bar.update(done - bar.n))
    facts = {"source": source, "groups": len(groups), "references": sum(map(len, groups))}
    if arguments.json:
        print(json.dumps(_as_json(scores, arguments.hypotheses, facts)))
    else:
        print(format_table(scores, facts))
    return 0


def read_hypotheses(path: Path, expected: int | None = None) -> list[str]:
    """Reads one hypothesis a line; a blank line is an empty hypothesis.

    Args:
        path: a text file in UTF-8.
        expected: blank lines at the end beyond this number of lines are not hypotheses.

    Raises:
        UserError: if the file cannot be read as text or holds none.
    """
    lines = _read_lines(path)
    while lines and not lines[-1] and (expected is None or len(lines) > expected):
        lines.pop()
    if not any(lines):
        raise UserError(f"{path} holds no text: give one hypothesis a line")
    return lines


def read_references(path: Path) -> list[list[str]]:
    """Reads groups of references, one reference a line, groups separated by blank lines.

    As in the official script, a file of a single group is read as one reference for each hypothesis.

    Raises:
        UserError: if the file cannot be read as text or has no references.
    """
    groups: list[list[str]] = [[]]
    for line in _read_lines(path):
        if line:
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
    groups = [group for group in groups if group]
    if not groups:
        raise UserError(f"{path} has no references: give one a line, groups separated by blank lines")
    return [[line] for line in groups[0]] if len(groups) == 1 else groups


def format_table(scores: Scores, facts: dict[str, str | int]) -> str:
    """Returns the scores as a table: name, value as the official script prints it, signature."""
    rows = [("metric", "score", "signature")]
    for name in METRICS + EXTRA_COLUMNS:
        if name in scores.metrics:
            rows.append((name, f"{scores.metrics[name]:.4f}", scores.signatures[name]))
        elif name in scores.unavailable:
            rows.append((name, "-", f"unavailable: {scores.unavailable[name]}"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    table = [f"{name:<{widths[0]}}  {value:>{widths[1]}}  {note}" for name, value, note in rows]
    table.insert(1, "-" * max(map(len, table[:1])))
    return "\n".join(
        [
            *table,
            "",
            f"References: {facts['source']}, {facts['references']} for {facts['groups']} outputs.",
            "The first five are the official ones (NIST with -p). Papers print BLEU, METEOR and ROUGE-L times 100.",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m benchmarks.e2e.score",
        description="Scores E2E outputs with BLEU, NIST, METEOR, ROUGE-L and CIDEr as the official script does.",
    )
    parser.add_argument(
        "hypotheses",
        type=Path,
        metavar="HYPOTHESES",
        help="text file (UTF-8), one output a line for each distinct MR in the order of the split; a blank line is an "
        "empty output",
    )
    references = parser.add_mutually_exclusive_group()
    references.add_argument("--split", choices=SPLITS, help="score against this split of E2E (default: test)")
    references.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="score against this file: one reference a line, groups separated by a blank line",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout, and nothing else there")
    parser.add_argument("--debug", action="store_true", help="keep tracebacks")
    return parser


def _read_lines(path: Path) -> list[str]:
    """Returns the file's lines stripped, split where the official script splits them (also at U+2028 and the like)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a text file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a text file") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 text (line {line}): save it in that encoding") from None
    return [line.strip() for line in text.splitlines()]


def _as_json(scores: Scores, hypotheses: Path, facts: dict[str, str | int]) -> dict:
    return {
        "hypotheses": str(hypotheses),
        "references": facts,
        "metrics": scores.metrics,
        "unavailable": scores.unavailable,
        "signatures": scores.signatures,
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
