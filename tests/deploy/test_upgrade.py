"""An upgrade from packages while a hospital trains: the aggregator first, the agent rounds later, and no round is lost.

The older version is this code under a lower number: what an older state looks like is the matter of `tests/upgrade`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.debian import install, machine
from tests.deploy.federation import (
    AGENT,
    AGGREGATOR,
    committed,
    drawn_tiles,
    ended,
    found,
    join,
    operate,
    submit,
    trains,
    watching,
)
from tests.deploy.machine import Machine
from tests.deploy.packages import OLD, package, version
from tests.support.federation import Sight, gan_experiment

TORCH = "histofed-torch"
STEPS = 200
"""Of each round: long enough to be in training when a package is replaced."""

pytestmark = pytest.mark.timeout(1800)


def test_the_aggregator_first_and_the_agent_later_while_it_trains(tmp_path: Path) -> None:
    old = [package(name, OLD) for name in (AGGREGATOR, AGENT)]
    aggregator, agent = package(AGGREGATOR), package(AGENT)
    with machine("upgrade", drawn_tiles(tmp_path / "north", 1)) as host:
        install(host, package(TORCH), package("histofed-tools"), *old)
        found(host, "localhost", "127.0.0.1")
        host.run("systemctl", "start", AGGREGATOR)
        join(host, host, "north")
        host.run("systemctl", "start", AGENT)
        experiment = submit(host, gan_experiment("goes-on", ["north"], rounds=2, steps=STEPS))

        with watching(host, experiment) as until:
            until(trains("north"))
            install(host, aggregator)
            assert versions(host) == (version(), OLD)
            until(lambda sight: of_round(sight, 2) and trains("north")(sight))
            install(host, agent)
            until(ended)

        assert [(each["round"], len(each["admitted"])) for each in committed(host, experiment)] == [(1, 1), (2, 1)]
        assert versions(host) == (version(), version())
        assert host.show(AGENT, "NRestarts", "Result") == {"NRestarts": "0", "Result": "success"}


def of_round(sight: Sight, number: int) -> bool:
    """The experiment is in this round."""
    return sight["round"] is not None and sight["round"]["round"] == number


def versions(host: Machine) -> tuple[str, str]:
    """(of the aggregator that runs, of the agent that runs), as the operator sees them."""
    (site,) = operate(host, "sites", "list")["sites"]
    return operate(host, "status")["version"], site["version"]
