"""Opening storages: what they guarantee, and the sentence where one cannot be opened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import DataError, OperationalError

from harness.errors import UserError
from harness.sweep import journal, storage
from harness.sweep.storage import PatientStorage, open_storage

ROOT = Path(__file__).parents[3]


def study_in(text: str) -> optuna.Study:
    return optuna.create_study(study_name="toy", storage=open_storage(text), load_if_exists=True)


@pytest.fixture(params=["sqlite", "journal"])
def text(request, tmp_path):
    return {"sqlite": f"sqlite:///{tmp_path}/new/toy.db", "journal": f"journal:{tmp_path}/new/toy.journal"}[
        request.param
    ]


def test_a_new_folder_is_made_and_what_is_stored_is_found_again(text):
    study = study_in(text)
    study.add_trial(create_trial(value=1.0))
    assert [trial.value for trial in study_in(text).trials] == [1.0]


def test_of_those_who_claim_a_trial_at_once_one_wins(text):
    """Without BEGIN IMMEDIATE two of three win on SQLite in about 4 of 10 trials."""
    opened = open_storage(text)
    study_id = opened.create_new_study([StudyDirection.MINIMIZE], "toy")
    trials = [opened.create_new_trial(study_id, create_trial(state=TrialState.WAITING)) for _ in range(20)]
    start, wins = threading.Barrier(3), []

    def claim_all() -> None:
        mine = open_storage(text)
        for trial in trials:
            start.wait()
            if mine.set_trial_state_values(trial, TrialState.RUNNING):
                wins.append(trial)

    together(claim_all)
    assert sorted(wins) == trials


def test_several_may_create_the_same_storage_at_once(text):
    start, seen = threading.Barrier(3), []

    def create() -> None:
        start.wait()
        seen.append(open_storage(text).get_all_studies())

    together(create)
    assert seen == [[], [], []]


def together(target) -> None:
    threads = [threading.Thread(target=target) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("lock", ["flock", "symlink"])
def test_half_a_line_of_a_killed_writer_does_not_break_a_journal(tmp_path, monkeypatch, lock):
    monkeypatch.setattr(journal, "_knows_flock", lambda path: lock == "flock")
    path = tmp_path / "toy.journal"
    study = study_in(f"journal:{path}")
    study.add_trial(create_trial(value=1.0))
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"op_code":8,"worker_id":"x","user_attr":{"curve":"' + 100_000 * b"1")

    assert len(study_in(f"journal:{path}").trials) == 1
    study.add_trial(create_trial(value=2.0))
    assert path.read_bytes().startswith(whole)
    for reader in (study, study_in(f"journal:{path}")):
        assert [trial.value for trial in reader.trials] == [1.0, 2.0]


def test_optunas_own_lock_does_not_mend_a_journal(tmp_path):
    """Why the lock is ours; if this fails, Optuna has learnt it."""
    backend = JournalFileBackend(str(tmp_path / "toy.journal"))
    optuna.create_study(storage=optuna.storages.JournalStorage(backend))
    with (tmp_path / "toy.journal").open("ab") as file:
        file.write(b'{"op_code":8,')
    for _ in range(2):
        backend.append_logs([{"op_code": 2, "worker_id": "x", "study_id": 0, "user_attr": {"a": 1}}])
    with pytest.raises(ValueError, match="Expecting"):
        optuna.storages.JournalStorage(backend)


def test_the_first_line_of_a_journal_may_be_torn_too(tmp_path):
    path = tmp_path / "toy.journal"
    path.write_bytes(b'{"op_co')
    assert study_in(f"journal:{path}").trials == []


def test_the_lock_of_a_killed_writer_is_free_at_once(tmp_path):
    path = tmp_path / "toy.journal"
    path.touch()
    hold = "import sys, time; from pathlib import Path; from harness.sweep.journal import FlockLock; "
    hold += f"FlockLock(Path({str(path)!r})).acquire(); print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline() == b"held\n"
    lock, acquired = journal.FlockLock(path), threading.Event()
    waiting = threading.Thread(target=lambda: lock.acquire() and acquired.set(), daemon=True)
    waiting.start()
    assert not acquired.wait(0.1)
    os.kill(holder.pid, signal.SIGKILL)
    assert acquired.wait(60)
    lock.release()
    holder.wait()
    holder.stdout.close()


class Flaky(optuna.storages.InMemoryStorage):
    """Raises an error a number of times, each time before it answers."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__()
        self.error, self.times = error, times

    def get_all_studies(self):
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return super().get_all_studies()


def internal(cause: Exception) -> StorageInternalError:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = cause
    return error


@pytest.fixture
def clock(monkeypatch):
    """Replaces time in the storage; returns the pauses made."""
    pauses = []
    monkeypatch.setattr(storage.time, "monotonic", lambda: sum(pauses))
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    return pauses


def gone() -> OperationalError:
    return OperationalError("SELECT 1", {}, Exception("server closed the connection"))


@pytest.mark.parametrize("error", [internal(gone()), gone(), OSError(28, "No space left on device")])
def test_a_storage_that_is_away_is_asked_again(clock, error):
    assert PatientStorage(Flaky(error, 12)).get_all_studies() == []
    assert len(clock) == 12
    assert 30 < sum(clock) < 200
    assert max(clock) <= 10


def test_patience_ends(clock):
    with pytest.raises(OSError, match="No space"):
        PatientStorage(Flaky(OSError(28, "No space left on device"), 10**6), patience=60).get_all_studies()
    assert 60 < sum(clock) < 75


@pytest.mark.parametrize("error", [KeyError("no study"), internal(DataError("INSERT", {}, Exception("too long")))])
def test_what_will_not_change_is_not_asked_again(clock, error):
    with pytest.raises(type(error)):
        PatientStorage(Flaky(error, 1)).get_all_studies()
    assert clock == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "mongodb://here/x",
            "it names no storage that is known here: give sqlite:///PATH, journal:FILE, postgresql://",
        ),
        ("toy.db", "it names no storage that is known here"),
        ("sqlite:///", "it names no file: give sqlite:///PATH"),
        ("sqlite:///:memory:", "it names no file"),
        ("sqlite://toy.db", "it names no file: give sqlite:///PATH, with four slashes before an absolute path"),
        ("sqlite:///text/toy.db", "the folder text cannot be made (File exists): name a file in a folder that you may"),
        ("sqlite:////proc/none/toy.db", "the folder /proc/none cannot be made"),
        ("sqlite:///text", "it cannot be opened (file is not a database): name a file"),
        ("sqlite:///folder", "it cannot be opened (unable to open database file)"),
        ("sqlite:///old.db", "no longer compatible with the table schema"),
        ("journal:", "no file is named: give journal:FILE"),
        ("journal:text", "it is no journal of Optuna: name another file"),
        ("journal:list", "it is no journal of Optuna"),
        ("journal:broken", "it holds lines that are no journal of Optuna"),
        ("journal:folder", "the file cannot be opened (Is a directory)"),
        ("journal:text/toy", "the folder text cannot be made"),
        ("postgresql://me:secret@127.0.0.1:1/toy", "it cannot be opened (connection failed: "),
        ("postgresql://me:se@cret@127.0.0.1:1/toy", "its password holds an @: write it as %40"),
        ("postgresql://127.0.0.1:1/toy?user=me&password=secret", "check that the server runs"),
        ("postgresql://127.0.0.1:port/toy", "it names no storage that is known here"),
        ("oracle://me:secret@here/toy", "the driver of this database cannot be imported (No module named"),
        ("grpc://", "it names no host and port: give grpc://HOST:PORT"),
        ("grpc://here:port", "it names no host and port"),
    ],
)
def test_what_cannot_be_opened_is_a_sentence(tmp_path, text, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("This is no database.\nNor is it a journal\nat all")
    (tmp_path / "list").write_text("[1, 2]\n")
    (tmp_path / "broken").write_text('{"op_code":0,"study_name":"toy"}\nhalf\n{"op_code":0}\n')
    if "old.db" in text:
        open_storage(text)
        with sqlalchemy.create_engine(text).begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    with pytest.raises(UserError) as refused:
        open_storage(text)
    sentence = str(refused.value)
    assert sentence.startswith(f"--storage {text.split(':')[0]}")
    assert says in sentence
    assert "secret" not in sentence
    assert "cret@" not in sentence
    assert "\n" not in sentence
    assert (tmp_path / "text").read_text().endswith("at all")  # a file that is not ours is left as it is


def test_a_proxy_that_does_not_run_is_a_sentence(monkeypatch):
    pytest.importorskip("grpc", reason="grpcio is not installed")
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"no server answers: start Optuna's proxy there"):
        open_storage("grpc://127.0.0.1:1")


@pytest.mark.parametrize(
    ("text", "missing", "says"),
    [
        ("postgresql://127.0.0.1:1/toy", "psycopg", "pip install 'psycopg[binary]'"),
        ("grpc://127.0.0.1:1", "grpc", "pip install grpcio protobuf"),
    ],
)
def test_a_missing_package_is_a_sentence(text, missing, says):
    """In a process of its own, since this one may have imported the package."""
    code = f"import sys; sys.modules[{missing!r}] = None; from harness.sweep.storage import open_storage\n"
    code += f"from harness.errors import run_command; run_command(lambda arguments: open_storage({text!r}), [])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stderr.startswith(f"error: --storage {text}: ")
    assert result.stderr.endswith(f"{says}\n")
    assert "Traceback" not in result.stderr


def test_workers_import_no_more_than_they_need():
    code = "import sys, harness.sweep.claims; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert not {"torch", "transformers", "peft", "grpc", "psycopg"} & set(imported.split())
