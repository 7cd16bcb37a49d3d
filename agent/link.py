"""The only module of the agent that speaks to the aggregator: grpc stops here, frozen dataclasses go on.

The agent dials out; nothing listens. One connection carries the stream of work (`offers.py` reads what comes on it) and the
calls about the task in hand, a second one blobs, while there are any (`line.py`). When the certificate is past its half life
the link asks for a newer one, for a new key, and opens new connections beside the old ones, which are closed when nobody
uses them any more; a transfer moves over at once. Every error that leaves here is one of `histofed/base/errors.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final, TypeAlias

from agent.line import Line
from agent.offers import Message, message, moment
from histofed import __version__
from histofed.audit.history import EPOCH_KEY, History
from histofed.base import encoding
from histofed.base.clock import Clock
from histofed.base.errors import AggregatorUnavailable, BadData
from histofed.base.ids import Digest, TaskKey
from histofed.base.proxy import ENVIRONMENT, ProxySetting
from histofed.pki.credentials import Credentials
from histofed.pki.signing import Envelope
from histofed.recipes import registry as recipes
from histofed.telemetry.tracing import Tracing
from histofed.transport import blobs
from histofed.transport.channel import Connection, open_connection
from histofed.transport.enrolment import renew
from histofed.transport.held import Held
from histofed.transport.limits import CALL_S
from histofed.transport.pace import Pace
from histofed.v1 import rounds_pb2 as wire
from histofed.v1 import rounds_pb2_grpc, types_pb2

log = logging.getLogger(__name__)

CAPABILITIES: Final = (*encoding.CAPABILITIES, "kind:train", *(f"recipe:{name}" for name in recipes.names()))
BEAT_LIMIT_S: Final = 120.0
"""Seconds without a message (a beat comes every few seconds) after which the connection is taken for dead."""

SUBMIT_S: Final = 600.0
"""Admission reads the whole update before it answers."""

Transfer: TypeAlias = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


@dataclass(frozen=True)
class Greeting:
    """What the aggregator says about itself."""

    version: str
    identity: str
    now: datetime
    ended: frozenset[str]
    """Those of the experiments asked about that have ended."""
    history: History | None
    """How far its history goes; None from a release that does not tell."""


@dataclass(frozen=True)
class Wanted:
    """Whether to go on with a task."""

    wanted: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What admission said about an update."""

    admitted: bool
    reason: str


class Link:
    """The way to one aggregator, as one site. Every call raises `AggregatorUnavailable` when it is not there."""

    def __init__(
        self,
        address: str,
        identity_file: Path,
        clock: Clock,
        random: Random,
        tracing: Tracing,
        proxy: ProxySetting = ENVIRONMENT,
    ) -> None:
        """Nothing is sent yet. Raises `NotEnrolled` without an identity."""
        self.address = address
        self._identity_file = identity_file
        self._clock = clock
        self._random = random
        self._tracing = tracing
        self._proxy = proxy
        self._jitter = random.random()
        self._met = clock.now(), clock.monotonic()
        """What the aggregator's clock said at the last hello, and the moment of ours that no setting moves."""
        self._credentials = Credentials.load(identity_file)
        self._talk, self._freight = Line(self._dial, lasting=True), Line(self._dial, lasting=False)
        self._up, self._down = Pace(clock), Pace(clock)
        self.heard: History | None = None
        """The newest word of the aggregator about its history."""
        self.epoch: int | None = None
        """The epoch in which this site works; calls about tasks name it."""

    @property
    def credentials(self) -> Credentials:
        """This site's identity, the newest one."""
        return self._credentials

    async def hello(self, instance: str, experiments: Sequence[str] = (), seen: History | None = None) -> Greeting:
        """The first call on every connection; asks which of `experiments` have ended, and tells how much this site has seen.

        Raises `VersionMismatch`, `NotEnrolled`, `AlreadyThere`, and `WentBack` from an aggregator that knows less than that.
        """
        request = wire.HelloRequest(
            version=__version__, capabilities=CAPABILITIES, instance=instance, experiments=experiments
        )
        if seen is not None:
            request.history.CopyFrom(wire.History(epoch=seen.epoch, records=seen.head.sequence, head=seen.head.hash))
        response = await self._call("Hello", request)
        now = moment(response.now)
        self._met = now, self._clock.monotonic()
        self._note(response)
        return Greeting(
            response.version,
            response.identity,
            now,
            frozenset(response.ended_experiments),
            self.heard if response.HasField("history") else None,
        )

    def aggregators_now(self) -> datetime:
        """The aggregator's wall clock, reckoned from its last greeting: deadlines are meant by it."""
        then, at_s = self._met
        return then + timedelta(seconds=self._clock.monotonic() - at_s)

    async def work(self, instance: str) -> AsyncGenerator[Message, None]:
        """Offers, withdrawals and beats, until the stream ends or breaks."""
        request = wire.WaitForWorkRequest(instance=instance)
        async with self._talk.newest() as connection:
            stub = rounds_pb2_grpc.FleetServiceStub(connection.channel)
            stream = connection.stream(stub.WaitForWork, request)
            async with contextlib.aclosing(stream):
                while True:
                    try:
                        async with asyncio.timeout(BEAT_LIMIT_S):
                            response = await anext(stream)
                    except StopAsyncIteration:
                        return
                    except TimeoutError as error:
                        raise AggregatorUnavailable(f"the aggregator was silent for {BEAT_LIMIT_S:.0f} s") from error
                    if response.HasField("offer"):
                        self._note(response.offer)
                    yield message(response)

    async def accept(self, task: TaskKey, attempt: int, policy_sha256: Digest) -> None:
        """The site's consent allows the task."""
        request = wire.AcceptTaskRequest(task=str(task), attempt=attempt, policy_sha256=policy_sha256)
        await self._call("AcceptTask", request)

    async def decline(self, task: TaskKey, attempt: int, reason: str, policy_sha256: Digest) -> None:
        """The site will not do the task in this round."""
        request = wire.DeclineTaskRequest(task=str(task), attempt=attempt, reason=reason, policy_sha256=policy_sha256)
        await self._call("DeclineTask", request)

    async def report(
        self,
        task: TaskKey,
        attempt: int,
        phase: str,
        done: int,
        total: int,
        losses: Mapping[str, float],
        rate: float,
    ) -> Wanted:
        """Where the task is; the answer says whether it is still wanted."""
        request = wire.ReportProgressRequest(
            task=str(task), attempt=attempt, phase=phase, done=done, total=total, losses=losses, rate=rate
        )
        response = await self._call("ReportProgress", request)
        return Wanted(response.wanted, response.reason)

    async def submit(self, task: TaskKey, attempt: int, envelope: Envelope) -> Verdict:
        """The manifest of an update whose weights were uploaded; the answer is final."""
        manifest = types_pb2.Envelope(
            payload_type=envelope.payload_type,
            payload=envelope.payload,
            signature=envelope.signature,
            certificate=envelope.certificate,
        )
        request = wire.SubmitUpdateRequest(task=str(task), attempt=attempt, manifest=manifest)
        response = await self._call("SubmitUpdate", request, SUBMIT_S)
        self._note(response)
        return Verdict(response.state == types_pb2.TASK_STATE_ADMITTED, response.reason)

    async def fail(self, task: TaskKey, attempt: int, reason: str, retryable: bool) -> None:
        """The task failed here."""
        request = wire.FailTaskRequest(task=str(task), attempt=attempt, reason=reason, retryable=retryable)
        await self._call("FailTask", request)

    def cap(self, upload: int, download: int) -> None:
        """Bytes per second from now on, of all transfers together; 0 is no cap. A download in hand keeps its own."""
        self._up.set(upload)
        self._down.set(download)

    async def download(self, blob: Digest, size: int, target: Path, held: Held | None, progress: Transfer) -> None:
        """Fetch a blob to `target`, from where an earlier try stopped; its digest is checked.

        What is the same in `held` is copied from there.
        """
        clock, random = self._clock, self._random
        await blobs.download(
            self._freight, blob, target, size=size, clock=clock, random=random, held=held, pace=self._down, progress=progress
        )

    async def upload(self, path: Path, task: TaskKey, blob: Digest, held: Held | None, progress: Transfer) -> None:
        """Send a blob, from where an earlier try stopped; what is the same in `held`, the task's base, is not sent."""
        clock, random = self._clock, self._random
        await blobs.upload(
            self._freight,
            path,
            blob,
            task=str(task),
            clock=clock,
            random=random,
            held=held,
            pace=self._up,
            progress=progress,
        )

    def renewal_due(self) -> bool:
        """The certificate is past its half life, give or take this agent's own jitter."""
        return self._clock.now() >= self._credentials.renew_at(self._jitter)

    async def renew(self) -> bool:
        """Get a newer certificate for a new key, store both at once, and use them from the next call on.

        False where somebody enrolled again meanwhile: that identity is kept, and used instead.
        """
        async with self._talk.newest() as connection:
            renewed = await renew(connection, self._credentials)
        if await self.reload_identity():
            return False
        renewed.save(self._identity_file)
        await self._use(renewed)
        return True

    async def reload_identity(self) -> bool:
        """Use the identity file as it is now, if somebody enrolled again; whether somebody has."""
        found = Credentials.load(self._identity_file)
        if found.serial == self._credentials.serial:
            return False
        await self._use(found)
        return True

    async def close(self) -> None:
        """Hang up."""
        await self._talk.close()
        await self._freight.close()

    async def _call(self, method: str, request: Any, timeout_s: float = CALL_S) -> Any:
        """One unary call of the fleet service; it carries the trace of the span around it."""
        async with self._talk.newest() as connection:
            stub = rounds_pb2_grpc.FleetServiceStub(connection.channel)
            metadata = tuple(self._tracing.inject())
            if self.epoch is not None and method != "Hello":
                metadata = (*metadata, (EPOCH_KEY, str(self.epoch)))
            return await connection.call(getattr(stub, method), request, timeout_s=timeout_s, metadata=metadata)

    def _note(self, response: Any) -> None:
        """Keep what a message says about the aggregator's history, if it says anything."""
        if not response.HasField("history"):
            return
        try:
            self.heard = History.parse(response.history.epoch, response.history.records, response.history.head)
        except BadData as error:
            log.error("the aggregator told a history that this agent does not understand: %s", error)

    async def _use(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._jitter = self._random.random()
        await self._talk.replace()
        await self._freight.replace()

    def _dial(self) -> Connection:
        return open_connection(self.address, self._credentials, clock=self._clock, proxy=self._proxy)
