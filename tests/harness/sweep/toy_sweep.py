"""Workers of a toy sweep, in processes that tests kill and stop, and what is to come out of it.

The objective is a pure function of the parameters and the sampler is seeded by the slot, so that the result is known
whatever happens to the workers.
"""

from __future__ import annotations

import functools
import multiprocessing
import random
import signal
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from harness.sweep.claims import Claims, filled_trials, open_study
from harness.sweep.storage import open_storage

SLOTS = 12
NAMES = ("x", "y")
STEP_SECONDS = 0.02


def join(text: str) -> Study:
    return open_study(open_storage(text), "toy", ["minimize"], {"task": "toy"}, ["distance"])


def open_claims(study: Study, slots: int = SLOTS, **settings) -> Claims:
    return Claims(study, slots, sampler=lambda slot: RandomSampler(seed=slot), parameters=NAMES, **settings)


def suggest(trial: Trial) -> tuple[float, float]:
    return trial.suggest_float("x", -1.0, 1.0), trial.suggest_float("y", 1e-3, 1.0, log=True)


def distance(x: float, y: float) -> float:
    return (x - 0.3) ** 2 + (y - 0.1) ** 2


@functools.cache
def expected(slot: int) -> tuple[dict[str, float], float]:
    """The parameters and the value of a slot."""
    trial = optuna.create_study(sampler=RandomSampler(seed=slot)).ask()
    suggest(trial)
    return trial.params, distance(**trial.params)


def work(text: str, gate: Path, host: str | None = None) -> None:
    """Works until every slot is filled; the trial of the last slot ends only when the file ``gate`` is there.

    Args:
        host: the name of the machine that this process says to run on, so that others cannot ask for its process.
    """
    if host:
        socket.gethostname = lambda: host
    claims = open_claims(join(text), beat_seconds=0.25, grace_seconds=1.5, most_losses=100)
    while claims.unfinished():
        claim = claims.claim()
        if claim is None:
            time.sleep(0.1)
            continue
        try:
            value = distance(*suggest(claim.trial))
            for step in range(4):
                claim.trial.report(value + 1.0 / (step + 1), step)
                time.sleep(STEP_SECONDS)
            while claim.slot == SLOTS - 1 and not gate.exists():
                time.sleep(STEP_SECONDS)
        except UpdateFinishedTrialError:
            continue
        claim.complete([value], {"seconds": 4 * STEP_SECONDS})
    claims.claim()  # closes spares
    claims.close()


def come_late(text: str, gate: Path, answer: Path) -> None:
    """Claims a trial, ends it when the file ``gate`` is there, and writes into ``answer`` whether it counted."""
    claims = open_claims(join(text), 1, beat_seconds=0.1, grace_seconds=60.0)
    claim = claims.claim()
    suggest(claim.trial)
    while not gate.exists():
        time.sleep(STEP_SECONDS)
    answer.write_text(str(claim.complete([-1.0])))


def serve(text: str, port: int) -> None:
    """Runs Optuna's proxy before a storage."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.storages.run_grpc_proxy_server(open_storage(text), host="127.0.0.1", port=port)


def start(target: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    """Starts a process forked from one that has imported what conftest.py names."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def kill_workers(text: str, gate: Path, kills: int, seed: int, machines: bool = False) -> None:
    """Runs three workers, kills one after the other at random moments and starts a new one at once, and lets them end.

    Args:
        kills: how many at least; it goes on until several hit a worker that had a trial.
        machines: whether each worker says to run on a machine of its own.
    """
    chance, study = random.Random(seed), join(text)

    def worker() -> multiprocessing.process.BaseProcess:
        return start(work, text, gate, f"machine{chance.random()}" if machines else None)

    def trials(state: TrialState) -> list[FrozenTrial]:
        return [trial for trial in study.get_trials(deepcopy=False) if trial.state == state]

    workers, killed = [worker() for _ in range(3)], 0
    while killed < kills or len(trials(TrialState.FAIL)) < kills / 3:
        time.sleep(chance.uniform(0.0, 0.4))
        owners = " ".join(trial.user_attrs.get("owner", "") for trial in trials(TrialState.RUNNING)).split()
        at_work = [index for index, process in enumerate(workers) if f"pid:{process.pid}" in owners]
        # Every other time one that has a trial: it takes a worker longer to start than to do one.
        victim = chance.choice(at_work if at_work and killed % 2 else range(3))
        workers[victim].kill()
        workers[victim].join()
        assert workers[victim].exitcode == -signal.SIGKILL  # it did not end by an error before
        workers[victim] = worker()
        killed += 1
    gate.touch()
    for process in workers:
        process.join(timeout=300)
        assert process.exitcode == 0


def kill_workers_of_proxy(text: str, gate: Path, kills: int, seed: int) -> None:
    """Does the same through Optuna's proxy, and checks what came of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    proxy = f"grpc://127.0.0.1:{port}"
    server = start(serve, text, port)
    kill_workers(proxy, gate, kills, seed)
    check(proxy)
    server.kill()
    server.join()


def check(text: str) -> None:
    """Checks that each slot was filled once, with what an undisturbed worker finds, and that nothing else counts."""
    study = join(text)
    filled = filled_trials(study, SLOTS)
    assert [trial.user_attrs["slot"] for trial in filled] == list(range(SLOTS))
    assert {trial.state for trial in filled} == {TrialState.COMPLETE}
    assert [(trial.params, trial.value) for trial in filled] == [expected(slot) for slot in range(SLOTS)]
    assert study.best_value == min(expected(slot)[1] for slot in range(SLOTS))
    counted = {trial.number for trial in filled}
    others = [trial for trial in study.trials if trial.number not in counted]
    assert {trial.state for trial in others} == {TrialState.FAIL}
    assert not any("failure" in trial.user_attrs for trial in others)
