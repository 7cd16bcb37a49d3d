"""A site that does not play by the rules: it has a real certificate, and says on the wire whatever a test wants.

It speaks protobuf to the real aggregator, without an agent. Every refusal comes back as the error class and the sentence
that an agent would see. The methods block; the connection lives in an event loop of its own between them.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine, Mapping
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from histofed import __version__, weights
from histofed.base.clock import SystemClock, iso
from histofed.base.hashing import sha256_file
from histofed.base.ids import Digest, TaskKey, digest, sha256
from histofed.pki.credentials import Credentials
from histofed.pki.signing import Envelope, sign
from histofed.statements import UPDATE_TYPE, File, UpdateManifest, encode
from histofed.transport.blobs import download, upload
from histofed.transport.channel import open_connection
from histofed.v1 import rounds_pb2 as wire
from histofed.v1 import rounds_pb2_grpc, transfer_pb2, transfer_pb2_grpc, types_pb2

T = TypeVar("T")
INSTANCE = "hostile-" + "0" * 8


class HostileSite:
    """One connection with a site's certificate; a context manager."""

    def __init__(self, address: str, identity: Path, scratch: Path) -> None:
        self.credentials = Credentials.load(identity)
        self.name = self.credentials.identity.name
        self._address = address
        self._scratch = scratch
        self._runner = asyncio.Runner()
        self._stream: Any = None
        self._offers: list[wire.TaskOffer] = []

    def __enter__(self) -> HostileSite:
        self._connection = self._run(self._open())
        self._fleet = rounds_pb2_grpc.FleetServiceStub(self._connection.channel)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None:
            self._stream.cancel()
        self._run(self._connection.close())
        self._runner.close()

    # --- what an honest agent says too -------------------------------------------------------------------------------

    def hello(self, version: str = __version__) -> wire.HelloResponse:
        """Introduce itself, as any version."""
        answer: wire.HelloResponse = self.call("Hello", wire.HelloRequest(version=version, instance=INSTANCE))
        return answer

    def wait_for_offer(self, experiment: str, seconds: float = 60.0) -> wire.TaskOffer:
        """The next offer of an experiment; the stream of offers stays open from the first call on."""
        return self._run(self._next_offer(experiment, seconds))

    def accept(self, offer: wire.TaskOffer) -> None:
        """Consent, whatever it is."""
        self.call("AcceptTask", wire.AcceptTaskRequest(task=offer.task, attempt=offer.attempt, policy_sha256=sha256(b"")))

    def decline(self, offer: wire.TaskOffer) -> None:
        """Refuse the task."""
        self.call("DeclineTask", wire.DeclineTaskRequest(task=offer.task, attempt=offer.attempt, reason="not today"))

    def base_of(self, offer: wire.TaskOffer) -> dict[str, np.ndarray[Any, Any]]:
        """Download the round's weights."""
        target = self._scratch / f"base-{offer.base.sha256[:8]}"
        self.download(offer.base.sha256, offer.base.bytes, target)
        return dict(weights.read(target))

    # --- and what it should not --------------------------------------------------------------------------------------

    def send(
        self, offer: wire.TaskOffer, tensors: Mapping[str, np.ndarray[Any, Any]], **changes: Any
    ) -> wire.SubmitUpdateResponse:
        """Upload tensors and submit a manifest that is honest except for `changes`; the verdict."""
        file = self._scratch / "update.safetensors"
        file.unlink(missing_ok=True)
        weights.save(file, tensors)
        return self.send_file(offer, file, **changes)

    def send_file(self, offer: wire.TaskOffer, file: Path, **changes: Any) -> wire.SubmitUpdateResponse:
        """The same with any bytes."""
        sha = self.send_bytes(offer, file)
        manifest = dataclasses.replace(self.manifest(offer, File(sha, file.stat().st_size)), **changes)
        return self.submit(offer.task, offer.attempt, self.sign(manifest))

    def send_bytes(self, offer: wire.TaskOffer, file: Path) -> Digest:
        """Any bytes without a manifest; their digest."""
        sha = sha256_file(file)
        self._run(upload(self._connection, file, sha, task=offer.task, clock=SystemClock(), random=Random()))
        return sha

    def manifest(self, offer: wire.TaskOffer, file: File) -> UpdateManifest:
        """What an honest site would say about its update."""
        task = TaskKey.parse(offer.task)
        return UpdateManifest(
            federation=self.credentials.federation,
            experiment=task.round.experiment,
            experiment_sha256=offer.experiment_sha256,
            round=task.round.number,
            kind=task.kind,
            site=task.site,
            attempt=offer.attempt,
            base=offer.base.sha256,
            encoding="float32",
            weights=file,
            tiles=100,
            patients=10,
            steps=5,
            metrics={},
            private_round=0,
            policy_sha256=sha256(b""),
            created_at=iso(SystemClock().now()),
        )

    def sign(self, manifest: UpdateManifest) -> Envelope:
        """With its own key."""
        return sign(UPDATE_TYPE, encode(manifest), self.credentials)

    def submit(self, task: str, attempt: int, envelope: Envelope) -> wire.SubmitUpdateResponse:
        """Any envelope as the result of any task."""
        manifest = types_pb2.Envelope(**dataclasses.asdict(envelope))
        request = wire.SubmitUpdateRequest(task=task, attempt=attempt, manifest=manifest)
        answer: wire.SubmitUpdateResponse = self.call("SubmitUpdate", request)
        return answer

    def announce(self, task: str, sha: str, size: int) -> transfer_pb2.GetUploadResponse:
        """Ask how much of a blob has arrived."""
        request = transfer_pb2.GetUploadRequest(task=task, sha256=sha, bytes=size)
        answer: transfer_pb2.GetUploadResponse = self.call_stub(transfer_pb2_grpc.BlobServiceStub, "GetUpload", request)
        return answer

    def download(self, sha: str, size: int, target: Path) -> None:
        """Any blob."""
        self._run(download(self._connection, digest(sha), target, size=size, clock=SystemClock(), random=Random()))

    def call(self, method: str, request: Any) -> Any:
        """Any method of the fleet service."""
        return self._run(self._connection.call(getattr(self._fleet, method), request))

    def call_stub(self, stub: type[Any], method: str, request: Any) -> Any:
        """Any method of any service."""
        return self._run(self._connection.call(getattr(stub(self._connection.channel), method), request))

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _open(self) -> Any:
        return open_connection(self._address, self.credentials)

    async def _next_offer(self, experiment: str, seconds: float) -> wire.TaskOffer:
        async with asyncio.timeout(seconds):
            while (found := self._take(experiment)) is None:
                if self._stream is None:
                    self._stream = self._fleet.WaitForWork(wire.WaitForWorkRequest(instance=INSTANCE))
                message = await self._stream.read()
                if not isinstance(message, wire.WaitForWorkResponse):  # ended: a hello was refused meanwhile
                    self._stream = None
                    continue
                if message.WhichOneof("message") == "offer":
                    self._offers.append(message.offer)
        return found

    def _take(self, experiment: str) -> wire.TaskOffer | None:
        for offer in self._offers:
            if offer.task.startswith(f"{experiment}/"):
                self._offers.remove(offer)
                return offer
        return None
