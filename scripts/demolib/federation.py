"""The demo's federation, from nothing to four connected hospitals, with the commands of its operator and the hospitals.

`scripts/demo.py` calls the functions in their order here; `up` begins at `start_aggregator`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from .commands import Operator, command, run
from .daemons import Daemon, DemoError, stop_all
from .layout import CLASSES, SITES, Layout, Ports, write_aggregator, write_site
from .wishes import Wishes, drawn_edge

START_SECONDS = 120.0
"""A daemon that does not answer by then has failed; a loaded machine takes 10."""
SILENT_SECONDS = 10.0
"""Before a reader is told what is waited for, and again and again."""


def daemons_of(layout: Layout) -> list[Daemon]:
    """The aggregator first."""
    aggregator = command("histofed-aggregator", "run", "--config", layout.aggregator_config)
    agents = [
        Daemon(f"agent {site}", layout.site(site), command("histofed-agent", "run", "--config", layout.agent_config(site)))
        for site in SITES
    ]
    return [Daemon("aggregator", layout.aggregator, aggregator), *agents]


@contextlib.contextmanager
def stopped_at_the_end(daemons: Sequence[Daemon], say: Callable[[str], None]) -> Iterator[None]:
    """Agents first, so that the aggregator hears them leave. Raises `DemoError` when one had to be killed."""
    try:
        yield
    finally:
        say("stopping the daemons")
        killed = stop_all(daemons[1:]) + stop_all(daemons[:1])
    if killed:
        raise DemoError(f"did not stop in time and had to be killed: {', '.join(killed)}")


@contextlib.contextmanager
def stopped_if_it_fails(daemons: Sequence[Daemon]) -> Iterator[None]:
    """Those that did not run before; the others go on."""
    ran = [daemon for daemon in daemons if daemon.running()]
    try:
        yield
    except BaseException:
        stop_all([daemon for daemon in daemons if daemon not in ran])
        raise


def make_federation(layout: Layout, wishes: Wishes, say: Callable[[str], None]) -> None:
    """Tiles, configuration files, the CA, the aggregator's and the operator's certificates."""
    make_tiles(layout, wishes, say)
    write_aggregator(layout, Ports.find())
    for site in SITES:
        write_site(layout, site, largest_size=256, steps=2000)
    say("making the federation: its CA, the aggregator's certificate, the operator's certificate")
    run("histofed-aggregator", "init", "--config", layout.aggregator_config, "--operator-dir", layout.root)


def make_tiles(layout: Layout, wishes: Wishes, say: Callable[[str], None]) -> None:
    """Each hospital's tiles: drawn, or its share of real ones. Raises `BadData`, `AlreadyThere`."""
    if wishes.data is not None:
        from histofed.tiles.split import split_by_patient

        counts = split_by_patient(wishes.data.resolve(), CLASSES, SITES, wishes.seed, layout.tiles)
        words = ", ".join(f"{site} {count}" for site, count in counts.items())
        say(f"split the tiles of {wishes.data} over four hospitals, by patient: {words}")
        return
    from histofed.tiles.draw import draw_tiles

    say("drawing H&E-like tiles for four hospitals, each with its own stain (DATA=DIR uses real ones)")
    drawn = draw_tiles(layout.tiles, SITES, wishes.patients, wishes.tiles, drawn_edge(wishes), wishes.seed)
    say(f"drew {drawn.tiles} tiles of {drawn.patients} patients")


def start_aggregator(aggregator: Daemon, operator: Operator, say: Callable[[str], None]) -> None:
    """Start it unless it runs, and wait until it answers its operator."""
    say("starting the aggregator")
    aggregator.start()
    _until("the aggregator answers", lambda: _answers(operator), [aggregator], say)


def enrol(layout: Layout, operator: Operator, say: Callable[[str], None]) -> None:
    """A join line per hospital, handed over on stdin: a secret never stands in a command line."""
    for site in SITES:
        line = operator.ask("token", "create", "--site", site, "--ttl", "30m")["join_line"]
        config = layout.agent_config(site)
        run("histofed-agent", "enroll", "--config", config, "--join-line-file", "-", given=f"{line}\n")
    say(f"enrolled {', '.join(SITES)}: each made its key itself and got a certificate for seven days")


def start_agents(daemons: Sequence[Daemon], operator: Operator, say: Callable[[str], None]) -> None:
    """Start those that do not run, and wait until the aggregator sees all four."""
    for daemon in daemons[1:]:
        daemon.start()
    _until("four hospitals are connected", lambda: operator.ask("status")["sites_connected"] == len(SITES), daemons, say)
    say("four agents are connected over mutual TLS 1.3")


def _answers(operator: Operator) -> bool:
    try:
        operator.ask("status")
    except DemoError:
        return False
    return True


def _until(what: str, true: Callable[[], bool], daemons: Sequence[Daemon], say: Callable[[str], None]) -> None:
    """Wait until it is true, and say what for when it takes long. Raises `DemoError` when a daemon ends or time is up."""
    deadline = time.monotonic() + START_SECONDS
    told = time.monotonic() + SILENT_SECONDS
    while not true():
        if time.monotonic() > told:
            told += SILENT_SECONDS
            say(f"waiting until {what}; the last lines of the logs:")
            for daemon in daemons:
                sys.stdout.write(f"          {daemon.name}: {daemon.tail(1).strip()[:400]}\n")
        for daemon in daemons:
            daemon.require()
        if time.monotonic() > deadline:
            logs = "\n".join(f"{daemon.log}:\n{daemon.tail(4)}" for daemon in daemons)
            raise DemoError(f"waited {START_SECONDS:.0f} s until {what}, in vain; the ends of the logs:\n{logs}")
        time.sleep(0.3)
