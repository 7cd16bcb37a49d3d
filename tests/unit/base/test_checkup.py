"""What both doctors look at on the machine itself."""

from __future__ import annotations

import os
import socket
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from histofed.base import checkup, durable
from histofed.base.doctor import Doubt
from histofed.base.errors import AlreadyThere, BadData, CannotWriteState, ConfigError, NotEnrolled, NotFound, NotOurs
from tests.support.users import as_nobody, needs_root, open_tmp_path

tmp_path = open_tmp_path

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return durable.make_directory(tmp_path / "state")


def test_a_state_directory_that_is_well(state: Path) -> None:
    found = checkup.state_directory(state, 1, "init")
    assert isinstance(found, str)
    assert found.startswith(f"{state}, ")


def test_a_state_directory_that_is_not_there_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled, match="run histofed-agent enroll first"):
        checkup.state_directory(tmp_path / "none", 1, "histofed-agent enroll")


def test_a_state_directory_that_is_open_to_others_is_a_doubt(state: Path) -> None:
    state.chmod(0o750)
    found = checkup.state_directory(state, 1, "init")
    assert isinstance(found, Doubt)
    assert "mode 0750" in found.words


@pytest.mark.parametrize(("mode", "holds"), [(0o1777, "nothing"), (0o755, "passwd")])
def test_nobody_is_told_to_close_a_folder_that_is_not_the_daemons(state: Path, mode: int, holds: str) -> None:
    if holds != "nothing":
        (state / holds).touch()
    state.chmod(mode)
    found = checkup.state_directory(state, 1, "init")
    assert isinstance(found, Doubt)
    assert found.words == f"{state} (mode {mode:04o}) is not the daemon's alone: name a folder of its own as state_dir"


def test_a_daemons_folder_that_is_open_is_to_be_closed(state: Path) -> None:
    durable.make_directory(state / "identity")
    state.chmod(0o755)
    found = checkup.state_directory(state, 1, "init")
    assert isinstance(found, Doubt)
    assert found.words.endswith("chmod 700")


def test_a_full_disk_is_told(state: Path) -> None:
    with pytest.raises(CannotWriteState, match="free, less than"):
        checkup.state_directory(state, 2**60, "init")


@needs_root
def test_a_state_directory_of_somebody_else_is_told(state: Path) -> None:
    with (
        as_nobody(),
        pytest.raises(NotOurs, match=f"{state} belongs to root.*`runuser -u root --`"),
    ):
        checkup.state_directory(state, 1, "init")


def test_the_daemon_is_seen_without_touching_its_lock(state: Path) -> None:
    lock = state / "lock"
    assert checkup.holder(lock) is None
    assert checkup.running(lock, "start it") == Doubt("it does not run: start it")
    with durable.lock(lock, "test"):
        assert checkup.holder(lock) == os.getpid()
        assert checkup.running(lock, "start it") == f"it runs, process {os.getpid()}"
    assert checkup.holder(lock) is None


def test_ports_that_are_taken_are_named(state: Path) -> None:
    lock = state / "lock"
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(AlreadyThere, match=rf"health {taken} \(Address already in use\)"):
            checkup.ports({"grpc": "127.0.0.1:0", "health": taken}, lock)
        with durable.lock(lock, "test"):
            assert checkup.ports({"health": taken}, lock) == f"held by the daemon, process {os.getpid()}"
    assert checkup.ports({"health": taken}, lock) == taken


def test_a_clock_that_was_set_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "kernel_keeps_time", lambda: True)
    assert checkup.clock(NOW, NOW + timedelta(seconds=59)) == "2026-01-01T00:00:00 UTC"
    assert checkup.clock(NOW, None) == "2026-01-01T00:00:00 UTC"
    with pytest.raises(ConfigError, match="newest record is of 2026-01-01T02:00:00"):
        checkup.clock(NOW, NOW + timedelta(hours=2))
    monkeypatch.setattr(checkup, "kernel_keeps_time", lambda: False)
    assert isinstance(checkup.clock(NOW, None), Doubt)


def test_the_kernel_is_asked_about_its_clock() -> None:
    assert checkup.kernel_keeps_time() in {True, False, None}


# --- databases --------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(state: Path) -> Path:
    path = state / "state.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        "PRAGMA journal_mode = WAL; CREATE TABLE a (id INTEGER PRIMARY KEY, words TEXT);"
        "CREATE TABLE b (a INTEGER REFERENCES a (id));"
    )
    connection.executemany("INSERT INTO a (words) VALUES (?)", [("w" * 500,)] * 200)
    connection.commit()
    connection.close()
    return path


def test_a_sound_database_is_read_and_left_as_it_is(database: Path) -> None:
    before = {path.name: path.read_bytes() for path in database.parent.iterdir()}
    with checkup.opened(database) as connection:
        assert connection.execute("SELECT count(*) FROM a").fetchone() == (200,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM a")
    assert {path.name: path.read_bytes() for path in database.parent.iterdir()} == before


def test_what_a_running_daemon_has_just_written_is_seen(database: Path) -> None:
    daemon = sqlite3.connect(database)
    daemon.execute("INSERT INTO a (words) VALUES ('new')")
    daemon.commit()
    with checkup.opened(database) as connection:
        assert connection.execute("SELECT count(*) FROM a").fetchone() == (201,)
    daemon.close()


def test_damaged_pages_are_told(database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 4096)
    with pytest.raises(BadData, match="restore a backup"), checkup.opened(database):
        pass


def test_a_row_that_names_nothing_is_told(database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute("INSERT INTO b VALUES (999)")
    connection.commit()
    connection.close()
    with pytest.raises(BadData, match="rows that are not there"), checkup.opened(database):
        pass


def test_what_is_no_database_is_told(state: Path) -> None:
    (state / "state.db").write_bytes(b"not a database, " * 500)
    with pytest.raises(BadData, match="cannot be read"), checkup.opened(state / "state.db"):
        pass
    with pytest.raises(NotFound, match="restore a backup"), checkup.opened(state / "none.db"):
        pass
