from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.demolib import daemons
from scripts.demolib.daemons import Daemon, DemoError, stop_all

OBEDIENT = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


def wait_ready(daemon: Daemon) -> None:
    deadline = time.monotonic() + 20
    while "ready" not in daemon.tail():
        daemon.require()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Daemon]]:
    made: list[Daemon] = []
    yield made
    for daemon in made:
        daemon.wait_stopped(0.0)


def make(folder: Path, started: list[Daemon], code: str) -> Daemon:
    daemon = Daemon("test", folder, (sys.executable, "-c", code))
    started.append(daemon)
    daemon.start()
    return daemon


def test_a_daemon_is_started_once_and_stopped(tmp_path: Path, started: list[Daemon]) -> None:
    daemon = make(tmp_path, started, OBEDIENT)
    wait_ready(daemon)
    pid = (tmp_path / "pid").read_text(encoding="ascii")

    daemon.start()
    assert (tmp_path / "pid").read_text(encoding="ascii") == pid
    assert stop_all([daemon]) == []
    assert not daemon.running()
    assert not (tmp_path / "pid").exists()


def test_a_daemon_that_does_not_listen_is_killed_and_named(
    tmp_path: Path, started: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "STOP_SECONDS", 0.3)
    daemon = make(tmp_path, started, STUBBORN)
    wait_ready(daemon)

    assert stop_all([daemon]) == ["test"]
    assert not daemon.running()


def test_why_a_daemon_ended_is_told_from_its_log(tmp_path: Path, started: list[Daemon]) -> None:
    daemon = make(tmp_path, started, "import sys; sys.exit('no identity here')")
    deadline = time.monotonic() + 20
    while daemon.running():
        assert time.monotonic() < deadline
        time.sleep(0.02)

    with pytest.raises(DemoError, match="no identity here"):
        daemon.require()


def test_a_stranger_with_the_same_number_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen((sys.executable, "-c", OBEDIENT), stdout=subprocess.PIPE)
    try:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        (tmp_path / "pid").write_text(f"{stranger.pid} 1\n", encoding="ascii")
        daemon = Daemon("test", tmp_path, ("true",))

        assert not daemon.running()
        assert stop_all([daemon]) == []
        assert stranger.poll() is None
    finally:
        stranger.send_signal(signal.SIGKILL)
        stranger.communicate()


def test_settings_of_the_surroundings_do_not_reach_a_daemon(
    tmp_path: Path, started: list[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOFED_STATE_DIR", "/elsewhere")
    code = (
        "import os, time; print([k for k in os.environ if k.startswith('HISTOFED_')], 'ready', flush=True); time.sleep(60)"
    )

    daemon = make(tmp_path, started, code)
    wait_ready(daemon)

    assert daemon.tail() == "[] ready"
