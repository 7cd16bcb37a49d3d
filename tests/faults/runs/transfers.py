"""What a site was told of its transfers, read from its log: facts for the checker; and how many parts were resumed. Pure.

The lines are those of `histofed/transport/sending.py` (what the aggregator says of an upload) and `part.py` (what a receiver
says itself: a site of its downloads) at level DEBUG, which `daemon.py` switches on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from histofed.base.ids import TaskKey
from tests.faults.facts import BytesKept, Fact, Restored, ResumedFrom

_BEGUN: Final = ("an upload goes on", "a part is opened")
_KEPT: Final = ("an upload is kept so far", "a part is kept so far")
_RESTORED: Final = "the aggregator was restored from a backup"


@dataclass(frozen=True)
class Resumed:
    """Parts with bytes that were opened again."""

    up: int = 0
    """At the aggregator."""
    down: int = 0
    """At the sites."""

    def __add__(self, other: Resumed) -> Resumed:
        return Resumed(self.up + other.up, self.down + other.down)

    @property
    def idle(self) -> bool:
        """In one direction none was."""
        return not (self.up and self.down)

    def __str__(self) -> str:
        return f"resumed {self.up} uploads, {self.down} downloads"


NOTHING: Final = Resumed()


def told(log: bytes, restored_at: int | None) -> list[Fact]:
    """The facts of one site's log.

    An aggregator was put back when the log had `restored_at` bytes. What the site hears after that may still be a word of
    the history that is no more, until it says itself that the aggregator was restored: then everything begins anew.
    """
    if restored_at is None:
        return list(_facts(log))
    _, noticed, since = log[restored_at:].partition(_RESTORED.encode())
    return [*_facts(log[:restored_at]), Restored(0), *_facts(since if noticed else b"")]


def reopened(log: bytes) -> int:
    """How many parts a daemon opened in which there were bytes, and not all of them."""
    return sum(line["msg"] == "a part is opened" and 0 < line["offset"] < line["bytes"] for line in _lines(log))


def _facts(log: bytes) -> Iterator[Fact]:
    for line in _lines(log):
        task = TaskKey.parse(line["task"]) if "task" in line else None
        if line["msg"] in _BEGUN:
            yield ResumedFrom(task, line["blob"], line["offset"])
        elif line["msg"] in _KEPT:
            yield BytesKept(task, line["blob"], line["offset"])


def _lines(log: bytes) -> Iterator[Mapping[str, Any]]:
    """Those about transfers; a line that a kill cut short is none."""
    for text in log.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and line.get("msg") in (*_BEGUN, *_KEPT):
                yield line
