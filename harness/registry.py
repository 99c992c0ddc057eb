"""Finds methods and tasks by the entry-point groups ``hadamard.methods`` and ``hadamard.tasks``."""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from harness.errors import UserError, one_line

Kind = Literal["method", "task"]

IMPORT_ERRORS = (
    ImportError,
    AttributeError,
    SyntaxError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What importing somebody else's package may raise."""


def closest(name: str, known: Iterable[str]) -> str:
    """Returns ``", did you mean X?"`` where a known name is near to ``name``, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def entries(kind: Kind) -> dict[str, importlib.metadata.EntryPoint]:
    """Returns name -> entry point of what is installed, sorted by name.

    Raises:
        UserError: two distributions claim one name.
    """
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for entry in sorted(importlib.metadata.entry_points(group=f"hadamard.{kind}s"), key=lambda entry: entry.name):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise UserError(
                f"the {kind} {entry.name!r} is claimed by {distribution(other)} and by {distribution(entry)}: "
                "uninstall one of them"
            )
    return found


def distribution(entry: importlib.metadata.EntryPoint) -> str:
    """Returns ``NAME VERSION`` of the distribution that an entry point comes from."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed distribution"


def get_entry(kind: Kind, name: str) -> importlib.metadata.EntryPoint:
    """Returns the entry point of a method or task.

    Raises:
        UserError: there is none of that name.
    """
    known = entries(kind)
    if name not in known:
        names = ", ".join(known) or "none is installed"
        raise UserError(f"--{kind} {name}: there is no {kind} of that name{closest(name, known)} (known: {names})")
    return known[name]


def load(kind: Kind, name: str) -> type[Any]:
    """Returns the dataclass of a method or task.

    Raises:
        UserError: there is none of that name, or its package cannot be imported.
    """
    entry = get_entry(kind, name)
    try:
        return entry.load()
    except IMPORT_ERRORS as error:
        raise UserError(
            f"the {kind} {name!r} of {distribution(entry)} cannot be imported from {entry.value}: {one_line(error)}"
        ) from error


def presets(task: type[Any]) -> dict[str, Path]:
    """Returns name -> recipe file of a task's presets: its own, and those that it shares with other tasks."""
    folders = [folder for folder in (getattr(task, "shared_recipes", None), task.recipes) if folder is not None]
    found = {path.stem: path for folder in folders for path in Path(folder).glob("*.toml")}
    return dict(sorted(found.items()))
