"""An aggregator as an operator sees it: the real gate, TLS and blob service, and a scripted OperatorService."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histofed.base.clock import SystemClock
from histofed.base.errors import AlreadyThere, BadData, NotAuthorised, NotFound, Stale
from histofed.base.ids import Digest, TaskKey
from histofed.base.ids import sha256 as sha256_of
from histofed.pki.credentials import Credentials
from histofed.pki.identity import Role
from histofed.transport import frames, tls
from histofed.transport.blob_service import BlobService
from histofed.transport.server import Caller, bind, fleet_gate, make_server
from histofed.transport.store import BlobStore
from histofed.v1 import admin_pb2 as pb
from histofed.v1 import admin_pb2_grpc, types_pb2
from tests.support.pki import fixed
from tests.support.signed_models import Federation, SignedModel

MOMENT = "2026-01-01T12:00:00.000000Z"
LATER = "2026-01-01T12:01:05.000000Z"
HEAD = f"7:{'ab' * 32}"
"""Of its journal."""


def experiment(state: str = "RUNNING", committed: int = 1, reason: str = "") -> pb.Experiment:
    """`demo` on the wire."""
    return pb.Experiment(
        name="demo",
        recipe="gan",
        state=f"EXPERIMENT_STATE_{state}",
        reason=reason,
        rounds=2,
        rounds_committed=committed,
        sha256="ef" * 32,
        submitted_by="alice",
        created_at=MOMENT,
        model_digest="ab" * 32,
    )


def round_(number: int, state: str = "COMMITTED") -> pb.Round:
    """A round of two sites on the wire; west was refused."""
    done = state == "COMMITTED"
    return pb.Round(
        experiment="demo",
        round=number,
        state=f"ROUND_STATE_{state}",
        eligible=["east", "north", "west"],
        sampled=["north", "west"],
        admitted=["north"] if done else [],
        refused=[pb.Refusal(site="west", reason="a tensor is not finite")] if done else [],
        model_digest="ab" * 32 if done else "",
        base_digest="cd" * 32,
        opened_at=MOMENT,
        committed_at=LATER if done else "",
        metrics={"g": 0.5} if done else {},
        tasks=[
            pb.Task(
                site="north",
                kind=types_pb2.TASK_KIND_TRAIN,
                state=types_pb2.TASK_STATE_ADMITTED if done else types_pb2.TASK_STATE_ACCEPTED,
                attempt=1,
                phase="" if done else "train",
                done=3,
                total=10,
                losses={"g": 0.7},
            )
        ],
    )


@dataclass
class OperatorServicer(admin_pb2_grpc.OperatorServiceServicer):
    """Answers from what the test put here."""

    model: SignedModel | None = None
    submitted: list[str] = field(default_factory=list)
    tokens: list[tuple[str, int, bool]] = field(default_factory=list)
    watches: list[list[pb.WatchRoundsResponse]] = field(default_factory=list)
    """One list of messages per connection; a connection whose list does not end the experiment is cut after it."""
    steered: list[tuple[str, str]] = field(default_factory=list)
    """State and reason of every order."""
    pages_of_models: int = 1
    """The model is listed once on each."""
    removed_at: str = ""
    """When the model's files were removed by retention."""
    state: str = "DRAFT"
    """Of an experiment that is submitted."""
    toml: str = 'name = "demo"\n'
    """Of an experiment that is shown."""
    broken: bool = False
    """Answer as an aggregator with a bug would."""

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        if self.broken:
            raise RuntimeError("a bug")
        return pb.GetStatusResponse(
            version="0.1.0",
            federation="test",
            now=LATER,
            started_at=MOMENT,
            sites_connected=2,
            sites_enrolled=3,
            experiments=[experiment()],
            conditions=["journal: the disk is nearly full"],
            journal_records=7,
            journal_head=HEAD,
        )

    async def SubmitExperiment(self, request: pb.SubmitExperimentRequest, context: Any) -> pb.SubmitExperimentResponse:
        if "recipe" not in request.toml:
            raise BadData("the experiment file cannot be used: recipe: missing")
        if self.submitted and self.submitted[0] != request.toml:
            raise AlreadyThere("there is another experiment demo; choose another name")
        self.submitted.append(request.toml)
        return pb.SubmitExperimentResponse(experiment=experiment(self.state, 0))

    async def ListExperiments(self, request: pb.ListExperimentsRequest, context: Any) -> pb.ListExperimentsResponse:
        return pb.ListExperimentsResponse(experiments=[experiment()])

    async def GetExperiment(self, request: pb.GetExperimentRequest, context: Any) -> pb.GetExperimentResponse:
        self._known(request.name)
        return pb.GetExperimentResponse(experiment=experiment(), toml=self.toml)

    async def PauseExperiment(self, request: pb.PauseExperimentRequest, context: Any) -> pb.PauseExperimentResponse:
        return pb.PauseExperimentResponse(experiment=self._steer(request.name, "PAUSED", request.reason, open_round=2))

    async def ResumeExperiment(self, request: pb.ResumeExperimentRequest, context: Any) -> pb.ResumeExperimentResponse:
        return pb.ResumeExperimentResponse(experiment=self._steer(request.name, "RUNNING", request.reason))

    async def CancelExperiment(self, request: pb.CancelExperimentRequest, context: Any) -> pb.CancelExperimentResponse:
        return pb.CancelExperimentResponse(experiment=self._steer(request.name, "CANCELLED", request.reason))

    async def ListRounds(self, request: pb.ListRoundsRequest, context: Any) -> pb.ListRoundsResponse:
        if request.experiment:
            self._known(request.experiment)
        return pb.ListRoundsResponse(rounds=[round_(1), round_(2, "OPEN")])

    async def GetRound(self, request: pb.GetRoundRequest, context: Any) -> pb.GetRoundResponse:
        self._known(request.experiment)
        return pb.GetRoundResponse(round=round_(request.round))

    async def WatchRounds(self, request: pb.WatchRoundsRequest, context: Any) -> AsyncIterator[pb.WatchRoundsResponse]:
        self._known(request.experiment)
        for message in self.watches.pop(0):
            yield message

    async def ListSites(self, request: pb.ListSitesRequest, context: Any) -> pb.ListSitesResponse:
        site = pb.Site(name="north", connected=True, enrolled_at=MOMENT, version="0.1.0", certificate_expires_at=LATER)
        return pb.ListSitesResponse(sites=[site, pb.Site(name="west", enrolled_at=MOMENT)])

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        behind = int(request.page_token or 0)
        left = self.pages_of_models - behind - 1
        return pb.ListModelsResponse(models=[self._model()], next_page_token=str(behind + 1) if left else "")

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        assert self.model is not None
        if not self._model().digest.startswith(request.model) and request.model != "demo":
            raise NotFound(f"there is no model {request.model!r}")
        envelope = self.model.envelope
        statement = types_pb2.Envelope(
            payload_type=envelope.payload_type,
            payload=envelope.payload,
            signature=envelope.signature,
            certificate=envelope.certificate,
        )
        return pb.GetModelResponse(model=self._model(), statement=statement)

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:
        self.tokens.append((request.site, request.ttl_s, request.again))
        return pb.CreateTokenResponse(join_line=f"line for {request.site}", expires_at=LATER)

    def _steer(self, name: str, state: str, reason: str, open_round: int = 0) -> pb.Experiment:
        if name == "done":
            raise Stale("experiment done is finished, so it cannot be steered any more")
        self._known(name)
        self.steered.append((state, reason))
        found = experiment(state, reason=f"by alice: {reason}")
        found.open_round = open_round
        return found

    def _known(self, name: str) -> None:
        if name != "demo":
            raise NotFound(f"there is no experiment {name!r}")

    def _model(self) -> pb.Model:
        assert self.model is not None
        parts = {"shared": self.model.shared, "server": self.model.server}
        found = pb.Model(
            digest=self.model.digest,
            experiment="demo",
            round=2,
            state=types_pb2.MODEL_STATE_CANDIDATE,
            created_at=MOMENT,
            removed_at=self.removed_at,
        )
        for name, data in parts.items():
            found.parts.add(name=name, blob=_blob(data), release=name == "server")
        return found


def _blob(data: bytes) -> types_pb2.Blob:
    return types_pb2.Blob(sha256=sha256_of(data), bytes=len(data))


class _Everything:
    """Operators may read every blob; nobody may write one."""

    async def may_upload(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        raise NotAuthorised("no uploads here")

    async def received(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        raise NotAuthorised("no uploads here")

    async def may_download(self, who: Caller, sha256: Digest) -> None:
        if who.identity.role is not Role.OPERATOR:
            raise NotAuthorised("only operators read models here")

    async def base_of(self, task: TaskKey) -> None:
        return None

    async def may_compare(self, who: Caller, sha256: Digest, held: Digest) -> bool:
        return False


@dataclass(frozen=True)
class RunningAggregator:
    """Where it listens and what it answers from."""

    federation: Federation
    address: str
    servicer: OperatorServicer
    credentials: Credentials
    blobs: BlobStore


@contextlib.contextmanager
def running_aggregator(folder: Path) -> Iterator[RunningAggregator]:
    """Serve on a free port from a thread with its own loop, because the CLI under test runs one of its own."""
    federation = Federation.make()
    credentials = federation.aggregator()
    servicer = OperatorServicer()
    blobs = BlobStore(folder / "blobs")
    started: Future[int] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        try:
            server = make_server(fleet_gate("test", denied=lambda _: False, clock=SystemClock()))
            admin_pb2_grpc.add_OperatorServiceServicer_to_server(servicer, server)
            frames.serve(BlobService(blobs, _Everything(), SystemClock()), server)
            port = bind(server, "127.0.0.1:0", tls.server_credentials(fixed(credentials)))
            await server.start()
        except BaseException as error:
            started.set_exception(error)
            raise
        started.set_result(port)
        await stop.wait()
        await server.stop(None)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="aggregator")
    thread.start()
    try:
        yield RunningAggregator(federation, f"localhost:{started.result(30)}", servicer, credentials, blobs)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
