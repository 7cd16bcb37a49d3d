"""The trainer: a child process of the agent, one per task, in which torch and the tiles live.

    python -m agent.trainer ASSIGNMENT --report FD --parent PID

It reads the assignment, trains by the recipe's workshop, clips the update to the experiment's norm bound, encodes it and
writes the result. Its progress and, at the end, the sentence of its error go as JSON lines to the pipe FD; its exit code is
that of the error (`histofed/base/errors.py`). SIGTERM means: checkpoint, then end. When the daemon dies, the kernel kills
it.

What it prints is kept by the site's log, so an unexpected error is printed as type and place, without its message:
messages of libraries hold file names.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from agent.assignment import (
    CLIPPED_FILE,
    RESULT_FILE,
    SHARED_FILE,
    UPDATE_FILE,
    Assignment,
    Result,
    read_assignment,
    write,
)
from histofed.base import durable
from histofed.base.errors import Cancelled, CannotWriteState, HistofedError, TrainingFailed
from histofed.encodings.file import Form, encode_file
from histofed.privacy.clipping import clip_file
from histofed.recipes.contract import Progress, Stop, TrainResult, TrainTask
from histofed.recipes.registry import recipe
from histofed.statements import File
from histofed.training.checkpoint import CheckpointStore

PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that this process gets when its parent dies."""
_DISK_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})


class Reporter:
    """The pipe to the daemon, one JSON document per line."""

    def __init__(self, descriptor: int) -> None:
        self._pipe = descriptor

    def progress(self, progress: Progress) -> None:
        """A line of a running task."""
        self._write({"progress": {**vars(progress), "losses": dict(progress.losses)}})

    def error(self, error: HistofedError) -> None:
        """The last line of a task that failed."""
        self._write({"error": {"kind": type(error).__name__, "sentence": str(error)}})

    def _write(self, document: Mapping[str, object]) -> None:
        data = json.dumps(document).encode() + b"\n"
        while data:
            data = data[os.write(self._pipe, data) :]


class StopFlag:
    """Becomes true at SIGTERM; the workshop asks it between two steps."""

    def __init__(self) -> None:
        self._stopped = False
        signal.signal(signal.SIGTERM, self._set)
        # Ctrl-C in a terminal is meant for the daemon, which then sends SIGTERM
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _set(self, number: int, frame: object) -> None:
        self._stopped = True

    def __call__(self) -> bool:
        return self._stopped


def run(assignment: Assignment, reporter: Reporter, stop: Stop) -> Result:
    """Train, clip, encode, write. A crash at any moment costs at most the work since the last checkpoint."""
    output = assignment.output
    done = (
        recipe(assignment.recipe)
        .workshop()
        .train(
            TrainTask(
                config=assignment.config,
                shared=assignment.base,
                private=assignment.private,
                data=assignment.data,
                minimum_patients=assignment.minimum_patients,
                seed=assignment.seed,
                output=output,
                threads=assignment.threads,
                device=assignment.device,
                devices=assignment.devices,
                cache=assignment.cache,
                cache_bytes=assignment.cache_bytes,
                round=assignment.round,
            ),
            reporter.progress,
            stop,
        )
    )
    result = _finished(assignment, done)
    write(output / RESULT_FILE, result)
    # not before: an attempt after a crash in between goes on from it
    CheckpointStore(output, fingerprint="").clear()
    return result


def _finished(assignment: Assignment, done: TrainResult) -> Result:
    """Clip what was trained, encode it, and say both."""
    output, plain = assignment.output, assignment.encoding == "float32"
    target = output / (UPDATE_FILE if plain else CLIPPED_FILE)
    clipped = clip_file(output / SHARED_FILE, assignment.base, assignment.max_norm, target)
    file, norm, metrics = clipped.file, clipped.norm, dict(done.metrics)
    if not plain:
        form = Form(assignment.encoding, assignment.base_sha256)
        encoded = encode_file(target, assignment.base, form, assignment.max_norm, output / UPDATE_FILE)
        file, norm, metrics = encoded.file, encoded.norm, {**metrics, **encoded.loss.metrics}
        durable.remove(target)
    return Result(
        weights=File(file.sha256, file.bytes),
        norm_before=clipped.norm_before,
        norm=norm,
        clipped=clipped.clipped,
        tiles=done.counts.tiles,
        patients=done.counts.patients,
        steps=done.steps,
        metrics=metrics,
        notes=done.notes,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The process: 0, or the exit code of the error that was reported."""
    parser = argparse.ArgumentParser(prog="agent.trainer", description="Train one task; started by histofed-agent.")
    parser.add_argument("assignment", type=Path)
    parser.add_argument("--report", type=int, required=True, metavar="FD")
    parser.add_argument("--parent", type=int, required=True, metavar="PID")
    options = parser.parse_args(argv)
    stop = StopFlag()
    reporter = Reporter(options.report)
    try:
        _die_with(options.parent)
        assignment = read_assignment(options.assignment)
        os.nice(assignment.nice)
        run(assignment, reporter, stop)
    except HistofedError as error:
        reporter.error(error)
        return error.exit_code
    except OSError as error:
        return _unexpected(error, reporter, _of_the_disk(error))
    except MemoryError as error:
        return _unexpected(error, reporter, TrainingFailed("the trainer ran out of memory; a smaller batch may help"))
    except Exception as error:
        return _unexpected(error, reporter, _failed(error))
    return 0


def _failed(error: Exception) -> TrainingFailed:
    return TrainingFailed(f"the trainer failed with {type(error).__name__}; the site's log has the place")


def _of_the_disk(error: OSError) -> HistofedError:
    if error.errno in _DISK_ERRORS:
        return CannotWriteState(f"the trainer cannot write: {os.strerror(error.errno)}; free space or repair the disk")
    return _failed(error)


def _unexpected(error: Exception, reporter: Reporter, meaning: HistofedError) -> int:
    """Report the meaning to the daemon, and type and place, without the message, to the site's log."""
    places = "".join(traceback.format_tb(error.__traceback__))
    sys.stderr.write(f"{type(error).__name__} in the trainer, at\n{places}")
    reporter.error(meaning)
    return meaning.exit_code


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when the daemon dies; raises `Cancelled` when it is dead already."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        raise Cancelled("the agent died before its trainer began")


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # as in a nursery: the interpreter's end would wait without a bound for a helper that hangs in a driver
