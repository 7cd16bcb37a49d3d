"""What a site has instead of a connection by TLS: the same stubs over the simulated network. Notes what the site is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from histofed.base.errors import DigestMismatch
from histofed.base.ids import TaskKey
from tests.faults.facts import BytesKept, BytesRefused, Fact, ResumedFrom
from tests.faults.simulation.network import Network, Stream

Note = Callable[[Fact], None]


class Channel:
    """As much of `grpc.aio.Channel` as generated stubs use."""

    def __init__(self, network: Network, site: str, note: Note) -> None:
        self._network = network
        self._site = site
        self._note = note

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """A method with one answer."""

        async def call(request: Any, *, timeout: float | None = None, metadata: Sequence[Any] = ()) -> Any:  # noqa: ASYNC109  # gRPC's name
            return await self._network.call(self._site, path, request, timeout)

        return call

    def unary_stream(self, path: str, *_: Any, **__: Any) -> Callable[..., Stream]:
        """A method that answers with a stream."""
        return lambda request, **_: Stream(self._network, self._site, path, request)

    def stream_stream(self, path: str, *_: Any, **__: Any) -> Callable[..., _Upload]:
        """A method with streams in both directions: the upload."""
        return lambda pieces, **_: _Upload(self._network, self._site, path, pieces, self._note)

    def stream_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """No method is like this."""
        raise NotImplementedError(path)


class _Upload(Stream):
    """An upload, with what its sender learns from it."""

    def __init__(self, network: Network, site: str, path: str, pieces: AsyncIterator[Any], note: Note) -> None:
        super().__init__(network, site, path, self._watched(pieces))
        self._note = note
        self._of: tuple[TaskKey, str] | None = None

    async def _watched(self, pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for piece in pieces:
            if piece.head.HasField("blob"):
                self._of = TaskKey.parse(piece.head.blob.task), piece.head.blob.sha256
            yield piece

    async def __aiter__(self) -> AsyncIterator[Any]:
        first = True
        try:
            async for answer in super().__aiter__():
                assert self._of is not None, "the aggregator answers when it knows which blob"
                fact = ResumedFrom if first else BytesKept
                self._note(fact(*self._of, answer.committed))
                first = False
                yield answer
        except DigestMismatch:
            if self._of is not None:
                self._note(BytesRefused(*self._of))
            raise


class Connection:
    """As much of `histofed.transport.channel.Connection` as the link and the transfers use."""

    address = "aggregator.example:8443"

    def __init__(self, network: Network, site: str, note: Note) -> None:
        self.channel = Channel(network, site, note)
        self.replaced = asyncio.Event()
        """Never set: no certificate is renewed here."""

    async def call(self, method: Any, request: Any, *, timeout_s: float = 30.0, metadata: Sequence[Any] = ()) -> Any:
        """One unary call."""
        return await method(request, timeout=timeout_s)

    async def stream(
        self, method: Any, request: Any, *, timeout_s: float | None = None, metadata: Sequence[Any] = ()
    ) -> AsyncIterator[Any]:
        """The messages of a server stream; leaving it cancels the call."""
        call = method(request)
        try:
            async for message in call:
                yield message
        finally:
            call.cancel()

    async def close(self) -> None:
        """Nothing is open between calls."""
