"""Every instant at which a state file is written: a daemon dies there, or the disk is full there, and nothing is lost.

The aggregator and an agent walk through their failpoints at the same time, in one experiment: whoever dies is started
again, with its next failpoint armed. In the end every model is the one of an undisturbed run.
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from pathlib import Path

import pytest

from histofed.audit.verify import verify
from histofed.base.durable import FAILPOINTS
from tests.e2e.conftest import NewFederation
from tests.support import expected
from tests.support.daemons import KILLED, DaemonProcess
from tests.support.federation import Federation, mean_experiment

PAIR = ("north", "south")
AGGREGATOR = (
    *("aggregator.sample_planned", "aggregator.task_offered", "aggregator.rows_committed"),
    # the first record of a life says that it began
    *("journal.before_fsync:2", "journal.after_fsync:2"),
    *("blob.chunk_written", "blob.before_complete", "blob.complete"),
    *("aggregator.update_received", "aggregator.update_admitted"),
    *("aggregator.aggregate_written", "aggregator.model_committed"),
)
"""In the order of a round, so that several of them are met in one."""
AGENT = (
    *("agent.task_accepted", "agent.private_state_advanced", "journal.before_fsync:3", "journal.after_fsync:3"),
    *("blob.chunk_written", "blob.before_complete", "blob.complete", "agent.weights_stored"),
    *("replace.before_rename:2", "replace.after_rename:2", "agent.update_in_outbox", "agent.update_acknowledged"),
)
IN_CHILDREN = {"agent.checkpoint_written", "replace.before_rename", "replace.after_rename"}
"""Passed by the processes that train and average; what happens when those die is told in stories of their own."""


ALONE = '[sampling]\nminimum = 1\nsites = ["north"]'


@pytest.fixture(scope="module")
def lonely(new_federation: NewFederation) -> Federation:
    """An aggregator and one site."""
    federation = new_federation()
    federation.start_aggregator()
    federation.start_agent("north")
    return federation


def test_no_failpoint_is_forgotten() -> None:
    walked = {point.partition(":")[0] for point in (*AGGREGATOR, *AGENT)}
    assert walked | IN_CHILDREN == FAILPOINTS


class Walk:
    """One daemon and the failpoints that are before it."""

    def __init__(self, federation: Federation, name: str, points: tuple[str, ...]) -> None:
        self.name = name
        self._federation = federation
        self._before = deque(points)
        self.ends: dict[str, int] = {}
        """Failpoint → exit code."""

    @property
    def daemon(self) -> DaemonProcess:
        """The life that goes on now."""
        return self._federation.daemons[self.name]

    @property
    def point(self) -> str | None:
        """The armed failpoint; None when the walk is over."""
        return self._before[0] if self._before else None

    def note_end(self) -> None:
        """It died, where it had to."""
        assert self.point is not None, f"{self.name} ended by itself:\n{self.daemon.tail()}"
        self.ends[self._before.popleft()] = self.daemon.wait_ended()

    def start(self) -> None:
        """A life with the next failpoint armed; not waited for, some do not get far."""
        name, _, passage = (self.point or "").partition(":")
        env = {"HISTOFED_FAILPOINTS": f"{name}=kill:{passage or 1}"} if name else {}
        if self.name == "aggregator":
            self._federation.launch_aggregator(env)
        else:
            self._federation.launch_agent(self.name, env)


@pytest.mark.slow
def test_a_daemon_may_die_at_any_instant(new_federation: NewFederation, tmp_path: Path) -> None:
    federation = new_federation()
    toml = mean_experiment("walk", 3, extra=f"[sampling]\nsites = {list(PAIR)}")
    federation.start_aggregator()
    aggregator, north, south = (
        Walk(federation, name, points) for name, points in (("aggregator", AGGREGATOR), ("north", AGENT), ("south", ()))
    )
    federation.start_agents(*PAIR)
    federation.submit(toml)
    for walk in (aggregator, north, south):
        walk.daemon.stop(signal.SIGKILL)
        walk.start()
    while aggregator.point or north.point:
        dead = first_to_end(aggregator, north)
        dead.note_end()
        dead.start()
        if dead is aggregator:
            # agents wait longer each time that their aggregator is away; new ones begin with short waits
            for agent in (north, south):
                if agent.daemon.running:
                    agent.daemon.stop(signal.SIGKILL)
                    agent.start()

    assert federation.wait_until_ended("walk")["experiment"]["state"] == "finished"
    assert federation.parts("walk") == expected.models(toml, PAIR, tmp_path)
    assert {one["state"] for one in federation.cli("rounds", "list", "walk")["rounds"]} == {"committed"}
    for folder in (federation.state / "journal", *(federation.site(site) / "state/journal" for site in PAIR)):
        assert verify(folder).ok
    assert north.ends == dict.fromkeys(AGENT, KILLED)
    assert aggregator.ends == dict.fromkeys(AGGREGATOR, KILLED)


def first_to_end(*walks: Walk, seconds: float = 60.0) -> Walk:
    """Wait until one of the daemons has ended."""
    descriptors = {os.pidfd_open(walk.daemon.pid): walk for walk in walks}
    try:
        ended, _, _ = select.select(list(descriptors), [], [], seconds)
        assert ended, "nobody died at " + ", ".join(f"{walk.point} of {walk.name}" for walk in walks)
        return descriptors[ended[0]]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


# --- full disks -------------------------------------------------------------------------------------------------------

NO_SPACE = "No space left on device"


def test_disks_that_are_full_for_a_moment_cost_nothing_but_time(new_federation: NewFederation, tmp_path: Path) -> None:
    full = {
        "aggregator": "blob.chunk_written=ENOSPC,blob.before_complete=ENOSPC,journal.before_fsync=ENOSPC:9",
        "north": "blob.chunk_written=ENOSPC,agent.update_in_outbox=ENOSPC",
        # a trainer writes four files, so that the sixth one is the daemon's
        "south": "replace.before_rename=ENOSPC:6,journal.before_fsync=ENOSPC:5",
    }
    federation = new_federation()
    federation.start_aggregator({"HISTOFED_FAILPOINTS": full["aggregator"]})
    for site in PAIR:
        federation.start_agent(site, {"HISTOFED_FAILPOINTS": full[site]})
    toml = mean_experiment("full", 2, extra=f"[sampling]\nsites = {list(PAIR)}")
    federation.submit(toml)
    assert federation.wait_until_ended("full")["experiment"]["state"] == "finished"
    assert federation.parts("full") == expected.models(toml, PAIR, tmp_path)
    for name, daemon in federation.daemons.items():
        assert daemon.running
        if name in PAIR:
            assert daemon.logged(NO_SPACE), "the hospital's administrator reads that a disk is full"
    for folder in (federation.state / "journal", *(federation.site(site) / "state/journal" for site in PAIR)):
        assert verify(folder).ok


def test_a_disk_that_is_full_when_a_round_is_planned_delays_it(lonely: Federation, tmp_path: Path) -> None:
    records = {"round.planned": 4, "round.opened": 5}
    for action, number in records.items():
        lonely.daemons["aggregator"].stop(signal.SIGKILL)
        lonely.start_aggregator({"HISTOFED_FAILPOINTS": f"journal.before_fsync=ENOSPC:{number}"})
        name = action.replace(".", "-")
        toml = mean_experiment(name, 1, extra=ALONE)
        lonely.submit(toml)
        assert lonely.wait_until_ended(name)["experiment"]["state"] == "finished"
        (tmp_path / name).mkdir()
        assert lonely.parts(name) == expected.models(toml, ("north",), tmp_path / name)
        assert lonely.daemons["aggregator"].logged(NO_SPACE), action


# --- children ---------------------------------------------------------------------------------------------------------


def test_an_arithmetic_that_dies_again_and_again_ends_its_round_in_words(lonely: Federation) -> None:
    name = "out-of-memory"
    lonely.submit(mean_experiment(name, 1, extra=ALONE, config="dimension = 1000\nsteps = 20\ndelay_s = 0.1"))
    lonely.wait_until_trained(name, "north")
    lonely.daemons["aggregator"].stop(signal.SIGKILL)
    lonely.start_aggregator({"HISTOFED_FAILPOINTS": "replace.before_rename=kill"})
    lonely.wait_until_seen(name, lambda sight: sight["round"]["round"] == 2)
    (first, _) = lonely.cli("rounds", "list", name)["rounds"]
    assert first["state"] == "abandoned"
    assert "was killed by SIGKILL 3 times" in first["reason"]
    lonely.daemons["aggregator"].stop(signal.SIGKILL)
    lonely.start_aggregator()
    assert lonely.wait_until_ended(name)["experiment"]["state"] == "finished"


def test_a_trainer_may_die_while_it_writes_its_checkpoint(lonely: Federation, tmp_path: Path) -> None:
    lonely.daemons["north"].stop()
    north = lonely.start_agent("north", {"HISTOFED_FAILPOINTS": "agent.checkpoint_written=kill"})
    toml = mean_experiment("stopped", 1, extra=ALONE, config="dimension = 1000\nsteps = 20\ndelay_s = 0.1")
    lonely.submit(toml)
    lonely.wait_until_trained("stopped", "north")
    assert north.stop(signal.SIGTERM) == 0
    lonely.start_agent("north")
    assert lonely.wait_until_ended("stopped")["experiment"]["state"] == "finished"
    assert lonely.parts("stopped") == expected.models(toml, ("north",), tmp_path)
