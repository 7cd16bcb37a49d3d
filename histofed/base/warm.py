"""The nursery: a process that imports a module once and forks, for each request, a child that runs the module's `main`.

    python -m histofed.base.warm MODULE SOCKET PARENT

`histofed/base/nursery.py` is its only caller and says what it is for. A request is one packet on SOCKET: a JSON list of
arguments, with file descriptors: the child's *leash*, its 0, 1 and 2, and more, which become 3, 4, ... On the leash go a
line with the child's process id and, when it has ended, a line with its exit code (negative: the signal). Invariants:

- a leash that is closed at the daemon's end kills the child and its whole session;
- an ended child keeps its process id until then, so that no signal meant for it can reach a stranger;
- the nursery is killed when the daemon ends, and its children with it; without a child it ends by itself after `IDLE_S`;
- it has one thread, or its forks would be unsafe: MODULE starts none when it is imported.

What a library leaves for the interpreter's end is not run in a child: it ends when `main` returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from histofed.base.process import die_with, set_name

IDLE_S: Final = 600.0
"""Seconds without a child after which the memory is given back."""
PARENT: Final = "@parent"
"""Among a child's arguments: stands for the process id of its parent, the nursery."""
REQUEST_LIMIT: Final = 1 << 16
"""Bytes of a request."""
_DESCRIPTORS: Final = 16
_ABOVE: Final = 64
"""Descriptors are first moved above this number, then down to their places."""


@dataclass(frozen=True)
class _Born:
    """A child that has not been buried."""

    pid: int
    leash: int
    pidfd: int


class _Nursery:
    """The loop: requests, ends of children, ends of leashes."""

    def __init__(self, name: str, control: socket.socket, run: Callable[[], int]) -> None:
        self._name = name
        self._control = control
        self._run = run
        self._poll = selectors.DefaultSelector()
        self._poll.register(control, selectors.EVENT_READ)
        self._open = True
        self._born: set[_Born] = set()

    def serve(self) -> None:
        """Fork until the daemon closes the socket or nothing happens for long."""
        while self._open and (ready := self._poll.select(None if self._born else IDLE_S)):
            for key, _ in ready:
                match key.data:
                    case None:
                        self._open = self._answer()
                    case "ended", _Born() as child if child in self._born:  # not buried by an event before this one
                        self._tell_end(child)
                    case "leash", _Born() as child:
                        self._bury(child)
        for child in tuple(self._born):
            self._bury(child)

    def _answer(self) -> bool:
        """One request; False when there will be no more."""
        data, descriptors, _, _ = socket.recv_fds(self._control, REQUEST_LIMIT, _DESCRIPTORS)
        if not data:
            return False
        leash, *given = descriptors
        pid = _fork()
        if pid == 0:
            os.close(leash)
            self._become_child(json.loads(data), given)
        for descriptor in given:
            os.close(descriptor)
        if pid is None:
            os.close(leash)  # the daemon starts this child the long way, and hears why it cannot
            return True
        child = _Born(pid, leash, os.pidfd_open(pid))
        self._born.add(child)
        self._poll.register(child.leash, selectors.EVENT_READ, ("leash", child))
        self._poll.register(child.pidfd, selectors.EVENT_READ, ("ended", child))
        _tell(leash, pid)
        return True

    def _tell_end(self, child: _Born) -> None:
        """Say how it ended; it stays a zombie until the leash is closed."""
        self._poll.unregister(child.pidfd)
        found = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
        assert found is not None, "it has ended"
        _tell(child.leash, found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)

    def _bury(self, child: _Born) -> None:
        """Nobody holds the leash: end what is left of its session, and forget it."""
        for descriptor in (child.leash, child.pidfd):
            with contextlib.suppress(KeyError):  # the end of the child came before
                self._poll.unregister(descriptor)
        for kill in (os.killpg, os.kill):  # it may have had no time to begin a session
            with contextlib.suppress(ProcessLookupError):
                kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        os.close(child.leash)
        os.close(child.pidfd)
        self._born.remove(child)

    def _become_child(self, arguments: Sequence[str], given: Sequence[int]) -> NoReturn:
        """From here on this is the child: its session, its descriptors, its `main`, its end."""
        code = 1
        try:
            parent = os.getppid()
            die_with(parent)
            os.setsid()
            set_name(self._name)
            self._poll.close()
            self._control.close()
            for child in self._born:
                os.close(child.leash)
                os.close(child.pidfd)
            _place(given)
            sys.argv = [self._name, *(str(parent) if argument == PARENT else argument for argument in arguments)]
            code = self._run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):  # whoever should read it has gone
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _fork() -> int | None:
    """As `os.fork`; None when the system has no room for another process."""
    try:
        return os.fork()
    except OSError:
        return None


def _place(given: Sequence[int]) -> None:
    """Move the descriptors to 0, 1, 2, ..."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for descriptor in given]
    for descriptor in given:
        os.close(descriptor)
    for place, descriptor in enumerate(high):
        os.dup2(descriptor, place, inheritable=place < 3)
        os.close(descriptor)


def _tell(leash: int, number: int) -> None:
    with contextlib.suppress(OSError):  # closed at the other end: the child is buried next
        os.write(leash, b"%d\n" % number)


def main(argv: Sequence[str] | None = None) -> int:
    """The process."""
    module, number, parent = sys.argv[1:] if argv is None else argv
    die_with(int(parent))
    control = socket.socket(fileno=int(number))
    run: Callable[[], int] = importlib.import_module(module).main
    gc.freeze()  # or the first collection in each child would copy every page
    _Nursery(module.rpartition(".")[2], control, run).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
