"""Which connection a call goes over: the newest, and none that is not needed.

What moves weights has a connection of its own, which is hung up when they have moved. gRPC's buffer for reading grows with
what a peer sends and never shrinks (grpc/grpc issue 42194), so that a connection that once carried a model would cost the
aggregator a megabyte and more for as long as it stands: of a thousand sites, a gigabyte (`docs/results/rounds.md`).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from histofed.transport.channel import Connection


@dataclass
class _Used:
    """A connection and how many calls use it now."""

    connection: Connection
    uses: int = 0


class Line:
    """A connection at a time; one that was replaced is closed when its last call has ended."""

    def __init__(self, dial: Callable[[], Connection], *, lasting: bool) -> None:
        """`dial` makes a connection with the newest certificate; one that does not last is closed when nobody uses it."""
        self._dial = dial
        self._lasting = lasting
        self._current = _Used(dial()) if lasting else None

    @contextlib.asynccontextmanager
    async def newest(self) -> AsyncIterator[Connection]:
        """The newest connection, kept open as long as the block lasts."""
        if self._current is None:
            self._current = _Used(self._dial())
        used = self._current
        used.uses += 1
        try:
            yield used.connection
        finally:
            used.uses -= 1
            if used is self._current and not self._lasting and not used.uses:
                self._current = None
            await self._close_unwanted(used)

    async def replace(self) -> None:
        """Dial anew; what lasts long is told to move."""
        old, self._current = self._current, _Used(self._dial()) if self._lasting else None
        if old is not None:
            old.connection.replaced.set()
            await self._close_unwanted(old)

    async def close(self) -> None:
        """Hang up; calls that are under way are cancelled."""
        if self._current is not None:
            await self._current.connection.close()

    async def _close_unwanted(self, used: _Used) -> None:
        if used is not self._current and not used.uses:
            await used.connection.close()
