"""The daemon's side of the trainer: start it, listen to it, stop it, and never wait for its end without a bound.

The child gets a session of its own, so that a Ctrl-C at the terminal reaches the daemon alone and so that its workers can
be killed with it. Cancelling `train` is how it is stopped: SIGTERM, time for a checkpoint, then SIGKILL. However it ends,
nothing of it is left running when `train` is left; where even SIGKILL does not end it, the daemon ends (`Trainers.lost`): no
other training is to meet it on its GPU. No torch here: a crash of CUDA or the OOM killer takes the child alone.
Nor is torch in the nursery that children come from: only what every trainer imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from agent.assignment import ASSIGNMENT_FILE, RESULT_FILE, Assignment, Result, read_result, write
from histofed.base.errors import HistofedError, TrainingFailed, WorkerLost, all_errors
from histofed.base.nursery import KILLED_S, Nursery, end_of_killed, end_of_killed_group, hangs
from histofed.base.warm import PARENT
from histofed.recipes.contract import Progress

log = logging.getLogger(__name__)

STDERR_KEPT: Final = 16 * 1024
"""Bytes of the trainer's last words that reach the log."""
_ERRORS: Final = {cls.__name__: cls for cls in all_errors()}


@dataclass
class _Heard:
    """What the child said so far."""

    error: HistofedError | None = None
    stderr: bytes = b""


class Trainers:
    """Where trainers come from: a nursery, made anew when the number of threads was changed."""

    def __init__(self) -> None:
        self._nursery: Nursery | None = None
        self._threads = 0
        self._left: WorkerLost | None = None
        self._lost = asyncio.Event()

    async def nursery(self, threads: int) -> Nursery:
        """One whose numeric libraries were imported for so many threads."""
        if self._nursery is None or threads != self._threads:
            await self.close()
            self._nursery, self._threads = Nursery("agent.trainer", _threads(threads)), threads
        return self._nursery

    def lose(self, error: WorkerLost) -> None:
        """A trainer does not end."""
        self._left = error
        self._lost.set()

    async def lost(self) -> None:
        """Wait for a trainer that does not end, and raise its `WorkerLost`."""
        await self._lost.wait()
        assert self._left is not None, "it is set before the event"
        raise self._left

    async def close(self) -> None:
        """End it."""
        if self._nursery is not None:
            await self._nursery.close()


class _Process(Protocol):
    """What a forked child and a process that was started the long way have in common."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def send_signal(self, signal: int) -> None: ...

    async def wait(self) -> int: ...


async def train(
    folder: Path,
    assignment: Assignment,
    report: Callable[[Progress], None],
    stop_seconds: float,
    trainers: Trainers | None = None,
) -> Result:
    """Run `assignment` in a child process and give its result; `folder` survives a restart of the task.

    `report` is called in the event loop and must neither wait nor raise. Without `trainers` the child is started the long
    way.
    Raises the child's error (`BadData`: another attempt cannot help), `TrainingFailed` when it was killed, and
    `CannotWriteState`. On cancellation the child is given `stop_seconds` to write its checkpoint. Where it does not end at
    all, `trainers` hears of it, and `WorkerLost` is raised, also in place of the cancellation.
    """
    write(folder / ASSIGNMENT_FILE, assignment)
    heard = _Heard()
    try:
        async with _child(folder, assignment.threads, stop_seconds, trainers) as (process, pipe, stderr):
            async with asyncio.TaskGroup() as group:
                readers = {
                    group.create_task(_listen(pipe, heard, report)),
                    group.create_task(_keep_last_words(stderr, heard)),
                }
                code = await process.wait()
                # a worker that it left behind would hold its pipes open
                _kill_group(process)
                _, unending = await asyncio.wait(readers, timeout=KILLED_S)
                for reader in unending:
                    reader.cancel()
            if unending:
                raise hangs(f"what process {process.pid} left behind")
    except WorkerLost as error:
        if trainers is not None:
            trainers.lose(error)
        raise
    _log_last_words(heard.stderr, assignment.data, code)
    if code == 0:
        return read_result(assignment.output / RESULT_FILE)
    log.warning("the trainer ended with exit code %d", code)
    raise heard.error or _silent_end(code)


@contextlib.asynccontextmanager
async def _child(
    folder: Path, threads: int, stop_seconds: float, trainers: Trainers | None
) -> AsyncIterator[tuple[_Process, asyncio.StreamReader, asyncio.StreamReader]]:
    """The running trainer, the pipe it reports to, and its standard error; it is dead at the end, whatever happened."""
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.ExitStack() as theirs:
            report, report_end = await _pipe(stack, theirs)
            stderr, stderr_end = await _pipe(stack, theirs)
            nothing = os.open(os.devnull, os.O_RDWR)
            theirs.callback(os.close, nothing)
            task = str(folder / ASSIGNMENT_FILE)
            process: _Process | None = None
            if trainers is not None:
                nursery = await trainers.nursery(threads)
                child = await nursery.start(
                    [task, "--report", "3", "--parent", PARENT], (nothing, nothing, stderr_end, report_end)
                )
                if child is not None:
                    stack.push_async_callback(child.close)
                    process = child
            if process is None:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "agent.trainer", task),
                    *("--report", str(report_end), "--parent", str(os.getpid())),
                    stdin=nothing,
                    stdout=nothing,
                    stderr=stderr_end,
                    pass_fds=(report_end,),
                    start_new_session=True,
                    env={**os.environ, **_threads(threads)},
                )
        stack.push_async_exit(partial(_leave, process, stop_seconds))
        yield process, report, stderr


async def _leave(process: _Process, stop_seconds: float, kind: type[BaseException] | None, *_: object) -> None:
    if kind is not WorkerLost:  # that it hangs is known, and was waited for
        await _end(process, stop_seconds)


async def _pipe(stack: contextlib.AsyncExitStack, theirs: contextlib.ExitStack) -> tuple[asyncio.StreamReader, int]:
    """A pipe: our end, which closes with `stack`, and the child's, which closes with `theirs`."""
    read_end, write_end = os.pipe()
    theirs.callback(os.close, write_end)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb")
    )
    stack.callback(transport.close)
    return reader, write_end


def _threads(count: int) -> dict[str, str]:
    """For the environment: numeric libraries read their number of threads when they are imported."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count)) if count else {}


async def _end(process: _Process, stop_seconds: float) -> None:
    """SIGTERM to the trainer alone and time for its checkpoint; then SIGKILL to its whole group. Raises `WorkerLost`."""
    try:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(stop_seconds):
                code = await process.wait()
            if code < 0:
                log.warning("%s when it was asked to stop; training goes on from its last checkpoint", _silent_end(code))
    except TimeoutError:
        log.warning("the trainer did not end within %.0f s of SIGTERM and is killed", stop_seconds)
    finally:
        _kill_group(process)
        await end_of_killed(process.pid, process.wait())
        await end_of_killed_group(process.pid)


def _kill_group(process: _Process) -> None:
    # all of it may be gone already, and that is what is wanted
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _listen(pipe: asyncio.StreamReader, heard: _Heard, report: Callable[[Progress], None]) -> None:
    """Hand progress on and remember the error, line by line; half a line is a child killed in mid-word."""
    while (line := await pipe.readline()).endswith(b"\n"):
        match json.loads(line):
            case {"progress": dict(progress)}:
                report(Progress(**progress))
            case {"error": {"kind": str(kind), "sentence": str(sentence)}}:
                heard.error = _ERRORS.get(kind, HistofedError)(sentence)


async def _keep_last_words(stderr: asyncio.StreamReader, heard: _Heard) -> None:
    while data := await stderr.read(65536):
        heard.stderr = (heard.stderr + data)[-STDERR_KEPT:]


def _log_last_words(stderr: bytes, data: Path | None, code: int) -> None:
    """What the child printed, into the site's own log; a line that names something below the data root is left out."""
    level = logging.DEBUG if code == 0 else logging.WARNING
    for line in stderr.decode(errors="replace").splitlines():
        if data is not None and str(data) in line:
            log.log(level, "trainer: (a line that names a path of the data is left out)")
        elif line.strip():
            log.log(level, "trainer: %s", line)


def _silent_end(code: int) -> TrainingFailed:
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return TrainingFailed(f"the trainer was killed by signal {-code}{hint}")
    return TrainingFailed(f"the trainer ended with exit code {code} and without a word; the site's log may say more")
