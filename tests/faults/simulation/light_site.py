"""A hospital as a few lines: the agent's protocol over the agent's own link, with everything that a site may do wrong.

What the real agent keeps on its disk (outbox, task in hand) is kept over this site's crashes; the rest is forgotten. It
differs from the agent on purpose: it fails, declines, sends damaged updates, and hears withdrawals late or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

from agent.link import Link
from agent.offers import Beat, Offer, Withdrawal
from agent.patience import PASSING, TASK_BACKOFF
from histofed import weights
from histofed.base.clock import Clock, iso
from histofed.base.errors import BadData, HistofedError, NotFound, Stale
from histofed.base.experiment import parse_experiment
from histofed.base.ids import Digest, TaskKey, sha256
from histofed.pki.signing import Envelope, sign
from histofed.recipes.mean import SHARED
from histofed.statements import UPDATE_TYPE, File, UpdateManifest, encode
from histofed.telemetry.tracing import Tracing
from histofed.transport.backoff import Backoff
from tests.faults.facts import Fact, Offered, Verdict

RECONNECT: Final = Backoff(first_s=0.5, most_s=30.0, attempts=None)
POLICY: Final = sha256(b"a consent file")


@dataclass(frozen=True)
class Habits:
    """What a site tends to do; healing makes it a good one."""

    train_s: float = 3.0
    """Mean of how long a task takes."""
    straggles: float = 0.0
    """Share of the tasks that take twenty times as long."""
    declines: float = 0.0
    fails: float = 0.0
    spoils: float = 0.0
    """Share of the updates that cannot be admitted."""
    deaf: float = 0.0
    """Share of the withdrawals that it ignores."""


@dataclass
class Kept:
    """What is on the site's disk."""

    outbox: dict[TaskKey, Finished] = field(default_factory=dict)
    in_hand: tuple[TaskKey, int] | None = None


@dataclass(frozen=True)
class Finished:
    """An update that waits for its verdict."""

    task: TaskKey
    attempt: int
    envelope: Envelope
    file: Path
    sha256: Digest


class LightSite:
    """One site; `run` is one life of its agent."""

    def __init__(
        self, name: str, identity: Path, folder: Path, clock: Clock, random: Random, note: Callable[[Fact], None]
    ) -> None:
        self.name = name
        self.habits = Habits()
        self._identity = identity
        self._folder = folder
        self._clock = clock
        self._random = random
        self._note = note
        self._kept = Kept()
        self._instance = sha256(name.encode())[:32]
        self._job: tuple[Offer | None, asyncio.Task[None]] | None = None
        """The task in hand, or None for what an earlier connection left in the outbox."""
        self._waiting: dict[TaskKey, Offer] = {}

    async def run(self) -> None:
        """Never returns; to cancel it is to crash it."""
        link = Link("aggregator.example:8443", self._identity, self._clock, self._random, Tracing.off())
        try:
            delays = RECONNECT.delays(self._random)
            while True:
                began = self._clock.monotonic()
                with contextlib.suppress(HistofedError):
                    await self._session(link)
                if self._clock.monotonic() - began > 30.0:
                    delays = RECONNECT.delays(self._random)
                await self._clock.sleep(next(delays))
        finally:
            if self._job is not None:
                self._job[1].cancel()
            self._job, self._waiting = None, {}

    async def _session(self, link: Link) -> None:
        await link.hello(self._instance)
        if self._job is None and self._kept.outbox:
            self._start(link, None)
        async with contextlib.aclosing(link.work(self._instance)) as messages:
            async for message in messages:
                match message:
                    case Offer():
                        self._note(Offered(message.task, message.attempt, message.base, message.settled_round))
                        self._begin(link, message)
                    case Withdrawal() if self._random.random() >= self.habits.deaf:
                        self._drop(message.task)
                    case Beat() if self._job is None:
                        await self._drop_unwanted(link)

    def _begin(self, link: Link, offer: Offer) -> None:
        if self._job is None:
            self._start(link, offer)
        elif (held := self._job[0]) is None or (offer.task, offer.attempt) != (held.task, held.attempt):
            self._waiting[offer.task] = offer

    def _start(self, link: Link, offer: Offer | None) -> None:
        self._job = offer, asyncio.get_running_loop().create_task(self._do(link, offer))

    async def _do(self, link: Link, offer: Offer | None) -> None:
        """The outbox, or a task; then what was offered meanwhile."""
        with contextlib.suppress(HistofedError):
            await (self._flush(link) if offer is None else self._task(link, offer))
        self._job = None
        if self._waiting:
            self._start(link, self._waiting.pop(next(iter(self._waiting))))

    def _drop(self, task: TaskKey) -> None:
        self._waiting.pop(task, None)
        self._kept.outbox.pop(task, None)
        if self._kept.in_hand is not None and self._kept.in_hand[0] == task:
            self._kept.in_hand = None
        if self._job is not None and self._job[0] is not None and self._job[0].task == task:
            self._job[1].cancel()
            self._job = None

    async def _drop_unwanted(self, link: Link) -> None:
        if self._kept.in_hand is not None:
            task, attempt = self._kept.in_hand
            try:
                answer = await link.report(task, attempt, "waiting", 0, 0, {}, 0.0)
            except (Stale, NotFound):
                self._drop(task)
                return
            if not answer.wanted:
                self._drop(task)

    # --- a task ------------------------------------------------------------------------------------------------------

    async def _task(self, link: Link, offer: Offer) -> None:
        random, habits, task = self._random, self.habits, offer.task
        finished = self._kept.outbox.get(task)
        if finished is None or finished.attempt != offer.attempt:
            await self._clock.sleep(random.expovariate(10.0))
            if random.random() < habits.declines:
                await self._patient(lambda: link.decline(task, offer.attempt, "not today", POLICY))
                return
            self._kept.in_hand = task, offer.attempt
            await self._patient(lambda: link.accept(task, offer.attempt, POLICY))
            if random.random() < 0.1:
                target = self._folder / f"{self.name}-{offer.base}"
                await self._patient(lambda: link.download(offer.base, offer.base_bytes, target, None, _quiet))
                target.unlink()
            await self._train(link, offer)
            if random.random() < habits.fails:
                await self._patient(lambda: link.fail(task, offer.attempt, "out of memory", random.random() < 0.8))
                return
            finished = self._finish(link, offer)
        try:
            await self._patient(lambda: self._deliver(link, finished))
        except BadData as error:
            if not isinstance(error, Stale | NotFound):
                await self._patient(lambda: link.fail(task, offer.attempt, "cannot be sent", False))
            self._forget(finished)

    async def _train(self, link: Link, offer: Offer) -> None:
        seconds = self._random.expovariate(1 / self.habits.train_s)
        if self._random.random() < self.habits.straggles:
            seconds *= 20.0
        if self._random.random() < 0.2:
            with contextlib.suppress(HistofedError):
                await link.report(offer.task, offer.attempt, "train", 1, 2, {"loss": 1.0}, 1.0)
        await self._clock.sleep(seconds)

    def _finish(self, link: Link, offer: Offer) -> Finished:
        """Make the update; spoilt in one of several ways, perhaps."""
        task, random = offer.task, self._random
        fault = random.choice(_FAULTS) if random.random() < self.habits.spoils else ""
        dimension = int(parse_experiment(offer.experiment_toml).file.recipe_config["dimension"])
        value = np.random.default_rng(random.getrandbits(32)).standard_normal(dimension + (fault == "shape"))
        if fault == "nan":
            value[0] = np.nan
        path = self._folder / f"{self.name}-{task.round.experiment}-{task.round.number}.safetensors"
        written = weights.save(path, {SHARED: value.astype(np.float32)})
        digest = sha256(b"other bytes") if fault == "bytes" else written.sha256
        manifest = UpdateManifest(
            federation=link.credentials.federation,
            experiment=task.round.experiment,
            experiment_sha256=offer.experiment_sha256,
            round=task.round.number,
            kind=task.kind,
            site=task.site,
            attempt=offer.attempt,
            base=sha256(b"another base") if fault == "base" else offer.base,
            encoding="float32",
            weights=File(digest, written.bytes),
            tiles=random.randint(1, 1000),
            patients=random.randint(1, 20),
            steps=1,
            metrics={"distance": random.random()},
            private_round=0,
            policy_sha256=POLICY,
            created_at=iso(self._clock.now()),
        )
        envelope = sign(UPDATE_TYPE, encode(manifest), link.credentials)
        finished = Finished(task, offer.attempt, envelope, path, digest)
        self._kept.outbox[task] = finished
        return finished

    async def _deliver(self, link: Link, finished: Finished) -> None:
        await link.upload(finished.file, finished.task, finished.sha256, None, _quiet)
        verdict = await link.submit(finished.task, finished.attempt, finished.envelope)
        self._note(Verdict(finished.task, sha256(finished.envelope.payload), verdict.admitted))
        self._forget(finished)

    async def _flush(self, link: Link) -> None:
        for finished in tuple(self._kept.outbox.values()):
            try:
                if self._kept.outbox.get(finished.task) is finished:  # not withdrawn meanwhile
                    await self._patient(partial(self._deliver, link, finished))
            except BadData:
                self._forget(finished)

    def _forget(self, finished: Finished) -> None:
        if self._kept.outbox.get(finished.task) is finished:
            del self._kept.outbox[finished.task]
            finished.file.unlink(missing_ok=True)
        if self._kept.in_hand is not None and self._kept.in_hand[0] == finished.task:
            self._kept.in_hand = None

    async def _patient(self, operation: Callable[[], Awaitable[None]]) -> None:
        """Try until it is done, or the aggregator says that nobody wants it any more."""
        delays = TASK_BACKOFF.delays(self._random)
        while True:
            try:
                return await operation()
            except PASSING:
                await self._clock.sleep(next(delays))


_FAULTS: Final = ("nan", "shape", "base", "bytes")


def _quiet(done: int, total: int) -> None:
    """Nobody watches."""
