"""What probes are told, by grpc.health.v1 on a port of its own: `startup`, `liveness`, and FleetService for readiness.

Whoever asks needs no certificate, and hears of three names whether they serve, nothing else; the words are for operators
(`histofed status`). The names stand in the manifests of `deploy/k8s`. What is answered changes only with `renew`, which the
daemon calls every few seconds; a daemon that hangs goes on answering what was true before, until its watchdog ends it.
"""

from __future__ import annotations

from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from histofed.base.health import Health
from histofed.transport.server import bind_plain

LIVENESS: Final = "liveness"
READINESS: Final = "histofed.v1.FleetService"
STOP_S: Final = 0.5
"""Seconds that a probe gets when the daemon stops."""


class Probes:
    """The port, and what it says of the daemon's health."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._servicer = HealthServicer()
        self._server = grpc.aio.server(maximum_concurrent_rpcs=16)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)

    async def open(self, address: str) -> None:
        """Answer from here on: the daemon has started. Raises for an address that cannot be bound."""
        bind_plain(self._server, address)
        await self._server.start()
        for service in ("", "startup", LIVENESS, READINESS):
            await self._tell(service, True)

    async def renew(self) -> None:
        """Answer as the daemon is now."""
        await self._tell(LIVENESS, self._health.live)
        await self._tell(READINESS, self._health.ready)

    async def drain(self) -> None:
        """The daemon stops: nothing more is to be sent here."""
        await self._tell(READINESS, False)

    async def close(self) -> None:
        """Release the port."""
        await self._server.stop(STOP_S)

    async def _tell(self, service: str, serves: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._servicer.set(service, status)
