"""A federation as hospitals have it: an aggregator and four agents, each a machine with its own systemd and network.

Five machines on one root file system; between each hospital and the aggregator lies a line of 50 Mbit/s and 20 ms each way,
carried in user space (`tests/faults/runs/links.py`). Three rounds of a GAN with a small ViT on drawn tiles, every agent in
every round.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.deploy.federation import AGENT, AGGREGATOR, committed, drawn_tiles, ended, found, join, submit, watching
from tests.deploy.installed import install, machine
from tests.deploy.machine import Machine
from tests.deploy.numbers import Numbers
from tests.faults.runs.links import Links, hub_address
from tests.faults.runs.wire import Rules
from tests.support.federation import gan_experiment

SITES = ("north", "south", "east", "west")
LINE = Rules(delay_s=0.020, bits_per_s=50e6)
ROUNDS = 3


@pytest.fixture
def links() -> Iterator[Links]:
    """The aggregator's network, the sites' networks, and the lines between them."""
    with Links(SITES, 1, ["unshare", "--net"]) as links:
        for site in SITES:
            links.treat(site, LINE, LINE)
        yield links


@pytest.mark.timeout(900)
def test_five_machines_finish_three_rounds(links: Links, tmp_path: Path, numbers: Numbers) -> None:
    with ExitStack() as stack:
        hub = stack.enter_context(machine("aggregator", network=links.hub))
        install(hub)
        hub.run("ip", "link", "set", "lo", "up")
        found(hub, *map(hub_address, range(len(SITES))))
        hub.run("systemctl", "enable", "--now", "--quiet", AGGREGATOR)
        agents = [stack.enter_context(hospital(index, links, hub, tmp_path)) for index in range(len(SITES))]
        for agent in agents:
            agent.run("systemctl", "enable", "--now", "--quiet", AGENT)
        began = time.monotonic()
        experiment = submit(hub, gan_experiment("five", SITES, rounds=ROUNDS, steps=3, discriminator="vit-mini"))
        with watching(hub, experiment) as until:
            sight = until(ended)
        assert sight["experiment"]["state"] == "finished"
        done = committed(hub, experiment)
        assert [(each["round"], each["admitted"]) for each in done] == [(n, sorted(SITES)) for n in range(1, ROUNDS + 1)]
        numbers.hold("five machines: three rounds", time.monotonic() - began, 600)
        for index, (site, agent) in enumerate(zip(SITES, agents, strict=True)):
            numbers.hold(f"{site}: round trip to the aggregator", round_trip_ms(agent, hub_address(index)), 80, "ms")
            assert agent.show(AGENT, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
            # each hospital's journal knows its own part of the last round and nobody else's
            told = agent.entries(f"HISTOFED_ROUND={ROUNDS}", "HISTOFED_EVENT=update.admitted")
            assert [entry["HISTOFED_SITE"] for entry in told] == [site]


@contextmanager
def hospital(index: int, links: Links, hub: Machine, folder: Path) -> Iterator[Machine]:
    """A machine that is enrolled under its site's name; its tiles are drawn for it."""
    site = SITES[index]
    with machine(site, network=links.network(site), binds=drawn_tiles(folder / site, seed=index)) as agent:
        install(agent)
        join(hub, agent, site, f'aggregator = "{hub_address(index)}:8443"\n', door=hub_address(index))
        yield agent


def round_trip_ms(agent: Machine, address: str) -> float:
    """The shortest one of the agent's connection, by its kernel."""
    told = agent.run("ss", "--tcp", "--info", "--numeric", "dst", address).stdout
    found = re.search(r"minrtt:([0-9.]+)", told)
    assert found, f"no connection from {agent.name} to {address}:\n{told}"
    rtt = float(found[1])
    assert rtt >= 2 * 1000 * LINE.delay_s, f"the line to {address} is shorter than it should be: {rtt} ms"
    return rtt
