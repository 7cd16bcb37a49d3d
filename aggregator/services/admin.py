"""OperatorService: what operators see and start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import grpc

from aggregator.door import EnrolmentDoor
from aggregator.engine import Engine
from aggregator.experiments import Experiments
from aggregator.fleet import Changes, Fleet
from aggregator.lifecycle import Order
from aggregator.members import Members
from aggregator.queries import OPEN_STATES
from aggregator.rows import ExperimentRow, ModelRow
from aggregator.scheduler import Scheduler
from aggregator.services import convert
from aggregator.strategies import check_strategy, flower_version
from histofed import __version__
from histofed.audit.journal import Journal
from histofed.base.clock import Clock, iso
from histofed.base.errors import AlreadyThere, BadData
from histofed.base.experiment import check_can_begin, parse_experiment
from histofed.base.health import Health
from histofed.base.ids import Json, RoundKey, experiment_id, site_id
from histofed.base.words import one_line
from histofed.recipes.registry import recipe
from histofed.transport import limits
from histofed.transport.server import caller
from histofed.v1 import admin_pb2, admin_pb2_grpc

TTL_S: Final = (60, 7 * 86400)
"""Shortest and longest life of a join token, in seconds."""
ROUNDS_PAGE: Final = 100
"""Rounds in one answer, at most: a tenth of a second of the daemon's loop."""
PAGE_BYTES: Final = limits.MESSAGE // 2
"""Where a page of rounds ends all the same: a hundred sites that refuse each round in many words would fill a message. A
round that is longer has a page to itself."""
MODELS_PAGE: Final = 500
"""Models in one answer: few enough to be read from the database at once."""
MODELS_AT_ONCE: Final = 5000
"""Models for a client that knows no pages: some 500 bytes each, so that they are far from a message's limit too."""
LOOK_S: Final = 0.1
"""Seconds between two looks at the rounds for one watcher: a burst of changes is one document, or watching would cost more
than a round with a small model."""


class OperatorServicer(admin_pb2_grpc.OperatorServiceServicer):
    """Converts, asks, converts back."""

    def __init__(
        self,
        *,
        engine: Engine,
        experiments: Experiments,
        members: Members,
        scheduler: Scheduler,
        fleet: Fleet,
        changes: Changes,
        door: EnrolmentDoor,
        journal: Journal,
        health: Health,
        clock: Clock,
        federation: str,
        join_line: Callable[[str], str],
    ) -> None:
        self._engine = engine
        self._experiments = experiments
        self._store = engine.store
        self._members = members
        self._scheduler = scheduler
        self._fleet = fleet
        self._changes = changes
        self._door = door
        self._journal = journal
        self._health = health
        self._clock = clock
        self._federation = federation
        self._join_line = join_line
        self._started_at: datetime = clock.now()

    async def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetStatusResponse:
        head = self._journal.head
        return admin_pb2.GetStatusResponse(
            version=__version__,
            federation=self._federation,
            now=iso(self._clock.now()),
            started_at=iso(self._started_at),
            sites_connected=len(self._fleet.connected),
            sites_enrolled=len(self._members.sites()),
            experiments=[self._experiment(row) for row in self._store.experiments(only_open=True)],
            conditions=[f"{each.name}: {each.words}" for each in self._health.conditions() if not each.ok],
            journal_records=head.sequence,
            journal_head=str(head),
        )

    async def SubmitExperiment(
        self, request: admin_pb2.SubmitExperimentRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.SubmitExperimentResponse:
        who = caller(context)
        experiment = parse_experiment(request.toml)
        recipe(experiment.file.recipe).parse(experiment.file.recipe_config).check_can_begin()
        check_strategy(experiment.file, flower_version())
        check_can_begin(experiment.file.sampling)
        self._engine.forge.check_given(experiment)
        try:
            self._experiments.submit(experiment, convert.who(who))
        except AlreadyThere:
            # the same file again is the same experiment: a repeated submission must be harmless
            if self._store.experiment(experiment.name).sha256 != experiment.sha256:
                raise
        return admin_pb2.SubmitExperimentResponse(experiment=self._experiment(self._store.experiment(experiment.name)))

    async def ListExperiments(
        self, request: admin_pb2.ListExperimentsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ListExperimentsResponse:
        return admin_pb2.ListExperimentsResponse(experiments=[self._experiment(row) for row in self._store.experiments()])

    async def GetExperiment(
        self, request: admin_pb2.GetExperimentRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetExperimentResponse:
        row = self._store.experiment(request.name)
        return admin_pb2.GetExperimentResponse(experiment=self._experiment(row), toml=row.toml)

    async def PauseExperiment(
        self, request: admin_pb2.PauseExperimentRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.PauseExperimentResponse:
        return admin_pb2.PauseExperimentResponse(experiment=self._steer(request, Order.PAUSE, context))

    async def ResumeExperiment(
        self, request: admin_pb2.ResumeExperimentRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ResumeExperimentResponse:
        return admin_pb2.ResumeExperimentResponse(experiment=self._steer(request, Order.RESUME, context))

    async def CancelExperiment(
        self, request: admin_pb2.CancelExperimentRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.CancelExperimentResponse:
        return admin_pb2.CancelExperimentResponse(experiment=self._steer(request, Order.CANCEL, context))

    async def ListRounds(
        self, request: admin_pb2.ListRoundsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ListRoundsResponse:
        if request.experiment:
            self._store.experiment(request.experiment)
        size = _size(request.page_size, ROUNDS_PAGE)
        after = RoundKey.parse(request.page_token) if request.page_token else None
        page = self._store.page_of_rounds(request.experiment, after, size)
        rounds = _fitting(convert.round_(state, metrics=metrics) for state, metrics in page)
        on = rounds and (len(rounds) < len(page) or len(page) == size)
        return admin_pb2.ListRoundsResponse(rounds=rounds, next_page_token=str(page[len(rounds) - 1][0].key) if on else "")

    async def GetRound(
        self, request: admin_pb2.GetRoundRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetRoundResponse:
        key = RoundKey(experiment_id(request.experiment), request.round)
        state = self._store.round(key)
        return admin_pb2.GetRoundResponse(round=convert.round_(state, self._fleet, self._store.round_metrics(key)))

    async def WatchRounds(
        self, request: admin_pb2.WatchRoundsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[admin_pb2.WatchRoundsResponse]:
        last: admin_pb2.WatchRoundsResponse | None = None
        while not self._changes.closed:
            row = self._store.experiment(request.experiment)
            newest = self._store.rounds(row.name, last=1)
            message = admin_pb2.WatchRoundsResponse(
                experiment=self._experiment(row),
                round=convert.round_(newest[0], self._fleet, self._store.round_metrics(newest[0].key)) if newest else None,
            )
            if message != last:
                yield message
                last = message
            if row.state not in OPEN_STATES:
                return
            await self._changes.wait(1.0)
            await self._clock.sleep(LOOK_S)

    async def ListSites(
        self, request: admin_pb2.ListSitesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ListSitesResponse:
        return admin_pb2.ListSitesResponse(sites=[convert.site(row, self._fleet) for row in self._members.sites()])

    async def ListModels(
        self, request: admin_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.ListModelsResponse:
        if request.experiment:
            self._store.experiment(request.experiment)
        if not request.page_size and not request.page_token:
            newest = self._store.models(request.experiment, last=MODELS_AT_ONCE)
            return admin_pb2.ListModelsResponse(models=await _models(newest))
        size = _size(request.page_size, MODELS_PAGE)
        page = self._store.page_of_models(request.experiment, request.page_token, size)
        return admin_pb2.ListModelsResponse(
            models=await _models(page), next_page_token=page[-1].digest if len(page) == size else ""
        )

    async def GetModel(
        self, request: admin_pb2.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.GetModelResponse:
        row = self._store.model(request.model)
        return admin_pb2.GetModelResponse(model=convert.model(row), statement=convert.envelope(row.statement))

    async def CreateToken(
        self, request: admin_pb2.CreateTokenRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> admin_pb2.CreateTokenResponse:
        who = caller(context)
        site = site_id(request.site)
        if not TTL_S[0] <= request.ttl_s <= TTL_S[1]:
            raise BadData(f"a token lives {TTL_S[0]} seconds to {TTL_S[1] // 86400} days, not {request.ttl_s} seconds")
        enrolled_at = self._members.enrolled_at(site)
        if enrolled_at is not None and not request.again:
            raise AlreadyThere(
                f"site {site} enrolled on {enrolled_at:%Y-%m-%d %H:%M} UTC: add --again (`histofed token create`) to let it "
                "enrol again, which revokes the certificates that it has"
            )
        expires_at = self._clock.now() + timedelta(seconds=request.ttl_s)
        token, digest = self._door.new_token()
        subject: dict[str, Json] = {"site": site, "expires_at": iso(expires_at), "again": enrolled_at is not None}
        self._journal.append("token.created", who=convert.who(who), subject=subject)
        self._members.create_token(digest, site, expires_at)
        await self._door.adjust()
        return admin_pb2.CreateTokenResponse(join_line=self._join_line(token), expires_at=iso(expires_at))

    def _steer(
        self,
        request: admin_pb2.PauseExperimentRequest | admin_pb2.ResumeExperimentRequest | admin_pb2.CancelExperimentRequest,
        order: Order,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> admin_pb2.Experiment:
        who = caller(context)
        self._experiments.steer(request.name, order, convert.who(who), who.name, one_line(request.reason))
        return self._experiment(self._store.experiment(request.name))

    def _experiment(self, row: ExperimentRow) -> admin_pb2.Experiment:
        file = self._engine.experiment(row.name).file
        model, open_round = self._store.latest_model(row.name), self._engine.open_round(row.name)
        return convert.experiment(
            row,
            file.rounds,
            file.recipe,
            self._store.rounds_committed(row.name),
            self._scheduler.waiting_for(row.name),
            None if model is None else model.digest,
            0 if open_round is None else open_round.key.number,
        )


def _fitting(rounds: Iterable[admin_pb2.Round]) -> list[admin_pb2.Round]:
    """As many from the first on as a page holds, and one at least."""
    found: list[admin_pb2.Round] = []
    left = PAGE_BYTES
    for each in rounds:
        left -= each.ByteSize()
        if found and left < 0:
            break
        found.append(each)
    return found


async def _models(rows: Sequence[ModelRow]) -> list[admin_pb2.Model]:
    """Beside the loop: statements of a thousand sites take half a millisecond each to read."""
    return await asyncio.to_thread(lambda: [convert.model(row) for row in rows])


def _size(asked: int, most: int) -> int:
    """Rows of a page, of which a client may want fewer."""
    return asked if 0 < asked < most else most
