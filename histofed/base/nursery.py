"""Children that start in milliseconds: the daemons' side of `histofed/base/warm.py`.

A Python that imports numpy and ours costs a third of a second of a core, which is most of a round with a small model. So a
daemon keeps one process in which that is done, its nursery, and has a child forked from it for each job. A child is as
apart from the daemon and from its siblings as a new process: memory, session, descriptors; and it dies with the daemon.

A nursery starts with its first child, ends when it is idle for long, and is replaced when it died. Where that fails too,
`start` returns None and the caller starts a process the long way: a nursery saves time and is never needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from histofed.base.errors import WorkerLost
from histofed.base.warm import REQUEST_LIMIT

log = logging.getLogger(__name__)

_START_S: Final = 60.0
"""Seconds for a first child; a machine under load imports slowly."""
KILLED_S: Final = 30.0
"""Seconds from SIGKILL to the end of a process: a GPU's driver may have much to release."""
_LOOK_S: Final = 0.02
"""Seconds between two looks at what is left of a group."""
_THREADS: Final = 14
"""Where the number of threads stands in /proc/PID/stat (proc(5)), behind the process group."""


def hangs(what: str) -> WorkerLost:
    """The error about a process that SIGKILL does not end."""
    return WorkerLost(
        f"{what} did not end within {KILLED_S:g} s of SIGKILL: it hangs in the kernel, in a GPU's driver or on a disk that "
        "does not answer (`dmesg` may say which); where it stays (`ps` shows state D), restart this machine"
    )


async def end_of_killed(pid: int, end: Awaitable[object]) -> None:
    """Wait for the end of a process that got SIGKILL. Raises `WorkerLost` for one that hangs in the kernel."""
    try:
        async with asyncio.timeout(KILLED_S):
            await end
    except TimeoutError as error:
        raise hangs(f"process {pid}") from error


async def end_of_killed_group(leader: int) -> None:
    """The same for a whole group, whose leader has ended; nobody may be there to bury its other processes."""
    living: list[int] = []
    try:
        async with asyncio.timeout(KILLED_S):
            while living := list(_living(leader)):  # noqa: ASYNC110  # nobody tells of the end of what is no child
                await asyncio.sleep(_LOOK_S)
    except TimeoutError as error:
        raise hangs(f"process {', '.join(map(str, living))} of the group {leader}") from error


def _living(group: int) -> Iterator[int]:
    """The processes of a group that run, sleep or hang."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just gone
            state, _, its_group, *rest = stat.read_text(errors="replace").rpartition(")")[2].split()
            # of a process whose first thread has ended the state is Z, too; others may hang in a driver
            if int(its_group) == group and (state not in "ZX" or int(rest[_THREADS]) > 1):
                yield int(stat.parent.name)


class Child:
    """A forked process; `close` it. Its process id stays its own until then, also when it has ended."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Exit code, or the signal that ended it, negative."""
        self._writer = writer
        self._end = asyncio.create_task(self._listen(reader))

    async def wait(self) -> int:
        """The return code, when there is one."""
        return await asyncio.shield(self._end)

    def send_signal(self, number: int) -> None:
        """To the child alone; nothing happens when it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    async def close(self) -> None:
        """Kill what is left of it and of its session; returns when the child has ended. Raises `WorkerLost`."""
        for kill in (os.killpg, os.kill):  # it may have had no time to begin a session
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        try:
            await end_of_killed(self.pid, self.wait())
        finally:
            self._writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> int:
        # without a word: the nursery was killed, and its children are killed with it
        self.returncode = int(await reader.readline() or -signal.SIGKILL)
        return self.returncode


class Nursery:
    """Forks children that run `MODULE.main`; make it and use it in one event loop."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        """`environment` is what differs from ours; libraries read it when they are imported."""
        self._module = module
        self._environment = dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._starting = asyncio.Lock()

    async def start(self, arguments: Sequence[str], descriptors: Sequence[int]) -> Child | None:
        """A child with `descriptors` as its 0, 1, 2, ...; None when there can be none."""
        request = json.dumps(list(arguments)).encode()
        if len(request) > REQUEST_LIMIT:
            return None
        for _ in range(2):  # the first may have met a nursery that was just ending
            try:
                async with asyncio.timeout(_START_S):
                    child = await self._fork(request, descriptors)
            except (OSError, TimeoutError) as error:
                log.warning("no child of the %s nursery: %s", self._module, error)
                return None
            if child is not None:
                return child
            await self.close()
        log.warning("the %s nursery does not live; its children are started the long way", self._module)
        return None

    async def close(self) -> None:
        """End it, and its children with it."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._process = self._control = None

    async def _fork(self, request: bytes, descriptors: Sequence[int]) -> Child | None:
        """Ask for a child; None when nobody answers."""
        async with self._starting:
            control = self._control or await self._launch()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(control, [request], [theirs.fileno(), *descriptors])
            except (BrokenPipeError, ConnectionResetError):
                ours.close()
                return None
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            answer = await reader.readline()
        except BaseException:
            writer.close()
            raise
        if not answer:
            writer.close()
            return None
        return Child(int(answer), reader, writer)

    async def _launch(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as if_it_fails:
            if_it_fails.callback(ours.close)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "histofed.base.warm", self._module, str(theirs.fileno()), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                # what stops it stops a process that is started the long way too, and that one is heard
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **self._environment},
                start_new_session=True,  # ctrl-C at a terminal is for the daemon, which drains
            )
            if_it_fails.pop_all()
        self._control = ours
        return ours
