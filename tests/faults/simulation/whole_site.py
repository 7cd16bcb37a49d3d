"""A hospital with the whole agent: its sessions, work, outbox, private tensors, state and journal, on real files.

Played are its trainer (a pause, and the base moved by noise from the task's seed) and its power cuts, which strike at the
agent's own failpoints; then nothing in memory is left and the next life begins from the files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from random import Random

import numpy as np

from agent.assignment import ASSIGNMENT_FILE, PRIVATE_FILE, RESULT_FILE, UPDATE_FILE, Assignment, Result, write
from agent.bases import Bases
from agent.config import AgentConfig, TrainerConfig
from agent.desk import Desk
from agent.layout import Layout
from agent.link import Link, Verdict
from agent.offers import Message, Offer
from agent.outbox import Outbox
from agent.private import PrivateTensors
from agent.sessions import Sessions
from agent.state import State
from agent.training import Trainers
from agent.work import Work
from histofed import weights
from histofed.audit.journal import Journal
from histofed.base.clock import Clock
from histofed.base.durable import make_directory
from histofed.base.errors import TrainingFailed
from histofed.base.ids import SiteId, TaskKey, sha256
from histofed.pki.signing import Envelope
from histofed.recipes.contract import Progress
from histofed.statements import File
from histofed.telemetry.tracing import Tracing
from tests.faults import facts
from tests.faults.simulation.light_site import Habits
from tests.faults.simulation.powercut import RUNNING, PowerCut

CONSENT = 'experiments = ["*"]\nrecipes = ["mean"]\nmodels = ["*"]\nmaximum_steps = 10\n'
ROUND = "round"
"""The private tensor: the number of the round that wrote it."""


class WholeSite:
    """One site; `run` is one life of its agent."""

    def __init__(
        self,
        name: str,
        identity: Path,
        folder: Path,
        clock: Clock,
        random: Random,
        note: Callable[[facts.Fact], None],
        wrong: Callable[[BaseException], None],
    ) -> None:
        """`wrong` hears of what the agent itself should have noticed."""
        self.name = name
        self.habits = Habits()
        self._identity = identity
        self._layout = Layout(make_directory(folder / name))
        consent = folder / f"{name}-consent.toml"
        consent.write_text(CONSENT)
        self._config = AgentConfig(
            state_dir=self._layout.root, consent=consent, trainer=TrainerConfig(stop_seconds=1.0, device="cpu")
        )
        self._clock = clock
        self._random = random
        self._note = note
        self._wrong = wrong
        self._passages = 0
        self._talking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """The agent from start to power cut; cancelling it stops it in good order."""
        self._passages = self._random.choice((0, 0, self._random.randint(1, 200)))
        while True:
            self._talking = asyncio.get_running_loop().create_task(self._life())
            try:
                await asyncio.wait({self._talking})
            except asyncio.CancelledError:
                self._talking.cancel()
                await asyncio.wait({self._talking})
                raise
            error = None if self._talking.cancelled() else self._talking.exception()
            if error is not None and not isinstance(error, PowerCut):
                self._wrong(error)
                return
            await self._clock.sleep(self._random.uniform(0.1, 20.0))

    async def _life(self) -> None:
        RUNNING.set(_Machine(self))
        clock, layout = self._clock, self._layout
        state = State(layout.state, clock)
        journal = Journal(layout.journal, clock, f"agent-{self.name}")
        link = _NotingLink(self._identity, clock, self._random, self._note)
        desk = Desk(
            clock=clock,
            random=self._random,
            link=link,
            state=state,
            outbox=Outbox(layout.outbox),
            private=PrivateTensors(layout.private, state),
            bases=Bases(layout.bases),
            journal=journal,
            tracing=Tracing.off(),
        )
        work = Work(desk, layout.work, self._config)
        sessions = Sessions(link, work, journal, SiteId(self.name), state.instance, clock, self._random)
        try:
            await sessions.run()
        finally:
            journal.close()
            state.close()

    def passed(self) -> None:
        """A failpoint; the power may go."""
        if self._passages:
            self._passages -= 1
            if not self._passages:
                if self._talking is not None:
                    self._talking.cancel()
                raise PowerCut

    async def train(self, folder: Path, assignment: Assignment, report: Callable[[Progress], None]) -> Result:
        """What the child process would make of it."""
        write(folder / ASSIGNMENT_FILE, assignment)
        await self._clock.sleep(self._random.expovariate(1 / self.habits.train_s))
        report(Progress(1, 1, {"distance": 1.0}))
        if self._random.random() < self.habits.fails:
            raise TrainingFailed("the trainer was killed")
        self._look_at_private(assignment)
        noise = np.random.default_rng(assignment.seed)
        tensors = {
            name: (value + noise.standard_normal(value.shape)).astype(np.float32)
            for name, value in weights.read(assignment.base).items()
        }
        written = weights.save(assignment.output / UPDATE_FILE, tensors)
        number = int(folder.name.split(".")[1])
        weights.save(assignment.output / PRIVATE_FILE, {ROUND: np.array([number], np.float32)})
        file = File(written.sha256, written.bytes)
        result = Result(file, 1.0, 1.0, False, 100, 10, 1, {"distance": 1.0}, ())
        write(assignment.output / RESULT_FILE, result)
        return result

    def _look_at_private(self, assignment: Assignment) -> None:
        """Training starts from the private tensors of the round that the agent says, or of none."""
        found = 0 if assignment.private is None else int(weights.read(assignment.private)[ROUND][0])
        if found != assignment.private_round:
            self._wrong(
                AssertionError(f"private tensors of round {found} were taken for those of {assignment.private_round}")
            )


class _Machine:
    """What passes the failpoints of one life."""

    def __init__(self, site: WholeSite) -> None:
        self.site = site

    def pass_by(self, failpoint: str) -> None:
        """See `powercut.Machine`."""
        self.site.passed()


async def train(
    folder: Path,
    assignment: Assignment,
    report: Callable[[Progress], None],
    stop_seconds: float,
    trainers: Trainers | None = None,
) -> Result:
    """In the place of `agent.training.train`: the machine that it runs on knows how."""
    machine = RUNNING.get()
    assert isinstance(machine, _Machine), "only agents train"
    return await machine.site.train(folder, assignment, report)


class _NotingLink(Link):
    """The agent's link; what it tells the agent is noted."""

    def __init__(self, identity: Path, clock: Clock, random: Random, note: Callable[[facts.Fact], None]) -> None:
        super().__init__("aggregator.example:8443", identity, clock, random, Tracing.off())
        self._told_of = note

    async def work(self, instance: str) -> AsyncGenerator[Message, None]:
        messages = super().work(instance)
        try:
            async for message in messages:
                if isinstance(message, Offer):
                    self._told_of(facts.Offered(message.task, message.attempt, message.base, message.settled_round))
                yield message
        finally:
            await messages.aclose()

    async def submit(self, task: TaskKey, attempt: int, envelope: Envelope) -> Verdict:
        verdict = await super().submit(task, attempt, envelope)
        self._told_of(facts.Verdict(task, sha256(envelope.payload), verdict.admitted))
        return verdict
