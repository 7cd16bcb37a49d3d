"""An aggregator that does what a test tells it: real gRPC, real mutual TLS, real blob transfer, scripted answers.

For faults that a real aggregator does not have on demand: a base that is not what its name says, a rejection, a round that
closes in mid-training, silence. It checks nothing; what admission checks is tested with the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from histofed import __version__
from histofed.base.clock import SystemClock, iso
from histofed.base.errors import HistofedError
from histofed.base.ids import Digest, TaskKey, sha256
from histofed.pki.credentials import Credentials
from histofed.pki.signing import Envelope
from histofed.recipes.registry import recipe
from histofed.statements import UpdateManifest, decode_update
from histofed.telemetry.context import round_parent
from histofed.transport import frames
from histofed.transport.blob_service import BlobService
from histofed.transport.gate import Caller
from histofed.transport.server import bind, caller, fleet_gate, make_server
from histofed.transport.store import BlobStore
from histofed.transport.tls import server_credentials
from histofed.v1 import enrollment_pb2, enrollment_pb2_grpc, rounds_pb2, rounds_pb2_grpc, types_pb2
from tests.support.pki import Federation, fixed

BEAT_S = 0.2


@dataclass(frozen=True)
class Heard:
    """One call of a site: which, and about what."""

    call: str
    request: Any
    metadata: dict[str, str] = field(default_factory=dict)


class FakeAggregator(rounds_pb2_grpc.FleetServiceServicer, enrollment_pb2_grpc.EnrollmentServiceServicer):
    """An async context manager; afterwards `address` is where it listens."""

    def __init__(self, folder: Path, federation: Federation, *, port: int = 0) -> None:
        self.store = BlobStore(folder / "blobs")
        self.heard: list[Heard] = []
        self.offers: list[rounds_pb2.TaskOffer] = []
        """Sent, in this order, at the beginning of every stream."""
        self.answers: dict[str, list[HistofedError | Any]] = {}
        """What the next calls of a method are answered with; the normal answer when there is nothing left."""
        self.history: rounds_pb2.History | None = None
        """Told at every hello; nothing is told without one."""
        self._folder = folder
        self.federation = federation
        self._port = port
        self._streams: set[asyncio.Queue[rounds_pb2.WaitForWorkResponse | None]] = set()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        clock = SystemClock()
        self._server = make_server(fleet_gate(self.federation.name, denied=lambda serial: False, clock=clock))
        rounds_pb2_grpc.add_FleetServiceServicer_to_server(self, self._server)
        enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(self, self._server)
        frames.serve(BlobService(self.store, self, clock), self._server)
        own: Credentials = self.federation.aggregator()
        self._port = bind(self._server, f"127.0.0.1:{self._port}", server_credentials(fixed(own)))
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()
        await self._server.stop(grace=1.0)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self._port}"

    # -- what a test says ----------------------------------------------------------------------------------------------

    def make_offer(
        self,
        task: TaskKey,
        *,
        config: str = "",
        settled_round: int = 0,
        backup_round: int | None = None,
        attempt: int = 1,
        deadline_s: float = 600,
        extra: str = "",
        toml: str = "",
        base: Path | None = None,
    ) -> rounds_pb2.TaskOffer:
        """An offer of the torch-free recipe, or of the experiment in `toml`. `base`, or a `mean` one, is stored."""
        toml = toml or (
            f'name = "{task.round.experiment}"\nrecipe = "mean"\nrounds = 9\n{extra}\n'
            f"[config]\ndimension = 10\n{config or 'steps = 3'}\n"
        )
        if base is None:
            base = self._folder / "initial.safetensors"
            recipe("mean").workshop().initialise({"dimension": 10, "steps": 1}, 1, base)
        return rounds_pb2.TaskOffer(
            task=str(task),
            kind=types_pb2.TASK_KIND_TRAIN,
            attempt=attempt,
            experiment_toml=toml,
            experiment_sha256=sha256(toml.encode()),
            base=types_pb2.Blob(sha256=self.store.import_file(base), bytes=base.stat().st_size),
            settled_round=settled_round,
            backup_round=backup_round,
            deadline=iso(SystemClock().now() + timedelta(seconds=deadline_s)),
            traceparent=round_parent(task.round.experiment, task.round.number).traceparent,
        )

    def offer(self, offer: rounds_pb2.TaskOffer) -> None:
        """Offer now, and again at the beginning of every later stream."""
        self.offers.append(offer)
        self._tell(rounds_pb2.WaitForWorkResponse(offer=offer))

    def withdraw(self, task: TaskKey, reason: str) -> None:
        """Tell that the task is not wanted any more."""
        self.offers = [offer for offer in self.offers if offer.task != str(task)]
        self._tell(rounds_pb2.WaitForWorkResponse(withdrawal=rounds_pb2.TaskWithdrawal(task=str(task), reason=reason)))

    def hang_up(self) -> None:
        """End every stream in good order."""
        for queue in self._streams:
            queue.put_nowait(None)

    async def wait_for(self, call: str, count: int = 1, seconds: float = 30.0) -> Heard:
        """The `count`-th call of this name, when it has come."""

        def calls() -> list[Heard]:
            return [heard for heard in self.heard if heard.call == call]

        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: len(calls()) >= count)
        return calls()[count - 1]

    def called(self, call: str) -> int:
        """How often it was called."""
        return sum(heard.call == call for heard in self.heard)

    def manifests(self) -> list[UpdateManifest]:
        """Every update that was submitted."""
        return [decode_update(heard.request.manifest.payload) for heard in self.heard if heard.call == "SubmitUpdate"]

    def envelope(self) -> Envelope:
        """The last update's."""
        found = next(heard.request.manifest for heard in reversed(self.heard) if heard.call == "SubmitUpdate")
        return Envelope(found.payload_type, found.payload, found.signature, found.certificate)

    # -- FleetService --------------------------------------------------------------------------------------------------

    async def Hello(self, request: Any, context: Any) -> Any:
        normal = rounds_pb2.HelloResponse(
            version=__version__, identity=caller(context).identity.uri, now=iso(SystemClock().now()), history=self.history
        )
        return await self._answer("Hello", request, context, normal)

    async def WaitForWork(self, request: Any, context: Any) -> AsyncIterator[Any]:
        queue: asyncio.Queue[rounds_pb2.WaitForWorkResponse | None] = asyncio.Queue()
        self._streams.add(queue)
        try:
            await self._hear("WaitForWork", request, context)
            for error in self._next("WaitForWork"):
                raise error
            for offer in self.offers:
                yield rounds_pb2.WaitForWorkResponse(offer=offer)
            while True:
                try:
                    async with asyncio.timeout(BEAT_S):
                        message = await queue.get()
                except TimeoutError:
                    message = rounds_pb2.WaitForWorkResponse(beat=rounds_pb2.Beat())
                if message is None:
                    return
                yield message
        finally:
            self._streams.discard(queue)

    async def AcceptTask(self, request: Any, context: Any) -> Any:
        return await self._answer("AcceptTask", request, context, rounds_pb2.AcceptTaskResponse())

    async def DeclineTask(self, request: Any, context: Any) -> Any:
        self._settle(request.task)
        return await self._answer("DeclineTask", request, context, rounds_pb2.DeclineTaskResponse())

    async def ReportProgress(self, request: Any, context: Any) -> Any:
        return await self._answer("ReportProgress", request, context, rounds_pb2.ReportProgressResponse(wanted=True))

    async def SubmitUpdate(self, request: Any, context: Any) -> Any:
        normal = rounds_pb2.SubmitUpdateResponse(state=types_pb2.TASK_STATE_ADMITTED)
        answer = await self._answer("SubmitUpdate", request, context, normal)
        self._settle(request.task)
        return answer

    async def FailTask(self, request: Any, context: Any) -> Any:
        self._settle(request.task)
        return await self._answer("FailTask", request, context, rounds_pb2.FailTaskResponse())

    async def Renew(self, request: Any, context: Any) -> Any:
        issued = self.federation.authority.issue(caller(context).identity, request.csr_pem)
        normal = enrollment_pb2.RenewResponse(
            certificate_pem=issued.certificate_pem, ca_pem=self.federation.authority.certificate_pem
        )
        return await self._answer("Renew", request, context, normal)

    # -- permissions of the blob service -------------------------------------------------------------------------------

    async def may_upload(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        """Everybody may; unless a test says otherwise."""
        for error in self._next("may_upload"):
            raise error

    async def received(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        """Nothing is to be done."""

    async def may_download(self, who: Caller, sha256: Digest) -> None:
        """Everybody may."""

    async def base_of(self, task: TaskKey) -> Digest | None:
        """The base of the task's offer, as long as there is one."""
        return next((Digest(offer.base.sha256) for offer in self.offers if offer.task == str(task)), None)

    async def may_compare(self, who: Caller, sha256: Digest, held: Digest) -> bool:
        """Everybody may."""
        return True

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _answer(self, call: str, request: Any, context: Any, normal: Any) -> Any:
        await self._hear(call, request, context)
        for answer in self._next(call):
            if isinstance(answer, HistofedError):
                raise answer
            return answer
        return normal

    async def _hear(self, call: str, request: Any, context: Any) -> None:
        async with self._changed:
            self.heard.append(Heard(call, request, dict(context.invocation_metadata() or ())))
            self._changed.notify_all()

    def _next(self, call: str) -> list[Any]:
        """The next scripted answer, if there is one."""
        script = self.answers.get(call, [])
        return [script.pop(0)] if script else []

    def _settle(self, task: str) -> None:
        self.offers = [offer for offer in self.offers if offer.task != task]

    def _tell(self, message: rounds_pb2.WaitForWorkResponse) -> None:
        for queue in self._streams:
            queue.put_nowait(message)
