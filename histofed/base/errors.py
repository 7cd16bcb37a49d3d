"""One class per kind of failure: the single table of exit codes and gRPC statuses.

Each class's docstring is the sentence an operator reads in the manual; each *message* says what happened here and
what to do about it. `transport/server.py` turns an error into its gRPC status, `transport/channel.py` turns the status
back into the same class, and the command lines exit with its code (`tests/unit/base/test_errors.py` holds the table).
"""

from __future__ import annotations

import errno
from typing import ClassVar, Final

_PASSING: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT}
)


class HistofedError(Exception):
    """Something failed inside histofed; the log has the details, please report it."""

    exit_code: ClassVar[int] = 70
    status: ClassVar[str] = "INTERNAL"


class WorkerLost(HistofedError):
    """A child process does not end when it is killed; the daemon's next life repeats its work."""

    # it ends the daemon and never crosses the wire
    status = "INTERNAL"


class WorkerKilled(HistofedError):
    """A child process keeps being killed, most often for want of memory; its work is tried again for about half an hour."""

    # it ends a job and never crosses the wire
    status = "INTERNAL"


class NoWorker(HistofedError):
    """No child process can be started, for want of processes, open files or memory; it is tried again for half an hour."""

    # as above
    status = "INTERNAL"


class UsageError(HistofedError):
    """The command was called in a way it does not understand; `--help` shows how."""

    exit_code = 2
    status = "INVALID_ARGUMENT"


class BadData(HistofedError):
    """Input cannot be used as it is (a tile folder, a weights file, an experiment, an update)."""

    exit_code = 65
    status = "INVALID_ARGUMENT"


class Lost(BadData):
    """A file that a task needs has been lost by a disk; another attempt may make it anew, or find it put back."""

    # it never crosses the wire
    status = "INVALID_ARGUMENT"


class TooFewPatients(BadData):
    """A class has too few patients for this site's own rule."""

    # it never crosses the wire
    status = "INVALID_ARGUMENT"


class HeldOutPatients(BadData):
    """Patients who are held out for validation or test are among those to train on."""

    # it never crosses the wire
    status = "INVALID_ARGUMENT"


class NotFound(BadData):
    """The thing named does not exist here."""

    status = "NOT_FOUND"


class AlreadyThere(BadData):
    """The thing exists already, or somebody else holds it."""

    status = "ALREADY_EXISTS"


class Stale(BadData):
    """It comes too late, or at a moment when it cannot be done; the state has moved on."""

    status = "FAILED_PRECONDITION"


class DigestMismatch(BadData):
    """The bytes are not the ones that were announced."""

    status = "DATA_LOSS"


class TooLarge(BadData):
    """It is larger than the limit that both sides agreed on."""

    status = "OUT_OF_RANGE"


class AggregatorUnavailable(HistofedError):
    """The aggregator cannot be reached; it may be down, or the network or its name may be wrong."""

    exit_code = 69
    status = "UNAVAILABLE"


class CannotWriteState(HistofedError):
    """State cannot be written: the disk is full, read-only or failing; nothing was acknowledged."""

    exit_code = 73
    status = "RESOURCE_EXHAUSTED"


class NotOurs(CannotWriteState):
    """A file or a folder may not be used by the user who runs this: run it as the owner; no restart repairs it."""

    # the code of a configuration, which no restart repairs either; to whoever has state to keep, a disk that refuses
    exit_code = 78
    status = "RESOURCE_EXHAUSTED"


class Damaged(CannotWriteState):
    """A database of the state is damaged, which no restart repairs: stop the daemon, restore a backup."""

    # as above
    exit_code = 78
    status = "RESOURCE_EXHAUSTED"


class TryLater(HistofedError):
    """It cannot be done right now and may succeed later without any change."""

    exit_code = 75
    status = "ABORTED"


class Unreadable(TryLater):
    """A file of this machine cannot be read now, for a reason that the machine gets over by itself."""

    # it never crosses the wire
    status = "ABORTED"


def passes(error: OSError) -> bool:
    """Whether a machine gets over it by itself; whatever else it says of a file lasts until a person has looked at it."""
    return error.errno in _PASSING


class Cancelled(TryLater):
    """It was stopped before it was done, on request; state is kept."""

    status = "CANCELLED"


class DeadlineExceeded(TryLater):
    """It did not finish in the time allowed."""

    status = "DEADLINE_EXCEEDED"


class NotAuthorised(HistofedError):
    """The certificate presented does not allow this."""

    exit_code = 77
    status = "PERMISSION_DENIED"


class NotEnrolled(NotAuthorised):
    """There is no valid identity: enrol first, or the certificate is expired or foreign."""

    status = "UNAUTHENTICATED"


class ConfigError(HistofedError):
    """The configuration is wrong; the sentence names the file, the line and the nearest valid key."""

    exit_code = 78
    status = "FAILED_PRECONDITION"


class WentBack(ConfigError):
    """The aggregator's state is older than what a site has seen: it was put back without `restore`, or cut."""

    status = "FAILED_PRECONDITION"


class VersionMismatch(ConfigError):
    """The two sides run versions that do not work together: upgrade the aggregator first, agents later."""

    status = "UNIMPLEMENTED"


class TrainingFailed(HistofedError):
    """The trainer process ended without a result (killed, out of memory, or diverged)."""

    exit_code = 71
    status = "UNKNOWN"


class OutOfMemory(TrainingFailed):
    """The memory of the trainer's device does not suffice; the sentence says what to lower."""

    exit_code = 72
    status = "UNKNOWN"


def all_errors() -> tuple[type[HistofedError], ...]:
    """Every class of the table, parents before children."""
    found: list[type[HistofedError]] = [HistofedError]
    for cls in found:
        found.extend(sorted(cls.__subclasses__(), key=lambda c: c.__name__))
    return tuple(found)


def from_status(status: str, message: str) -> HistofedError:
    """The error that a gRPC status name stands for; an unknown status is an internal error."""
    for cls in all_errors():
        if cls.status == status and "status" in vars(cls):
            return cls(message)
    return HistofedError(message or status)
