"""The process that a person starts: it keeps workers at work, tells how far the sweep is, and trains nothing itself.

Workers are forked from a process that has imported everything and done nothing, so that one starts in a moment and
whatever memory it took is given back. They end when this process is gone, however it went.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from safetensors import SafetensorError

from harness.errors import UserError

PRELOADED = ["harness.sweep.finals", "optuna.storages._rdb.models", "alembic.command"]
"""What workers find imported: Optuna imports its database only when one is opened."""
LOOK_SECONDS = 2.0
MOST_DEATHS = 5
"""Workers that die one after another before the sweep is given up: it is no single trial that kills them."""

Process = multiprocessing.process.BaseProcess


def context() -> Any:
    """Returns the way processes are started; the first call starts importing what they need."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    # Ctrl-C reaches all processes of a terminal: the one that a person started ends the others, which leave it alone.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)
    return found


def start(target: Callable[..., None], *arguments: Any) -> Process:
    """Starts a process that ends with this one."""
    process = context().Process(target=_in_worker, args=(target, *arguments), daemon=True)
    process.start()
    return process


def _in_worker(target: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    target(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def answer(target: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what ``target`` returns in a process of its own, whose memory is given back.

    Raises:
        UserError: it raised that, or the process died.
        OSError, SafetensorError: it raised that.
    """
    here, there = context().Pipe(duplex=False)
    process = start(_send, there, target, *arguments)
    there.close()
    try:
        found = here.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"the process that tries the settings died (exit code {process.exitcode}): --debug shows more, and too "
            "little memory is one reason"
        ) from None
    process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _send(connection: Connection, target: Callable[..., Any], *arguments: Any) -> None:
    try:
        found = target(*arguments)
    except (UserError, OSError, SafetensorError) as error:  # what a command tells in a sentence
        found = error
    connection.send(found)


def keep_busy(
    start_worker: Callable[[int], Process], workers: int, waiting: Callable[[], int], unfinished: Callable[[], int]
) -> Iterator[None]:
    """Keeps workers at work until nothing is unfinished; gives control back every moment, to tell of it.

    Args:
        start_worker: starts the one with a number, from 0 on.
        workers: how many there are at the same time.
        waiting: how many trials nobody works on.
        unfinished: how many trials are not finished.

    Raises:
        UserError: workers die one after another.
    """
    places: dict[int, Process] = {}
    deaths, left = 0, unfinished()
    try:
        while left:
            for number, process in list(places.items()):
                if process.exitcode is not None:
                    process.join()
                    del places[number]
                    deaths = deaths + 1 if process.exitcode else 0
            if deaths >= MOST_DEATHS:
                raise UserError(
                    f"{deaths} workers died one after another without finishing a trial: the machine's memory may not "
                    "suffice for --workers or --pack; --debug shows more"
                )
            # Those that have just been started have not claimed theirs yet, so that some may find nothing, and end.
            for number in range(min(workers, len(places) + waiting())):
                if number not in places:
                    places[number] = start_worker(number)
            yield
            wait([process.sentinel for process in places.values()], timeout=LOOK_SECONDS)
            time.sleep(min(0.1, LOOK_SECONDS))  # workers that find nothing to do end at once
            before, left = left, unfinished()
            deaths = 0 if left < before else deaths
    finally:
        for process in places.values():
            process.terminate()
        for process in places.values():
            process.join()
