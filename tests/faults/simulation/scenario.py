"""What a seed stands for: how large the federation is, what it trains, how bad things get. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from aggregator.config import RetentionRules
from tests.faults.simulation.light_site import Habits
from tests.faults.simulation.network import Weather


@dataclass(frozen=True)
class Scenario:
    """A simulation before it begins."""

    seed: int
    sites: int
    whole_agents: int
    """So many of the sites run the whole agent; the others are played."""
    experiments: tuple[str, ...]
    """TOML; the later ones are submitted while the others run."""
    weather: Weather
    habits: Habits
    retention: RetentionRules
    refuses: float
    lost_workers: float
    fault_every_s: float
    """Mean of the time between two faults."""
    chaos_s: float
    """After this much time everything heals."""


def scenario(seed: int) -> Scenario:
    """The scenario of a seed."""
    random = Random(f"scenario/{seed}")
    calm = random.random() < 0.1
    rate = 0.0 if calm else random.random()
    sites = random.choice((5, 20, 50, 100, 200, 300))
    return Scenario(
        seed=seed,
        sites=sites,
        whole_agents=min(random.randint(0, 4), sites),
        experiments=tuple(_experiment(random, number) for number in range(random.randint(2, 6))),
        weather=Weather(
            latency_s=random.choice((0.005, 0.02, 0.2)),
            loss=rate * random.choice((0.0, 0.002, 0.02)),
            twice=rate * random.choice((0.0, 0.05, 0.3)),
            late=rate * random.choice((0.0, 0.02, 0.1)),
        ),
        habits=Habits(
            train_s=random.choice((1.0, 3.0, 8.0)),
            straggles=rate * random.choice((0.0, 0.05, 0.2)),
            declines=rate * random.choice((0.0, 0.05)),
            fails=rate * random.choice((0.0, 0.1)),
            spoils=rate * random.choice((0.0, 0.1)),
            deaf=rate * random.choice((0.0, 0.3)),
        ),
        retention=RetentionRules(
            models=random.choice((1, 3, 50)), rounds=random.choice((1000, 1000, 2, 10)), reserve_bytes=0
        ),
        refuses=0.0 if calm else random.choice((0.0, 0.02, 0.3)),
        lost_workers=rate * random.choice((0.0, 0.0, 0.02)),
        fault_every_s=1e9 if calm else random.choice((2.0, 5.0, 15.0)),
        chaos_s=random.choice((30.0, 60.0, 120.0)),
    )


def _experiment(random: Random, number: int) -> str:
    minimum = random.randint(1, 4)
    return "\n".join(
        (
            f'name = "trial-{number}"',
            'recipe = "mean"',
            f"rounds = {random.randint(3, 20)}",
            "[sampling]",
            f"minimum = {minimum}",
            f"fraction = {random.choice((0.005, 0.01, 0.02))}",
            f"oversample = {random.choice((1.0, 1.0, 1.5, 2.0))}",
            "[round]",
            f"quorum = {random.randint(1, minimum)}",
            f"deadline_s = {random.choice((10, 30, 120))}",
            f"attempts = {random.randint(1, 3)}",
            f"abandoned_limit = {random.choice((3, 20, 100))}",
            "[config]",
            f"dimension = {random.choice((4, 16, 200))}",
            "steps = 1",
            "",
        )
    )
