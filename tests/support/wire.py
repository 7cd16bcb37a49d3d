"""Real servers on loopback with real TLS, and a proxy that cuts connections: what transport tests and attacks use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from histofed.base.clock import Clock, SystemClock
from histofed.base.errors import NotAuthorised, NotFound, TooLarge
from histofed.base.ids import Digest, TaskKey
from histofed.transport import frames, limits, rate, tls
from histofed.transport.blob_service import BlobService
from histofed.transport.server import Caller, bind, caller, fleet_gate, make_server
from histofed.transport.store import BlobStore
from histofed.transport.turns import Turns
from histofed.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    rounds_pb2,
    rounds_pb2_grpc,
)
from tests.support.pki import Federation, fixed

UPDATE_LIMIT = 64 << 20


@dataclass
class SitesOwnTasks:
    """A site may send what its own task names and read what was released to everybody."""

    released: set[str] = field(default_factory=set)
    complete: list[tuple[str, str]] = field(default_factory=list)
    bases: dict[str, Digest] = field(default_factory=dict)
    """What each task starts from."""
    known: set[str] = field(default_factory=set)
    """Earlier models that every site may have."""

    async def may_upload(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        if task.site != who.name:
            raise NotAuthorised(f"task {task} is not a task of {who.name}")
        if size > UPDATE_LIMIT:
            raise TooLarge(f"the update has {size} bytes, the experiment allows {UPDATE_LIMIT}")

    async def received(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        self.complete.append((str(task), sha256))

    async def may_download(self, who: Caller, sha256: Digest) -> None:
        if sha256 not in self.released:
            raise NotFound(f"there is no blob {sha256[:12]}… for {who.name}")

    async def base_of(self, task: TaskKey) -> Digest | None:
        return self.bases.get(str(task))

    async def may_compare(self, who: Caller, sha256: Digest, held: Digest) -> bool:
        return held in self.known


class Fleet(rounds_pb2_grpc.FleetServiceServicer):
    """Says whom it sees; a beat whenever a test lets it."""

    def __init__(self) -> None:
        self.beat = asyncio.Queue[bool]()
        self.fail: Exception | None = None

    async def Hello(self, request: rounds_pb2.HelloRequest, context: Any) -> rounds_pb2.HelloResponse:
        if self.fail is not None:
            raise self.fail
        return rounds_pb2.HelloResponse(version=request.version, identity=str(caller(context).identity))

    async def WaitForWork(
        self, request: rounds_pb2.WaitForWorkRequest, context: Any
    ) -> AsyncIterator[rounds_pb2.WaitForWorkResponse]:
        while await self.beat.get():
            yield rounds_pb2.WaitForWorkResponse(beat=rounds_pb2.Beat())


class Operator(admin_pb2_grpc.OperatorServiceServicer):
    """One method is enough to be refused."""

    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Any) -> admin_pb2.GetStatusResponse:
        return admin_pb2.GetStatusResponse(version="0.1.0")


@dataclass
class Wire:
    """A server that runs."""

    federation: Federation
    port: int
    fleet: Fleet
    store: BlobStore
    permissions: SitesOwnTasks
    denied: set[str]

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"


@contextlib.asynccontextmanager
async def serving(
    directory: Path,
    federation: Federation,
    *,
    clock: Clock | None = None,
    limit: rate.Rate = rate.MEMBER,
    open_calls: int = limits.CALLS_OF_ONE,
    port: int = 0,
    credentials: grpc.ServerCredentials | None = None,
    stall_s: float = limits.STALL_S,
    bytes_per_second: int = 0,
    turns: Turns | None = None,
) -> AsyncIterator[Wire]:
    """An aggregator's mTLS port with our gate and blob service."""
    clock = clock or SystemClock()
    denied: set[str] = set()
    gate = fleet_gate(federation.name, denied=denied.__contains__, clock=clock, limit=limit, open_calls=open_calls)
    server = make_server(gate)
    store, permissions, fleet = BlobStore(directory), SitesOwnTasks(), Fleet()
    service = BlobService(store, permissions, clock, stall_s=stall_s, bytes_per_second=bytes_per_second, turns=turns)
    frames.serve(service, server)
    rounds_pb2_grpc.add_FleetServiceServicer_to_server(fleet, server)
    admin_pb2_grpc.add_OperatorServiceServicer_to_server(Operator(), server)
    bound = bind(server, f"127.0.0.1:{port}", credentials or tls.server_credentials(fixed(federation.aggregator())))
    await server.start()
    try:
        yield Wire(federation, bound, fleet, store, permissions, denied)
    finally:
        await server.stop(None)


class CuttingProxy:
    """A TCP proxy whose connections die: the n-th after `budgets[n]` bytes in `direction`; later ones live for ever."""

    def __init__(self, target_port: int, budgets: list[int], *, freeze: bool = False) -> None:
        self._target_port = target_port
        self._budgets = list(budgets)
        self._freeze = freeze
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.passed = 0
        """Bytes that came by, both ways together."""
        self.port = 0

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *failure: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = [self._budgets.pop(0) if self._budgets else 1 << 60]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}

        def cut() -> None:
            for each in (writer, far_writer):
                each.transport.abort()

        await asyncio.gather(self._pump(reader, far_writer, left, cut), self._pump(far_reader, writer, left, cut))
        self._writers -= {writer, far_writer}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int], cut: Callable[[], None]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                left[0] -= len(data)
                self.passed += len(data)
                if left[0] < 0 and self._freeze:
                    await asyncio.Event().wait()
                if left[0] < 0:
                    cut()
                    return
                writer.write(data)
                await writer.drain()
        if not self._freeze:
            cut()
