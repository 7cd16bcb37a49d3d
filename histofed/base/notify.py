"""What the service manager is told: READY, STATUS, WATCHDOG, STOPPING, RELOADING (sd_notify(3)).

Outside systemd (no NOTIFY_SOCKET) every call does nothing. `systemd-python` is used where it is installed; it is an
optional extra that must be compiled, so a datagram socket stands in for it. Called by `daemon.py` from the event loop.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

from histofed.base.clock import Clock, SystemClock

Send = Callable[[str], None]
STATUS_LENGTH: Final = 200
"""Longer words are cut: `systemctl status` shows one line."""


class Notifier:
    """The conversation with the service manager; one per process."""

    def __init__(self, send: Send | None, watchdog_interval: float | None, clock: Clock | None = None) -> None:
        self._send = send or _nobody_listens
        self.watchdog_interval = watchdog_interval
        """Seconds between two signs of life: half of what the unit's `WatchdogSec=` allows; None without a watchdog."""
        self._clock = clock or SystemClock()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], clock: Clock | None = None) -> Notifier:
        """As the service manager started us."""
        address = environ.get("NOTIFY_SOCKET", "")
        if not address:
            return cls(None, None, clock)
        return cls(_sender(address), _interval(environ), clock)

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is complete."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows."""
        self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> None:
        """A sign of life."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends this. The time is what systemd >= 253 asks for."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(self._clock.monotonic() * 1_000_000)}")

    def stopping(self, status: str) -> None:
        """The drain has begun."""
        self._send(f"STOPPING=1\nSTATUS={_one_line(status)}")


def _nobody_listens(message: str) -> None:
    """Not started by a service manager."""


def _sender(address: str) -> Send:
    """Through systemd-python where it can be imported, else through a socket of our own."""
    try:
        from systemd import daemon
    except ImportError:
        return _socket_sender(address)

    def send(message: str) -> None:
        daemon.notify(message)

    return send


def _socket_sender(address: str) -> Send:
    """The protocol itself: one datagram per message; '@' stands for an abstract socket's zero byte."""
    target = "\0" + address[1:] if address.startswith("@") else address

    def send(message: str) -> None:
        # a service manager that does not listen, or is overrun, must never stop the daemon: its watchdog judges
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.sendto(message.encode(), target)

    return send


def _interval(environ: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC in seconds, if it is meant for this process."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    meant_for = environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or (meant_for and meant_for != str(os.getpid())):
        return None
    return int(microseconds) / 2_000_000


def _one_line(text: str) -> str:
    """A line break would begin another assignment."""
    return " ".join(text.split())[:STATUS_LENGTH]
