"""The run directory: what lies in it, and how files get there whole or not at all.

``config.toml`` is there from the first moment and marks the directory as a run of ours; ``checkpoint/``, and
``checkpoint-STAGE/`` of a method's earlier stages, while the run goes on; ``adapter/``, ``predictions.jsonl`` and, last
of all, ``result.json`` when they are done. Every file is written beside its place and renamed into it, so that a
process killed at any moment leaves the old one or the new one. While a process is at work here it holds a lock on the
directory, which the system releases however the process ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w

from harness.config import RunConfig, flag_of, flatten, to_tree
from harness.errors import UserError, one_line
from harness.recipes import read_toml

MARK = "hadamard-bench run"


def read_config(directory: Path) -> dict[str, Any]:
    """Returns the configuration tree that a run directory holds.

    Raises:
        UserError: the directory is missing, empty, or not a run directory.
    """
    if not directory.is_dir():
        raise UserError(f"there is no run directory {directory}: leave out --resume to start a run there")
    path = directory / "config.toml"
    if not path.is_file():
        state = "is not a run directory: it has no config.toml" if any(directory.iterdir()) else "is empty"
        raise UserError(f"{directory} {state}; leave out --resume and choose another --output-dir to start a run")
    tree = read_toml(path)
    if tree.pop("format", None) != MARK or not {"method", "task"} <= tree.keys():
        raise UserError(f"{path} was not written by harness.run: choose another --output-dir")
    return tree


def same_configuration(config: RunConfig, directory: Path) -> None:
    """Checks that a run directory was made by this very configuration.

    Raises:
        UserError: naming the first field that differs, with both values, or the directory's fault.
    """
    stored, now = flatten(read_config(directory)), flatten(to_tree(config))
    for key in sorted(stored.keys() | now.keys(), key=lambda key: (key not in ("method", "task"), key)):
        if key in ("output_dir", "description"):  # the directory may have been moved, and words change no number
            continue
        before, after = stored.get(key, "None"), now.get(key, "None")
        if before != after:
            raise UserError(
                f"--resume: {directory} was started with {flag_of(key)} {before} and this command has {after}: "
                "give the same settings, or another --output-dir"
            )


@dataclass
class RunDirectory:
    """The paths of one run, and the ways to fill them; a context manager that ends the lock.

    Attributes:
        begun: whether the directory holds this run, rather than nothing or another one.
    """

    path: Path
    begun: bool = False
    _lock: int | None = field(default=None, repr=False)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    def stage_checkpoint(self, stage: str) -> Path:
        """The checkpoint of a stage before the last one."""
        return self.path / f"checkpoint-{stage}"

    def check_free(self, overwrite: bool) -> None:
        """Refuses to start where something is that must not be lost.

        Raises:
            UserError: the directory holds something, and is no run or may not be overwritten.
        """
        if not str(self.path).isprintable():
            raise UserError(f"--output-dir {str(self.path)!r} has characters that cannot be printed: choose another")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output-dir {self.path} is a file: choose a directory")
        if not self.path.exists() or not self._entries():
            return
        if not self.config.is_file() or read_toml(self.config).get("format") != MARK:
            raise UserError(
                f"--output-dir {self.path} holds files and is not a run directory of ours, so it is left alone: "
                "choose another"
            )
        if not overwrite:
            raise UserError(
                f"the run directory {self.path} exists: --resume goes on with it, --overwrite deletes it, "
                "--output-dir chooses another"
            )

    def _entries(self) -> list[Path]:
        """What is there, a configuration aside that was being written when its process was killed."""
        return [entry for entry in self.path.iterdir() if entry.name != ".config.toml.new"]

    def lock(self) -> None:
        """Keeps other processes out until this context ends.

        Raises:
            UserError: another process is at work here.
        """
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is at work in the run directory {self.path}: wait for its end, or choose another "
                "--output-dir"
            ) from None
        except OSError:
            pass  # a file system without locks

    def create(self, config: RunConfig, overwrite: bool) -> None:
        """Makes the directory with its ``config.toml``, in place of a run that was there.

        Raises:
            UserError: the file system does not let us, or another process has been here since ``check_free``.
        """
        text = "# Written by harness.run: the complete configuration of this run.\n"
        text += tomli_w.dumps({"format": MARK, **to_tree(config)})
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock()
            self.check_free(overwrite)
            # The old config.toml stays until the new one takes its place: without it, the rest would be no run of ours.
            for entry in self._entries():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry != self.config:
                    entry.unlink()
            write_text(self.config, text)
        except OSError as error:
            raise UserError(f"--output-dir {self.path} cannot be written: {one_line(error)}") from error
        self.begun = True

    def write_folder(self, name: str, fill: Callable[[Path], None]) -> Path:
        """Returns the folder ``name`` after ``fill`` has written into it, in place of an earlier one."""
        folder, fresh, old = self.path / name, self.path / f".{name}.new", self.path / f".{name}.old"
        for leftover in (fresh, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        fresh.mkdir()
        fill(fresh)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        if old.exists():
            shutil.rmtree(old)
        return folder

    def write_lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes one JSON object a line."""
        write_text(self.path / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
