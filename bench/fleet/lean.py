"""A load process: many sites without disks. Each has its own certificate and connection and says what an agent says.

    python -m bench.fleet.lean ADDRESS FOLDER FIRST COUNT

Started by `bench/fleet/__main__.py`. A site takes each offer, downloads every byte of the base, uploads an update and
submits its signed manifest; the update is made once per round and process (the base plus a constant), because making it is
not what is measured, while every site sends it whole. On standard output goes a JSON line per offer with the moment at
which it came, per verdict, and per error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from histofed import __version__, weights
from histofed.base.clock import SystemClock, iso
from histofed.base.errors import HistofedError
from histofed.base.ids import TaskKey, sha256
from histofed.pki.credentials import Credentials
from histofed.pki.signing import sign
from histofed.statements import UPDATE_TYPE, File, UpdateManifest, encode
from histofed.transport.blobs import upload
from histofed.transport.channel import Connection, open_connection
from histofed.v1 import rounds_pb2 as wire
from histofed.v1 import rounds_pb2_grpc, transfer_pb2, transfer_pb2_grpc, types_pb2

SUBMIT_S = 600.0


@dataclass
class Kitchen:
    """Where the updates of a process are made, one per base."""

    folder: Path
    number: int
    made: dict[str, asyncio.Task[tuple[Path, weights.Written]]] = field(default_factory=dict)

    async def update(self, base: str, content: list[bytes]) -> tuple[Path, weights.Written]:
        """The update that belongs to a base; the first to ask gives the base's bytes."""
        if base not in self.made:
            self.made[base] = asyncio.create_task(asyncio.to_thread(self._make, base, b"".join(content)))
        return await self.made[base]

    def _make(self, base: str, content: bytes) -> tuple[Path, weights.Written]:
        source, target = self.folder / "base", self.folder / f"update-{base[:12]}"
        source.write_bytes(content)
        for old in self.folder.glob("update-*"):
            # another round's; a site that still sends it holds it open
            old.unlink()
        with weights.TensorFile(source) as file:
            specs = [spec.meaning for spec in file.specs.values()]
            step = np.float32((self.number + 1) / 1024)
            return target, weights.save_stream(
                target, specs, (part + step for name in file.names for part in file.pieces(name))
            )


def tell(what: str, **facts: object) -> None:
    """One line for whoever started us."""
    sys.stdout.write(json.dumps({"what": what, "at": time.time(), **facts}) + "\n")
    sys.stdout.flush()


class Site:
    """One site for as long as the process lives."""

    def __init__(self, address: str, identity: Path, kitchen: Kitchen) -> None:
        self._address = address
        self._credentials = Credentials.load(identity)
        self._name = self._credentials.identity.name
        self._kitchen = kitchen
        self._clock = SystemClock()
        self._random = Random(self._name)

    async def run(self) -> None:
        """Connect, take every offer; whatever goes wrong is told, and the site comes back."""
        await asyncio.sleep(self._random.uniform(0, 5))  # a fleet does not arrive in one instant
        while True:
            try:
                async with open_connection(self._address, self._credentials) as connection:
                    await self._session(connection)
            except* (HistofedError, OSError) as found:
                # also of a task: what was not done is offered again on a new connection only
                for error in found.exceptions:
                    tell("error", site=self._name, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(1)

    async def _session(self, connection: Connection) -> None:
        fleet = rounds_pb2_grpc.FleetServiceStub(connection.channel)
        instance = f"lean-{self._name}"
        await connection.call(fleet.Hello, wire.HelloRequest(version=__version__, instance=instance))
        stream = connection.stream(fleet.WaitForWork, wire.WaitForWorkRequest(instance=instance))
        connected = False
        async with asyncio.TaskGroup() as group, contextlib.aclosing(stream):
            async for message in stream:
                if not connected:
                    connected = True
                    tell("connected", site=self._name)
                if message.WhichOneof("message") == "offer":
                    tell("offer", site=self._name, task=message.offer.task)
                    group.create_task(self._work(connection, fleet, message.offer))

    async def _work(self, connection: Connection, fleet: Any, offer: wire.TaskOffer) -> None:
        accept = wire.AcceptTaskRequest(task=offer.task, attempt=offer.attempt, policy_sha256=sha256(b""))
        await connection.call(fleet.AcceptTask, accept)
        # as agents do: what moved the weights is hung up when they have moved
        async with open_connection(self._address, self._credentials) as freight:
            path, written = await self._kitchen.update(offer.base.sha256, await self._download(freight, offer))
            await upload(freight, path, written.sha256, task=offer.task, clock=self._clock, random=self._random)
        state = await self._submit(connection, fleet, offer, written)
        tell("verdict", site=self._name, task=offer.task, admitted=state == types_pb2.TASK_STATE_ADMITTED)

    async def _download(self, connection: Connection, offer: wire.TaskOffer) -> list[bytes]:
        """Every byte comes here; kept only where this process has no update for the base yet."""
        stub = transfer_pb2_grpc.BlobServiceStub(connection.channel)
        wanted, content, got = offer.base.sha256 not in self._kitchen.made, [], 0
        request = transfer_pb2.DownloadRequest(sha256=offer.base.sha256, offset=0)
        async for message in connection.stream(stub.Download, request):
            got += len(message.data)
            if wanted and offer.base.sha256 not in self._kitchen.made:
                content.append(message.data)
        if got != offer.base.bytes:
            raise HistofedError(f"{got} bytes of {offer.base.bytes} came")
        return content

    async def _submit(self, connection: Connection, fleet: Any, offer: wire.TaskOffer, written: weights.Written) -> int:
        task = TaskKey.parse(offer.task)
        manifest = UpdateManifest(
            federation=self._credentials.federation,
            experiment=task.round.experiment,
            experiment_sha256=offer.experiment_sha256,
            round=task.round.number,
            kind=task.kind,
            site=task.site,
            attempt=offer.attempt,
            base=offer.base.sha256,
            encoding="float32",
            weights=File(written.sha256, written.bytes),
            tiles=1,
            patients=1,
            steps=1,
            metrics={},
            private_round=0,
            policy_sha256=sha256(b""),
            created_at=iso(self._clock.now()),
        )
        envelope = sign(UPDATE_TYPE, encode(manifest), self._credentials)
        request = wire.SubmitUpdateRequest(
            task=offer.task,
            attempt=offer.attempt,
            manifest=types_pb2.Envelope(
                payload_type=envelope.payload_type,
                payload=envelope.payload,
                signature=envelope.signature,
                certificate=envelope.certificate,
            ),
        )
        response = await connection.call(fleet.SubmitUpdate, request, timeout_s=SUBMIT_S)
        return int(response.state)


async def main() -> None:
    address, folder, first, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    scratch = folder / f"load-{first}"
    scratch.mkdir()
    kitchen = Kitchen(scratch, first // count)
    async with asyncio.TaskGroup() as group:
        for number in range(first, first + count):
            group.create_task(Site(address, folder / "sites" / f"s{number:05}.pem", kitchen).run())


if __name__ == "__main__":
    asyncio.run(main())
