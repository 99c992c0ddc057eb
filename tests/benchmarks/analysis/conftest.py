"""A way to run the analyses on small finished runs of the harness."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.analysis.__main__ import main
from harness import run
from harness.errors import run_command


@pytest.fixture
def analyse(in_folder) -> Callable[..., tuple[int, str, str]]:
    """Runs a command of ``benchmarks.analysis``."""
    return in_folder(main)


@pytest.fixture
def command(analyse) -> Callable[..., tuple[int, str, str]]:
    return analyse


@pytest.fixture
def counted(capfd, monkeypatch, tmp_path):
    """Runs the command in the test's folder; returns exit code, stdout, stderr and how often the harness was called."""
    monkeypatch.chdir(tmp_path)
    threads, level = torch.get_num_threads(), logging.getLogger().level
    torch.set_num_threads(1)
    train = run.main

    def go(argv: list[str]) -> tuple[int, str, str, int]:
        calls = []
        with monkeypatch.context() as patch:
            patch.setattr(run, "main", lambda argv: calls.append(argv) or train(argv))
            capfd.readouterr()
            code = run_command(main, argv)
        return code, *capfd.readouterr(), len(calls)

    yield go
    torch.set_num_threads(threads)
    logging.getLogger().setLevel(level)
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_progress_bar()


@pytest.fixture
def read_csv() -> Callable[[Path], list[dict[str, str]]]:
    """Reads a CSV file with a header."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    return read
