"""The demo's daemons: started in sessions of their own, with log and pid file, and never left behind.

A pid file holds the process's start time too, so that `down` can never stop a stranger that inherited the number.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 60.0
"""A daemon checkpoints and drains after SIGTERM; then it is killed, and the demo has failed."""


class DemoError(Exception):
    """The demo cannot go on; the message says why and where to look."""


@dataclass(frozen=True)
class Daemon:
    """One daemon of the demo, running or not."""

    name: str
    folder: Path
    command: Sequence[str]

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pid"

    def start(self) -> None:
        """Start it unless it runs."""
        if self.running():
            return
        files = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        # a session of its own: Ctrl-C reaches the demo alone, which then stops the daemons in order
        pid = os.posix_spawn(self.command[0], list(self.command), _environment(), file_actions=files, setsid=True)
        self._pid_file.write_text(f"{pid} {_started(pid)}\n", encoding="ascii")

    def running(self) -> bool:
        """It was started and has not ended."""
        return self._pid() is not None

    def require(self) -> None:
        """Raises `DemoError` with the end of its log when it has ended."""
        if not self.running():
            raise DemoError(f"{self.name} has ended; the end of {self.log}:\n{self.tail()}")

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        pid = self._pid()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)

    def wait_stopped(self, deadline: float) -> bool:
        """Wait until `deadline` (monotonic), then kill. False when it had to be killed."""
        while (pid := self._pid()) is not None:
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                self._pid_file.unlink(missing_ok=True)
                return False
            time.sleep(0.1)
        self._pid_file.unlink(missing_ok=True)
        return True

    def _pid(self) -> int | None:
        try:
            pid, started = self._pid_file.read_text(encoding="ascii").split()
        except (FileNotFoundError, ValueError):
            return None
        # a child of ours that has ended stays a zombie until it is waited for
        try:
            ended, _ = os.waitpid(int(pid), os.WNOHANG)
        except ChildProcessError:
            ended = 0
        return int(pid) if not ended and _started(int(pid)) == started else None


def stop_all(daemons: Sequence[Daemon]) -> list[str]:
    """SIGTERM to all, then wait for all; the names of those that had to be killed."""
    for daemon in daemons:
        daemon.ask_to_stop()
    deadline = time.monotonic() + STOP_SECONDS
    return [daemon.name for daemon in daemons if not daemon.wait_stopped(deadline)]


def _started(pid: int) -> str:
    """The process's start time in clock ticks since boot (proc(5), stat field 22); empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _environment() -> dict[str, str]:
    """Ours without settings that would overrule the demo's files."""
    return {key: value for key, value in os.environ.items() if not key.startswith("HISTOFED_")}
