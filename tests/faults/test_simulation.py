"""The simulation itself: a seed finds nothing, replays exactly, and finds what is broken on purpose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from aggregator.engine import Engine
from aggregator.rounds import Round
from aggregator.store import Store
from histofed.base.ids import SiteId
from histofed.transport.part import PartFile
from tests.faults.history import check, fingerprint
from tests.faults.simulation.identities import Identities
from tests.faults.simulation.scenario import Scenario, scenario
from tests.faults.simulation.world import simulate

ROOT: Final = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def identities() -> Iterator[Identities]:
    made = Identities()
    yield made
    made.close()


def small(seed: int) -> Scenario:
    """A seed's faults in a small federation with two short experiments, and at least one fault every few seconds."""
    whole = scenario(seed)
    experiments = tuple(_shorter(toml) for toml in whole.experiments[:2])
    return replace(whole, sites=6, experiments=experiments, fault_every_s=4.0, chaos_s=40.0)


def _shorter(toml: str) -> str:
    return "\n".join("rounds = 4" if line.startswith("rounds") else line for line in toml.splitlines())


@pytest.mark.parametrize("seed", [3, 26])
def test_a_seed_leaves_a_good_history_and_replays_exactly(seed: int, identities: Identities) -> None:
    one, other = (simulate(seed, identities, small(seed)) for _ in range(2))
    assert (check(one.history), one.bugs) == ((), ())
    assert one.lives > 1, "the aggregator died at least once"
    assert fingerprint(one.history) == fingerprint(other.history)


def test_an_aggregate_without_an_admitted_update_is_found(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    admitted = vars(Round)["admitted"]
    assert isinstance(admitted, property)
    whole = admitted.fget
    assert whole is not None
    monkeypatch.setattr(Round, "admitted", property(lambda state: whole(state)[:1]))
    assert {"missing"} & {violation.law for violation in check(simulate(4, identities, small(4)).history)}


def test_a_transition_that_was_not_written_is_found(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "audit", lambda *_, **__: None)
    assert "journal" in {violation.law for violation in check(simulate(4, identities, small(4)).history)}


def test_bytes_that_are_acknowledged_and_not_kept_are_found(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartFile, "_recover", lambda part: 0)
    # updates of many pieces over a network that breaks in the middle of them
    plan = small(3)
    large = tuple(toml.partition("[config]")[0] + "[config]\ndimension = 100\nsteps = 1\n" for toml in plan.experiments)
    lossy = replace(plan, experiments=large, whole_agents=0, weather=replace(plan.weather, loss=0.04))
    assert "byte-lost" in {violation.law for violation in check(simulate(3, identities, lossy).history)}


def test_an_offer_with_another_settled_round_is_found(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(store: Store, experiment: str, site: SiteId) -> int:
        return 0

    monkeypatch.setattr(Store, "settled_round", none)
    assert "word-broken" in {violation.law for violation in check(simulate(4, identities, small(4)).history)}


def test_seeds_run_in_processes_of_their_own() -> None:
    """The command of `docs/durability.md`, with more than one process."""
    command = [sys.executable, "-m", "tests.faults.simulation", "--seeds", "3-4", "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 seeds, 0 failed; ")
