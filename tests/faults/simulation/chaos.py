"""What goes wrong in a simulation, and when: faults one after the other, drawn by the seed, until everything heals."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from aggregator.lifecycle import Order
from aggregator.rounds import RoundState
from histofed.base.experiment import parse_experiment
from tests.faults.facts import ModelSeen
from tests.faults.simulation.life import Life
from tests.faults.simulation.network import DOWN, UP

if TYPE_CHECKING:
    from tests.faults.simulation.world import World


class Chaos:
    """The faults of one world."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._names = tuple(parse_experiment(toml).name for toml in world.plan.experiments)

    async def run(self) -> None:
        """Until it is cancelled."""
        faults = (
            self._power_cut,
            self._power_cut_soon,
            self._restart,
            self._full_disk,
            self._cut_links,
            self._cut_links,
            self._crash_sites,
            self._crash_sites,
            self._set_the_clock,
            self._operate,
            self._operate,
            self._look,
            self._world.join,
        )
        while True:
            await self._world.clock.sleep(self._random.expovariate(1 / self._world.plan.fault_every_s))
            self._random.choice(faults)()

    def _power_cut(self) -> None:
        if self._world.life is not None:
            self._world.life.kill()

    def _power_cut_soon(self) -> None:
        if self._world.life is not None:
            self._world.life.trouble.cut_after = self._random.randint(1, 80)

    def _restart(self) -> None:
        if self._world.life is not None:
            self._world.life.stop()

    def _full_disk(self) -> None:
        if self._world.life is not None:
            self._world.life.trouble.refuses = self._world.plan.refuses
            self._world.later(self._room_again(self._world.life, self._random.uniform(0.0, 60.0)))

    async def _room_again(self, life: Life, pause: float) -> None:
        await self._world.clock.sleep(pause)
        life.trouble.refuses = 0.0

    def _some(self, most: int) -> list[str]:
        return self._random.sample(sorted(self._world.sites), min(len(self._world.sites), self._random.randint(1, most)))

    def _cut_links(self) -> None:
        everybody = self._random.random() < 0.2
        ways = self._random.choice(((UP, DOWN), (UP, DOWN), (UP,), (DOWN,)))
        seconds = self._random.choice((0.1, 5.0, 60.0, 200.0))
        for name in sorted(self._world.sites) if everybody else self._some(20):
            self._world.network.cut(name, self._random.uniform(0.0, seconds), ways)

    def _crash_sites(self) -> None:
        seconds = self._random.choice((0.1, 5.0, 60.0, 200.0))
        for name in self._some(10):
            self._world.crash_site(name, self._random.uniform(0.0, seconds))

    def _set_the_clock(self) -> None:
        """The aggregator's, or a few sites'."""
        seconds = self._random.choice((-3600.0, -60.0, 5.0, 60.0, 7200.0))
        if self._random.random() < 0.2:
            self._world.clock.jump(seconds)
        else:
            for name in self._some(5):
                self._world.clocks[name].jump(seconds)

    def _operate(self) -> None:
        order = self._random.choice((Order.PAUSE, Order.PAUSE, Order.RESUME, Order.RESUME, Order.RESUME, Order.CANCEL))
        if order is Order.CANCEL and self._random.random() < 0.7:
            return
        name = self._random.choice(self._names)
        self._world.steer(name, order)

    def _look(self) -> None:
        """Somebody looks at a list of rounds."""

        def work(life: Life) -> None:
            for state in life.engine.store.rounds(self._random.choice(self._names), last=3):
                if state.state is RoundState.COMMITTED and state.model is not None:
                    self._world.told.append(ModelSeen(state.key, state.model))

        self._world.inside(work)
