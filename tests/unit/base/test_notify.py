"""What the service manager hears, on a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from histofed.base.clock import FakeClock
from histofed.base.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


def notifier(manager: socket.socket, **environ: str) -> Notifier:
    return Notifier.from_environment({"NOTIFY_SOCKET": manager.getsockname(), **environ}, FakeClock())


def test_each_message_is_one_datagram(manager: socket.socket) -> None:
    speaking = notifier(manager)
    speaking.ready("waits for work")
    speaking.status("trains round 3")
    speaking.watchdog()
    speaking.stopping("drains")
    heard = [manager.recv(4096).decode() for _ in range(4)]
    assert heard == ["READY=1\nSTATUS=waits for work", "STATUS=trains round 3", "WATCHDOG=1", "STOPPING=1\nSTATUS=drains"]


def test_a_reload_carries_the_monotonic_clock(manager: socket.socket) -> None:
    clock = FakeClock()
    clock.advance(1.5)
    Notifier.from_environment({"NOTIFY_SOCKET": manager.getsockname()}, clock).reloading()
    assert manager.recv(4096) == b"RELOADING=1\nMONOTONIC_USEC=1500000"


def test_words_cannot_add_an_assignment(manager: socket.socket) -> None:
    notifier(manager).status("round 3\nREADY=1\r\nMAINPID=1" + "x" * 500)
    heard = manager.recv(4096).decode()
    assert "\n" not in heard
    assert heard.startswith("STATUS=round 3 READY=1 MAINPID=1x")
    assert len(heard) == len("STATUS=") + 200


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # the kernel chooses an abstract name
        listening.settimeout(10)
        address = "@" + listening.getsockname()[1:].decode()
        Notifier.from_environment({"NOTIFY_SOCKET": address}).watchdog()
        assert listening.recv(100) == b"WATCHDOG=1"


def test_outside_a_service_manager_nothing_is_said() -> None:
    silent = Notifier.from_environment({"WATCHDOG_USEC": "1000000"})
    silent.ready("x")
    assert silent.watchdog_interval is None


def test_a_service_manager_that_went_away_does_not_stop_us(tmp_path: Path) -> None:
    Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("x")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_half_of_the_watchdog_is_used_if_it_is_ours(
    manager: socket.socket, environ: dict[str, str], seconds: float | None
) -> None:
    assert notifier(manager, **environ).watchdog_interval == seconds
