"""What `histofed-agent status --live` answers: whether the daemon's loop turned lately."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.layout import Layout
from agent.status import LIVE_S, Status, read_status, turns, write_status
from histofed.base import durable
from histofed.base.clock import FakeClock
from histofed.base.errors import NotFound


def status(process: int) -> Status:
    return Status("0.1.0", "north", "a:1", False, "waits", None, 0, "2030-01-01T00:00:00Z", process)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def written(layout: Layout) -> datetime:
    return datetime.fromtimestamp(layout.status.stat().st_mtime, UTC)


def test_a_loop_that_turned_lately_is_live_also_without_a_connection(layout: Layout) -> None:
    write_status(layout, status(os.getpid()))
    assert turns(layout, FakeClock(written(layout) + timedelta(seconds=LIVE_S - 1)))


def test_a_loop_that_stands_is_not(layout: Layout) -> None:
    write_status(layout, status(os.getpid()))
    assert not turns(layout, FakeClock(written(layout) + timedelta(seconds=LIVE_S + 1)))


def test_a_touch_is_a_sign_of_life(layout: Layout) -> None:
    write_status(layout, status(os.getpid()))
    os.utime(layout.status, (0, 0))
    durable.touch(layout.status)
    assert turns(layout, FakeClock(datetime.now(UTC)))


def test_a_process_that_is_gone_is_not(layout: Layout) -> None:
    write_status(layout, status(2**22 + 1))
    assert not turns(layout, FakeClock(written(layout)))


def test_a_process_that_ended_and_was_not_waited_for_is_not(layout: Layout) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    write_status(layout, status(process.pid))
    assert not turns(layout, FakeClock(written(layout)))
    process.wait()


def test_a_file_that_outlived_its_daemon_is_not_that_of_the_process_with_its_number(layout: Layout) -> None:
    """After a kill and a reboot; in a pod every daemon is process 1. This test's process lives, and is no agent."""
    write_status(layout, replace(status(os.getpid()), connected=True))
    clock = FakeClock(written(layout) + timedelta(days=1))
    seen = read_status(layout, clock)
    assert (seen.running, seen.connected) == (False, False)
    with durable.lock(layout.lock, "histofed-agent of north"):
        seen = read_status(layout, clock)
        assert (seen.running, seen.connected) == (True, True), "whatever the clock says"
        assert not turns(layout, clock), "its loop stands"


def test_where_no_agent_ever_ran_it_is_said(layout: Layout) -> None:
    with pytest.raises(NotFound, match="start histofed-agent run"):
        turns(layout, FakeClock(datetime.now(UTC)))


def test_touch_makes_no_file(layout: Layout) -> None:
    durable.touch(layout.status)
    assert not layout.status.exists()


def test_the_file_of_an_earlier_release_is_read(layout: Layout) -> None:
    write_status(layout, status(os.getpid()))
    document = json.loads(layout.status.read_bytes())
    del document["faults"]
    layout.status.write_text(json.dumps(document))
    assert read_status(layout, FakeClock(written(layout))).status == status(os.getpid())
