"""Wires the aggregator; nothing else constructs its parts.

Start: identity, journal, database, then the servers, then what was open is taken up. Stop: no new rounds, streams end,
children stop, everything that was acknowledged is on disk already.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from functools import partial
from typing import Final

import grpc

from aggregator import operators, setup, witness
from aggregator.attendance import Attendance
from aggregator.collector import tracing_of
from aggregator.config import AggregatorConfig
from aggregator.database import Database
from aggregator.door import EnrolmentDoor, open_enrolment
from aggregator.engine import Engine
from aggregator.experiments import Experiments
from aggregator.fleet import Changes, Fleet
from aggregator.gauges import Gauges
from aggregator.history import Chronicle
from aggregator.lifetime import OwnCertificate
from aggregator.members import Members
from aggregator.models import ModelForge
from aggregator.past import Past
from aggregator.pool import Workers, nursery
from aggregator.probes import Probes
from aggregator.pulse import Pulse
from aggregator.retention import Retention
from aggregator.scheduler import Scheduler
from aggregator.services.admin import OperatorServicer
from aggregator.services.enrollment import EnrollmentServicer
from aggregator.services.permissions import SitePermissions
from aggregator.services.rounds import FleetServicer
from aggregator.space import Space
from aggregator.store import Store
from histofed import __version__
from histofed.audit.journal import Journal
from histofed.audit.record import SYSTEM
from histofed.backup import snapshot, swap
from histofed.base import durable
from histofed.base.clock import Clock
from histofed.base.config import Loaded
from histofed.base.errors import HistofedError
from histofed.base.health import Health
from histofed.base.ids import Digest
from histofed.base.reload import Reloads
from histofed.pki.tokens import JoinLine
from histofed.telemetry import attributes as names
from histofed.telemetry.logs import fields
from histofed.telemetry.metrics import PrometheusMetrics
from histofed.transport import frames, tls
from histofed.transport.blob_service import BlobService
from histofed.transport.server import bind, fleet_gate, make_server
from histofed.transport.store import BlobStore
from histofed.v1 import admin_pb2_grpc, enrollment_pb2_grpc, rounds_pb2_grpc

log = logging.getLogger(__name__)

RELOADABLE: Final = ("log_level", "retention.", "transfer.")
"""Settings that a reload changes, by the beginning of their keys; the others need a restart."""
STOP_GRACE_S = 5.0
"""Seconds that running calls get when the daemon stops; uploads are resumed, so none needs more."""


class AggregatorService:
    """The aggregator as a service of `histofed/base/daemon.py`."""

    def __init__(
        self, loaded: Loaded[AggregatorConfig], read_again: Callable[[], Loaded[AggregatorConfig]], clock: Clock
    ) -> None:
        self._config = loaded.config
        self._read_again = read_again
        self._reloads = Reloads(loaded, RELOADABLE)
        self._clock = clock
        self._stack = AsyncExitStack()
        # not the journal: calls to a pod that is not ready end nowhere, and an operator has to be told what is wrong
        self._health = Health(clock, required=("listening",))
        self._failure: HistofedError | None = None
        self._drain: asyncio.Event | None = None

    # --- the daemon's contract ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the state and listen. Raises the errors of every part, in words."""
        config, clock, stack = self._config, self._clock, self._stack
        state = config.state_dir
        identity = self._hold_state()
        instance = setup.instance(state)
        metrics = PrometheusMetrics()
        journal = Journal(state / "journal", clock, instance, written=lambda: metrics.count(names.JOURNAL_RECORDS_TOTAL))
        stack.callback(journal.close)
        self._health.set("journal", True, "audit records are written")
        tracing = tracing_of(instance, config.telemetry)
        stack.push_async_callback(asyncio.to_thread, tracing.close)
        database = Database(state / "state.db")
        stack.callback(database.close)
        store, members = Store(database, clock), Members(database, clock)
        self._chronicle = self._proven_history(database, journal, store)
        own = self._own_certificate(identity, journal)
        blobs = BlobStore(durable.make_directory(state / "blobs"))
        scratch = durable.make_directory(state / "scratch")
        changes = Changes()
        fleet = Fleet(clock, changes)
        fleet.expect(members.present())
        workers = self._workers()
        forge = ModelForge(
            store=store,
            blobs=blobs,
            workers=workers,
            current=own.current,
            scratch=scratch,
            clock=clock,
            first=setup.first_weights(state),
        )
        engine = Engine(
            store=store,
            journal=journal,
            clock=clock,
            fleet=fleet,
            forge=forge,
            changes=changes,
            tracing=tracing,
            metrics=metrics,
            entropy=random.Random(),
            fatal=self._fail,
        )
        experiments = Experiments(engine)
        self._engine, self._metrics, self._fleet = engine, metrics, fleet
        gauges = Gauges(
            metrics=metrics,
            tracing=tracing,
            engine=engine,
            fleet=fleet,
            members=members,
            health=self._health,
            clock=clock,
            state=state,
            certificate_ends=own.ends,
        )
        self._space = space = Space(state, config.retention.reserve_bytes)
        self._retention = retention = Retention(
            engine=engine,
            past=Past(database, clock),
            blobs=blobs,
            scratch=scratch,
            rules=config.retention,
            clock=clock,
            health=self._health,
        )
        self._scheduler = Scheduler(engine, experiments, members, clock, self._health, space, retention)
        enrolment = EnrollmentServicer(
            members=members,
            journal=journal,
            authority=identity.authority,
            token_key=identity.token_key,
            address=setup.public_address(config),
            clock=clock,
        )
        self._door = EnrolmentDoor(
            members,
            identity.token_key,
            lambda: open_enrolment(enrolment, config.listen.enrolment, own.current, clock),
        )
        journal.append("aggregator.started", who=SYSTEM, subject={"version": __version__, "instance": instance})
        experiments.recover()
        engine.recover()
        stack.push_async_callback(engine.close)

        server = make_server(fleet_gate(config.federation, denied=members.revoked, clock=clock))
        rounds_pb2_grpc.add_FleetServiceServicer_to_server(
            FleetServicer(
                engine=engine,
                members=members,
                fleet=fleet,
                changes=changes,
                blobs=blobs,
                credentials=identity.credentials,
                tracing=tracing,
                chronicle=self._chronicle,
                clock=clock,
            ),
            server,
        )
        self._blob_service = BlobService(
            blobs,
            SitePermissions(engine, blobs, space, self._chronicle),
            clock,
            metrics=metrics,
            bytes_per_second=config.transfer.max_bytes_per_second,
        )
        frames.serve(self._blob_service, server)
        enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(enrolment, server)
        admin_pb2_grpc.add_OperatorServiceServicer_to_server(
            OperatorServicer(
                engine=engine,
                experiments=experiments,
                members=members,
                scheduler=self._scheduler,
                fleet=fleet,
                changes=changes,
                door=self._door,
                journal=journal,
                health=self._health,
                clock=clock,
                federation=config.federation,
                join_line=lambda token: str(self._join_line(token, identity.authority.sha256)),
            ),
            server,
        )
        await self._listen(server, own)
        stack.callback(changes.close)
        stack.callback(fleet.close)
        attendance = stack.enter_context(closing(Attendance(fleet, members, clock)))
        steps: dict[str, Callable[[], None]] = {
            "backups are not noted": self._chronicle.note_backups,
            "operators' certificates are not noted": partial(operators.note_issued, state, journal),
            "the aggregator's certificate is not renewed": own.renew,
            "the certificate's end is not told": partial(own.tell, self._health),
            "when sites were there last is not kept": attendance.turn,
            "gauges are not renewed": gauges.refresh,
        }
        self._pulse = Pulse(steps, await self._serve_probes())
        self._serve_metrics()

    async def _listen(self, server: grpc.aio.Server, own: OwnCertificate) -> None:
        """From here on sites and operators reach it. Raises for an address that cannot be bound, or an old TLS."""
        address = self._config.listen.grpc
        bind(server, address, tls.server_credentials(own.current))
        await server.start()
        self._stack.push_async_callback(server.stop, STOP_GRACE_S)
        host, _, port = address.rpartition(":")
        await tls.prove_tls13_only(_reachable(host), int(port))
        self._health.set("listening", True, f"sites reach it on {address}")
        log.info("listening", extra=fields(grpc=address, version=__version__, federation=self._config.federation))

    async def serve(self, drain: asyncio.Event) -> None:
        """Plan rounds until the daemon drains. Raises what made the aggregator unable to go on."""
        self._drain = drain
        if self._failure is not None:  # a job that was taken up at start was quicker than we are
            drain.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._scheduler.run(drain), name="scheduler")
            group.create_task(self._door.run(drain), name="enrolment door")
            group.create_task(self._pulse.run(drain), name="pulse")
        if self._failure is not None:
            raise self._failure

    async def reload(self) -> str:
        """Read the configuration again. Raises `ConfigError`; then the old one stays."""
        found = self._read_again()
        config = found.config
        self._space.reserve = config.retention.reserve_bytes
        self._retention.rules = config.retention
        self._blob_service.cap(config.transfer.max_bytes_per_second)
        logging.getLogger().setLevel(config.log_level)
        return self._reloads.take(found)

    async def stop(self) -> None:
        """Release everything, newest first."""
        await self._stack.aclose()

    def status(self) -> str:
        """One line for systemd."""
        open_rounds = ", ".join(
            f"{state.key} {state.state} ({len(state.admitted)} of {len(state.tasks)} in)"
            for state in self._engine.open_rounds
        )
        return f"{len(self._fleet.connected)} sites connected; {open_rounds or 'no round is open'}"

    def turning(self) -> bool:
        """The scheduler's loop turned lately."""
        return self._health.live

    # --- parts -------------------------------------------------------------------------------------------------------

    def _hold_state(self) -> setup.Identity:
        """Lock the state directory, finish a restore that was interrupted, and become whose state it is.

        Raises `WentBack` where its database was lost, and what `setup.load` raises.
        """
        state = durable.make_directory(self._config.state_dir)
        self._stack.enter_context(durable.lock(state / "lock", "histofed-aggregator"))
        swap.settle(state)
        snapshot.clear_away(state)
        durable.sweep(state / "identity")  # a key, perhaps
        setup.refuse_lost_database(state)
        return setup.load(self._config, self._clock)

    def _proven_history(self, database: Database, journal: Journal, store: Store) -> Chronicle:
        """Of rows and journal that belong together. Raises `WentBack` for others."""
        chronicle = Chronicle(database, journal, self._clock, self._health)
        chronicle.check_begun()
        witness.refuse_older_rows(self._config.state_dir / "journal", store, chronicle.epoch)
        return chronicle

    def _own_certificate(self, identity: setup.Identity, journal: Journal) -> OwnCertificate:
        """Renewed if it is time, for whoever comes from here on."""
        config = self._config
        path, issue = setup.own_certificate(config), partial(setup.next_certificate, config, identity.authority)
        own = OwnCertificate(identity.credentials, path, config.public_hosts, issue, journal, self._clock)
        own.begin()
        return own

    def _workers(self) -> Workers:
        born = nursery()
        self._stack.push_async_callback(born.close)
        return Workers(self._clock, limit=self._config.workers, nursery=born)

    def _fail(self, error: HistofedError) -> None:
        """Something that must work does not: end the daemon, its manager starts it again, state is kept."""
        log.critical("the aggregator cannot go on", extra=fields(reason=str(error)))
        self._failure = self._failure or error
        if self._drain is not None:
            self._drain.set()

    def _join_line(self, token: str, ca_sha256: Digest) -> JoinLine:
        port = int(self._config.listen.enrolment.rpartition(":")[2])
        return JoinLine(self._config.public_hosts[0], port, token, ca_sha256)

    async def _serve_probes(self) -> Probes:
        probes = Probes(self._health)
        await probes.open(self._config.listen.health)
        self._stack.push_async_callback(probes.close)
        return probes

    def _serve_metrics(self) -> None:
        host, _, port = self._config.listen.metrics.rpartition(":")
        server = self._metrics.serve(host, int(port))
        self._stack.callback(server.close)


def _reachable(host: str) -> str:
    """An address at which a daemon that listens on `host` reaches itself."""
    return {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104
