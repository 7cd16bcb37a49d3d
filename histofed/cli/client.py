"""The operator's end of the wire: protobuf in, frozen views out. The only module of the CLI that knows grpc.

Every method raises the error class that the aggregator raised (`transport/channel.py`), or `AggregatorUnavailable`.
"""

from __future__ import annotations

import random
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from histofed.base.clock import Clock
from histofed.base.errors import ConfigError, NotEnrolled
from histofed.base.ids import Digest
from histofed.cli import views
from histofed.cli.config import OperatorConfig
from histofed.pki.pem import PemIdentity, belong_together, refuse_readable_by_others
from histofed.transport.channel import Connection, open_connection
from histofed.v1 import admin_pb2 as pb
from histofed.v1 import admin_pb2_grpc, types_pb2

if TYPE_CHECKING:
    from histofed.pki.signing import Envelope

MODELS_PAGE: Final = 500
"""Models that are asked for at a time; an aggregator of an older release gives them all."""


class OperatorClient:
    """One connection to the aggregator, as an operator."""

    def __init__(self, connection: Connection, credentials: PemIdentity) -> None:
        self._connection = connection
        self._stub = admin_pb2_grpc.OperatorServiceStub(connection.channel)
        self.credentials = credentials

    @classmethod
    @asynccontextmanager
    async def connect(cls, config: OperatorConfig) -> AsyncIterator[OperatorClient]:
        """Open and close. Raises what `load_credentials` raises; a missing aggregator is noticed by the first call."""
        credentials = load_credentials(config)
        connection = open_connection(config.aggregator, credentials)
        try:
            yield cls(connection, credentials)
        finally:
            await connection.close()

    async def status(self) -> views.Status:
        """The aggregator in one screen."""
        found = await self._connection.call(self._stub.GetStatus, pb.GetStatusRequest())
        return views.Status(
            version=found.version,
            federation=found.federation,
            now=found.now,
            started_at=found.started_at,
            sites_connected=found.sites_connected,
            sites_enrolled=found.sites_enrolled,
            journal_records=found.journal_records,
            journal_head=found.journal_head or None,
            conditions=tuple(found.conditions),
            experiments=tuple(map(_experiment, found.experiments)),
        )

    async def submit(self, toml: str) -> views.Experiment:
        """Submit an experiment file. Raises `BadData` with the aggregator's reasons."""
        found = await self._connection.call(self._stub.SubmitExperiment, pb.SubmitExperimentRequest(toml=toml))
        return _experiment(found.experiment)

    async def experiments(self) -> tuple[views.Experiment, ...]:
        """All experiments, newest first."""
        found = await self._connection.call(self._stub.ListExperiments, pb.ListExperimentsRequest())
        return tuple(map(_experiment, found.experiments))

    async def experiment(self, name: str) -> tuple[views.Experiment, str]:
        """One experiment and its file. Raises `NotFound`."""
        found = await self._connection.call(self._stub.GetExperiment, pb.GetExperimentRequest(name=name))
        return _experiment(found.experiment), found.toml

    async def pause(self, name: str, reason: str) -> views.Experiment:
        """No new round until it is resumed. Raises `NotFound`, and `Stale` when it has ended."""
        request = pb.PauseExperimentRequest(name=name, reason=reason)
        return _experiment((await self._connection.call(self._stub.PauseExperiment, request)).experiment)

    async def resume(self, name: str, reason: str) -> views.Experiment:
        """Go on with the next round. Raises `NotFound`, and `Stale` when it has ended."""
        request = pb.ResumeExperimentRequest(name=name, reason=reason)
        return _experiment((await self._connection.call(self._stub.ResumeExperiment, request)).experiment)

    async def cancel(self, name: str, reason: str) -> views.Experiment:
        """End it and throw its open round away. Raises `NotFound`, and `Stale` when it has finished or failed."""
        request = pb.CancelExperimentRequest(name=name, reason=reason)
        return _experiment((await self._connection.call(self._stub.CancelExperiment, request)).experiment)

    async def rounds(self, experiment: str = "") -> tuple[views.Round, ...]:
        """Rounds of one or all experiments, oldest first; page by page, however many there are. Raises `NotFound`."""
        found: list[views.Round] = []
        request = pb.ListRoundsRequest(experiment=experiment)
        while True:
            page = await self._connection.call(self._stub.ListRounds, request)
            found += map(_round, page.rounds)
            if not page.next_page_token:
                return tuple(found)
            request.page_token = page.next_page_token

    async def round(self, experiment: str, number: int) -> views.Round:
        """One round with its tasks. Raises `NotFound`."""
        request = pb.GetRoundRequest(experiment=experiment, round=number)
        return _round((await self._connection.call(self._stub.GetRound, request)).round)

    async def watch(self, experiment: str) -> AsyncGenerator[views.Sight, None]:
        """The experiment whenever something changed, until it ends. Raises `NotFound`."""
        request = pb.WatchRoundsRequest(experiment=experiment)
        async with aclosing(self._connection.stream(self._stub.WatchRounds, request)) as messages:
            async for message in messages:
                newest = _round(message.round) if message.HasField("round") else None
                yield views.Sight(_experiment(message.experiment), newest)

    async def sites(self) -> tuple[views.Site, ...]:
        """Every site that ever enrolled, by name."""
        found = await self._connection.call(self._stub.ListSites, pb.ListSitesRequest())
        return tuple(map(_site, found.sites))

    async def models(self, experiment: str = "") -> tuple[views.Model, ...]:
        """Global models of one or all experiments, oldest first; page by page, however many there are. Raises `NotFound`."""
        found: list[views.Model] = []
        request = pb.ListModelsRequest(experiment=experiment, page_size=MODELS_PAGE)
        while True:
            page = await self._connection.call(self._stub.ListModels, request)
            found += map(_model, page.models)
            if not page.next_page_token:
                return tuple(found)
            request.page_token = page.next_page_token

    async def model(self, name: str) -> tuple[views.Model, Envelope]:
        """One model and its signed statement, which is not verified yet. Raises `NotFound`."""
        found = await self._connection.call(self._stub.GetModel, pb.GetModelRequest(model=name))
        return _model(found.model), _envelope(found.statement)

    async def create_token(self, site: str, ttl_s: int, *, again: bool) -> views.Token:
        """A join line for one site. Raises `AlreadyThere` for one that has enrolled, unless it is to do so `again`."""
        request = pb.CreateTokenRequest(site=site, ttl_s=ttl_s, again=again)
        found = await self._connection.call(self._stub.CreateToken, request)
        return views.Token(site, found.join_line, found.expires_at)

    async def download(
        self, sha256: Digest, size: int, target: Path, clock: Clock, progress: Callable[[int, int], None]
    ) -> None:
        """Fetch a blob to `target`, verified, resuming what an earlier attempt left. Raises `DigestMismatch`, `TooLarge`."""
        from histofed.transport.blobs import download

        # luck spreads the retries of many clients over time; it decides nothing else
        luck = random.Random()
        await download(self._connection, sha256, target, size=size, clock=clock, random=luck, progress=progress)


def load_credentials(config: OperatorConfig) -> PemIdentity:
    """The operator's identity from its three files.

    Raises `NotEnrolled` when one is missing or another identity's, `ConfigError` when others can read the key.
    """
    try:
        mode = stat.S_IMODE(config.key.stat().st_mode)
        key, certificate, ca = (path.read_bytes() for path in (config.key, config.certificate, config.ca))
    except FileNotFoundError as error:
        raise NotEnrolled(
            f"there is no file {error.filename}: an operator's folder holds certificate, key and CA, "
            "as `histofed-aggregator operator NAME --out DIR` writes it"
        ) from error
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error
    refuse_readable_by_others(
        config.key, mode, "have `histofed-aggregator operator NAME --out DIR` run on the aggregator's host for another one"
    )
    if not belong_together(config.key, config.certificate, config.ca):
        raise NotEnrolled(
            f"{config.key}, {config.certificate} and {config.ca} are not the parts of one identity: take the whole folder "
            "anew from who made it, or have `histofed-aggregator operator NAME --out DIR` run on the aggregator's host"
        )
    return PemIdentity(key, certificate, ca)


class _Enum(Protocol):
    def Name(self, number: int) -> str: ...  # noqa: N802 (protobuf's spelling)


def _word(enum: _Enum, prefix: str, value: int) -> str:
    """`ROUND_STATE_COMMITTED` as `committed`; a state that a newer aggregator knows as `unknown-9`."""
    try:
        return enum.Name(value).removeprefix(prefix).lower()
    except ValueError:
        return f"unknown-{value}"


def _experiment(found: pb.Experiment) -> views.Experiment:
    return views.Experiment(
        name=found.name,
        recipe=found.recipe,
        state=_word(types_pb2.ExperimentState, "EXPERIMENT_STATE_", found.state),
        reason=found.reason,
        rounds=found.rounds,
        rounds_committed=found.rounds_committed,
        sha256=found.sha256,
        submitted_by=found.submitted_by,
        created_at=found.created_at or None,
        ended_at=found.ended_at or None,
        model_digest=found.model_digest or None,
        open_round=found.open_round,
    )


def _round(found: pb.Round) -> views.Round:
    return views.Round(
        experiment=found.experiment,
        round=found.round,
        state=_word(types_pb2.RoundState, "ROUND_STATE_", found.state),
        reason=found.reason,
        eligible=tuple(found.eligible),
        sampled=tuple(found.sampled),
        admitted=tuple(found.admitted),
        refused=tuple(views.Refusal(refusal.site, refusal.reason) for refusal in found.refused),
        model_digest=found.model_digest or None,
        base_digest=found.base_digest or None,
        opened_at=found.opened_at or None,
        deadline=found.deadline or None,
        committed_at=found.committed_at or None,
        metrics=dict(found.metrics),
        tasks=tuple(map(_task, found.tasks)),
        quorum=found.quorum,
        enough=found.enough,
    )


def _task(found: pb.Task) -> views.Task:
    return views.Task(
        site=found.site,
        kind=_word(types_pb2.TaskKind, "TASK_KIND_", found.kind),
        state=_word(types_pb2.TaskState, "TASK_STATE_", found.state),
        reason=found.reason,
        attempt=found.attempt,
        phase=found.phase,
        done=found.done,
        total=found.total,
        losses=dict(found.losses),
        rate=found.rate,
        update_bytes=found.update_bytes,
    )


def _site(found: pb.Site) -> views.Site:
    return views.Site(
        name=found.name,
        connected=found.connected,
        enrolled_at=found.enrolled_at or None,
        last_seen_at=found.last_seen_at or None,
        version=found.version,
        certificate_expires_at=found.certificate_expires_at or None,
        updates_admitted=found.updates_admitted,
    )


def _model(found: pb.Model) -> views.Model:
    return views.Model(
        digest=found.digest,
        experiment=found.experiment,
        round=found.round,
        state=_word(types_pb2.ModelState, "MODEL_STATE_", found.state),
        parts=tuple(views.Part(part.name, part.blob.sha256, part.blob.bytes, part.release) for part in found.parts),
        created_at=found.created_at or None,
        removed_at=found.removed_at or None,
    )


def _envelope(found: types_pb2.Envelope) -> Envelope:
    # late: it brings cryptography along
    from histofed.pki.signing import Envelope

    return Envelope(found.payload_type, found.payload, found.signature, found.certificate)
