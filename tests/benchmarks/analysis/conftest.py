"""Small finished runs of the harness, each made once, and a way to run the analyses on them."""

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

SMALL = (
    *("--train.batch-size", "6", "--train.max-steps", "3", "--train.eval-every", "never", "--score", "last"),
    *("--train.learning-rate", "1e-2"),
)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, ...], Path]]:
    """A folder for runs, and those that are there, by method, task, kind of model and flags."""
    return tmp_path_factory.mktemp("runs"), {}


@pytest.fixture
def trained(run_here, checkpoint, glue_folder, made) -> Callable[..., Path]:
    """Trains a method for three steps on invented texts, if that was not done before; returns the run directory."""
    folder, done = made

    def train(method: str, task: str = "mrpc", *flags: str, kind: str = "bert", labels: tuple[str, ...] = ()) -> Path:
        key = (method, task, kind, *labels, *flags)
        if key not in done:
            path = folder / f"run{len(done)}"
            data = glue_folder(task, train=24, validation=12)
            stage = ("--stage1.epochs", "0.25") if method == "hadamard" else ()
            arguments = ["--method", method, "--task", task, "--model", str(checkpoint(kind, labels))]
            arguments += ["--data.dir", str(data), "--output-dir", str(path), *SMALL, *stage, *flags]
            code, _, err = run_here(arguments)
            assert code == 0, err
            done[key] = path
        return done[key]

    return train


@pytest.fixture
def analyse(run_here, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command of ``benchmarks.analysis``; returns exit code, stdout and stderr."""

    def go(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run_command(main, [str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return go


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
def refused(analyse) -> Callable[..., None]:
    """Checks that a command says one sentence on stderr, with these words in it, and exits with 2."""

    def check(says: str, *arguments: object) -> None:
        code, out, err = analyse(*arguments)
        assert code == 2, err
        assert out == ""
        assert err.count("error: ") == 1
        assert says in err
        assert "Traceback" not in err

    return check


@pytest.fixture
def read_csv() -> Callable[[Path], list[dict[str, str]]]:
    """Reads a CSV file with a header."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    return read
