"""Who works on a trial, and how others learn that it does so no more: by its process, or by a heartbeat that stopped.

A heartbeat is a counter, not a time: each observer measures with its own clock for how long it has not changed, so that
the clocks of different machines are never compared.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from optuna.trial import FrozenTrial

OWNER = "owner"
"""User attribute of a trial: the process that works on it, as :func:`this_process` writes it."""
HEARTBEAT = "heartbeat"
"""System attribute of a trial: the counter."""

_ENDED = ("Z", "X")
"""States of a process that has ended and has not been waited for yet."""


def this_process() -> str:
    """Returns ``host:NAME pid:N``, on Linux also start time (ticks since boot), PID namespace and boot id."""
    words = [f"host:{socket.gethostname()}", f"pid:{os.getpid()}"]
    try:
        _, started = _state_and_start("self")
        namespace = os.readlink("/proc/self/ns/pid").partition(":")[2].strip("[]")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return " ".join(words)
    return " ".join([*words, f"started:{started}", f"namespace:{namespace}", f"boot:{boot}"])


def is_dead(owner: str) -> bool:
    """Whether a process has certainly ended: one that ran on this machine, seen by the same process ids as ours."""
    theirs, ours = _read(owner), _read(this_process())
    if "boot" not in ours or any(theirs.get(word) != ours[word] for word in ("host", "namespace", "boot")):
        return False
    try:
        os.kill(int(theirs["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is there, and another user's
    try:
        state, started = _state_and_start(theirs["pid"])
    except OSError:
        return False  # its state is hidden from us
    return started != theirs["started"] or state in _ENDED


def _read(owner: str) -> dict[str, str]:
    return dict(word.split(":", 1) for word in owner.split() if ":" in word)


def _state_and_start(pid: str) -> tuple[str, str]:
    # The name of the program, in brackets, may hold anything; fields 3 and 22 are state and start.
    fields = Path(f"/proc/{pid}/stat").read_bytes().decode("utf-8", "replace").rpartition(")")[2].split()
    return fields[0], fields[19]


class Watch:
    """Tells which running trials have shown no sign of life for ``grace_seconds``, seen from this process.

    Looks must not be further apart than half the grace period. Where they are, as after this machine or the storage
    stood still, all that was seen before is forgotten: the others may not have had the time to show themselves either.

    Args:
        grace_seconds: how long a heartbeat may stay unchanged.
        clock: seconds that never go back.
    """

    def __init__(self, grace_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace, self._clock = grace_seconds, clock
        self._looked = clock()
        self._seen: dict[int, tuple[object, float]] = {}
        self._lock = threading.Lock()

    def silent(self, running: Iterable[FrozenTrial]) -> set[int]:
        """Takes the running trials of the study and returns the ids of those that show no sign of life."""
        with self._lock:
            now = self._clock()
            known = self._seen if now - self._looked <= self._grace / 2 else {}
            self._looked, self._seen = now, {}
            for trial in running:
                sign = (trial.user_attrs.get(OWNER), trial.system_attrs.get(HEARTBEAT))
                before, since = known.get(trial._trial_id, (None, now))
                self._seen[trial._trial_id] = (sign, since if before == sign else now)
            return {trial_id for trial_id, (_, since) in self._seen.items() if now - since >= self._grace}
