"""Workers in processes of their own that are killed, or stopped and continued, at any moment."""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # workers find the module there, too
    return importlib.import_module("toy_sweep")


@pytest.mark.parametrize(
    ("storage", "kills", "machines"),
    [("sqlite:///{}/toy.db", 15, False), ("journal:{}/toy.journal", 15, False), ("journal:{}/toy.journal", 9, True)],
    ids=["sqlite", "journal", "journal, by heartbeats alone"],
)
def test_every_slot_is_filled_once_whoever_is_killed(toy, tmp_path, storage, kills, machines):
    text = storage.format(tmp_path)
    toy.kill_workers(text, tmp_path / "gate", kills, seed=1, machines=machines)
    toy.check(text)


def test_the_same_through_optunas_proxy(toy, tmp_path):
    pytest.importorskip("grpc", reason="grpcio is not installed")
    toy.kill_workers_of_proxy(f"sqlite:///{tmp_path}/toy.db", tmp_path / "gate", kills=6, seed=4)


def test_a_worker_that_comes_back_too_late_counts_for_nothing(toy, tmp_path):
    journal, gate, answer = tmp_path / "toy.journal", tmp_path / "gate", tmp_path / "answer"
    study = toy.join(f"journal:{journal}")
    late = toy.start(toy.come_late, f"journal:{journal}", gate, answer)
    wait_for(lambda: any(len(trial.params) == 2 for trial in study.trials))

    claims = toy.open_claims(study, 1, beat_seconds=0.1, grace_seconds=2.0)
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        assert claims.claim() is None  # its heart beats
        time.sleep(0.02)
    stop(late.pid, journal)
    claim = wait_for(claims.claim)
    assert toy.suggest(claim.trial) == tuple(toy.expected(0)[0].values())
    os.kill(late.pid, signal.SIGCONT)
    gate.touch()
    wait_for(answer.exists)
    assert claim.complete([1.0])
    late.join()

    assert answer.read_text() == "False"
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert [trial.value for trial in claims.filled()] == [1.0]
    claims.close()


def stop(pid: int, journal: Path) -> None:
    """Stops a process at a moment when it does not hold the lock of the journal, so that others can go on."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        with journal.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)


def wait_for(what: Callable[[], object]) -> object:
    deadline = time.monotonic() + 120.0
    while not (result := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result
