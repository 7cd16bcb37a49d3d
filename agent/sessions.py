"""The conversation with the aggregator, one connection after the other, for as long as the agent lives.

    say hello → listen: an offer begins a task, a withdrawal ends one; beside it, hand over what waits in the outbox

There is one job at a time, and offers wait behind it. A task goes on while the connection is away: training needs no
aggregator. What an earlier connection left in the outbox comes before any task, and is handed over while this connection
lasts, so only to an aggregator that said hello. Whatever goes wrong is said in words, once per attempt, in the log and in
`words`; then it is tried again, for ever: soon when the aggregator is away, once a minute when a person must do something.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime, timedelta
from random import Random
from typing import Final

from agent.link import Link
from agent.offers import Beat, Message, Offer, Withdrawal
from agent.work import Work
from histofed.audit.history import History, repair
from histofed.audit.journal import Journal
from histofed.base.clock import Clock
from histofed.base.errors import AlreadyThere, ConfigError, HistofedError, NotAuthorised, WentBack
from histofed.base.ids import SiteId, TaskKey
from histofed.telemetry.logs import fields
from histofed.transport.backoff import Backoff

log = logging.getLogger(__name__)

RECONNECT: Final = Backoff(first_s=0.5, most_s=30.0, attempts=None)
SLOWLY: Final = Backoff(first_s=120.0, most_s=120.0, attempts=None)
"""After an error that only a person can repair: once a minute on average."""
FOR_A_PERSON: Final = (NotAuthorised, ConfigError, AlreadyThere)
STABLE_S: Final = 30.0
"""A connection that lasted this long was a good one: the pauses begin small again."""
SKEW: Final = timedelta(seconds=60)
"""A clock that differs more than this from the aggregator's is said."""
RENEW_AGAIN: Final = timedelta(minutes=20)
"""After a failed renewal, at most; drawn, so that all sites do not come at once after an aggregator's bad hour."""


class Sessions:
    """The connections of one agent."""

    def __init__(
        self, link: Link, work: Work, journal: Journal, site: SiteId, instance: str, clock: Clock, random: Random
    ) -> None:
        self._link = link
        self._work = work
        self._journal = journal
        self._site = site
        self._instance = instance
        self._clock = clock
        self._random = random
        self._words = f"connects to {link.address}"
        self._job: tuple[Offer | None, asyncio.Task[None]] | None = None
        """What is done; without an offer: what waits in the outbox is handed over."""
        self._waiting: dict[TaskKey, Offer] = {}
        """Offers behind the task in hand, in the order in which they came; of one task the newest."""
        self._renew_from = datetime.min.replace(tzinfo=clock.now().tzinfo)
        self._reconnect = False
        self.connected = False

    @property
    def words(self) -> str:
        """What is going on, in one line."""
        if self.connected:
            return self._work.sign.words
        return f"{self._words}; meanwhile {self._work.sign.words}" if self._job else self._words

    async def run(self) -> None:
        """Never returns. Cancelling it checkpoints the task in hand; errors of histofed itself leave."""
        delays, slowly = RECONNECT.delays(self._random), SLOWLY.delays(self._random)
        try:
            while True:
                began = self._clock.monotonic()
                error = await self._attempt()
                if self._clock.monotonic() - began > STABLE_S:
                    delays = RECONNECT.delays(self._random)
                pause = next(slowly if isinstance(error, FOR_A_PERSON) else delays)
                if error is None:
                    self._words = f"reconnects to {self._link.address}"
                else:
                    self._words = f"not connected to {self._link.address}: {error}"
                    words = "not connected to %s: %s; next try in %.1f s"
                    log.warning(words, self._link.address, error, pause, extra=fields(event="aggregator.lost"))
                await self._clock.sleep(pause)
        finally:
            await self._end_job()

    async def _attempt(self) -> HistofedError | None:
        """One connection and what ended it; None when the aggregator, or this agent, closed it in good order."""
        try:
            await self._link.reload_identity()
            await self._session()
        except WentBack as error:
            # what the aggregator says of the job in hand counts no more: it waits, with its checkpoint, for an honest one
            await self._end_job()
            self._waiting.clear()
            return error
        except HistofedError as error:
            return error
        finally:
            self.connected = self._reconnect = False
        return None

    async def _session(self) -> None:
        """One connection, until it ends or breaks."""
        seen = self._work.epochs.history_seen()
        greeting = await self._link.hello(self._instance, self._work.tensors.next_to_ask(), seen)
        await self._follow(seen, greeting.history)
        self.connected = True
        words = "connected to %s (histofed %s) as %s"
        where = fields(site=self._site, event="aggregator.connected")
        log.info(words, self._link.address, greeting.version, greeting.identity, extra=where)
        skew = self._clock.now() - greeting.now
        if abs(skew) > SKEW:
            log.warning(
                "this machine's clock differs from the aggregator's by %.0f s; set one of them", skew.total_seconds()
            )
        self._work.tensors.forget(greeting.ended)
        self._begin_flush()
        try:
            async with contextlib.aclosing(self._link.work(self._instance)) as messages:
                async for message in messages:
                    await self._hear(message)
                    if self._reconnect or await self._renewed():
                        return
        finally:
            await self._end_flush()

    async def _follow(self, seen: History | None, now: History | None) -> None:
        """Go on in the aggregator's epoch. Raises `WentBack` when it knows less than this site has seen of it.

        After a restore the task in hand ends with a checkpoint, and everything waits for the new offers.
        """
        if now is None:
            return
        if seen is not None and now.older_than(seen):
            raise WentBack(
                f"the aggregator's history went back: it is at {now}, and this site has seen {seen}; its state directory "
                "was put back from a copy without `histofed-aggregator restore`, or records were removed from its journal: "
                f"{repair(now.epoch, seen.epoch)}"
            )
        if seen is not None and now.epoch > seen.epoch:
            await self._end_job()
            self._waiting.clear()
            self._work.epochs.enter(seen, now)
        self._link.epoch = now.epoch
        self._work.epochs.note_history()

    async def _hear(self, message: Message) -> None:
        self._check_job()
        self._work.epochs.note_history()
        match message:
            case Offer() if message.task.site != self._site:
                log.error("the aggregator offered a task of site %s to this site; it is ignored", message.task.site)
            case Offer():
                self._begin(message)
            case Withdrawal():
                await self._withdraw(message)
            case Beat() if self._job is None:
                # offers come before the first beat: what is in hand and was not offered may have ended while we were away
                await self._work.drop_unwanted()
                self._begin_flush()
            case Beat():
                pass

    def _check_job(self) -> None:
        """Raises what ended the task in hand unforeseen: a new life of the daemon begins from what is durable."""
        if self._job is not None and self._job[1].done():
            self._job[1].result()

    def _begin_flush(self) -> None:
        """Hand over what waits in the outbox, unless a task is in hand; then begin on the offers that came meanwhile."""
        if self._job is None:
            self._job = None, asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        await self._work.flush(self._forget_offer)
        self._job = None
        if (following := self._following()) is not None:
            self._begin(following)

    def _forget_offer(self, task: TaskKey) -> None:
        """There is a verdict on the task, which it did not have when it was offered."""
        self._waiting.pop(task, None)

    async def _end_flush(self) -> None:
        """The connection is over: the next one says hello first, goes on with the outbox and hears every offer again."""
        if self._job is not None and self._job[0] is None:
            self._waiting.clear()
            with contextlib.suppress(HistofedError):  # what ended it is what ended the connection
                await self._end_job()

    def _begin(self, offer: Offer) -> None:
        """Start on the offer, or keep it until the job in hand has ended; a repeated offer changes nothing."""
        if self._job is None:
            self._job = offer, asyncio.create_task(self._do(offer))
        elif (in_hand := self._job[0]) is None or (offer.task, offer.attempt) != (in_hand.task, in_hand.attempt):
            # also a further attempt at the task in hand: it comes before the call that reports the failure returns
            self._waiting[offer.task] = offer

    def _following(self) -> Offer | None:
        """The offer that has waited longest."""
        return self._waiting.pop(next(iter(self._waiting))) if self._waiting else None

    async def _do(self, offer: Offer) -> None:
        """The task in hand and, when it has ended, the one that waits behind it."""
        next_offer: Offer | None = offer
        while next_offer is not None:
            try:
                await self._work.run(next_offer)
            except HistofedError as error:
                # offers are repeated on a new connection only
                self._reconnect = True
                log.error(
                    "task %s waits until it is offered again: %s", next_offer.task, error, extra=fields(next_offer.task)
                )
            next_offer = self._following()
            if next_offer is not None and self._job is not None:
                self._job = next_offer, self._job[1]
        self._job = None

    async def _withdraw(self, message: Withdrawal) -> None:
        """Stop and forget the task."""
        log.info("task %s is withdrawn: %s", message.task, message.reason, extra=fields(message.task))
        waited = self._waiting.pop(message.task, None)
        if self._is_at(message.task):
            await self._end_job()
        attempt = self._work.attempt_of(message.task)
        if attempt is None and waited is not None and self._work.has_begun(message.task):
            attempt = waited.attempt  # an earlier life began it, and another experiment's task came first in this one
        if attempt is not None:
            self._work.drop(message.task, attempt, message.reason)
        self._begin_flush()

    def _is_at(self, task: TaskKey) -> bool:
        """Whether the job in hand is the task, or hands over what may be its update."""
        if self._job is None:
            return False
        offer, _ = self._job
        return self._work.attempt_of(task) is not None if offer is None else offer.task == task

    async def _end_job(self) -> None:
        """Cancel the job in hand and wait for its end, a task's checkpoint."""
        if self._job is None:
            return
        _, running = self._job
        self._job = None
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled():
            running.result()

    async def _renewed(self) -> bool:
        """Renew the certificate when it is time; True when there is a new one, for which a new connection is due.

        One that somebody enrolled for beside this daemon is such a one: it is newer than what a renewal would bring.
        """
        if not self._link.renewal_due() or self._clock.now() < self._renew_from:
            return False
        subject = {"site": self._site, "serial": self._link.credentials.serial}
        try:
            renewed = not await self._link.reload_identity()
            if renewed:
                self._journal.append("identity.renewal", subject=subject)
                renewed = await self._link.renew()
        except HistofedError as error:
            self._renew_from = self._clock.now() + RENEW_AGAIN * self._random.random()
            log.warning("the certificate (valid until %s) could not be renewed: %s", self._link.credentials.not_after, error)
            return False
        until = self._link.credentials.not_after
        words = "the certificate was renewed, valid until %s" if renewed else "somebody enrolled again, valid until %s"
        log.info(words, until, extra=fields(site=self._site, event="identity.renewed"))
        return True
