"""FleetService: a site's side of the rounds. The site is always the caller's certificate, never a field."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import AsyncIterator, Mapping
from itertools import islice
from typing import Any, Final

import grpc

from aggregator import events, strategies
from aggregator.admission import Expected, open_manifest
from aggregator.engine import Engine
from aggregator.fleet import Changes, Closing, Fleet, OfferTask, Replaced, TaskProgress, WithdrawTask
from aggregator.history import Chronicle
from aggregator.members import Members
from aggregator.models import SHARED
from aggregator.rounds import Round, RoundState
from aggregator.services import convert
from aggregator.services.hello import check_hello
from aggregator.services.offers import task_offer
from aggregator.services.permissions import check_own
from aggregator.tasks import WITH_SITE, Task, TaskState
from histofed import __version__
from histofed.base import encoding
from histofed.base.clock import Clock, iso
from histofed.base.errors import (
    AlreadyThere,
    BadData,
    CannotWriteState,
    HistofedError,
    NotAuthorised,
    Stale,
    TryLater,
)
from histofed.base.failpoints import failpoint
from histofed.base.ids import Digest, SiteId, TaskKey, digest, sha256
from histofed.base.words import one_line
from histofed.pki.credentials import Credentials
from histofed.pki.signing import Envelope
from histofed.statements import METRIC_NAME
from histofed.telemetry.context import TraceContext
from histofed.telemetry.logs import fields
from histofed.telemetry.tracing import Tracing
from histofed.transport.server import Caller, caller
from histofed.transport.store import BlobStore, owner_of
from histofed.v1 import rounds_pb2, rounds_pb2_grpc

log = logging.getLogger(__name__)

BEAT_S: Final = 10.0
"""Seconds between two messages on an idle stream."""
LOSSES_LIMIT: Final = 16
"""Losses of one task that are shown."""
PHASE_LIMIT: Final = 20
"""Characters of what a task is at."""
CAPABILITIES: Final = (*encoding.CAPABILITIES, "kind:train")


class FleetServicer(rounds_pb2_grpc.FleetServiceServicer):
    """Converts, asks the engine, converts back."""

    def __init__(
        self,
        *,
        engine: Engine,
        members: Members,
        fleet: Fleet,
        changes: Changes,
        blobs: BlobStore,
        credentials: Credentials,
        tracing: Tracing,
        chronicle: Chronicle,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._chronicle = chronicle
        self._tracing = tracing
        self._members = members
        self._fleet = fleet
        self._changes = changes
        self._blobs = blobs
        self._credentials = credentials
        self._clock = clock

    async def Hello(
        self, request: rounds_pb2.HelloRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> rounds_pb2.HelloResponse:
        who = caller(context)
        try:
            self._meet(request, who)
        except (CannotWriteState, TryLater):
            raise  # it is this machine that the site waits for
        except HistofedError:
            self._fleet.turn_away(SiteId(who.name))
            raise
        log.info("site says hello", extra=fields(event="site.connected", site=who.name, version=request.version))
        return rounds_pb2.HelloResponse(
            version=__version__,
            capabilities=CAPABILITIES,
            identity=who.identity.uri,
            now=iso(self._clock.now()),
            ended_experiments=self._engine.store.ended_experiments(request.experiments),
            history=convert.history(self._chronicle.now()),
        )

    def _meet(self, request: rounds_pb2.HelloRequest, who: Caller) -> None:
        """The site is here and takes part. Raises what is against that."""
        check_hello(request)
        self._chronicle.meet(SiteId(who.name), convert.seen_history(request), convert.who(who))
        self._members.site_seen(SiteId(who.name), request.version, request.instance)
        self._chronicle.welcome(SiteId(who.name))

    async def WaitForWork(
        self, request: rounds_pb2.WaitForWorkRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[rounds_pb2.WaitForWorkResponse]:
        site = SiteId(caller(context).name)
        self._chronicle.check_met(site)  # one that is connected is sampled
        connection = self._fleet.connect(site, request.instance)
        self._engine.wake()
        try:
            # not through the queue, which is for what happens from now on: however many there are, they are no flood
            for task in self._engine.tasks_of(site):
                if (offer := task_offer(self._engine, self._chronicle, task)) is not None:
                    yield rounds_pb2.WaitForWorkResponse(offer=offer)
            while True:
                try:
                    message = await asyncio.wait_for(connection.messages.get(), BEAT_S)
                except TimeoutError:
                    yield rounds_pb2.WaitForWorkResponse(beat=rounds_pb2.Beat())
                    continue
                match message:
                    case OfferTask(task):
                        offer = task_offer(self._engine, self._chronicle, task)
                        if offer is not None:
                            yield rounds_pb2.WaitForWorkResponse(offer=offer)
                    case WithdrawTask(task, reason):
                        withdrawal = rounds_pb2.TaskWithdrawal(task=str(task), reason=reason)
                        yield rounds_pb2.WaitForWorkResponse(withdrawal=withdrawal)
                    case Replaced():
                        raise AlreadyThere("a newer connection of this agent took over")
                    case Closing():
                        return
        finally:
            self._fleet.disconnect(connection)

    async def AcceptTask(
        self, request: rounds_pb2.AcceptTaskRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> rounds_pb2.AcceptTaskResponse:
        who, task = self._own_task(context, request.task)
        self._engine.dispatch(task.round, events.Accepted(task.site, request.attempt), who=convert.who(who))
        return rounds_pb2.AcceptTaskResponse()

    async def DeclineTask(
        self, request: rounds_pb2.DeclineTaskRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> rounds_pb2.DeclineTaskResponse:
        who, task = self._own_task(context, request.task)
        event = events.Declined(task.site, request.attempt, _words(request.reason))
        self._engine.dispatch(task.round, event, who=convert.who(who))
        return rounds_pb2.DeclineTaskResponse()

    async def FailTask(
        self, request: rounds_pb2.FailTaskRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> rounds_pb2.FailTaskResponse:
        who, task = self._own_task(context, request.task)
        event = events.Failed(task.site, request.attempt, _words(request.reason), request.retryable)
        self._engine.dispatch(task.round, event, who=convert.who(who))
        return rounds_pb2.FailTaskResponse()

    async def ReportProgress(
        self, request: rounds_pb2.ReportProgressRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> rounds_pb2.ReportProgressResponse:
        _, task = self._own_task(context, request.task)
        state = self._engine.round_of(task)
        mine = state.task(task.site)
        # an update that is received waits for its verdict alone: no other one of the task is taken
        if state.state is not RoundState.OPEN or mine.state not in WITH_SITE or mine.attempt != request.attempt:
            is_open = state.state is RoundState.OPEN
            reason = mine.reason or (f"the task is {mine.state}" if is_open else f"round {state.key} is {state.state}")
            return rounds_pb2.ReportProgressResponse(wanted=False, reason=reason)
        progress = TaskProgress(
            one_line(request.phase)[:PHASE_LIMIT],
            request.done,
            request.total,
            _numbers(request.losses),
            _number(request.rate),
        )
        self._fleet.report(task, progress)
        return rounds_pb2.ReportProgressResponse(wanted=True)

    async def SubmitUpdate(
        self, request: rounds_pb2.SubmitUpdateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> rounds_pb2.SubmitUpdateResponse:
        who, task = self._own_task(context, request.task)
        envelope = Envelope(
            request.manifest.payload_type,
            request.manifest.payload,
            request.manifest.signature,
            request.manifest.certificate,
        )
        state = self._engine.round_of(task)
        if state.task(task.site).state in {TaskState.ACCEPTED, TaskState.UPLOADING}:
            trace = self._tracing.extract(context.invocation_metadata() or ())
            self._receive(state, task, request.attempt, envelope, who, trace)
        elif state.task(task.site).manifest != sha256(envelope.payload):
            self._engine.note_late(task, convert.who(who))
            raise _too_late(task, state.task(task.site))
        return await self._verdict(task)

    def _receive(
        self, state: Round, task: TaskKey, attempt: int, envelope: Envelope, who: Caller, trace: TraceContext | None
    ) -> None:
        """Check what the manifest says and take the update, or reject it."""
        mine = state.task(task.site)
        if attempt != mine.attempt:
            # a forgotten copy of the site: refusing it must not spoil the attempt in hand
            raise Stale(f"task {task} is at attempt {mine.attempt}; this update is of attempt {attempt}")
        try:
            manifest = open_manifest(
                envelope,
                ca=self._credentials.ca,
                signer=who.identity,
                at=self._clock.now(),
                expected=self._expected(state, task, attempt),
            )
        except (BadData, NotAuthorised) as error:
            log.warning("update rejected", extra=fields(task, event="update.rejected", reason=str(error)))
            self._engine.dispatch(state.key, events.Rejected(task.site, str(error)), who=convert.who(who), trace=trace)
            return
        assert manifest.weights is not None, "admission requires weights of a train task"
        weights = digest(manifest.weights.sha256)
        if not self._blobs.received(weights, owner_of(str(task))):
            raise Stale(f"task {task}: upload the update's bytes before its manifest")
        event = events.Received(task.site, attempt, sha256(envelope.payload), weights, manifest.weights.bytes)
        self._engine.dispatch(state.key, event, who=convert.who(who), update=envelope, trace=trace)
        failpoint("aggregator.update_received")

    def _own_task(self, context: grpc.aio.ServicerContext[Any, Any], text: str) -> tuple[Caller, TaskKey]:
        """The caller and the task, which must be the caller's and must exist, in this kind and this epoch."""
        who, task = caller(context), TaskKey.parse(text)
        check_own(who, task)
        self._chronicle.check(task.site, context.invocation_metadata() or ())
        with self._chronicle.forgotten(task.round):
            self._engine.round_of(task)
        return who, task

    async def _verdict(self, task: TaskKey) -> rounds_pb2.SubmitUpdateResponse:
        """Wait until the update is judged. Raises `Stale` where its round ended before it was."""
        while True:
            mine = self._engine.round_of(task).task(task.site)
            if mine.state is TaskState.EXPIRED:
                raise _too_late(task, mine)
            if mine.state is not TaskState.RECEIVED:
                return rounds_pb2.SubmitUpdateResponse(
                    state=convert.task_state(mine.state),
                    reason=mine.reason,
                    history=convert.history(self._chronicle.now()),
                )
            await self._changes.wait(1.0)

    def _expected(self, state: Round, task: TaskKey, attempt: int) -> Expected:
        experiment = self._engine.experiment(task.round.experiment)
        rules = experiment.file.aggregation
        return Expected(
            federation=self._credentials.federation,
            task=task,
            attempt=attempt,
            experiment_sha256=experiment.sha256,
            base=Digest(self._engine.store.part(state.base, SHARED).sha256),
            encoding=rules.encoding,
            weights=rules.weights,
            max_update_bytes=rules.max_update_bytes,
            loss=strategies.weighing_loss(rules),
        )


def _too_late(key: TaskKey, task: Task) -> Stale:
    because = f" ({task.reason})" if task.reason else ""
    return Stale(f"task {key} is {task.state}{because}; this update comes too late or is another one")


def _words(reason: str) -> str:
    """A site's reason, as it is shown to operators."""
    return one_line(reason) or "no reason given"


def _number(value: float) -> float:
    """A rate that every reader can show; one that is not finite says nothing."""
    return value if math.isfinite(value) else 0.0


def _numbers(losses: Mapping[str, float]) -> dict[str, float]:
    """The losses that are shown: bounded in number, finite, with names that cannot do anything to a terminal."""
    named = ((name, value) for name, value in losses.items() if re.fullmatch(METRIC_NAME, name) and math.isfinite(value))
    return dict(islice(named, LOSSES_LIMIT))
