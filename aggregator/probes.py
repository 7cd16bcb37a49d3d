"""What probes are told, by grpc.health.v1 on a port of its own: `startup`, `liveness`, and FleetService for readiness.

Whoever asks needs no certificate, and hears of three names whether they serve, nothing else; the words are for operators
(`histofed status`). The names stand in the manifests of `deploy/k8s`. `Check` is all there is, and no call keeps its place
for long, because the pod is killed where a probe finds none: nobody can `Watch`, and a call whose request does not come is
ended. What is answered changes only with `renew`, which the daemon calls every few seconds; a daemon that hangs goes on
answering what was true before, until its watchdog ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2

from histofed.base.health import Health
from histofed.transport.server import bind_plain

LIVENESS: Final = "liveness"
READINESS: Final = "histofed.v1.FleetService"
CALLS: Final = 1024
"""At once; an answer takes a millisecond."""
ASK_S: Final = 1.0
"""Seconds in which a call's request must come."""
STOP_S: Final = 0.5
"""Seconds that a probe gets when the daemon stops."""


class Probes:
    """The port, and what it says of the daemon's health."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._serves: dict[str, bool] = {}
        self._server = grpc.aio.server(maximum_concurrent_rpcs=CALLS)
        # gRPC is told that the request is a stream: it would keep a call from us until its message is here
        check = grpc.stream_unary_rpc_method_handler(
            self._check,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Check": check}),))

    async def open(self, address: str) -> None:
        """Answer from here on: the daemon has started. Raises for an address that cannot be bound."""
        bind_plain(self._server, address)
        self._serves = dict.fromkeys(("", "startup", LIVENESS, READINESS), True)
        await self._server.start()

    def renew(self) -> None:
        """Answer as the daemon is now."""
        self._serves |= {LIVENESS: self._health.live, READINESS: self._health.ready}

    def drain(self) -> None:
        """The daemon stops: nothing more is to be sent here."""
        self._serves[READINESS] = False

    async def close(self) -> None:
        """Release the port."""
        await self._server.stop(STOP_S)

    async def _check(self, requests: AsyncIterator[health_pb2.HealthCheckRequest], context: Any) -> object:
        try:
            async with asyncio.timeout(ASK_S):
                request = await anext(requests, health_pb2.HealthCheckRequest())
        except TimeoutError:
            await context.abort(grpc.StatusCode.ABORTED, f"the call's request did not come for {ASK_S:g} s; call again")
        if request.service not in self._serves:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:100]!r} here")
        serves = self._serves[request.service]
        status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)
