"""Runs the aggregator's arithmetic in child processes, a bounded number at a time, and brings back results or errors.

Invariants: a child that crashes (a signal, most often the kernel's out-of-memory killer) is repeated a bounded number of
times, with a pause and a line in the log; a child that refuses its job raises the same error here; when the caller is
cancelled or the time is up, the child is killed and waited for. Jobs write their files all or nothing, so repeating one
is always safe. The daemon makes one `Workers` and hands it to whoever has work.

A child comes from the nursery, where there is one, and is started by the long way where that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, overload

from aggregator.aggregate import AggregateJob, AggregateResult
from aggregator.jobs import (
    CheckJob,
    InitialiseJob,
    InitialiseResult,
    InspectJob,
    InspectResult,
    Job,
    Result,
    decode_result,
    encode_job,
    kind_of,
)
from histofed.base.clock import Clock
from histofed.base.errors import DeadlineExceeded, HistofedError, NoWorker, WorkerKilled, passes
from histofed.base.nursery import Child, Nursery, end_of_killed
from histofed.base.warm import PARENT

log = logging.getLogger(__name__)

_PAUSE_S: Final = 1.0
"""Seconds before a crashed job is tried again; doubles each time."""
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A child is one core's work; the pool decides how many there are. It also saves numpy's start a thread pool."""
_COMPLAINT: Final = 4000
"""Bytes of a child's last words that are kept."""


@dataclass(frozen=True)
class _Ended:
    """How a child ended: its exit code (negative: the signal) and what it printed."""

    code: int
    output: bytes
    complaint: str


class Workers:
    """At most `limit` children at a time; each job gets `timeout_s` seconds per attempt."""

    def __init__(
        self,
        clock: Clock,
        *,
        limit: int = 2,
        attempts: int = 3,
        timeout_s: float = 3600.0,
        nursery: Nursery | None = None,
    ) -> None:
        self._clock = clock
        self._nursery = nursery
        self._free = asyncio.Semaphore(limit)
        self._attempts = attempts
        self._timeout_s = timeout_s

    @overload
    async def run(self, job: AggregateJob) -> AggregateResult: ...
    @overload
    async def run(self, job: CheckJob) -> None: ...
    @overload
    async def run(self, job: InitialiseJob) -> InitialiseResult: ...
    @overload
    async def run(self, job: InspectJob) -> InspectResult: ...
    async def run(self, job: Job) -> Result:
        """Do the job in a child process. Raises what the job raises, `DeadlineExceeded`, `NoWorker` where no child can be
        started now, `WorkerKilled` for one that cannot be kept alive, `WorkerLost` for one that does not end, and
        `HistofedError` for one that failed by itself.
        """
        async with self._free:
            ended = await self._persist(job)
        try:
            return decode_result(job, ended.output)
        except ValueError as error:
            log.error("%s process ended with exit code %d:\n%s", kind_of(job), ended.code, ended.complaint)
            raise HistofedError(
                f"the {kind_of(job)} process failed (exit code {ended.code}); the aggregator's log has its last words"
            ) from error

    async def _persist(self, job: Job) -> _Ended:
        """Start children until one ends by itself, a bounded number of times."""
        for attempt in range(1, self._attempts + 1):
            ended = await self._child(job)
            if ended.code >= 0:
                return ended
            name = signal.Signals(-ended.code).name
            log.warning("%s process was killed by %s, attempt %d of %d", kind_of(job), name, attempt, self._attempts)
            if attempt < self._attempts:
                await self._clock.sleep(_PAUSE_S * 2 ** (attempt - 1))
        raise WorkerKilled(
            f"the {kind_of(job)} process was killed by {name} {self._attempts} times in a row; if the kernel's log says "
            "out of memory, give the aggregator more, or submit the experiment anew with fewer weights or strategy 'fedavg'"
        )

    async def _child(self, job: Job) -> _Ended:
        """Raises `NoWorker` where none can be started for the moment, `DeadlineExceeded`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                warm = None if self._nursery is None else await _from_nursery(self._nursery, encode_job(job))
                return warm or await _from_nothing(encode_job(job))
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the {kind_of(job)} process did not end within {self._timeout_s:g} s and was stopped"
            ) from error
        except (OSError, RuntimeError) as error:  # the latter where no thread can be started
            if isinstance(error, OSError) and not passes(error):
                raise
            raise NoWorker(
                f"the {kind_of(job)} process cannot be started now: {error}; if it stays so, look at what limits this "
                "machine's processes, open files and memory"
            ) from error


def nursery() -> Nursery:
    """Where children of the pool come from quickly."""
    return Nursery("aggregator.worker", _ONE_THREAD)


async def _from_nursery(place: Nursery, job: bytes) -> _Ended | None:
    """Have a forked child do the job; None when there can be none. It is dead when this is left."""
    with _memory(job) as given, _memory() as answer, _memory() as complaint:
        child = await place.start([PARENT], [given, answer, complaint])
        if child is None:
            return None
        code = await _to_its_end(child)
        return _Ended(code, _content(answer), _content(complaint)[-_COMPLAINT:].decode(errors="replace"))


async def _to_its_end(child: Child) -> int:
    try:
        return await child.wait()
    finally:
        await child.close()


@contextlib.contextmanager
def _memory(content: bytes = b"") -> Iterator[int]:
    """The descriptor of a file that is nowhere on disk: a pipe that nobody has to empty."""
    descriptor = os.memfd_create("worker")
    try:
        done = 0
        while done < len(content):
            done += os.pwrite(descriptor, content[done:], done)
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    """All of it, whatever the position: that is shared with the child, which wrote."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


async def _from_nothing(job: bytes) -> _Ended:
    """Start an interpreter for the job. It is dead when this is left."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "aggregator.worker", str(os.getpid())),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **_ONE_THREAD},
        start_new_session=True,  # ctrl-C at a terminal is for the daemon, which drains
    )
    try:
        output, complaint = await process.communicate(job)
    finally:
        if process.returncode is None:
            process.kill()
            await end_of_killed(process.pid, process.communicate())
    assert process.returncode is not None, "communicate() waits for the end"
    return _Ended(process.returncode, output, complaint.decode(errors="replace")[-_COMPLAINT:])
