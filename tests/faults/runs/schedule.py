"""What a seed draws: an experiment, and what goes wrong with whom and when. Pure; the same seed gives the same schedule.

Seconds count from the opening of the first round, or from the submission of the experiment. `timeline` turns faults that
last into a beginning and an end. The rig (`rig.py`) carries the actions out; the judge (`judge.py`) asks the schedule what
must be true afterwards.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final, TypeAlias

from tests.faults.runs.shim import SHORT, Call

SITES: Final = ("north", "east", "south")
AGGREGATOR: Final = "aggregator"
HOUR_S: Final = 3600.0
FAR_DEADLINE_S: Final = 20 * 3600
"""Farther away than any clock is set."""
DEADLINE_S: Final = 120
"""A round does not need so long, whatever happens; a clock that jumps passes it. Sites rest an eighth of it at most."""
SHORT_DEADLINE_S: Final = 30
"""A round may close by it where a site is away."""


# --- what can go wrong ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """kill -9 of daemons at once; a supervisor starts each again `down_s` later."""

    daemons: tuple[str, ...]
    down_s: float


@dataclass(frozen=True)
class KillTrainer:
    """kill -9 of the trainer of a site, if there is one now."""

    site: str


@dataclass(frozen=True)
class Freeze:
    """SIGSTOP of a daemon with its children, SIGCONT later."""

    daemon: str
    for_s: float


@dataclass(frozen=True)
class Cut:
    """No packet passes: `up` (from the site), `down` (to it), or both."""

    site: str
    ways: tuple[str, ...]
    for_s: float


@dataclass(frozen=True)
class Weather:
    """A bad link: delay each way, jitter, loss, a bandwidth."""

    site: str
    for_s: float
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bits_per_s: float = 0.0


@dataclass(frozen=True)
class DiskCall:
    """A daemon's disk refuses the n-th calls of a kind, or writes only half."""

    daemon: str
    calls: Call
    error: int
    before: int
    times: int


@dataclass(frozen=True)
class DiskFull:
    """Every write of a daemon is refused for a while."""

    daemon: str
    for_s: float


@dataclass(frozen=True)
class ClockJump:
    """A daemon's wall clock is set, by hours perhaps; with `for_s` it is set right again."""

    daemon: str
    by_s: float
    for_s: float | None


@dataclass(frozen=True)
class Rollback:
    """A backup is made while the aggregator runs; `for_s` later it is killed, restored from that, and started again."""

    for_s: float


Fault: TypeAlias = Kill | KillTrainer | Freeze | Cut | Weather | DiskCall | DiskFull | ClockJump | Rollback


@dataclass(frozen=True)
class Schedule:
    """One seed's run."""

    seed: int
    sites: tuple[str, ...]
    rounds: int
    quorum: int
    deadline_s: int
    dimension: int
    steps: int
    step_s: float
    from_submission: bool
    """Faults strike before the first round is open, too."""
    faults: tuple[tuple[float, Fault], ...]
    """(seconds, what), sorted by time."""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return f"seed-{self.seed}"

    @property
    def toml(self) -> str:
        """The experiment's file."""
        sites = ", ".join(f'"{site}"' for site in self.sites)
        return (
            f'name = "{self.name}"\nrecipe = "mean"\nrounds = {self.rounds}\n'
            f"[sampling]\nminimum = {len(self.sites)}\nsites = [{sites}]\n"
            f"[round]\nquorum = {self.quorum}\ndeadline_s = {self.deadline_s}\nattempts = 20\nabandoned_limit = 20\n"
            '[aggregation]\nweights = "uniform"\n'
            f"[config]\ndimension = {self.dimension}\nsteps = {self.steps}\ndelay_s = {self.step_s}\n"
        )

    @property
    def everybody(self) -> bool:
        """Quorum is every site."""
        return self.quorum == len(self.sites)


# --- drawing ----------------------------------------------------------------------------------------------------------

_BUSY_S: Final = 9.0
"""Faults begin within the first so many seconds: the time of an undisturbed run, about."""


_RESTORED: Final = 0.15
"""Share of the runs in which the aggregator is restored from an older backup; at most once, as in life."""


def draw(seed: int) -> Schedule:
    """The schedule of a seed."""
    random = Random(f"histofed fault run {seed}")
    sites = SITES[: random.choice((2, 2, 3))]
    everybody = random.random() < 0.75
    kinds = random.choices(list(_KINDS), weights=[weight for weight, _ in _KINDS.values()], k=random.randint(2, 6))
    faults = [(round(random.uniform(0.0, _BUSY_S), 2), _KINDS[kind][1](random, sites)) for kind in kinds]
    drawn = Schedule(
        seed=seed,
        sites=sites,
        rounds=random.choice((2, 2, 3)),
        quorum=len(sites) if everybody else len(sites) - 1,
        deadline_s=_deadline_s(random, everybody, any(isinstance(fault, ClockJump) for _, fault in faults)),
        dimension=random.choice((1_000, 50_000, 400_000)),
        steps=random.randint(4, 15),
        step_s=0.1,
        from_submission=random.random() < 0.2,
        faults=(),
    )
    if random.random() < _RESTORED:
        faults.append((round(random.uniform(0.0, _BUSY_S / 2), 2), Rollback(round(random.uniform(1.0, 8.0), 2))))
    return replace(drawn, faults=tuple(sorted(faults, key=lambda pair: pair[0])))


def _deadline_s(random: Random, everybody: bool, clocks_jump: bool) -> int:
    if clocks_jump and random.random() < 0.6:
        return FAR_DEADLINE_S
    return DEADLINE_S if everybody else random.choice((DEADLINE_S, SHORT_DEADLINE_S))


def _daemon(random: Random, sites: Sequence[str]) -> str:
    return random.choice((AGGREGATOR, random.choice(sites)))


def _kill(random: Random, sites: Sequence[str]) -> Fault:
    down_s = round(random.choice((0.0, random.uniform(0.1, 3.0))), 2)
    everything = random.random() < 0.15
    return Kill((AGGREGATOR, *sites) if everything else (_daemon(random, sites),), down_s)


def _kill_trainer(random: Random, sites: Sequence[str]) -> Fault:
    return KillTrainer(random.choice(sites))


def _freeze(random: Random, sites: Sequence[str]) -> Fault:
    return Freeze(_daemon(random, sites), round(random.uniform(0.5, 6.0), 2))


def _cut(random: Random, sites: Sequence[str]) -> Fault:
    ways = random.choice((("up", "down"), ("up", "down"), ("up",), ("down",)))
    return Cut(random.choice(sites), ways, round(random.uniform(0.3, 5.0), 2))


def _weather(random: Random, sites: Sequence[str]) -> Fault:
    delay_s = random.choice((0.0, 0.025, 0.1, 0.25))
    return Weather(
        site=random.choice(sites),
        for_s=round(random.uniform(2.0, 8.0), 2),
        delay_s=delay_s,
        jitter_s=random.choice((0.0, delay_s / 5)),
        loss=random.choice((0.0, 0.01, 0.05)),
        bits_per_s=random.choice((0.0, 1e6, 3e6, 10e6)),
    )


def _disk_call(random: Random, sites: Sequence[str]) -> Fault:
    calls = random.choice((Call.WRITE, Call.SYNC, Call.RENAME, Call.WRITE | Call.SYNC | Call.RENAME))
    errors = (SHORT, errno.ENOSPC, errno.EIO) if calls is Call.WRITE else (errno.ENOSPC, errno.EIO)
    return DiskCall(_daemon(random, sites), calls, random.choice(errors), random.randint(0, 25), random.choice((1, 1, 2, 4)))


def _disk_full(random: Random, sites: Sequence[str]) -> Fault:
    return DiskFull(_daemon(random, sites), round(random.uniform(0.3, 4.0), 2))


def _clock(random: Random, sites: Sequence[str]) -> Fault:
    by_s = round(random.choice((-1, 1)) * random.uniform(0.2, 6.0) * HOUR_S)
    return ClockJump(_daemon(random, sites), by_s, random.choice((None, round(random.uniform(1.0, 6.0), 2))))


_KINDS: Final[Mapping[str, tuple[int, Callable[[Random, Sequence[str]], Fault]]]] = {
    "kill": (6, _kill),
    "kill_trainer": (2, _kill_trainer),
    "freeze": (2, _freeze),
    "cut": (4, _cut),
    "weather": (3, _weather),
    "disk_call": (4, _disk_call),
    "disk_full": (2, _disk_full),
    "clock": (3, _clock),
}
"""Kind → how often it is drawn, relative to the others, and how."""


# --- a line of time ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Action:
    """One moment: a fault begins, or what it did is made good."""

    at_s: float
    fault: Fault
    begins: bool


def timeline(faults: Sequence[tuple[float, Fault]]) -> tuple[Action, ...]:
    """Beginnings and ends, in their order; a fault that has no duration has no end."""
    actions = []
    for at_s, fault in faults:
        actions.append(Action(at_s, fault, begins=True))
        lasts = getattr(fault, "for_s", None)
        if lasts is not None:
            actions.append(Action(round(at_s + lasts, 2), fault, begins=False))
    return tuple(sorted(actions, key=lambda action: action.at_s))
