"""Every instant at which a state file is written: a daemon dies there, or the disk is full there, and nothing is lost.

The aggregator and an agent walk through their failpoints at the same time, in one experiment: whoever dies is started
again, with its next failpoint armed. In the end every model is the one of an undisturbed run.
"""

from __future__ import annotations

import os
import re
import select
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from histofed.audit.verify import verify
from histofed.base.failpoints import FAILPOINTS
from histofed.transport import limits
from tests.e2e.conftest import NewFederation
from tests.support import expected
from tests.support.daemons import KILLED, DaemonProcess
from tests.support.federation import Federation, mean_experiment

PAIR = ("north", "south")
AGGREGATOR = (
    *("aggregator.rows_committed@Members.site_seen", "aggregator.sample_planned"),
    *("aggregator.rows_committed@Store.save_round", "aggregator.task_offered"),
    # the first record of a life says that it began
    *("journal.before_fsync:2", "journal.after_fsync:2"),
    *("blob.chunk_written", "blob.taken_up", "blob.chunk_synced", "blob.before_complete", "blob.complete"),
    *("aggregator.rows_committed@FleetServicer._receive", "aggregator.update_received", "aggregator.update_admitted"),
    *("adopt.before_rename@BlobStore.adopt", "adopt.after_rename@BlobStore.adopt", "aggregator.aggregate_written"),
    *("aggregator.rows_committed@Engine._aggregate", "remove.after_unlink@BlobStore.forget"),
    *("aggregator.model_committed", "aggregator.retention_decided", "remove.after_unlink@BlobStore.sweep"),
)
"""In the order of a round, so that several of them are met in one; `@` names a function that the way there leads through."""
AGENT = (
    *("agent.rows_committed@State.note_history", "agent.rows_committed@State.take", "agent.task_accepted"),
    *("agent.private_state_advanced", "journal.before_fsync:3", "journal.after_fsync:3"),
    *("blob.chunk_written", "blob.taken_up", "blob.chunk_synced", "blob.before_complete", "blob.complete"),
    *("agent.weights_stored", "replace.before_rename@Rooms.training", "replace.after_rename@Rooms.training"),
    *("adopt.before_rename@PrivateTensors.add_pending", "adopt.after_rename@PrivateTensors.add_pending"),
    *("replace.before_rename@Outbox.put", "replace.after_rename@Outbox.put"),
    *("adopt.before_rename@Outbox.put", "adopt.after_rename@Outbox.put", "agent.update_in_outbox"),
    *("agent.update_acknowledged", "remove.after_unlink@Rooms.clear"),
    *("agent.rows_committed@State.put_down", "remove.after_unlink@Outbox.remove"),
    # the next rounds remove what those before left
    *("agent.rows_committed@State.set_private_round", "remove.after_unlink@Bases.keep_only"),
    "remove.after_unlink@PrivateTensors.settle",
)
IN_COMMANDS = {point for point in FAILPOINTS if point.startswith(("backup.", "restore."))}
"""Of both ends: `test_backups.py` kills a command at each of them, not a daemon."""
IN_OTHER_STORIES = {"aggregator": {"aggregator.experiment_steered"}, "agent": {"agent.checkpoint_written"}}
"""`test_steering.py`: an operator's order leads there; and below, where it is the trainer that dies."""
ONLY_IN_CHILDREN = {"replace.before_rename", "replace.after_rename"}
"""Passed by the processes that average, not by the aggregator's daemon; what happens when those die is told below."""
SLOW = "dimension = 1000\nsteps = 20\ndelay_s = 0.1"
"""Two seconds of training: time to do harm."""
ALONE = '[sampling]\nminimum = 1\nsites = ["north"]'


@pytest.fixture(scope="module")
def lonely(new_federation: NewFederation) -> Federation:
    """An aggregator that keeps the files of one model per experiment, and one site."""
    federation = new_federation()
    federation.write_more("[retention]\nmodels = 1\n")
    federation.start_aggregator()
    federation.start_agent("north")
    return federation


@pytest.mark.parametrize(
    ("end", "walk", "elsewhere"), [("aggregator", AGGREGATOR, ONLY_IN_CHILDREN), ("agent", AGENT, set())]
)
def test_no_failpoint_is_forgotten(end: str, walk: Sequence[str], elsewhere: set[str]) -> None:
    walked = {re.split("[@:]", point)[0] for point in walk}
    of_the_other = {
        point for point in FAILPOINTS if point.startswith(("aggregator.", "agent.")) and not point.startswith(end)
    }
    assert walked | elsewhere | IN_COMMANDS | IN_OTHER_STORIES[end] == FAILPOINTS - of_the_other


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

    def begin_again(self) -> None:
        """End this life, unless it has just ended where it had to, and start the next one before the same failpoint."""
        if self.daemon.running:
            self.daemon.stop(signal.SIGKILL)
            self.start()

    def start(self) -> None:
        """A life with the next failpoint armed; not waited for, some do not get far."""
        name, _, passage = (self.point or "").partition(":")
        env = {"HISTOFED_FAILPOINTS": f"{name}=kill:{passage or 1}"} if name else {}
        if self.name == "aggregator":
            self._federation.launch_aggregator(env)
        else:
            self._federation.launch_agent(self.name, env)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_daemon_may_die_at_any_instant(lonely: Federation, tmp_path: Path) -> None:
    toml = mean_experiment("walk", 5, extra=ALONE)
    lonely.submit(toml)
    aggregator, agent = Walk(lonely, "aggregator", AGGREGATOR), Walk(lonely, "north", AGENT)
    for walk in (aggregator, agent):
        walk.begin_again()
    while aggregator.point or agent.point:
        dead = first_to_end(aggregator, agent)
        dead.note_end()
        dead.start()
        if dead is aggregator:
            # an agent waits longer each time that its aggregator is away; a new one begins with short waits
            agent.begin_again()

    check_end(lonely, "walk", toml, tmp_path)
    assert {one["state"] for one in lonely.cli("rounds", "list", "walk")["rounds"]} == {"committed"}
    assert agent.ends == dict.fromkeys(AGENT, KILLED)
    assert aggregator.ends == dict.fromkeys(AGGREGATOR, KILLED)
    kept = [one["round"] for one in lonely.cli("models", "list", "walk")["models"] if one["removed_at"] is None]
    assert kept == [5], "what was decided before a kill is done after it"
    lonely.cli("models", "pull", "walk", "--out", str(tmp_path / "model.safetensors"))


def test_either_end_may_die_in_the_middle_of_a_transfer(lonely: Federation, tmp_path: Path) -> None:
    """36 MB: a stretch and some more, first on its way to the site, then back."""
    points = "blob.chunk_synced@Writer.append", "blob.chunk_synced@Fetching._append"
    begin_again(lonely, *({"HISTOFED_FAILPOINTS": f"{point}=kill"} for point in points))
    toml = mean_experiment("large", 1, extra=ALONE, config="dimension = 9000000\nsteps = 1")
    lonely.submit(toml)
    check_died_in_the_middle(lonely.daemons["north"], lonely.site("north") / "state/bases")
    lonely.start_agent("north")
    check_died_in_the_middle(lonely.daemons["aggregator"], lonely.state / "blobs")
    lonely.start_aggregator()
    check_end(lonely, "large", toml, tmp_path)


def check_died_in_the_middle(daemon: DaemonProcess, folder: Path) -> None:
    """Of the transfer below `folder` a stretch is synced, and there is more to come."""
    assert daemon.wait_ended() == KILLED
    (part,) = folder.rglob("*.part")
    assert limits.SYNC_EVERY <= part.stat().st_size < 36_000_000


@pytest.mark.parametrize("point", ["aggregator.aggregate_written", "aggregator.model_committed:2"])
def test_a_crash_in_the_last_step_of_the_last_round_keeps_the_result(lonely: Federation, tmp_path: Path, point: str) -> None:
    """A rival finished 50 rounds and lost them there."""
    name, _, passage = point.partition(":")
    aggregator = begin_again(lonely, {"HISTOFED_FAILPOINTS": f"{name}=kill:{passage or 1}"})
    toml = mean_experiment(f"last-{name.partition('.')[2].replace('_', '-')}", 1, extra=ALONE)
    experiment = lonely.submit(toml)
    assert aggregator.wait_ended(120.0) == KILLED
    begin_again(lonely)
    check_end(lonely, experiment, toml, tmp_path)
    lonely.cli("models", "pull", experiment, "--out", str(tmp_path / "model.safetensors"))


def first_to_end(*walks: Walk, seconds: float = 120.0) -> Walk:
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
    # a site rests after a full disk, for as long as its round can spare
    toml = mean_experiment("full", 2, extra=f"[sampling]\nsites = {list(PAIR)}\n[round]\ndeadline_s = 120")
    federation.submit(toml)
    check_end(federation, "full", toml, tmp_path, PAIR)
    for daemon in federation.daemons.values():
        assert daemon.running
        assert daemon.logged(NO_SPACE), "whoever owns the disk reads it in a log of their own"
    for site in PAIR:
        assert not federation.daemons[site].logged(str(federation.state)), "a site learns no path of the aggregator's"


def test_a_disk_that_is_full_when_a_round_opens_delays_it(lonely: Federation, tmp_path: Path) -> None:
    # the records before: started, submitted, model made, round planned
    aggregator = begin_again(lonely, {"HISTOFED_FAILPOINTS": "journal.before_fsync=ENOSPC:5"})
    toml = mean_experiment("delayed", 1, extra=ALONE)
    lonely.submit(toml)
    check_end(lonely, "delayed", toml, tmp_path)
    assert NO_SPACE in aggregator.logged("cannot write")[0], "the operator reads that a disk is full"


# --- children ---------------------------------------------------------------------------------------------------------


def test_an_arithmetic_that_dies_again_and_again_ends_neither_daemon_nor_round(lonely: Federation, tmp_path: Path) -> None:
    """Meanwhile another experiment goes on, in which no tensors follow the model: there nothing strikes."""
    toml = mean_experiment("out-of-memory", 1, extra=ALONE, config=SLOW)
    lonely.submit(toml)
    lonely.wait_until_trained("out-of-memory", "north")
    aggregator = begin_again(lonely, {"HISTOFED_FAILPOINTS": "replace.before_rename@follow=kill"})
    aggregator.wait_logged("aggregate process was killed by SIGKILL 3 times")
    lonely.submit(f'name = "small"\nrecipe = "exchange"\nrounds = 2\n[config]\nweights = 1000\n{ALONE}')
    assert lonely.wait_until_ended("small")["experiment"]["state"] == "finished"
    assert aggregator.running
    begin_again(lonely)
    check_end(lonely, "out-of-memory", toml, tmp_path)


@pytest.mark.slow
def test_a_strategy_with_moments_survives_the_death_of_child_and_daemon(lonely: Federation, tmp_path: Path) -> None:
    """Round 1: the daemon dies with the aggregate on disk. Round 2: child, then daemon, die between model and moments."""
    adam = f'{ALONE}\n[aggregation]\nstrategy = "flower:FedAdam"\noptions = {{ eta = 0.01 }}'
    toml = mean_experiment("adam", 3, extra=adam)
    begin_again(lonely, {"HISTOFED_FAILPOINTS": "aggregator.aggregate_written=kill"})
    lonely.submit(toml)
    assert lonely.daemons["aggregator"].wait_ended() == KILLED
    # the model, the moments, then the tensors that follow
    aggregator = begin_again(lonely, {"HISTOFED_FAILPOINTS": "replace.before_rename=kill:2"})
    aggregator.wait_logged("aggregate process was killed by SIGKILL 3 times")
    begin_again(lonely)
    check_end(lonely, "adam", toml, tmp_path)


def test_a_trainer_may_die_while_it_writes_its_checkpoint(lonely: Federation, tmp_path: Path) -> None:
    begin_again(lonely, agent={"HISTOFED_FAILPOINTS": "agent.checkpoint_written=kill"})
    toml = mean_experiment("stopped", 1, extra=ALONE, config=SLOW)
    lonely.submit(toml)
    lonely.wait_until_trained("stopped", "north")
    agent = lonely.daemons["north"]
    assert agent.stop(signal.SIGTERM) == 0
    assert agent.logged("the trainer was killed by signal 9"), "it died there"
    lonely.start_agent("north")
    check_end(lonely, "stopped", toml, tmp_path)


# --- steps ------------------------------------------------------------------------------------------------------------


def begin_again(
    federation: Federation, aggregator: Mapping[str, str] | None = None, agent: Mapping[str, str] | None = None
) -> DaemonProcess:
    """Kill both daemons and start them, with what the environment arms; the aggregator."""
    for daemon in ("aggregator", "north"):
        federation.daemons[daemon].stop(signal.SIGKILL)
    started = federation.start_aggregator(aggregator)
    federation.start_agent("north", agent)
    return started


def check_end(federation: Federation, name: str, toml: str, scratch: Path, sites: Sequence[str] = ("north",)) -> None:
    """The experiment finished with the models of an undisturbed run, and no journal has a gap."""
    assert federation.wait_until_ended(name)["experiment"]["state"] == "finished"
    assert federation.parts(name) == expected.models(toml, sites, scratch)
    for folder in (federation.state / "journal", *(federation.site(site) / "state/journal" for site in sites)):
        assert verify(folder).ok
