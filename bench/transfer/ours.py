"""Our side: the blob service as the aggregator serves it, and an agent's upload and download."""

from __future__ import annotations

import asyncio
import os
import random
from multiprocessing.connection import Connection as Pipe

from bench.transfer.setting import Setting
from histofed.base.clock import SystemClock
from histofed.base.ids import Digest, TaskKey
from histofed.transport import blobs, frames, tls
from histofed.transport.blob_service import BlobService
from histofed.transport.channel import open_connection
from histofed.transport.gate import Caller
from histofed.transport.server import bind, fleet_gate, make_server
from histofed.transport.store import BlobStore
from tests.support.pki import fixed

TASK = "bench/1/train/north-clinic"


class _Anyone:
    """Every site may do everything."""

    async def may_upload(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None: ...

    async def received(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None: ...

    async def may_download(self, who: Caller, sha256: Digest) -> None: ...

    async def base_of(self, task: TaskKey) -> Digest | None:
        return None

    async def may_compare(self, who: Caller, sha256: Digest, held: Digest) -> bool:
        return False


def serve_upload(setting: Setting, pipe: Pipe) -> None:
    """An aggregator with an empty store."""
    asyncio.run(_serve_blobs(BlobStore(setting.folder / "store"), setting, pipe))


def serve_download(setting: Setting, pipe: Pipe) -> None:
    """An aggregator whose store holds the file."""
    store = BlobStore(setting.folder / "store")
    os.link(setting.source, store.path(setting.sha256))
    asyncio.run(_serve_blobs(store, setting, pipe))


async def _serve_blobs(store: BlobStore, setting: Setting, pipe: Pipe) -> None:
    clock = SystemClock()
    server = make_server(fleet_gate("bench", denied=lambda serial: False, clock=clock))
    frames.serve(BlobService(store, _Anyone(), clock), server)
    port = bind(server, "127.0.0.1:0", tls.server_credentials(fixed(setting.credentials("aggregator"))))
    await server.start()
    pipe.send(port)
    await asyncio.to_thread(pipe.recv)
    await server.stop(None)


def upload(setting: Setting, port: int) -> None:
    """As an agent hands over its update."""

    async def transfer() -> None:
        async with open_connection(f"localhost:{port}", setting.credentials("site")) as connection:
            await blobs.upload(
                connection, setting.source, setting.sha256, task=TASK, clock=SystemClock(), random=random.Random(0)
            )

    asyncio.run(transfer())


def download(setting: Setting, port: int) -> None:
    """As an agent fetches a model."""

    async def transfer() -> None:
        async with open_connection(f"localhost:{port}", setting.credentials("site")) as connection:
            await blobs.download(
                connection,
                setting.sha256,
                setting.folder / "received",
                size=setting.size,
                clock=SystemClock(),
                random=random.Random(0),
            )

    asyncio.run(transfer())
