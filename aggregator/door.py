"""The enrolment port: open only while a join token is valid.

The port asks for no client certificate, so it is the one place where strangers may knock; most of the time it is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import grpc

from aggregator.members import Members
from aggregator.services.enrollment import EnrollmentServicer
from histofed.base.clock import Clock
from histofed.base.errors import HistofedError
from histofed.base.ids import Digest
from histofed.pki import tokens
from histofed.pki.credentials import Credentials
from histofed.telemetry.logs import fields
from histofed.transport import tls
from histofed.transport.server import bind, enrolment_gate, make_server
from histofed.v1 import enrollment_pb2_grpc

log = logging.getLogger(__name__)

CHECK_S: Final = 1.0


class EnrolmentDoor:
    """Starts and stops the enrolment server as tokens come and go."""

    def __init__(self, members: Members, token_key: bytes, open_server: Callable[[], Awaitable[grpc.aio.Server]]) -> None:
        self._members = members
        self._token_key = token_key
        self._open_server = open_server
        self._server: grpc.aio.Server | None = None
        self._lock = asyncio.Lock()

    def new_token(self) -> tuple[str, Digest]:
        """A token for the hospital, and what is stored of it."""
        token = tokens.make()
        return token, tokens.digest(token, self._token_key)

    async def run(self, drain: asyncio.Event) -> None:
        """Watch the tokens until the daemon drains."""
        while not drain.is_set():
            try:
                await self.adjust()
            except HistofedError as error:
                # enrolment is not worth the rounds that run: say it, and try again at the next turn
                log.error("the enrolment port cannot be opened or closed", extra=fields(reason=str(error)))
            try:
                await asyncio.wait_for(drain.wait(), CHECK_S)
            except TimeoutError:
                continue
        await self.close()

    async def adjust(self) -> None:
        """Open or close as the tokens say."""
        async with self._lock:
            wanted = self._members.tokens_valid_until() is not None
            if wanted and self._server is None:
                self._server = await self._open_server()
                log.info("the enrolment port is open")
            elif not wanted and self._server is not None:
                # grace for the answer that used up the last token
                await self._server.stop(5.0)
                self._server = None
                log.info("the enrolment port is closed", extra=fields(reason="no join token is valid"))

    async def close(self) -> None:
        """Close whatever the tokens say."""
        async with self._lock:
            if self._server is not None:
                await self._server.stop(1.0)
                self._server = None


async def open_enrolment(
    servicer: EnrollmentServicer, address: str, current: Callable[[], Credentials], clock: Clock
) -> grpc.aio.Server:
    """The port itself: no certificate is asked for, and nothing but enrolment is answered. Raises when it is taken."""
    server = make_server(enrolment_gate(clock=clock))
    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(servicer, server)
    bind(server, address, tls.enrolment_credentials(current))
    await server.start()
    return server
