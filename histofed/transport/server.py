"""A gRPC server that says no by default: options, gate and port in one place. Used by the aggregator's daemon.

The mTLS port and the enrolment port are two servers, because Python's gRPC cannot make the client's certificate
optional per call.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from histofed.base.clock import Clock
from histofed.base.errors import AlreadyThere
from histofed.transport import limits, rate
from histofed.transport.gate import Caller, Gate, Members, Strangers, caller
from histofed.transport.rate import OpenCalls, Rate, RateLimiter

__all__ = ["Caller", "Gate", "bind", "bind_plain", "caller", "enrolment_gate", "fleet_gate", "make_server"]


def fleet_gate(
    federation: str,
    *,
    denied: Callable[[str], bool],
    clock: Clock,
    limit: Rate = rate.MEMBER,
    open_calls: int = limits.CALLS_OF_ONE,
) -> Gate:
    """The gate of the mTLS port. `denied(serial)` is asked at every call and every message: it must be quick."""
    return Gate(Members(federation, denied, RateLimiter(limit, clock), OpenCalls(open_calls), clock))


def enrolment_gate(*, clock: Clock, limit: Rate = rate.STRANGER) -> Gate:
    """The gate of the enrolment port."""
    return Gate(Strangers(RateLimiter(limit, clock)))


def make_server(gate: Gate, inner: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = ()) -> grpc.aio.Server:
    """A server behind `gate`; `inner` interceptors (tracing) see only what the gate admitted."""
    return grpc.aio.server(
        interceptors=(gate, *inner),
        options=limits.server_options(),
        maximum_concurrent_rpcs=limits.CONCURRENT_RPCS,
        compression=grpc.Compression.NoCompression,
    )


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    """Listen on `address` (HOST:PORT; port 0 picks one) and say which port it is. Raises `AlreadyThere`."""
    return _bound(address, lambda: server.add_secure_port(address, credentials))


def bind_plain(server: grpc.aio.Server, address: str) -> int:
    """The same without TLS: for probes on loopback or inside a pod only."""
    return _bound(address, lambda: server.add_insecure_port(address))


def _bound(address: str, add: Callable[[], int]) -> int:
    _refuse_taken(address)
    try:
        port = add()
    except RuntimeError:
        port = 0
    if port == 0:
        raise AlreadyThere(f"cannot listen on {address}: another process does, or the address is not ours")
    return port


def _refuse_taken(address: str) -> None:
    """Tried without gRPC first, which prints lines of its own about a port that it cannot have. Raises `AlreadyThere`."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET) as trial:
        # as gRPC does: a connection that is just closing does not hold the port
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host.strip("[]"), int(port)))
        except (OSError, OverflowError) as error:
            # the rest is gRPC's to judge: it looks a name up in every family
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise AlreadyThere(
                    f"cannot listen on {address}: another process does; `ss -ltnp` shows which, stop it or name another port"
                ) from error
