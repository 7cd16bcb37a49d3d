"""The daemon contract, with real signals and a real notify socket: a child process is the daemon, this one is systemd."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from histofed.base.daemon import Daemon
from histofed.base.errors import AggregatorUnavailable, ConfigError
from histofed.base.notify import Notifier

CHILD = """
import asyncio, logging, sys, threading
from histofed.base import daemon
from histofed.base.daemon import Daemon
from histofed.base.errors import ConfigError

class Service:
    mode, reloads, turns = sys.argv[1], 0, True
    async def start(self): print("start", flush=True)
    async def serve(self, drain):
        if self.mode == "hangs":  # as a look at a mount whose server is away
            daemon.RELEASE_SECONDS = 0.2
            look = asyncio.create_task(asyncio.to_thread(threading.Event().wait))
        await drain.wait()
        if self.mode == "stubborn":
            await asyncio.Event().wait()
        print("drained", flush=True)
    async def reload(self):
        self.reloads += 1
        if self.mode == "broken-config":
            raise ConfigError("agent.toml:3: there is no key 'x'")
        return "listen.port"
    async def stop(self): print("stop", flush=True)
    def status(self): return f"waits, {self.reloads} reloads"
    def turning(self): return self.mode != "hung"

logging.basicConfig(stream=sys.stderr, level="INFO", format="%(message)s")
sys.exit(Daemon("histofed-test", Service(), drain_seconds=float(sys.argv[2])).main())
"""


class Manager:
    """systemd's part: starts the daemon, hears what it says, sends it signals."""

    def __init__(self, address: Path, mode: str, drain: float, watchdog: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self._socket.settimeout(20)
        self.heard: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, mode, str(drain)],
            env={**os.environ, "NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": str(int(watchdog * 1e6))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, message: str) -> None:
        """Listen until a message contains this."""
        while not self.heard or message not in self.heard[-1]:
            self.heard.append(self._socket.recv(4096).decode())

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        output, errors = self.process.communicate(timeout=30)
        return self.process.returncode, output, errors

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self._socket.close()


@contextmanager
def managed(tmp_path: Path, mode: str = "plain", drain: float = 60.0, watchdog: float = 60.0) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify", mode, drain, watchdog)
    try:
        yield manager
    finally:
        manager.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_exit_code_is_zero(tmp_path: Path, number: signal.Signals) -> None:
    with managed(tmp_path) as manager:
        manager.wait_for("READY=1\nSTATUS=waits, 0 reloads")
        manager.send(number)
        manager.wait_for("STOPPING=1\nSTATUS=histofed-test drains")
        code, output, _ = manager.end()
    assert (code, output.split()) == (0, ["start", "drained", "stop"])


def test_a_second_signal_means_now(tmp_path: Path) -> None:
    with managed(tmp_path, "stubborn") as manager:
        manager.wait_for("READY=1")
        manager.send(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        manager.send(signal.SIGTERM)
        code, output, errors = manager.end()
    assert (code, output.split()) == (128 + signal.SIGTERM, ["start", "stop"])
    assert "stops at once, as asked" in errors


def test_a_drain_that_takes_too_long_is_cut_short(tmp_path: Path) -> None:
    with managed(tmp_path, "stubborn", drain=0.1) as manager:
        manager.wait_for("READY=1")
        manager.send(signal.SIGTERM)
        code, output, errors = manager.end()
    assert (code, output.split()) == (75, ["start", "stop"])
    assert "did not drain within" in errors


def test_a_thread_that_hangs_does_not_keep_the_daemon_from_ending(tmp_path: Path) -> None:
    with managed(tmp_path, "hangs") as manager:
        manager.wait_for("READY=1")
        manager.send(signal.SIGTERM)
        code, output, errors = manager.end()
    assert (code, output.split()) == (75, ["start", "drained", "stop"])
    assert "1 threads did not end within 0 s" in errors


def test_a_reload_is_announced_and_answered(tmp_path: Path) -> None:
    with managed(tmp_path) as manager:
        manager.wait_for("READY=1")
        manager.send(signal.SIGHUP)
        manager.wait_for("RELOADING=1\nMONOTONIC_USEC=")
        manager.wait_for("READY=1\nSTATUS=waits, 1 reloads")
        manager.send(signal.SIGTERM)
        code, _, errors = manager.end()
    assert code == 0
    assert "configuration read again: listen.port" in errors


def test_a_broken_configuration_is_refused_and_the_daemon_goes_on(tmp_path: Path) -> None:
    with managed(tmp_path, "broken-config") as manager:
        manager.wait_for("READY=1")
        manager.send(signal.SIGHUP)
        manager.wait_for("READY=1\nSTATUS=waits, 1 reloads")
        manager.send(signal.SIGTERM)
        code, _, errors = manager.end()
    assert code == 0
    assert "the configuration was not changed: agent.toml:3: there is no key 'x'" in errors


def test_stacks_are_written_on_request(tmp_path: Path) -> None:
    with managed(tmp_path) as manager:
        manager.wait_for("READY=1")
        manager.send(signal.SIGUSR1)
        manager.send(signal.SIGHUP)  # still alive, and the stacks are out by then
        manager.wait_for("READY=1\nSTATUS=waits, 1 reloads")
        manager.send(signal.SIGTERM)
        code, _, errors = manager.end()
    assert code == 0
    assert "most recent call first" in errors


def test_the_watchdogs_signal_leaves_the_stacks_in_the_log(tmp_path: Path) -> None:
    with managed(tmp_path) as manager:
        manager.wait_for("READY=1")
        manager.send(signal.SIGABRT)
        code, _, errors = manager.end()
    assert code == -signal.SIGABRT
    assert "most recent call first" in errors


def test_the_watchdog_is_fed_by_the_loop(tmp_path: Path) -> None:
    with managed(tmp_path, watchdog=0.1) as manager:
        manager.wait_for("READY=1")
        for _ in range(3):
            manager.heard.clear()
            manager.wait_for("WATCHDOG=1")
        manager.send(signal.SIGTERM)
        assert manager.end()[0] == 0


def test_the_watchdog_is_not_fed_when_the_work_hangs(tmp_path: Path) -> None:
    with managed(tmp_path, "hung", watchdog=0.02) as manager:
        manager.wait_for("READY=1")
        for reloads in range(1, 4):
            manager.send(signal.SIGHUP)
            manager.wait_for(f"READY=1\nSTATUS=waits, {reloads} reloads")
        manager.send(signal.SIGTERM)
        manager.end()
        manager.wait_for("STOPPING=1")
    assert not any("WATCHDOG=1" in message for message in manager.heard)


# -- in this process: how errors end ---------------------------------------------------------------------------------------


class Scripted:
    """A service that fails where it is told to."""

    def __init__(self, **errors: BaseException) -> None:
        self.errors = errors
        self.calls: list[str] = []

    def _do(self, what: str) -> None:
        self.calls.append(what)
        if what in self.errors:
            raise self.errors[what]

    async def start(self) -> None:
        self._do("start")

    async def serve(self, drain: asyncio.Event) -> None:
        await asyncio.sleep(0)
        self._do("serve")

    async def reload(self) -> str:
        return ""

    async def stop(self) -> None:
        self._do("stop")

    def status(self) -> str:
        self._do("status")
        return "x"

    def turning(self) -> bool:
        return True


async def run(service: Scripted) -> int:
    return await Daemon("histofed-test", service, notifier=Notifier(None, None)).run()


async def test_work_that_ends_by_itself_ends_the_daemon() -> None:
    service = Scripted()
    assert await run(service) == 0
    assert service.calls[-1] == "stop"


@pytest.mark.parametrize(
    ("where", "error", "code"),
    [
        ("start", ConfigError("agent.toml:3: there is no key 'x'"), 78),
        ("serve", AggregatorUnavailable("the aggregator cannot be reached"), 69),
        ("serve", ValueError("oops"), 70),
        ("stop", AggregatorUnavailable("gone"), 69),
        ("status", ValueError("oops"), 70),
    ],
)
async def test_errors_end_in_their_exit_code_and_everything_is_released(
    caplog: pytest.LogCaptureFixture, where: str, error: Exception, code: int
) -> None:
    service = Scripted(**{where: error})
    with caplog.at_level(logging.ERROR):
        assert await run(service) == code
    assert service.calls[-1] == "stop"
    assert len(caplog.records) == 1


async def test_the_first_error_decides() -> None:
    assert await run(Scripted(start=ConfigError("x"), stop=ValueError("y"))) == 78
