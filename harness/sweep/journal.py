"""Optuna's journal file, made safe against writers that are killed.

Optuna's own lock on a journal is a file beside it. Where the holder is killed the lock stays for 30 s, and where it is
killed in the middle of a write half a line stays in the journal, which no Optuna can read once another line follows.
Here the system itself locks the journal (``flock``) and drops the lock however its holder ends, and each writer first
cuts off half a line that it finds at the end: writers hold the lock, so nobody is writing it any more.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

FIRST_BYTES = b'{"op_code":'
"""What every journal of Optuna starts with."""


class FlockLock:
    """A lock of the system on the journal itself: one holder at a time, and on NFS also over machines.

    It has what Optuna's backend calls, ``acquire`` and ``release``; the class that Optuna derives its own locks from is
    private.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def acquire(self) -> bool:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            cut_torn_line(self._path)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        # A process forked meanwhile shares the descriptor, so closing alone would not free the lock.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


class SymlinkLock(JournalFileSymlinkLock):
    """Optuna's lock, for file systems that know no ``flock``; it outlives a killed holder by 30 s."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def acquire(self) -> bool:
        super().acquire()
        cut_torn_line(self._path)
        return True


def open_journal(path: Path) -> JournalStorage:
    """Opens a journal file, a new one where there is none.

    Raises:
        ValueError: the file is something else, or no Optuna can read it any more.
        OSError: it cannot be read or written.
    """
    path.touch()
    _check(path)
    lock = FlockLock(path) if _knows_flock(path) else SymlinkLock(path)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, LookupError, TypeError, AssertionError) as error:  # whatever reading foreign lines ends in
        raise ValueError("it holds lines that are no journal of Optuna") from error


def cut_torn_line(path: Path) -> None:
    """Cuts the file after its last line end. Whoever calls holds the lock."""
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - 65536)
            file.seek(start)
            line_end = file.read(keep - start).rfind(b"\n")
            if line_end >= 0:
                keep = start + line_end + 1
                break
            keep = start
        if keep < end:
            file.truncate(keep)


def _check(path: Path) -> None:
    """Raises ValueError where a file is no journal: its last line could otherwise be cut off."""
    with open(path, "rb") as file:
        first = file.readline(65536)
    if first.startswith(FIRST_BYTES) or FIRST_BYTES.startswith(first):
        return
    try:
        if "op_code" in json.loads(first):
            return
    except (ValueError, TypeError):
        pass
    raise ValueError("it is no journal of Optuna")


def _knows_flock(path: Path) -> bool:
    with open(path, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True  # somebody holds it
        except OSError:
            return False
    return True
