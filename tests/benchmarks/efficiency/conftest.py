"""A tiny model's configuration, and a way to run the commands of this folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import transformers

from harness.errors import run_command

CONFIG = {
    "model_type": "roberta",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 12,
}


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Arguments for a model of one layer and a batch of a few tokens."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    sizes = ("--layers", "1", "--batch-size", "4", "--length", "8", "--turns", "2", "--device", "cpu")
    return ["--model-config", str(path), *sizes]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs a command's ``main`` in this process, with one thread; returns exit code, stdout and stderr."""
    threads, level = torch.get_num_threads(), logging.getLogger().level
    torch.set_num_threads(1)

    def run(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(main, argv)
        return code, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)
    logging.getLogger().setLevel(level)
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_progress_bar()
