"""One life of the aggregator: the daemon's parts as `aggregator/daemon.py` wires them, without ports and child processes.

It ends in good order, or by a power cut at any failpoint or between any two steps; then everything in memory is gone, and
what was not acknowledged may be torn.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final, cast

from aggregator.config import RetentionRules
from aggregator.engine import Engine
from aggregator.experiments import Experiments
from aggregator.fleet import Changes, Fleet
from aggregator.history import Chronicle
from aggregator.members import Members
from aggregator.models import ModelForge
from aggregator.past import Past
from aggregator.pool import Workers
from aggregator.retention import Retention
from aggregator.scheduler import Scheduler
from aggregator.services.permissions import SitePermissions
from aggregator.services.rounds import FleetServicer
from aggregator.space import Space
from aggregator.store import Store
from histofed.audit.journal import Journal
from histofed.audit.record import SYSTEM
from histofed.base.errors import AggregatorUnavailable, HistofedError
from histofed.base.health import Health
from histofed.pki.credentials import Credentials
from histofed.telemetry.metrics import NoMetrics
from histofed.telemetry.tracing import Tracing
from histofed.transport.blob_service import BlobService
from histofed.transport.store import BlobStore
from tests.faults.facts import Fact, Refused
from tests.faults.simulation.disk import AggregatorDisk, FencedDatabase, FencedJournal, no_space
from tests.faults.simulation.network import Answer, Ended
from tests.faults.simulation.powercut import RUNNING, PowerCut
from tests.faults.simulation.stand_ins import Called, InlineWorkers, Trouble
from tests.faults.simulation.virtual import VirtualClock

log = logging.getLogger(__name__)

REFUSING: Final = frozenset(
    {"journal.before_fsync", "blob.chunk_written", "replace.before_rename", "database.before_commit"}
)
"""Where a full disk says so."""


class Life:
    """One process, so to speak."""

    def __init__(
        self,
        disk: AggregatorDisk,
        credentials: Credentials,
        certificates: Callable[[str], bytes],
        clock: VirtualClock,
        random: Random,
        rules: RetentionRules,
        on_end: Callable[[Life, bool], None],
        note: Callable[[Fact], None],
        on_bug: Callable[[BaseException], None],
    ) -> None:
        """`certificates` gives a site's certificate, PEM; `on_end` is told when it dies, and whether the power went."""
        self.trouble = Trouble()
        self.dead = False
        self._disk = disk
        self._credentials = credentials
        self._certificates = certificates
        self._clock = clock
        self._random = random
        self._rules = rules
        self._on_end = on_end
        self._note = note
        self._on_bug = on_bug
        self._context = contextvars.copy_context()
        self._context.run(RUNNING.set, self)
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._answers: dict[asyncio.Future[Any], None] = {}
        self._listeners: dict[Callable[[Any], None], None] = {}
        self._drain = asyncio.Event()

    # --- beginning and end -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the state and take up what was open."""
        self._context.copy().run(self._start)

    def _start(self) -> None:
        clock, database = self._clock, cast(Any, FencedDatabase(self._disk.database, self))
        self._journal = FencedJournal(self._disk.journal, clock, self)
        store, self.members = Store(database, clock), Members(database, clock)
        self.blobs = BlobStore(self._disk.blobs)
        changes, tracing, health = Changes(), Tracing.off(), Health(clock, required=())
        self.fleet = Fleet(clock, changes)
        self.fleet.expect(tuple(row.name for row in self.members.sites() if row.left_at is None))
        forge = ModelForge(
            store=store,
            blobs=self.blobs,
            workers=cast(Workers, InlineWorkers(self.trouble, clock, self._random)),
            current=lambda: self._credentials,
            scratch=self._disk.scratch,
            clock=clock,
        )
        self.engine = Engine(
            store=store,
            journal=cast(Journal, self._journal),
            clock=clock,
            fleet=self.fleet,
            forge=forge,
            changes=changes,
            tracing=tracing,
            metrics=NoMetrics(),
            entropy=self._random,
            fatal=self._fatal,
        )
        self.experiments = Experiments(self.engine)
        space = Space(self._disk.folder, self._rules.reserve_bytes, lambda _: 2**40)
        retention = Retention(
            engine=self.engine,
            past=Past(database, clock),
            blobs=self.blobs,
            scratch=self._disk.scratch,
            rules=self._rules,
            clock=clock,
            health=health,
        )
        self.scheduler = Scheduler(self.engine, self.experiments, self.members, clock, health, space, retention)
        chronicle = Chronicle(database, cast(Journal, self._journal), clock, health)
        fleet_service = FleetServicer(
            engine=self.engine,
            members=self.members,
            fleet=self.fleet,
            changes=changes,
            blobs=self.blobs,
            credentials=self._credentials,
            tracing=tracing,
            chronicle=chronicle,
            clock=clock,
        )
        blob_service = BlobService(self.blobs, SitePermissions(self.engine, self.blobs, space, chronicle), clock)
        self._services = {"FleetService": fleet_service, "BlobService": blob_service}
        self._changes = changes
        self._journal.append("aggregator.started", who=SYSTEM, subject={"instance": "simulation"})
        self.experiments.recover()
        self.engine.recover()
        self._spawn(self.scheduler.run(self._drain))

    def _fatal(self, error: HistofedError) -> None:
        """The daemon would end with an exit code, and be started again."""
        log.info("the aggregator gives up: %s", error)
        self._end(power_cut=False)

    def stop(self) -> None:
        """SIGTERM."""
        self._end(power_cut=False)

    def kill(self) -> None:
        """SIGKILL, or the power goes."""
        self._end(power_cut=True)

    def _end(self, power_cut: bool) -> None:
        if not self.dead:
            self.dead = True
            asyncio.get_running_loop().call_soon(self._bury, power_cut, context=contextvars.Context())

    def _bury(self, power_cut: bool) -> None:
        self.close()
        if power_cut:
            self._tear()
        else:
            self._journal.close()
        self._on_end(self, power_cut)

    def close(self) -> None:
        """Nothing of this life goes on."""
        self.dead = True
        gone = AggregatorUnavailable("the aggregator's process ended")
        for job in (*self._tasks, *self.engine.background._jobs.values()):
            job.cancel()
        for answer in tuple(self._answers):
            if not answer.done():
                answer.set_exception(gone)
                answer.exception()  # nobody may be waiting any more
        for tell in tuple(self._listeners):
            tell(Ended(gone))

    def _tear(self) -> None:
        """Of what was written and not synced, some part is on the disk."""
        self._journal.tear(self._random)
        for upload in self.blobs._uploads.values():
            if upload.part is not None and upload._path.exists():
                os.truncate(upload._path, self._random.randint(upload.part.committed, upload.part.written))

    # --- faults ------------------------------------------------------------------------------------------------------

    def pass_by(self, failpoint: str) -> None:
        """See `powercut.Machine`."""
        if self.dead:
            raise PowerCut
        if failpoint in REFUSING and self._random.random() < self.trouble.refuses:
            if failpoint == "database.before_commit":
                self._note(Refused())
            raise no_space()
        if self.trouble.cut_after and failpoint != "fence":
            self.trouble.cut_after -= 1
            if self.trouble.cut_after == 0:
                self.kill()
                raise PowerCut

    # --- serving -----------------------------------------------------------------------------------------------------

    def run(self, work: Callable[[Life], None]) -> None:
        """Something that happens inside this process, such as an operator's order."""
        self._context.copy().run(work, self)

    def serve(self, site: str, method: str, request: Any) -> Answer:
        """See `network.Server`."""
        answer = asyncio.get_running_loop().create_future()
        self._answers[answer] = None
        task = self._spawn(self._answer(answer, self._handler(method)(request, self._called_by(site))))
        return Answer(answer, task.cancel)

    async def _answer(self, answer: asyncio.Future[Any], work: Coroutine[Any, Any, Any]) -> None:
        try:
            result: Any = await work
            error: Exception | None = None
        except asyncio.CancelledError:
            result, error = None, AggregatorUnavailable("the call was cancelled")
        except Exception as raised:
            result, error = None, self._as_told(raised)
        self._answers.pop(answer, None)
        if self.dead or answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)
            answer.exception()

    def serve_stream(self, site: str, method: str, request: Any, tell: Callable[[Any], None]) -> Callable[[], object]:
        """See `network.Server`."""
        self._listeners[tell] = None
        return self._spawn(self._stream(self._handler(method)(request, self._called_by(site)), tell)).cancel

    async def _stream(self, messages: Any, tell: Callable[[Any], None]) -> None:
        ended = Ended()
        try:
            async for message in messages:
                tell(message)
        except asyncio.CancelledError:
            ended = Ended(AggregatorUnavailable("the stream was cancelled"))
        except Exception as error:
            ended = Ended(self._as_told(error))
        finally:
            if not self.dead:
                await messages.aclose()
        if self._listeners.pop(tell, "gone") is None and not self.dead:
            tell(ended)

    def _as_told(self, error: Exception) -> Exception:
        """What a site hears."""
        if not isinstance(error, HistofedError):
            self._on_bug(error)
            return HistofedError("internal error")
        return type(error)(str(error))

    def _handler(self, method: str) -> Callable[..., Any]:
        service, name = method.rpartition("v1.")[2].split("/")
        return cast(Callable[..., Any], getattr(self._services[service], name))

    def _called_by(self, site: str) -> Called:
        return Called(site, self._certificates(site))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(self._guarded(work), context=self._context.copy())
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    async def _guarded(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except PowerCut:
            return
        except asyncio.CancelledError:
            if not self.dead:
                raise
        except Exception as error:
            self._on_bug(error)
