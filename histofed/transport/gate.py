"""The gate that every call passes before a handler sees it, and every error on its way back.

In this order: TLS version, identity (URI in the certificate), deny list by serial, role, rate, open calls, deadline. On
streams the deny list is asked again at every message, for a stream outlives the moment it was opened in. All of this before
the request has come: a call whose request never comes is counted like every other, and ends after a minute; one whose
request comes late meets the deny list again. Errors of ours become their gRPC status with their sentence and their class's
name; anything else becomes INTERNAL with a number to look up in the log, and its text never leaves the machine. Built by
`server.py`; handlers ask `caller(context)` who calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
from cryptography import x509

from histofed.base.clock import Clock
from histofed.base.errors import BadData, CannotWriteState, HistofedError, NotAuthorised, NotEnrolled, TryLater
from histofed.pki.identity import Identity, identity_of, serial_of
from histofed.pki.keys import der_of
from histofed.transport import authz, limits
from histofed.transport.limits import ERROR_CLASS
from histofed.transport.rate import OpenCalls, RateLimiter

_log = logging.getLogger(__name__)

Context = Any
"""grpc.aio.ServicerContext[request, response]; the gate does not care which."""


@dataclass(frozen=True)
class Caller:
    """Who calls, as the certificate says."""

    identity: Identity
    serial: str
    certificate: bytes
    """DER."""
    peer: str
    """The address, for the log: `ipv4:10.0.0.7:51234`."""

    @property
    def name(self) -> str:
        """The site's or operator's name."""
        return self.identity.name


def caller(context: Context) -> Caller:
    """Who calls; for handlers behind a member gate, which has checked it. Raises `NotEnrolled` or `NotAuthorised`."""
    read = _read(_pem(context))
    return Caller(read.identity, read.serial, read.der, peer=context.peer())


def _pem(context: Context) -> bytes:
    pem = context.auth_context().get("x509_pem_cert")
    if not pem:
        raise NotEnrolled("the connection shows no certificate: enrol first, with a join line of the operator")
    return bytes(pem[0])


@dataclass(frozen=True)
class _Read:
    identity: Identity
    serial: str
    der: bytes
    ends: float
    """End of validity, seconds since the epoch."""


@functools.lru_cache(maxsize=4096)
def _read(pem: bytes) -> _Read:
    """What a certificate says: the same for the same bytes, and asked for at every message of a stream."""
    certificate = x509.load_pem_x509_certificate(pem)
    ends = certificate.not_valid_after_utc.timestamp()
    return _Read(identity_of(certificate, None), serial_of(certificate), der_of(certificate), ends)


class Admission(Protocol):
    """What a call must pass; the difference between the two ports."""

    def admit(self, method: str, context: Context) -> AbstractContextManager[None]:
        """A call's place, from now to its end. Raises a `HistofedError`, here or on entering, for one that may not go on."""
        ...

    def still(self, context: Context) -> None:
        """Asked at every message of a call; raises when the caller has lost its right meanwhile."""
        ...


class Members:
    """The mTLS port: certificate, deny list, role, rate, open calls."""

    def __init__(
        self, federation: str, denied: Callable[[str], bool], limiter: RateLimiter, calls: OpenCalls, clock: Clock
    ) -> None:
        self._federation = federation
        self._denied = denied
        self._limiter = limiter
        self._calls = calls
        self._clock = clock

    def admit(self, method: str, context: Context) -> AbstractContextManager[None]:
        who = self._identify(context)
        authz.check(who.identity, method)
        self._limiter.take(who.identity.uri)
        return self._calls.one(who.identity.uri)

    def still(self, context: Context) -> None:
        self._identify(context)

    def _identify(self, context: Context) -> Caller:
        who = caller(context)
        if who.identity.federation != self._federation:
            raise NotAuthorised(
                f"the certificate is of federation {who.identity.federation!r}, this is {self._federation!r}"
            )
        if _read(_pem(context)).ends < self._clock.now().timestamp():
            raise NotEnrolled(f"the certificate of {who.identity} has expired: {who.identity.remedy}")
        if self._denied(who.serial):
            raise NotAuthorised(
                f"the certificate of {who.identity} was revoked, as an enrolment in its name does with older ones: if "
                f"nobody here enrolled, ask the operator who did; {who.identity.remedy}"
            )
        return who


class Strangers:
    """The enrolment port: nothing to identify; one method, a rate per address."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter

    def admit(self, method: str, context: Context) -> AbstractContextManager[None]:
        authz.check_open(method)
        self._limiter.take(context.peer().rpartition(":")[0])
        return contextlib.nullcontext()

    def still(self, context: Context) -> None:
        """Nothing can change about a stranger."""


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """The interceptor: admits, hands over, and turns errors into statuses."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call; a method nobody serves stays UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        wrap = self._streaming if handler.response_streaming else self._unary
        # gRPC is told that every request is a stream: it would keep a call from us until its message is here, and one whose
        # message never comes would count for nobody, and last
        make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
        inner = (
            (handler.stream_stream if handler.request_streaming else handler.unary_stream)
            if handler.response_streaming
            else (handler.stream_unary if handler.request_streaming else handler.unary_unary)
        )
        return make(
            wrap(inner, str(handler_call_details.method), handler.request_streaming),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, inner: Callable[..., Awaitable[Any]], method: str, streaming_in: bool) -> Callable[..., Any]:
        async def handle(requests: Any, context: Context) -> Any:
            async with self._answering(method, context, unary=not streaming_in):
                screened = self._screened(requests, context)
                return await inner(screened if streaming_in else await _only(screened), context)

        return handle

    def _streaming(self, inner: Callable[..., AsyncIterator[Any]], method: str, streaming_in: bool) -> Callable[..., Any]:
        async def handle(requests: Any, context: Context) -> AsyncIterator[Any]:
            async with self._answering(method, context, unary=False):
                screened = self._screened(requests, context)
                responses = inner(screened if streaming_in else await _only(screened), context)
                async for response in responses:
                    self._admission.still(context)
                    yield response

        return handle

    async def _screened(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            self._admission.still(context)
            yield request

    @contextlib.asynccontextmanager
    async def _answering(self, method: str, context: Context, *, unary: bool) -> AsyncIterator[None]:
        """Admit the call; turn whatever comes out of it into an answer."""
        try:
            _require_tls13(context)
            with self._admission.admit(method, context):
                if unary and context.time_remaining() is None:
                    raise BadData(f"the call of {method.rpartition('v1.')[2]} has no deadline: every unary call needs one")
                yield
        except CannotWriteState as error:
            # the place is for this machine's administrator, and so for its log
            _log.error("%s: %s", method, error)
            await answer(context, CannotWriteState(_without_place(error)))
        except HistofedError as error:
            await answer(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            if context.cancelled():
                raise asyncio.CancelledError from error  # the peer left in the middle of a write: nobody to answer
            number = secrets.token_hex(4)
            _log.exception("internal error %s in %s", number, method)
            await context.abort(
                grpc.StatusCode.INTERNAL, f"internal error, see the aggregator's log (id {number}) and report it"
            )


async def _only(requests: AsyncIterator[Any]) -> Any:
    """The message of a call that has one. Raises `BadData` where there is none, and `TryLater` where none came for long."""
    try:
        async with asyncio.timeout(limits.STALL_S):
            async for request in requests:
                return request
    except TimeoutError as error:
        raise TryLater(f"the call's request did not come for {limits.STALL_S:g} seconds; call again") from error
    raise BadData("the call ended without its request: send one")


async def answer(context: Context, error: HistofedError) -> None:
    """End the call with the error's status, sentence and class."""
    await context.abort(
        grpc.StatusCode[error.status],
        str(error)[: limits.DETAILS],
        trailing_metadata=((ERROR_CLASS, type(error).__name__),),
    )


def _without_place(error: CannotWriteState) -> str:
    """What another machine may hear about a disk of this one."""
    cause = error.__cause__
    reason = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else "its disk refuses"
    return f"the aggregator cannot write its state: {reason}; nothing was acknowledged, its log has the place"


def _require_tls13(context: Context) -> None:
    """TLS at all, and, where gRPC tells the version (it does from 1.85 on), 1.3; `tls.py` refuses older handshakes."""
    auth = context.auth_context()
    if auth.get("transport_security_type", [b""])[0] not in (b"ssl", b"tls"):
        raise NotEnrolled("the connection is not encrypted: TLS 1.3 is required")
    version = auth.get("ssl_tls_version", [b"TLSv1.3"])[0]
    if version != b"TLSv1.3":
        raise NotEnrolled(f"the connection uses {version.decode(errors='replace')}: TLS 1.3 is required")
