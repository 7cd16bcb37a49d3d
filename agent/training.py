"""The daemon's side of the trainer: start it, listen to it, stop it, and never wait for it without a bound.

The child gets a session of its own, so that a Ctrl-C at the terminal reaches the daemon alone and so that its workers can
be killed with it. Cancelling `train` is how it is stopped: SIGTERM, time for a checkpoint, then SIGKILL. However it ends,
nothing of it is left running when `train` is left. No torch here: a crash of CUDA or the OOM killer takes the child alone.
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
from pathlib import Path
from typing import Final

from agent.assignment import ASSIGNMENT_FILE, RESULT_FILE, Assignment, Result, read_result, write
from histofed.base.errors import HistofedError, TrainingFailed, all_errors
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


async def train(folder: Path, assignment: Assignment, report: Callable[[Progress], None], stop_seconds: float) -> Result:
    """Run `assignment` in a child process and give its result; `folder` survives a restart of the task.

    `report` is called in the event loop and must neither wait nor raise.
    Raises the child's error (`BadData`: another attempt cannot help), `TrainingFailed` when it was killed, and
    `CannotWriteState`. On cancellation the child is given `stop_seconds` to write its checkpoint.
    """
    write(folder / ASSIGNMENT_FILE, assignment)
    heard = _Heard()
    async with _child(folder, assignment.threads, stop_seconds) as (process, pipe):
        assert process.stderr is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(_listen(pipe, heard, report))
            group.create_task(_keep_last_words(process.stderr, heard))
            code = await process.wait()
            # a worker that it left behind would hold its pipes open
            _kill_group(process)
    _log_last_words(heard.stderr, assignment.data, code)
    if code == 0:
        return read_result(assignment.output / RESULT_FILE)
    log.warning("the trainer ended with exit code %d", code)
    raise heard.error or _silent_end(code)


@contextlib.asynccontextmanager
async def _child(
    folder: Path, threads: int, stop_seconds: float
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """The running trainer and the pipe it reports to; at the end of the block it is dead, whatever happened."""
    read_end, write_end = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent.trainer", str(folder / ASSIGNMENT_FILE)),
            *("--report", str(write_end), "--parent", str(os.getpid())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(write_end,),
            start_new_session=True,
            env=_environment(threads),
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    pipe = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(pipe), os.fdopen(read_end, "rb")
    )
    try:
        yield process, pipe
    finally:
        try:
            await _end(process, stop_seconds)
        finally:
            transport.close()


def _environment(threads: int) -> dict[str, str]:
    """Ours; numeric libraries read their number of threads when they are imported, so it is set before."""
    environment = dict(os.environ)
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return environment


async def _end(process: asyncio.subprocess.Process, stop_seconds: float) -> None:
    """SIGTERM to the trainer alone and time for its checkpoint; then SIGKILL to its whole group."""
    try:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(stop_seconds):
                await process.wait()
    except TimeoutError:
        log.warning("the trainer did not end within %.0f s of SIGTERM and is killed", stop_seconds)
    finally:
        _kill_group(process)
        await process.wait()


def _kill_group(process: asyncio.subprocess.Process) -> None:
    # all of it may be gone already, and that is what is wanted
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _listen(pipe: asyncio.StreamReader, heard: _Heard, report: Callable[[Progress], None]) -> None:
    """Hand progress on and remember the error, line by line; half a line is a child killed in mid-word."""
    while (line := await pipe.readline()).endswith(b"\n"):
        match json.loads(line):
            case {"progress": {"step": int(step), "steps": int(steps), "losses": dict(losses), "images_per_second": rate}}:
                report(Progress(step, steps, losses, rate))
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
