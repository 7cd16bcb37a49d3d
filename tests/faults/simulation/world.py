"""One simulation: a federation lives through its seed's faults, heals, ends its experiments, and leaves a history."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest import mock

import sqlalchemy as sa

import agent.link
import agent.work
from aggregator import schema
from aggregator.lifecycle import OPEN, Order
from histofed.audit.record import Who
from histofed.audit.verify import records
from histofed.base.clock import iso
from histofed.base.durable import make_directory
from histofed.base.errors import HistofedError
from histofed.base.experiment import parse_experiment
from histofed.base.ids import SiteId
from histofed.pki.credentials import Credentials
from histofed.transport import limits
from histofed.transport.store import BlobStore
from tests.faults.facts import Fact, History, Steered, Stopped
from tests.faults.observation import read_disk
from tests.faults.simulation import whole_site
from tests.faults.simulation.channel import Connection
from tests.faults.simulation.chaos import Chaos
from tests.faults.simulation.disk import AggregatorDisk
from tests.faults.simulation.identities import Identities
from tests.faults.simulation.life import Life
from tests.faults.simulation.light_site import Habits, LightSite
from tests.faults.simulation.network import Network
from tests.faults.simulation.powercut import PowerCut, failpoints_watched
from tests.faults.simulation.scenario import Scenario, scenario
from tests.faults.simulation.virtual import VirtualClock, VirtualLoop
from tests.faults.simulation.whole_site import WholeSite

log = logging.getLogger(__name__)

PATIENCE_S: Final = 48 * 3600.0
"""What has not ended this long after everything healed never will."""
RESUMES: Final = 20
"""An experiment that was resumed more often since then never will either."""
OPERATOR: Final = Who("spiffe://simulation.example/operator/ada")
SMALL: Final = 64
"""Bytes of a piece of an update: small, so that there are several."""


@dataclass(frozen=True)
class Outcome:
    """What a simulation leaves."""

    history: History
    bugs: tuple[BaseException, ...]
    """Errors of the product that no one expected."""
    rounds: int
    virtual_s: float
    messages: int
    lives: int


def simulate(seed: int, identities: Identities, plan: Scenario | None = None) -> Outcome:
    """Run a seed, or a scenario of its own."""
    plan = plan or scenario(seed)
    with (
        tempfile.TemporaryDirectory(prefix="histofed-simulation-", dir=_fast_folder()) as folder,
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(failpoints_watched())
        stack.enter_context(mock.patch.multiple(limits, CHUNK=SMALL, SYNC_EVERY=SMALL))
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            world = World(plan, identities, Path(folder), runner.get_loop())
            stack.enter_context(mock.patch.object(agent.link, "open_connection", world.connection))
            stack.enter_context(mock.patch.object(agent.work, "train", whole_site.train))
            stack.enter_context(mock.patch.object(Credentials, "load", identities.load))
            return runner.run(world.main())


def _fast_folder() -> str | None:
    """Memory, where there is some: power cuts are played, nothing has to reach a disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


class World:
    """Everything there is."""

    def __init__(self, plan: Scenario, identities: Identities, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.plan = plan
        self.clock = VirtualClock(loop)
        self.told: list[Fact] = []
        self._bugs: list[BaseException] = []
        self._identities = identities
        self._random = Random(f"faults/{plan.seed}")
        self._disk = AggregatorDisk.create(folder / "aggregator")
        self._folder = make_directory(folder / "sites")
        self.network = Network(Random(f"network/{plan.seed}"), plan.weather)
        self.life: Life | None = None
        self.lives = 0
        self.sites: dict[str, LightSite | WholeSite] = {}
        self.clocks: dict[str, VirtualClock] = {}
        self._agents: dict[str, asyncio.Task[None]] = {}
        self._background: dict[asyncio.Task[Any], None] = {}
        self._healed = False
        loop.set_exception_handler(self._unhandled)

    def connection(self, address: str, credentials: Credentials, **_: Any) -> Connection:
        """What a site's link opens."""
        return Connection(self.network, credentials.identity.name, self.told.append)

    async def main(self) -> Outcome:
        """From the first site to the last round."""
        self._found()
        self._start()
        self._submit(self.plan.experiments[: len(self.plan.experiments) // 2 + 1])
        chaos = self.later(Chaos(self, Random(f"chaos/{self.plan.seed}")).run())
        await self.clock.sleep(self.plan.chaos_s / 3)
        self._submit(self.plan.experiments[len(self.plan.experiments) // 2 + 1 :])
        await self.clock.sleep(self.plan.chaos_s * 2 / 3)
        chaos.cancel()
        self._heal()
        over = await self._until_everything_ended()
        virtual = asyncio.get_running_loop().time()
        await self._close()
        disk = read_disk(self._disk.database, tuple(records(self._disk.journal)), BlobStore(self._disk.blobs))
        self._disk.database.close()
        history = History(tuple(self.told), disk)
        log.info("over: %s", over)
        return Outcome(history, tuple(self._bugs), len(disk.rounds), virtual, self.network.messages, self.lives)

    # --- the aggregator ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """A new life on what the last one left; it may end at once."""
        self.lives += 1
        life = Life(
            self._disk,
            self._identities.aggregator,
            self._identities.certificate,
            self.clock,
            Random(f"life/{self.plan.seed}/{self.lives}"),
            self.plan.retention,
            self._ended,
            self.told.append,
            self._bugs.append,
        )
        self.life = life
        if not self._healed:
            life.trouble.lost_workers = self.plan.lost_workers
        life.start()
        self.network.server = life

    def _ended(self, life: Life, power_cut: bool) -> None:
        self.life, self.network.server = None, None
        if power_cut:
            self.told.append(Stopped())
        pause = 1.0 if self._healed else self._random.choice((0.2, 0.2, 1.0, 5.0, 30.0, 150.0))
        self.later(self._start_again(self._random.uniform(0.0, pause)))

    async def _start_again(self, pause: float) -> None:
        await self.clock.sleep(pause)
        self._start()

    def inside(self, work: Callable[[Life], None]) -> None:
        """Something that an operator does, if the aggregator runs and has no objection."""
        if self.life is not None and not self.life.dead:
            with contextlib.suppress(HistofedError):
                self.life.run(work)

    def _submit(self, experiments: tuple[str, ...]) -> None:
        for toml in experiments:
            self.later(self._submitted(toml))

    async def _submitted(self, toml: str) -> None:
        """The operator tries until it is done."""
        experiment = parse_experiment(toml)
        known: list[bool] = []
        while not known:
            self.inside(lambda life: life.experiments.submit(experiment, OPERATOR))
            self.inside(lambda life: known.append(bool(life.engine.store.experiment(experiment.name))))
            await self.clock.sleep(1.0)

    # --- sites -------------------------------------------------------------------------------------------------------

    def _found(self) -> None:
        """The hospitals that are there from the beginning."""
        names = [f"site-{number:03}" for number in range(self.plan.sites)]
        now = iso(self.clock.now())
        with self._disk.database.writing() as connection:
            connection.execute(
                sa.insert(schema.sites), [{"name": name, "enrolled_at": now, "left_at": now} for name in names]
            )
        for name in names:
            self._open_site(name)

    def _open_site(self, name: str) -> None:
        """It starts its agent."""
        random, identity = Random(f"site/{self.plan.seed}/{name}"), self._identities.file(name)
        clock = self.clocks[name] = VirtualClock(asyncio.get_running_loop())
        site: LightSite | WholeSite
        if len(self.sites) < self.plan.whole_agents:
            site = WholeSite(name, identity, self._folder, clock, random, self.told.append, self._bugs.append)
        else:
            site = LightSite(name, identity, self._folder, clock, random, self.told.append)
        site.habits = self.plan.habits if not self._healed else Habits()
        self.sites[name] = site
        self._boot(name)

    def _boot(self, name: str) -> None:
        if name not in self._agents:
            self._agents[name] = asyncio.get_running_loop().create_task(self.sites[name].run())

    def crash_site(self, name: str, away_s: float) -> None:
        running = self._agents.pop(name, None)
        if running is not None:
            running.cancel()
            self.later(self._boot_later(name, away_s))

    async def _boot_later(self, name: str, pause: float) -> None:
        await self.clock.sleep(pause)
        self._boot(name)

    def steer(self, name: str, order: Order) -> None:
        def work(life: Life) -> None:
            life.experiments.steer(name, order, OPERATOR, "ada", "because")
            self.told.append(Steered(name, life.engine.store.experiment(name).state))

        self.inside(work)

    def join(self) -> None:
        """A hospital joins while the others train."""
        name, enrolled = f"site-{len(self.sites):03}", list[str]()

        def work(life: Life) -> None:
            later = self.clock.now() + timedelta(hours=1)
            life.members.create_token(name, SiteId(name), later)
            life.members.enrol(name, SiteId(name), f"spiffe://simulation.example/site/{name}", name, later)
            enrolled.append(name)

        self.inside(work)
        for each in enrolled:  # outside: its machine is not the aggregator's
            self._open_site(each)

    # --- the end -----------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Everything is well from now on, and everybody comes back."""
        self._healed = True
        self.network.heal()
        if self.life is not None:
            self.life.trouble.heal()
        for site in self.sites.values():
            site.habits = Habits()

    async def _until_everything_ended(self) -> bool:
        end, resumed = self.clock.monotonic() + PATIENCE_S, Counter[str]()
        # where all is well a pause that is resumed ends; an aggregator that was spoiled by a test pauses for ever
        while self.clock.monotonic() < end and not any(count > RESUMES for count in resumed.values()):
            await self.clock.sleep(5.0)
            if self.life is None:
                continue
            rows = self.life.engine.store.experiments()
            if len(rows) == len(self.plan.experiments) and all(row.state not in OPEN for row in rows):
                return not self.life.engine.open_rounds
            for row in rows:
                if row.state == "paused":
                    resumed[row.name] += 1
                    self.steer(row.name, Order.RESUME)
        return False

    async def _close(self) -> None:
        """Let go of everything; a history is what is on the disk then."""
        for task in (*self._agents.values(), *self._background):
            task.cancel()
        await asyncio.sleep(60.0)
        if self.life is not None:
            self.life.close()
            await asyncio.sleep(1.0)

    def later(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._background[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bugs.append(error)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, PowerCut):
            self._bugs.append(error)
