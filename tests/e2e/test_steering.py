"""An operator changes their mind: pause, resume and cancel in the middle of rounds, and over a kill -9 of the aggregator."""

from __future__ import annotations

import asyncio
from pathlib import Path

from histofed.audit.verify import records, verify
from histofed.base.errors import AggregatorUnavailable, BadData
from tests.e2e.conftest import NewFederation
from tests.support.agent_site import until
from tests.support.daemons import KILLED
from tests.support.federation import Federation, mean_experiment
from tests.support.processes import trainers

PAIR = ("north", "south")
SLOW = "dimension = 1000\nsteps = 20\ndelay_s = 0.1"
LONG = "dimension = 1000\nsteps = 5000\ndelay_s = 0.1"
SITES = f"[sampling]\nsites = {list(PAIR)}"


def test_pause_resume_and_cancel_in_the_middle_of_rounds(new_federation: NewFederation) -> None:
    federation = new_federation()
    federation.start_aggregator()
    federation.start_agents(*PAIR)

    # 1. paused in the middle of a round: it goes on to its end, and none follows, while another experiment runs
    federation.submit(mean_experiment("slow", 9, extra=SITES, config=SLOW))
    federation.wait_until_trained("slow", "north")
    paused = federation.cli("experiments", "pause", "slow", "--reason", "the GPUs are needed")["experiment"]
    assert (paused["state"], paused["open_round"]) == ("paused", 1)
    federation.wait_until_seen("slow", lambda sight: sight["round"]["state"] == "committed")
    federation.submit(mean_experiment("other", 1, extra=SITES))
    assert federation.wait_until_ended("other")["experiment"]["state"] == "finished"
    assert [one["round"] for one in federation.cli("rounds", "list", "slow")["rounds"]] == [1]
    assert federation.cli("status")["experiments"][0]["reason"] == "by admin: the GPUs are needed"

    # 2. resumed: the next round begins
    assert federation.cli("experiments", "resume", "slow")["experiment"]["state"] == "running"
    federation.wait_until_trained("slow", "south", number=2)
    federation.cli("experiments", "cancel", "slow")
    wait_until_cleared(federation, "south", "the experiment was cancelled by admin")

    # 3. cancelled, and the aggregator dies before it has told anybody
    federation.daemons["aggregator"].stop()
    aggregator = federation.start_aggregator({"HISTOFED_FAILPOINTS": "aggregator.experiment_steered=kill"})
    federation.submit(mean_experiment("long", 9, extra=SITES, config=LONG))
    federation.wait_until_trained("long", "north")
    federation.cli("experiments", "cancel", "long", "--reason", "wrong data", code=AggregatorUnavailable.exit_code)
    assert aggregator.wait_ended() == KILLED
    federation.start_aggregator()
    end = federation.wait_until_ended("long")
    assert (end["experiment"]["state"], end["experiment"]["reason"]) == ("cancelled", "by admin: wrong data")
    (state,) = federation.cli("rounds", "list", "long")["rounds"]
    words = "the experiment was cancelled by admin: wrong data"
    assert (state["state"], state["reason"]) == ("abandoned", words)
    assert {refusal["reason"] for refusal in state["refused"]} == {words}

    # 4. the site stops its trainer and keeps nothing of it; nobody can take the end back
    wait_until_cleared(federation, "north", words)
    assert not (federation.site("north") / "state/private/slow").exists(), "nor of what ended while it was away"
    assert federation.cli("experiments", "cancel", "long")["experiment"]["state"] == "cancelled"
    federation.cli("experiments", "resume", "long", code=BadData.exit_code)
    federation.cli("experiments", "pause", "other", code=BadData.exit_code)
    check_journal(federation.state / "journal")


def wait_until_cleared(federation: Federation, site: str, reason: str) -> None:
    """The site has dropped its task for this reason, no trainer runs there, and its work folder is empty."""
    state = federation.site(site) / "state"

    def cleared() -> bool:
        dropped = [each.reason for each in records(state / "journal") if each.action == "task.dropped"]
        return reason in dropped and not trainers(federation.daemons[site].pid) and not any((state / "work").iterdir())

    asyncio.run(until(cleared, seconds=60))


def check_journal(folder: Path) -> None:
    """It is whole, and says who ordered what, and why."""
    assert verify(folder).ok
    orders = [each for each in records(folder) if each.action.startswith("experiment.") and each.who.name != "system"]
    assert [(each.action.partition(".")[2], each.subject["experiment"], each.reason) for each in orders] == [
        ("submitted", "slow", ""),
        ("paused", "slow", "the GPUs are needed"),
        ("submitted", "other", ""),
        ("resumed", "slow", ""),
        ("cancelled", "slow", ""),
        ("submitted", "long", ""),
        ("cancelled", "long", "wrong data"),
    ]
    assert {each.who.name for each in orders} == {"spiffe://test/operator/admin"}
