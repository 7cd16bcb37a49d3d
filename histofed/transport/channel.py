"""One connection to the aggregator, and its errors in words. Used by agents and by the operator's command line.

gRPC's errors end here: what the aggregator raised is raised again as the same class with the same sentence; what gRPC
itself found is explained (`diagnose.py`). Nothing is retried here; `backoff.retry` is for what is idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any, Final, Self, cast

import grpc
import grpc.aio

from histofed.base.clock import Clock, SystemClock
from histofed.base.errors import (
    AggregatorUnavailable,
    Cancelled,
    DeadlineExceeded,
    HistofedError,
    TooLarge,
    TryLater,
    VersionMismatch,
    all_errors,
    from_status,
)
from histofed.base.proxy import ENVIRONMENT, Proxy, ProxySetting, find
from histofed.pki.pem import Proof
from histofed.transport import limits, tls
from histofed.transport.limits import ERROR_CLASS

Metadata = Sequence[tuple[str, str]]
_CLASSES: Final = {cls.__name__: cls for cls in all_errors()}


class Connection:
    """A channel, where it leads, and how its errors are told."""

    def __init__(
        self,
        address: str,
        channel_credentials: grpc.ChannelCredentials,
        ca_pem: bytes,
        credentials: Proof | None,
        clock: Clock,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        proxy: ProxySetting = ENVIRONMENT,
    ) -> None:
        self.address = address
        self._proxy = find(proxy, address.rpartition(":")[0])
        self.channel = grpc.aio.secure_channel(
            address,
            channel_credentials,
            options=[*limits.channel_options(), *_way(self._proxy)],
            compression=grpc.Compression.NoCompression,
            interceptors=list(interceptors),
        )
        self.replaced = asyncio.Event()
        """Set when a newer connection took its place: what lasts long goes on over that one."""
        self._ca_pem = ca_pem
        self._credentials = credentials
        self._clock = clock

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def newest(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        """Itself: a connection is the line (`blobs.Lines`) of whoever has only one."""
        return contextlib.nullcontext(self)

    async def close(self) -> None:
        """Drop the connection; calls that are under way are cancelled."""
        await self.channel.close(None)

    async def call(self, method: Any, request: Any, *, timeout_s: float = limits.CALL_S, metadata: Metadata = ()) -> Any:
        """One unary call: `call(stub.ListRounds, request)`. Raises a `HistofedError` for every failure."""
        try:
            return await method(request, timeout=timeout_s, metadata=tuple(metadata))
        except grpc.aio.AioRpcError as error:
            raise await self.explain(error) from error

    async def stream(
        self, method: Any, request: Any, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[Any, None]:
        """The messages of a server stream. Raises a `HistofedError` for every failure; leaving it cancels the call."""
        call = method(request, timeout=timeout_s, metadata=tuple(metadata))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise await self.explain(error) from error
        finally:
            call.cancel()

    def stalled(self, seconds: float) -> AggregatorUnavailable:
        """The error of a transfer that was broken off because nothing moved."""
        return AggregatorUnavailable(
            f"no byte moved to or from {self.address} for {seconds:g} seconds; the transfer will be resumed"
        )

    async def explain(self, error: grpc.aio.AioRpcError) -> HistofedError:
        """What `error` means, with a sentence that says which address and what to do."""
        details = error.details() or ""
        trailing = cast(Metadata, tuple(error.trailing_metadata() or ()))  # pairs, whatever the stubs say
        for key, value in trailing:
            if key == ERROR_CLASS and value in _CLASSES:
                return _CLASSES[value](details)
        return await self._of_grpc(error.code(), details)

    async def _of_grpc(self, code: grpc.StatusCode, details: str) -> HistofedError:
        """An error that gRPC itself made, on this side or the other."""
        match code:
            case grpc.StatusCode.UNAVAILABLE:
                # late: it parses certificates, which a call that works never does
                from histofed.transport.diagnose import diagnose

                return await asyncio.to_thread(
                    diagnose, self.address, self._ca_pem, self._credentials, self._clock.now(), details[:200], self._proxy
                )
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineExceeded(f"the aggregator at {self.address} did not answer in the time allowed")
            case grpc.StatusCode.RESOURCE_EXHAUSTED if "message" in details:
                return TooLarge(f"a message is larger than {limits.MESSAGE} bytes, which is all the wire takes ({details})")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return TryLater(f"the aggregator at {self.address} has too many calls to work on: try again in a moment")
            case grpc.StatusCode.UNIMPLEMENTED:
                return VersionMismatch(
                    f"the aggregator at {self.address} does not know this call ({details}): check the port, which is not "
                    "that of join lines; if it is right, upgrade the aggregator first"
                )
            case grpc.StatusCode.CANCELLED:
                return Cancelled(f"the call to {self.address} was cancelled")
            case grpc.StatusCode.INTERNAL if "RST_STREAM" in details or "Internal error from Core" in details:
                # the second is what grpc.aio makes of a message that was being sent when the connection died
                return AggregatorUnavailable(f"the connection to {self.address} was cut in the middle of a call")
        return from_status(code.name, details)


def open_connection(
    address: str,
    credentials: Proof,
    *,
    clock: Clock | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    proxy: ProxySetting = ENVIRONMENT,
) -> Connection:
    """A member's connection to `address` (HOST:PORT). Nothing is sent until the first call."""
    return Connection(
        address,
        tls.channel_credentials(credentials),
        credentials.ca_pem,
        credentials,
        clock or SystemClock(),
        interceptors,
        proxy,
    )


def open_joining_connection(
    address: str, ca_pem: bytes, *, clock: Clock | None = None, proxy: ProxySetting = ENVIRONMENT
) -> Connection:
    """A joining site's connection to the enrolment port: the CA of the join line, no certificate."""
    return Connection(address, tls.joining_credentials(ca_pem), ca_pem, None, clock or SystemClock(), proxy=proxy)


def _way(proxy: Proxy | None) -> list[tuple[str, int | str]]:
    """Said to gRPC in so many words: left alone, it would ask the environment by rules of its own."""
    if proxy is None:
        return [("grpc.enable_http_proxy", 0)]
    return [("grpc.enable_http_proxy", 1), ("grpc.http_proxy", proxy.url)]
