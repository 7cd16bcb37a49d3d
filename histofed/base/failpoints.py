"""Failpoints: the instants at which a fault test may kill the process or make the disk fail.

`failpoint("name")` marks one. They are armed by the environment variable HISTOFED_FAILPOINTS (`name=kill`, `name=kill:3` at
the third passage, `name@Outbox.put=kill` only on the way through that function, `name=ENOSPC`, several separated by commas),
read once at import; when it is not set a failpoint is one comparison with None. `durable.py` has one at each fsync boundary,
the daemons have theirs between their writes.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from types import FrameType
from typing import Final

from histofed.base.errors import CannotWriteState, ConfigError

FAILPOINTS: Final = frozenset(
    {
        # every file written by `replace` or renamed by `adopt`, every removal, every journal line
        "replace.before_rename",
        "replace.after_rename",
        "adopt.before_rename",
        "adopt.after_rename",
        "remove.after_unlink",
        "journal.before_fsync",
        "journal.after_fsync",
        # aggregator
        "aggregator.sample_planned",
        "aggregator.task_offered",
        "aggregator.update_received",
        "aggregator.update_admitted",
        "aggregator.aggregate_written",
        "aggregator.model_committed",
        "aggregator.rows_committed",
        "aggregator.experiment_steered",
        "aggregator.retention_decided",
        # backup and restore, both daemons
        "backup.snapshot_taken",
        "backup.written",
        "restore.unpacked",
        "restore.before_swap",
        "restore.swap_decided",
        "restore.old_set_aside",
        "restore.swapped",
        # transfer, both ends
        "blob.chunk_written",
        "blob.chunk_synced",
        "blob.taken_up",
        "blob.before_complete",
        "blob.complete",
        # agent
        "agent.rows_committed",
        "agent.task_accepted",
        "agent.weights_stored",
        "agent.checkpoint_written",
        "agent.update_in_outbox",
        "agent.update_acknowledged",
        "agent.private_state_advanced",
    }
)
"""Every name that may be passed to `failpoint`; a fault run walks this set."""
_BETWEEN_WRITES: Final = ("agent.", "aggregator.", "backup.", "restore.")
"""Instants at which nobody is inside a write: there a disk that refuses is told as the writers of `durable.py` tell it."""
_PASSAGE = re.compile(r"[1-9]\d{0,8}\Z", re.ASCII)


class _Armed:
    """One armed failpoint: what to do, and at which passage, of all or of those on the way through one function."""

    def __init__(self, action: str, passage: int, place: str) -> None:
        self.action = action
        self.left = passage
        self.place = place

    def pass_by(self, name: str) -> None:
        if self.place and not _leads_through(self.place):
            return
        self.left -= 1
        if self.left != 0:
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self.action)
        refused = OSError(number, f"failpoint {name}: {os.strerror(number)}")
        if name.startswith(_BETWEEN_WRITES):
            raise CannotWriteState(f"cannot write at {name}: {os.strerror(number)}") from refused
        raise refused


def _leads_through(place: str) -> bool:
    """Whether a function whose dotted name ends with `place` is on the stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if f".{frame.f_globals['__name__']}.{frame.f_code.co_qualname}".endswith(f".{place}"):
            return True
        frame = frame.f_back
    return False


def _parse(text: str) -> dict[str, _Armed] | None:
    """`a=kill,b@Rooms.clear=ENOSPC:2` as a table; None when nothing is armed. Raises `ConfigError`."""
    armed: dict[str, _Armed] = {}
    for item in filter(None, text.split(",")):
        where, _, rest = item.partition("=")
        name, _, place = where.partition("@")
        action, _, passage = rest.partition(":")
        known = action == "kill" or action in errno.errorcode.values()
        if name not in FAILPOINTS or not known or not _PASSAGE.match(passage or "1"):
            raise ConfigError(f"HISTOFED_FAILPOINTS: {item!r} is not NAME[@PLACE]=kill|ERRNO[:PASSAGE] with a known name")
        armed[name] = _Armed(action, int(passage or "1"), place)
    return armed or None


_armed = _parse(os.environ.get("HISTOFED_FAILPOINTS", ""))


def failpoint(name: str) -> None:
    """An instant at which a fault test may strike; free when nothing is armed."""
    if _armed is not None and name in _armed:
        _armed[name].pass_by(name)
