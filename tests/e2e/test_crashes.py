"""Daemons that are killed, stopped and cut off in the middle of a round: the model is the one of an undisturbed run.

`tests/support/expected.py` computes that model without any daemon. All stories run in one federation, one experiment each.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from histofed.audit.verify import verify
from histofed.training.checkpoint import CheckpointStore
from tests.e2e.conftest import NewFederation
from tests.support import expected
from tests.support.daemons import KILLED
from tests.support.federation import Federation, Sight, mean_experiment, task_of
from tests.support.processes import has_ended, trainers

PAIR = ("north", "south")


@pytest.fixture(scope="module")
def bruised(new_federation: NewFederation) -> Federation:
    """Two sites and an aggregator; after each story all three run again."""
    federation = new_federation()
    federation.start_aggregator()
    federation.start_agents(*PAIR)
    return federation


def slow_experiment(name: str, rounds: int, steps: int) -> str:
    """Rounds in which a step of training lasts a tenth of a second: time to do harm."""
    extra = f"[sampling]\nsites = {list(PAIR)}"
    return mean_experiment(name, rounds, extra=extra, config=f"dimension = 1000\nsteps = {steps}\ndelay_s = 0.1")


def begin(federation: Federation, name: str, rounds: int = 1, steps: int = 20) -> str:
    """Submit an experiment and wait until north is in the middle of its training."""
    toml = slow_experiment(name, rounds, steps)
    federation.submit(toml)
    federation.wait_until_trained(name, "north", steps=2)
    return toml


def check_end(federation: Federation, name: str, toml: str, scratch: Path) -> None:
    """The experiment finished with the models of an undisturbed run, and no journal has a gap."""
    assert federation.wait_until_ended(name)["experiment"]["state"] == "finished"
    assert federation.parts(name) == expected.models(toml, PAIR, scratch)
    states = {one["state"] for one in federation.cli("rounds", "list", name)["rounds"]}
    assert states == {"committed"}, "no round was lost"
    for folder in (federation.state / "journal", *(federation.site(site) / "state/journal" for site in PAIR)):
        assert verify(folder).ok


def test_the_aggregator_is_killed(bruised: Federation, tmp_path: Path) -> None:
    toml = begin(bruised, "aggregator-killed", rounds=2)
    assert bruised.daemons["aggregator"].stop(signal.SIGKILL) == KILLED
    bruised.start_aggregator()
    check_end(bruised, "aggregator-killed", toml, tmp_path)
    assert not bruised.daemons["north"].logged("is dropped"), "the training went on without an aggregator"


def test_the_aggregator_drains(bruised: Federation, tmp_path: Path) -> None:
    toml = begin(bruised, "aggregator-drained")
    assert bruised.daemons["aggregator"].stop(signal.SIGTERM) == 0
    bruised.start_aggregator()
    check_end(bruised, "aggregator-drained", toml, tmp_path)


def test_an_agent_is_killed(bruised: Federation, tmp_path: Path) -> None:
    toml = begin(bruised, "agent-killed")
    agent = bruised.daemons["north"]
    (trainer,) = trainers(agent.pid)
    assert agent.stop(signal.SIGKILL) == KILLED
    assert has_ended(trainer, 10), "a trainer does not outlive its agent"
    bruised.start_agent("north")
    check_end(bruised, "agent-killed", toml, tmp_path)


def test_an_agent_drains_and_its_trainer_goes_on_from_a_checkpoint(bruised: Federation, tmp_path: Path) -> None:
    name = "agent-drained"
    toml = begin(bruised, name, steps=40)
    agent = bruised.daemons["north"]
    (trainer,) = trainers(agent.pid)
    assert agent.stop(signal.SIGTERM) == 0
    assert has_ended(trainer, 0), "the agent waits for its trainer"
    (checkpoint,) = (bruised.site("north") / "state/work").glob("*/output/checkpoint.safetensors")
    found = CheckpointStore(checkpoint.parent, "anybody").peek()
    assert found is not None
    stopped_at = found.state.step
    assert 0 < stopped_at < 40

    before = task_of(bruised.wait_until_seen(name, lambda _: True), "north")["done"]
    bruised.start_agent("north")

    def trains_again(sight: Sight) -> bool:
        task = task_of(sight, "north")
        return task["phase"] == "train" and task["done"] not in (0, before)

    again = task_of(bruised.wait_until_seen(name, trains_again), "north")["done"]
    assert again > stopped_at, "no step is done twice"
    check_end(bruised, name, toml, tmp_path)


def test_a_trainer_is_killed(bruised: Federation, tmp_path: Path) -> None:
    name = "trainer-killed"
    toml = begin(bruised, name)
    (trainer,) = trainers(bruised.daemons["north"].pid)
    os.kill(trainer, signal.SIGKILL)
    bruised.wait_until_seen(name, lambda sight: task_of(sight, "north").get("attempt") == 2)
    check_end(bruised, name, toml, tmp_path)
    tasks = bruised.cli("rounds", "show", name, "1")["round"]["tasks"]
    assert [(task["site"], task["state"], task["attempt"]) for task in tasks] == [
        ("north", "admitted", 2),
        ("south", "admitted", 1),
    ]
    assert "killed by signal 9" in bruised.daemons["north"].logged("trainer was killed")[0]


def test_everything_is_killed_at_once(bruised: Federation, tmp_path: Path) -> None:
    toml = begin(bruised, "power-cut")
    for daemon in ("aggregator", *PAIR):
        assert bruised.daemons[daemon].stop(signal.SIGKILL) == KILLED
    bruised.start_agents(*PAIR)
    bruised.start_aggregator()
    check_end(bruised, "power-cut", toml, tmp_path)
