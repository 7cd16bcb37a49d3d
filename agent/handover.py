"""Hand a finished update over: upload its weights, submit its manifest, write down the verdict, and only then forget it.

An entry leaves the outbox in one of four ways, each journalled: the aggregator admitted it, rejected it, does not want it
any more because the round has closed, or it goes back beside its training, because another attempt is wanted or because the
hospital's rules are, before a try, other ones than those it was made under. Which of the first three it is, only the answer
to the manifest says: a verdict may have been lost on its way, and then neither the bytes nor word of progress is taken.
Everything else (no aggregator, a certificate that expired) leaves the entry there for another try or the next connection,
which signs the same manifest with the certificate of that day.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from agent.config import AgentConfig
from agent.consent import Decision, policy_in_force
from agent.desk import Desk
from agent.link import Verdict
from agent.offers import Offer
from agent.outbox import Entry
from agent.patience import PASSING, TASK_BACKOFF
from agent.progress import Board, Sign, watched
from agent.rooms import Rooms
from histofed.base.errors import BadData, ConfigError, HistofedError, Lost, NotAuthorised, Stale, Unreadable
from histofed.base.failpoints import failpoint
from histofed.base.ids import Digest, Json, TaskKey
from histofed.pki.credentials import Credentials
from histofed.pki.keys import der_of
from histofed.pki.signing import Envelope, sign
from histofed.statements import decode_update
from histofed.telemetry import attributes as names
from histofed.telemetry.context import TraceContext, round_parent
from histofed.telemetry.logs import fields
from histofed.transport.backoff import retry
from histofed.transport.blobs import TRANSFER

log = logging.getLogger(__name__)


def spoken(task: TaskKey, attempt: int) -> dict[str, Json]:
    """A task as an audit record's subject."""
    return {
        "experiment": task.round.experiment,
        "round": task.round.number,
        "kind": task.kind,
        "site": task.site,
        "attempt": attempt,
    }


def about(task: TaskKey, attempt: int) -> dict[str, object]:
    """A task as a span's attributes."""
    return {
        names.EXPERIMENT_ID: task.round.experiment,
        names.ROUND_NUMBER: task.round.number,
        names.TASK_KIND: task.kind,
        names.SITE_ID: task.site,
        names.ATTEMPT: attempt,
    }


class HandOver:
    """Carries entries from the outbox to the aggregator."""

    def __init__(self, desk: Desk, rooms: Rooms, config: Callable[[], AgentConfig], over: Callable[[TaskKey], None]) -> None:
        """`over` is told of a task whose verdict is in the journal; it may be told again."""
        self._desk = desk
        self._rooms = rooms
        self._config = config
        self._over = over
        self._told: dict[TaskKey, Entry] = {}
        """What this life of the agent has journalled as sent, of each task the newest."""
        self._submitted: dict[TaskKey, Entry] = {}
        """What this life has submitted without an answer, of each task the newest: the aggregator may have it."""
        self.judged: dict[TaskKey, tuple[Entry, Verdict]] = {}
        """Verdicts in the journal whose entries the disk has not let go of yet. What is withheld has none any more."""

    async def deliver(self, entry: Entry, board: Board, parent: TraceContext | None = None) -> Verdict | None:
        """Upload and submit one entry; the task is over and the entry gone when this returns a verdict. Idempotent.

        Without one nothing was sent: the hospital's rules are not those any more under which it was made, so that it is
        withheld until they are asked again, at the task's offer. Of one that the aggregator may have judged before they
        changed, only the verdict is asked for.

        `parent` is the round's trace; it is derived where it is not known. Raises `Stale` or `NotFound` when the round
        has closed (the entry is still there: `forget` it), `Lost` when the disk does not give the weights (it is
        forgotten), `Unreadable` when it does not give them, or the consent file, now, and whatever stands in the way
        otherwise.
        """
        judged = self.judged.get(entry.task)
        if judged is None or judged[0] != entry:
            verdict = await self._ask(entry, board, parent)
            if verdict is None:
                return None
            self.judged[entry.task] = judged = entry, verdict
        self._end(entry.task)
        return judged[1]

    async def _ask(self, entry: Entry, board: Board, parent: TraceContext | None) -> Verdict | None:
        """Upload and submit it, and journal the verdict; None where the hospital's rules withhold it."""
        desk, link = self._desk, self._desk.link
        task = entry.task
        kept = self._kept_here(entry, await self._policy())
        submitted = self._submitted.get(task) == entry
        if kept and not (submitted and await self._is_settled(entry)):
            self.withhold(task, f"{kept}; it was submitted before, and the aggregator may have it" if submitted else kept)
            return None
        subject = {**spoken(task, entry.attempt), "sha256": entry.sha256, "bytes": entry.bytes}
        attributes = {
            **about(task, entry.attempt),
            names.UPDATE_SHA256: entry.sha256,
            names.UPDATE_BYTES: entry.bytes,
            names.UPDATE_ENCODING: entry.encoding,
        }
        parent = parent or round_parent(task.round.experiment, task.round.number)
        with desk.tracing.span(names.TASK_UPLOAD, attributes, parent=parent) as span:
            if self._told.get(task) != entry:
                # not again for each try of an aggregator that is away
                desk.journal.append("update.sent", subject=subject, trace=span.context)
                self._told[task] = entry
            if not kept:
                await self._upload(entry, board)
            self._submitted[task] = entry
            verdict = await link.submit(task, entry.attempt, _signed_today(entry.envelope, link.credentials))
            desk.journal.append(
                "update.verdict",
                subject=subject,
                outcome="success" if verdict.admitted else "refused",
                reason=verdict.reason,
                trace=span.context,
            )
            span.outcome("ok" if verdict.admitted else "rejected")
        failpoint("agent.update_acknowledged")
        if verdict.admitted:
            log.info("the update of %s was admitted", task, extra=fields(task, event="update.admitted"))
        else:
            where = fields(task, event="update.rejected")
            log.warning("the update of %s was rejected: %s", task, verdict.reason, extra=where)
        return verdict

    def _end(self, task: TaskKey) -> None:
        """There is a verdict, and it is journalled. Repeatable, for a disk that refuses."""
        # the entry last: a task that was still in hand without it would be dropped as one that nobody wants
        self._over(task)
        self._told.pop(task, None)
        self._submitted.pop(task, None)
        self._desk.outbox.remove(task)
        self.judged.pop(task, None)

    async def _upload(self, entry: Entry, board: Board) -> None:
        """The weights are at the aggregator, or it does not take them.

        Raises `Lost` where the disk does not give them, `Unreadable` where it may soon and the aggregator waits for them.
        """
        desk, task = self._desk, entry.task
        base = desk.bases.get(task.round.experiment, entry.base)
        try:
            await watched(
                *(desk.link, task, entry.attempt, board),
                lambda: desk.link.upload(entry.weights, task, entry.sha256, base, board.transferred),
                desk.clock,
            )
        except Stale as error:
            log.info("the update of %s is not taken, perhaps there is a verdict: %s", task, error, extra=fields(task))
        except Unreadable as error:
            # its round may have closed meanwhile, or there is a verdict: only the aggregator says
            if not await self._is_settled(entry):
                raise
            log.info("the update of %s is not waited for any more: %s", task, error, extra=fields(task))
        except Lost as error:
            # before anybody hears of it: no other attempt may find it beside its training
            self.forget(task, entry.attempt, str(error))
            raise

    async def _is_settled(self, entry: Entry) -> bool:
        """Whether the aggregator waits for the attempt no more: a manifest that it has already can only bring a verdict."""
        return not (await self._desk.link.report(entry.task, entry.attempt, "waiting", 0, 0, {}, 0.0)).wanted

    async def flush(self, sign: Sign, judged: Callable[[TaskKey], None]) -> None:
        """Deliver everything that an earlier connection, or an earlier life, left behind; drop what nobody takes.

        What stands in one update's way holds up no other. What passes is waited for; an update that the aggregator fails at
        for another reason, or that this machine cannot read now, waits still when this returns, for a later call. `judged`
        hears of each task that got its verdict. Raises `NotAuthorised` and `ConfigError`, which concern the connection.
        """
        desk = self._desk
        delays, waiting = TASK_BACKOFF.delays(desk.random), self._left()
        while waiting:
            kept = []
            for entry in waiting:
                sign.task(entry.task)
                try:
                    if await self._deliver_or_forget(entry, sign.board("upload")):
                        judged(entry.task)
                except Unreadable as error:
                    # tried for a while already: what this disk does not give holds up what it does
                    log.warning("cannot hand the update of %s over now: %s", entry.task, error, extra=fields(entry.task))
                except PASSING as error:
                    log.warning("cannot hand the update of %s over yet: %s", entry.task, error, extra=fields(entry.task))
                    kept.append(entry)
                except (NotAuthorised, ConfigError):
                    raise
                except HistofedError as error:
                    # not waited for: it may last as long as the round, and other experiments' offers wait for this to end
                    log.warning("cannot hand the update of %s over now: %s", entry.task, error, extra=fields(entry.task))
            if kept:
                await desk.clock.sleep(next(delays))
            waiting = tuple(kept)

    def _left(self) -> tuple[Entry, ...]:
        """What waits for a verdict, and what the disk has not let go of since."""
        judged = {entry.task: entry for entry, _ in self.judged.values()}
        return tuple((judged | {entry.task: entry for entry in self._desk.outbox.readable()}).values())

    async def _deliver_or_forget(self, entry: Entry, board: Board) -> bool:
        """Whether there is a verdict; the entry has left the outbox in any case. Raises what else stands in the way."""
        if entry.task.site != self._desk.link.credentials.identity.name:
            self.forget(entry.task, entry.attempt, "it was made under another site's name")
            return False
        try:
            return await self.deliver(entry, board) is not None
        except Stale as error:
            # another attempt's offer may be on its way, for the very same work
            self.withhold(entry.task, str(error))
            return False
        except BadData as error:
            self.forget(entry.task, entry.attempt, str(error))
            return False

    def waiting(self, offer: Offer, decision: Decision) -> Entry | None:
        """The update that waits for exactly this attempt, made under the rules of today; any other one is withheld."""
        entry = self._desk.outbox.get(offer.task)
        if entry is None:
            return None
        asked = offer.task, offer.attempt, offer.experiment_sha256, offer.base
        if (entry.task, entry.attempt, entry.experiment_sha256, entry.base) != asked:
            self.withhold(offer.task, f"attempt {offer.attempt} is asked for")
        elif kept := self._kept_here(entry, decision.policy_sha256):
            self.withhold(offer.task, kept)
        else:
            return entry
        return None

    async def _policy(self) -> Digest | None:
        """The policy of now, None where it cannot be used. Raises `Unreadable` when it could not be read for a while."""
        desk = self._desk

        async def read() -> Digest | None:
            return policy_in_force(self._config().consent)

        return await retry(read, what="reading the consent file", backoff=TRANSFER, clock=desk.clock, random=desk.random)

    def _kept_here(self, entry: Entry, policy_sha256: Digest | None) -> str:
        """Why the hospital's rules of today keep the update here as it is; empty where they are those it was made under."""
        config, manifest = self._config(), decode_update(entry.envelope.payload)
        if policy_sha256 is None:
            return "the consent file cannot be used, so nothing is allowed"
        if policy_sha256 != manifest.policy_sha256:
            return "the consent file has changed since it allowed this"
        # an older release wrote it into the task's folder alone, which no backup has
        told = entry.minimum_patients or self._rooms.minimum_patients(entry.task)
        if told is None and config.minimum_patients > 1:
            return "nothing tells under which minimum_patients this was trained"
        if told is not None and told < config.minimum_patients:
            return "minimum_patients was raised since this was trained"
        return ""

    def withhold(self, task: TaskKey, reason: str) -> None:
        """The update of `task`, if one waits, is not wanted as it is: it goes back beside the training that made it.

        There the next attempt at the very same work finds it, and needs no training. Where that is gone it is forgotten.
        Repeatable.
        """
        desk = self._desk
        self.judged.pop(task, None)
        entry = desk.outbox.get(task)
        if entry is None:
            return
        place = self._rooms.place_of(entry)
        if place is None:
            self.forget(task, entry.attempt, reason)
            return
        desk.journal.append("update.withheld", subject=spoken(task, entry.attempt), outcome="refused", reason=reason)
        desk.outbox.withdraw(entry, place)
        log.info("the update of %s is withheld: %s", task, reason, extra=fields(task))

    def forget(self, task: TaskKey, attempt: int, reason: str) -> None:
        """Nobody wants the update of `task` any more."""
        desk = self._desk
        for remembered in (self._told, self._submitted, self.judged):
            remembered.pop(task, None)
        if desk.outbox.get(task) is not None:
            desk.journal.append("update.dropped", subject=spoken(task, attempt), outcome="refused", reason=reason)
            desk.outbox.remove(task)
            log.info("the update of %s is dropped: %s", task, reason, extra=fields(task))


def _signed_today(envelope: Envelope, credentials: Credentials) -> Envelope:
    """The envelope under the certificate that the site has now: the one that signed it may have ended while it waited."""
    if envelope.certificate == der_of(credentials.certificate):
        return envelope
    return sign(envelope.payload_type, envelope.payload, credentials)
