"""The rules by which workers share a sweep: whatever happens, each slot is filled by one trial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from harness.errors import UserError
from harness.sweep import claims as claims_module
from harness.sweep import owners
from harness.sweep.claims import Claims, filled_trials, find_study, open_study
from harness.sweep.owners import Watch, is_dead, this_process
from harness.sweep.storage import PatientStorage, open_storage

IDENTITY = {"method": "hut", "train": {"steps": 100, "rates": [0.1, 0.2]}}
GRACE = 100.0


@pytest.fixture(autouse=True)
def no_more_threads(monkeypatch):
    """Heartbeats are sent by hand here."""
    monkeypatch.setattr(Claims, "_start_beating", lambda self: None)


@pytest.fixture
def processes(monkeypatch):
    """The living processes by name; the first is the one that is running."""
    alive = ["first"]
    monkeypatch.setattr(claims_module, "this_process", lambda: alive[-1])
    monkeypatch.setattr(claims_module, "is_dead", lambda owner: owner != "" and owner not in alive)
    return alive


@pytest.fixture
def study():
    return join(InMemoryStorage())


def join(storage, **changes):
    arguments = {"name": "toy", "directions": ["minimize"], "identity": IDENTITY, "objectives": ["distance"]} | changes
    return open_study(storage, **arguments)


def share(study, slots=2, **settings) -> Claims:
    settings = {"parameters": ("x", "y"), "sampler": lambda slot: RandomSampler(seed=slot)} | settings
    claims = Claims(study, slots, **settings)
    claims._watch = Watch(GRACE, clock=Ticks())
    return claims


class Ticks:
    """A clock that goes on by less than half the grace period with each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.4 * GRACE
        return self.now


def train(claim) -> float:
    x, y = claim.trial.suggest_float("x", 0.0, 1.0), claim.trial.suggest_int("y", 1, 8)
    claim.trial.report(x, step=1)
    claim.beat()
    return x + y


def outcome(claims, slot):
    trial = claims.filled()[slot]
    return trial.params, trial.value, trial.state, trial.user_attrs.get("seconds")


def finish(claims, patience=20):
    """Works until every slot is filled; asks in vain ``patience`` times at most."""
    while claims.unfinished():
        claim = claims.claim()
        if claim:
            assert claim.complete([train(claim)], {"seconds": 1.0})
        else:
            patience -= 1
            assert patience
    claims.claim()  # closes spares


def undisturbed(slots=2):
    claims = share(join(InMemoryStorage()), slots)
    finish(claims)
    return [outcome(claims, slot) for slot in range(slots)]


def test_a_worker_fills_the_slots_in_order_each_with_its_own_sampler(study):
    claims = share(study, 3)
    assert claims.unfinished() == 3
    held = [claims.claim() for _ in range(3)]  # several at once, as packs hold them
    assert [claim.slot for claim in held] == [0, 1, 2]
    assert claims.claim() is None
    for claim in reversed(held):
        assert claim.complete([train(claim)], {"seconds": 1.0})
    assert claims.unfinished() == 0
    assert [outcome(claims, slot) for slot in range(3)] == undisturbed(3)
    assert [trial.user_attrs["slot"] for trial in filled_trials(study)] == [0, 1, 2]
    assert [trial.user_attrs["slot"] for trial in filled_trials(study, 2)] == [0, 1]
    assert study.trials[0].user_attrs["owner"] == this_process()


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


class Mortal(PatientStorage):
    """A storage whose process is killed at a call that writes, before or after the storage has done it."""

    def __init__(self, storage, fatal: int, done: bool) -> None:
        super().__init__(storage)
        self.fatal, self.done, self.writes = fatal, done, 0

    def call(self, name, *args, **kwargs):
        if name.startswith("get"):
            return super().call(name, *args, **kwargs)
        self.writes += 1
        if self.writes > self.fatal or (self.writes == self.fatal and not self.done):
            raise Killed
        answer = super().call(name, *args, **kwargs)
        if self.writes == self.fatal:
            raise Killed
        return answer


def test_a_worker_may_be_killed_at_any_write(processes, monkeypatch):
    """Before and after each call that writes, the creation of the study included; another then does the rest."""
    monkeypatch.setattr("harness.sweep.studies.CREATOR_SECONDS", 0.0)
    expected, fatal, survived = undisturbed(), 0, False
    while not survived:
        fatal += 1
        for done in (False, True):
            survived = False
            storage, processes[:] = InMemoryStorage(), ["first"]
            try:
                finish(share(join(Mortal(storage, fatal, done))))
                survived = True
            except Killed:
                pass
            processes[:] = ["second"]
            claims = share(join(storage))
            finish(claims)
            assert [outcome(claims, slot) for slot in (0, 1)] == expected, fatal
            states = [trial.state for trial in claims._study.trials]
            assert states.count(TrialState.COMPLETE) == 2
            assert len(states) - states.count(TrialState.FAIL) == 2
    assert fatal > 20


@pytest.mark.parametrize("end", ["fail", "prune"])
def test_a_trial_whose_worker_is_killed_while_it_tells_of_a_failure_is_filled_or_made_again(processes, end):
    for fatal in range(1, 13):
        storage, processes[:] = InMemoryStorage(), ["first"]
        study = join(storage)
        claims = share(study, 1)
        claims._storage = Mortal(storage, fatal, done=True)
        try:
            claim = claims.claim()
            train(claim)
            getattr(claim, end)("it diverged", {"seconds": 2.0})
        except Killed:
            pass
        processes[:] = ["second"]
        second = share(study, 1)
        told = "failure" in study.trials[0].user_attrs
        if not told:
            finish(second)
        assert second.claim() is None
        (trial,) = second.filled()
        assert trial.user_attrs.get("failure") == ("it diverged" if told else None)
        assert second.unfinished() == 0
    assert told


class Forgetful(PatientStorage):
    """A storage that did what it was told, and broke down before it could say so."""

    def __init__(self, storage, at: int) -> None:
        super().__init__(storage)
        self.at, self.writes = at, 0
        inner = storage

        class Answers:
            def __getattr__(answers, name):
                return lambda *args, **kwargs: self.answer(name, getattr(inner, name), args, kwargs)

        self.storage = Answers()

    def answer(self, name, method, args, kwargs):
        answer = method(*args, **kwargs)
        if not name.startswith("get"):
            self.writes += 1
            if self.writes == self.at:
                raise OSError(5, "the answer is lost")
        return answer


def test_answers_that_a_restarting_server_lost_do_no_harm(processes, monkeypatch):
    """What is tried again was done before: trials are created twice and ends find themselves recorded."""
    monkeypatch.setattr("harness.sweep.storage.time.sleep", lambda seconds: None)
    monkeypatch.setattr("harness.sweep.studies.CREATOR_SECONDS", 0.0)
    expected, at, survived = undisturbed(), 0, False
    while not survived:
        at += 1
        storage = Forgetful(InMemoryStorage(), at)
        claims = share(join(storage))
        finish(claims)
        survived = storage.writes < at
        assert [outcome(claims, slot) for slot in (0, 1)] == expected, at
        states = [trial.state for trial in claims._study.trials]
        assert states.count(TrialState.COMPLETE) == 2
        assert len(states) - states.count(TrialState.FAIL) == 2
    assert at > 20


@pytest.mark.parametrize("lost", ["before it was sampled", "half sampled", "sampled"])
def test_a_lost_trial_is_made_again_with_its_parameters(study, processes, lost):
    claim = share(study, 1).claim()
    if lost == "half sampled":
        claim.trial.suggest_int("y", 1, 8)
    if lost == "sampled":
        train(claim)
    processes[:] = ["second"]
    claims = share(study, 1, sampler=lambda slot: RandomSampler(seed=slot if lost != "sampled" else 99))
    finish(claims)
    assert outcome(claims, 0) == undisturbed(1)[0]
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert "failure" not in study.trials[0].user_attrs


def test_fixed_parameters_are_taken_from_the_first_attempt_on(study, processes):
    grid = {"fixed": lambda slot: {"x": 0.25, "y": slot + 1}}
    first = share(study, 2, **grid).claim()
    assert first.trial.suggest_float("x", 0.0, 1.0) == 0.25
    processes[:] = ["second"]
    claims = share(study, 2, **grid)
    finish(claims)
    assert [trial.params for trial in claims.filled()] == [{"x": 0.25, "y": 1}, {"x": 0.25, "y": 2}]


def test_a_claim_that_was_lost_counts_for_nothing(study, processes):
    """A process that stood still while others went on."""
    late = share(study, 1).claim()
    train(late)
    processes[:] = ["second"]
    claims = share(study, 1)
    finish(claims)
    assert not late.lost
    late.beat()
    assert late.lost
    with pytest.raises(UpdateFinishedTrialError):
        late.trial.report(0.5, step=2)
    assert late.complete([0.0], {"seconds": 9.0}) is late.prune() is late.fail("too late") is False
    assert [outcome(claims, 0)] == undisturbed(1)


def test_a_claim_that_was_lost_learns_it_at_its_end(study, processes):
    late = share(study, 1).claim()
    processes[:] = ["second"]
    finish(share(study, 1))
    assert late.fail("too late") is False
    assert late.lost
    assert [trial.value for trial in filled_trials(study)] == [undisturbed(1)[0][1]]


def test_a_heartbeat_at_the_moment_when_the_trial_ends_is_no_loss():
    class Slow(InMemoryStorage):
        def set_trial_state_values(self, trial_id, state, values=None):
            done = super().set_trial_state_values(trial_id, state, values)
            if state.is_finished():
                claim.beat()  # from the thread that beats, before the one that trains goes on
            return done

    claim = share(join(Slow()), 1).claim()
    assert claim.complete([1.0])
    assert not claim.lost


def test_a_silent_worker_on_another_machine_is_lost_and_a_living_one_is_not(study, processes):
    processes[:] = ["second", "first"]
    first = share(study, 1)
    held = first.claim()
    processes[:] = ["first", "second"]
    second = share(study, 1)
    for _ in range(9):
        held.beat()
        assert second.claim() is None
    assert [bool(second.claim()) for _ in range(4)] == [False, False, True, False]
    held.beat()
    assert held.lost


def test_the_watch_forgets_what_it_saw_before_a_gap():
    """Everything may have stood still, as in a group of processes that was stopped and goes on."""
    now = [0.0]
    watch = Watch(GRACE, clock=lambda: now[0])
    running = [optuna.trial.FrozenTrial(0, TrialState.RUNNING, None, None, None, {}, {}, {}, {}, {}, trial_id=7)]

    def look(seconds):
        now[0] = seconds
        return watch.silent(running)

    assert [look(seconds) for seconds in (1, 40, 80)] == [set(), set(), set()]
    assert look(131) == set()  # nobody looked for 51 s
    assert [look(seconds) for seconds in (170, 210, 230)] == [set(), set(), set()]
    assert look(231) == {7}


def test_spares_wait_and_are_closed_at_the_end(study, processes):
    """Two workers may find a slot without a trial at the same moment, and both create one."""
    for slot in (0, 0, 1, 0):
        study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"slot": slot}))
    first = share(study).claim()
    assert (first.slot, first.trial.number) == (0, 0)
    train(first)
    processes[:] = ["first", "second"]
    second = share(study, sampler=lambda slot: RandomSampler(seed=99))
    assert second.claim().complete([1.0])
    assert second.claim() is None  # trial 1 waits, but is not needed as long as trial 0 is alive
    processes[:] = ["second"]
    spare = second.claim()
    assert (spare.slot, spare.trial.number) == (0, 1)
    assert spare.complete([train(spare)], {"seconds": 1.0})
    assert outcome(second, 0) == undisturbed(1)[0]
    assert second.claim() is None
    last = study.trials[3]
    assert (last.state, last.user_attrs["spare"], "failure" in last.user_attrs) == (TrialState.FAIL, True, False)


def test_what_a_successor_says_of_a_lost_trial_holds(study):
    """On PostgreSQL the reason of a failure may be written after others found the trial lost."""
    states = {"state": TrialState.FAIL, "user_attrs": {"slot": 0, "failure": "written late"}}
    study.add_trial(create_trial(**states))
    assert share(study, 1).unfinished() == 0
    study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"slot": 0}, system_attrs={"replaces": [0]}))
    claims = share(study, 1)
    assert claims.unfinished() == 1
    finish(claims)
    assert [trial.number for trial in claims.filled()] == [1]


def test_a_slot_whose_process_always_dies_is_given_up(study, processes):
    for death in range(3):
        processes[:] = [f"worker {death}"]
        assert share(study, 1, most_losses=3).claim()
    processes[:] = ["last"]
    claims = share(study, 1, most_losses=3)
    assert claims.claim() is None
    assert claims.unfinished() == 0
    assert [trial.user_attrs["failure"] for trial in claims.filled()] == ["its process died 3 times"]


def test_a_clean_stop_gives_claims_back_at_once_and_is_no_death(study):
    for _ in range(3):
        claims = share(study, 2, most_losses=1)
        held = [claims.claim(), claims.claim()]
        train(held[0])
        claims.release()
        assert held[0].complete([0.0]) is False
    claims = share(study, 2, most_losses=1)
    finish(claims)
    assert [outcome(claims, slot) for slot in (0, 1)] == undisturbed()


def test_a_sweep_can_be_made_longer(study):
    finish(share(study, 1))
    claims = share(study, 3)
    assert claims.unfinished() == 2
    finish(claims)
    assert [outcome(claims, slot) for slot in range(3)] == undisturbed(3)


def test_trials_that_fail_diverge_or_are_pruned_fill_their_slots(study):
    claims = share(study, 4)
    failed, diverged, pruned, complete = (claims.claim() for _ in range(4))
    for claim in (failed, diverged, pruned, complete):
        train(claim)
    diverged.trial.report(float("nan"), step=2)
    assert failed.fail("out of memory", {"steps": 3})
    assert diverged.prune("the loss is not finite")
    assert pruned.prune()
    assert complete.complete([1.0])
    assert claims.claim() is None
    states = [(trial.state.name, trial.user_attrs.get("failure"), trial.value is None) for trial in claims.filled()]
    assert states == [
        ("FAIL", "out of memory", True),
        ("PRUNED", "the loss is not finite", True),
        ("PRUNED", None, False),
        ("COMPLETE", None, False),
    ]
    assert claims.filled()[0].user_attrs["steps"] == 3


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [float("nan")]])
def test_values_that_are_none_are_refused(study, values):
    claim = share(study, 1).claim()
    with pytest.raises(ValueError, match="are not the values of 1 objectives"):
        claim.complete(values)
    assert claim.complete([1.0])


def test_lost_trials_do_not_compete_with_those_that_replace_them(processes):
    """Successive halving would rank a trial against its own lost attempts."""
    study = join(InMemoryStorage())
    study.pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    for death in range(3):
        processes[:] = [f"worker {death}"]
        claim = share(study, 1).claim()
        claim.trial.report(0.0, step=1)
        assert not claim.trial.should_prune()
    processes[:] = ["last"]
    claim = share(study, 1).claim()
    claim.trial.report(1.0, step=1)
    assert not claim.trial.should_prune()


def test_heartbeats_must_fit_into_the_grace_period(study):
    with pytest.raises(ValueError, match="less than four times"):
        share(study, beat_seconds=15.0, grace_seconds=45.0)


def test_a_process_is_dead_when_it_has_ended_or_its_number_is_another_ones():
    assert not is_dead(this_process())
    assert is_dead(this_process().replace("started:", "started:1"))
    code = "from harness.sweep.owners import this_process; print(this_process(), flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    owner = child.stdout.readline().strip()
    assert not is_dead(owner)
    elsewhere = [owner.replace(f"{word}:", f"{word}:x") for word in ("host", "boot", "namespace")]
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(owner)  # ended, though nobody has waited for it yet
    child.communicate()
    assert is_dead(owner)
    assert not any(is_dead(other) for other in elsewhere)
    assert not is_dead("")


def test_without_proc_nobody_is_known_to_be_dead(monkeypatch):
    owner = this_process().replace("started:", "started:1")
    monkeypatch.setattr(owners, "_state_and_start", lambda pid: (_ for _ in ()).throw(FileNotFoundError()))
    assert this_process().split(" ")[1] == f"pid:{os.getpid()}"
    assert not is_dead(owner)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"identity": {"method": "lora", "train": {"steps": 9}}},
            'method is "hut" in the study and "lora" in this sweep',
        ),
        ({"identity": {"method": "hut", "train": {"steps": 9}}}, "train.steps is 100 in the study and 9 in this sweep"),
        (
            {"identity": {"method": "hut", "train": {"steps": 100}}},
            "train.rates is [0.1, 0.2] in the study and not",
        ),
        ({"identity": {**IDENTITY, "task": "cola"}}, 'task is not set in the study and "cola" in this sweep'),
        ({"objectives": ["accuracy"]}, 'objectives is ["distance"] in the study and ["accuracy"]'),
        ({"directions": ["maximize"]}, 'directions is ["minimize"] in the study and ["maximize"]'),
    ],
)
def test_another_sweeps_study_is_refused(tmp_path, changes, says):
    storage = open_storage(f"journal:{tmp_path}/toy.journal")
    join(storage)
    assert join(storage, identity={"method": "hut", "train": {"steps": 100, "rates": (0.1, 0.2)}})
    with pytest.raises(UserError) as refused:
        join(storage, **changes)
    assert str(refused.value).startswith("--study toy: ")
    assert says in str(refused.value)
    assert "another name by --study" in str(refused.value)


def test_a_study_whose_creator_was_killed_gets_its_identity_from_the_next(monkeypatch):
    monkeypatch.setattr("harness.sweep.studies.CREATOR_SECONDS", 0.0)
    storage = InMemoryStorage()
    optuna.create_study(study_name="toy", storage=storage)
    join(storage)
    assert join(storage).user_attrs == {"identity": IDENTITY, "objectives": ["distance"]}


def test_a_study_that_no_sweep_made_is_refused():
    storage = InMemoryStorage()
    optuna.create_study(study_name="toy", storage=storage).add_trial(create_trial(value=1.0))
    with pytest.raises(UserError, match="--study toy: the storage has a study of this name that no sweep made"):
        join(storage)


def test_a_study_is_found_by_its_name():
    storage = InMemoryStorage()
    with pytest.raises(UserError, match="the storage holds no study toy: no study has been started there"):
        find_study(storage, "toy")
    join(storage)
    join(storage, name="other")
    assert find_study(storage, "toy").user_attrs["identity"] == IDENTITY
    with pytest.raises(UserError, match=r"holds no study tory, did you mean toy\?: the studies there are toy, other"):
        find_study(storage, "tory")
