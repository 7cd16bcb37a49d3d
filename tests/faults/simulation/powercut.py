"""Crashes and full disks at the product's own failpoints, inside one process.

`failpoints.failpoint` asks a table what is armed; the simulation puts itself into that table. Who passes by is told by a
context variable that every task of a life carries: a crash fells the life that passes, and nobody else.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Protocol

from histofed.base import failpoints


class PowerCut(BaseException):
    """The machine of the code that hears this has no power any more. Not an `Exception`: nobody handles it."""


class Machine(Protocol):
    """Something that passes failpoints."""

    def pass_by(self, failpoint: str) -> None:
        """Raises `PowerCut`, or an `OSError` where the disk refuses."""
        ...


RUNNING: contextvars.ContextVar[Machine | None] = contextvars.ContextVar("machine", default=None)
"""On which machine the present task runs."""


class _Watch(dict[str, "_Watch"]):
    """Stands where armed failpoints stand; every name is in it."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> _Passing:
        return _Passing(name)


class _Passing:
    def __init__(self, name: str) -> None:
        self._name = name

    def pass_by(self, name: str) -> None:
        machine = RUNNING.get()
        if machine is not None:
            machine.pass_by(name)


@contextlib.contextmanager
def failpoints_watched() -> Iterator[None]:
    """As long as the block lasts, machines hear of every failpoint that they pass."""
    before = failpoints._armed
    failpoints._armed = _Watch()  # type: ignore[assignment]  # stands in for the table
    try:
        yield
    finally:
        failpoints._armed = before
