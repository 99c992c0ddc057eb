"""A way to run the command on small finished runs of the harness."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.attribution.__main__ import main


@pytest.fixture
def attribute(in_folder) -> Callable[..., tuple[int, str, str]]:
    """Runs ``benchmarks.attribution``."""
    return in_folder(main)


@pytest.fixture
def command(attribute) -> Callable[..., tuple[int, str, str]]:
    return attribute
