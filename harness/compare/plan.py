"""A plan: which rows, which tasks and which flags a matrix has, from ``--methods`` and ``--tasks`` or from a file.

A plan file says in TOML what the command line says in words::

    description = "Where to apply HUT"
    flags = "--preset quick --train.epochs 2 --seeds 1..3"

    [tasks]
    mrpc = ""
    cola = "--data.train-limit 1600"

    [rows]
    "query, r 16" = "hut --method.roles query --method.r 16"
    lora = "lora"

    [cells]
    "cola lora" = "--train.epochs 3"

A row is a method with flags of its own; its name stands in tables and folders. Of a flag that is given more than once
the last one holds, in this order: the file's, the task's, the row's, the cell's, the command line's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import registry
from harness.errors import UserError
from harness.recipes import read_toml

KEYS = {"description": str, "flags": str, "tasks": dict, "rows": dict, "cells": dict}


def _as_folder(name: str) -> str:
    return re.sub(r"[^\w.+=]+", "-", name).strip("-")


@dataclass(frozen=True)
class PlannedRow:
    """A method with flags of its own.

    Attributes:
        name: as people see it.
        method: the method's name.
        flags: of this row alone.
    """

    name: str
    method: str
    flags: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name as part of a file's name."""
        return _as_folder(self.name)


@dataclass(frozen=True)
class Plan:
    """What a matrix consists of.

    Attributes:
        name: of the file, or of the preset.
        description: what it is for, in words.
        flags: of all cells.
        tasks: name -> flags of its cells.
        rows: in their order.
        cells: task and row's name -> flags of this cell alone, where it has some.
    """

    name: str
    description: str
    flags: tuple[str, ...]
    tasks: Mapping[str, tuple[str, ...]]
    rows: tuple[PlannedRow, ...]
    cells: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    def flags_of(self, task: str, row: PlannedRow) -> list[str]:
        """Returns a cell's flags, of which the last one holds where one is there twice."""
        return [*self.flags, *self.tasks[task], *row.flags, *self.cells.get((task, row.name), ())]

    def own_flags(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields the flags that not all cells share, each with the name of whose they are."""
        yield from self.tasks.items()
        for row in self.rows:
            yield row.name, row.flags
        for (task, row), flags in self.cells.items():
            yield f"{task} {row}", flags


def of_names(methods: Sequence[str], tasks: Sequence[str], name: str) -> Plan:
    """Returns the plan that ``--methods`` and ``--tasks`` make without a file.

    Raises:
        UserError: there are none, one is there twice, or a name is not known.
    """
    for flag, kind, names in (("--methods", "method", methods), ("--tasks", "task", tasks)):
        if not names:
            known = ", ".join(registry.entries(kind))
            raise UserError(f"{flag} is missing: give names such as {flag} {known}, or --plan FILE")
        _once(flag, names)
    return _known(Plan(name, "", (), dict.fromkeys(tasks, ()), tuple(PlannedRow(each, each) for each in methods)))


def of_file(path: Path, rows: Sequence[str] = (), tasks: Sequence[str] = ()) -> Plan:
    """Reads a plan file.

    Args:
        rows: names of those to keep, as they are or as part of a file's name; all if there are none.
        tasks: the same of tasks.

    Raises:
        UserError: the file cannot be read, or is no plan; a name is not in it.
    """
    if not path.is_file():
        raise UserError(f"--plan {path}: there is no such file")
    tree = read_toml(path)
    for key, value in tree.items():
        if key not in KEYS:
            raise UserError(f"{path}: {key} is no key of a plan (known: {', '.join(KEYS)})")
        if not isinstance(value, KEYS[key]):
            raise UserError(f"{path}: {key} must be {'a table' if KEYS[key] is dict else 'a text'}")
    for key in ("tasks", "rows"):
        if not tree.get(key):
            raise UserError(f"{path}: there is no table [{key}] with something in it, so there is nothing to compare")
    words = {key: _words_of(path, key, tree.get(key, {})) for key in ("tasks", "rows", "cells")}
    for name, found in words["rows"].items():
        if not found or found[0].startswith("-"):
            raise UserError(f'{path}: the row {name!r} must begin with a method\'s name, as in "hut --method.r 8"')
    written = {_as_folder(name): name for name in words["rows"]}
    rows = [name if name in words["rows"] else written.get(name, name) for name in rows]
    for flag, key, chosen in (("--methods", "rows", rows), ("--tasks", "tasks", tasks)):
        _once(flag, chosen)
        names = [_as_folder(name) if set(name) & set(", ") else name for name in words[key]]  # as a flag can give them
        for name in chosen:
            if name not in words[key]:
                near = registry.closest(name, names)
                raise UserError(f"{flag} {name}: {path} has no such name{near} (known: {', '.join(names)})")
    planned = tuple(
        PlannedRow(name, found[0], found[1:]) for name, found in words["rows"].items() if not rows or name in rows
    )
    kept = {name: found for name, found in words["tasks"].items() if not tasks or name in tasks}
    cells = {}
    for name, found in words["cells"].items():
        task, _, row = name.partition(" ")
        if task not in words["tasks"] or row not in words["rows"]:
            example = " ".join(next(iter(words[key])) for key in ("tasks", "rows"))
            raise UserError(f'{path}: [cells] {name!r} must be a task and a row of the file, as in "{example}"')
        cells[task, row] = found
    flags = _split(path, "flags", tree.get("flags", ""))
    plan = Plan(path.stem, tree.get("description", ""), flags, kept, planned, cells)
    for place, found in (("flags", flags), *plan.own_flags()):
        for flag in ("--method", "--task", "--methods", "--tasks", "--plan", "--seed"):
            if flag in found:
                raise UserError(
                    f"{path}: {place}: {flag} cannot be one of a plan's flags: it has rows, tasks and --seeds for that"
                )
    return _known(plan)


def _words_of(path: Path, key: str, table: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, value in table.items():
        if not isinstance(value, str):
            raise UserError(f"{path}: [{key}] {name} must be a text with flags, empty if there are none")
        found[name] = _split(path, f"[{key}] {name}", value)
    return found


def _split(path: Path, place: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"{path}: {place}: {text!r} cannot be split into words: {error}") from error


def _once(flag: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{flag} names {twice[0]} twice: give each name once")


def _known(plan: Plan) -> Plan:
    """Returns the plan; its names are those of methods and tasks, and no two rows have the same folder."""
    for task in plan.tasks:
        registry.get_entry("task", task)
    folders: dict[str, str] = {}
    for row in plan.rows:
        registry.get_entry("method", row.method)
        other = folders.setdefault(row.folder, row.name)
        if other != row.name or not row.folder:
            raise UserError(f"the rows {other!r} and {row.name!r} have no folder names of their own: rename one")
    return plan
