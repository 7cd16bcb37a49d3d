"""A daemon as a test's child process: under a notify socket, as systemd would start it, and with its log read line by line.

Nothing here sleeps: a test waits for words, in a notification or in the log, or for the end of the process.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

READY_S: Final = 60.0
KILLED: Final = -signal.SIGKILL

_STARTER: Final = (
    "import ctypes, runpy, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
"""`python -m`, but the kernel kills the process when the test run dies: a killed test leaves nobody behind."""


def run_module(module: str, *arguments: str) -> list[str]:
    """A command line like `python -m MODULE ARGUMENTS` whose process dies with the test run."""
    return [sys.executable, "-c", _STARTER, module, *arguments]


class LogReader:
    """What a process prints: copied to a file as it comes, and waited for."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._path = path
        self._stream = stream
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name=f"log of {path.stem}", daemon=True)
        self._thread.start()

    def wait_for(self, wanted: str, seconds: float) -> str | None:
        """The first line that contains `wanted`; None when the time is up or the process ended without it."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._find(wanted) is not None, seconds)
            return self._find(wanted)

    def lines(self, wanted: str) -> list[str]:
        """The lines so far that contain `wanted`."""
        with self._changed:
            return [line for line in self._lines if wanted in line]

    def join(self) -> None:
        """Wait until everything that the ended process printed is here."""
        self._thread.join(10)

    def _find(self, wanted: str) -> str | None:
        return next((line for line in self._lines if wanted in line), None)

    def _read(self) -> None:
        with self._stream, self._path.open("ab", buffering=0) as file:
            for line in self._stream:
                file.write(line)
                with self._changed:
                    self._lines.append(line.decode(errors="replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class DaemonProcess:
    """One daemon under a notify socket; its log is a file."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        socket_path = folder / f"{name}.notify"
        socket_path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(socket_path))
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **env, "NOTIFY_SOCKET": str(socket_path)},
        )
        assert self.process.stdout is not None
        self._reader = LogReader(self.process.stdout, self.log)

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self.process.poll() is None

    def wait_notified(self, wanted: str, seconds: float = READY_S) -> str:
        """The first notification that contains `wanted`, for example `READY=1` or words of a STATUS."""
        deadline = time.monotonic() + seconds
        self._socket.settimeout(0.5)
        while time.monotonic() < deadline:
            try:
                message = self._socket.recv(4096).decode()
            except TimeoutError:
                if not self.running:
                    raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}") from None
                continue
            if wanted in message:
                return message
        raise AssertionError(f"{self.name} did not say {wanted!r} in {seconds} s:\n{self.tail()}")

    def wait_logged(self, wanted: str, seconds: float = READY_S) -> str:
        """The first log line of this process that contains `wanted`."""
        line = self._reader.wait_for(wanted, seconds)
        if line is None:
            raise AssertionError(f"{self.name} did not log {wanted!r} in {seconds} s:\n{self.tail()}")
        return line

    def logged(self, wanted: str) -> list[str]:
        """The log lines of this process, so far, that contain `wanted`."""
        return self._reader.lines(wanted)

    def wait_ended(self, seconds: float = READY_S) -> int:
        """Wait for an end that nobody asked for here; the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds} s:\n{self.tail()}") from None
        finally:
            if not self.running:
                self._close()

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Send the signal and wait for the end; the exit code."""
        if self.running:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        finally:
            self._close()

    def tail(self, lines: int = 40) -> str:
        """The end of its log, or that there is none any more: it goes into words about another failure."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"(its log {self.log} is gone: {error.strerror})"

    def _close(self) -> None:
        self._socket.close()
        if not self.running:
            self._reader.join()
