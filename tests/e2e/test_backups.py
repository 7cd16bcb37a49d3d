"""Backups of a federation that runs: restored in mid-experiment, put back by hand, killed half-way.

The model at the end is the one of an undisturbed run (`tests/support/expected.py`). Commands and daemons are processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent import backup
from histofed.audit.verify import RESTORED, records, verify
from histofed.base.failpoints import FAILPOINTS
from tests.e2e.conftest import NewFederation
from tests.support import backups, expected
from tests.support.daemons import KILLED
from tests.support.federation import Federation, Sight, mean_experiment

PAIR = ("north", "south")
LONG_S = 400.0
"""Agents that were without an aggregator for a while come back after up to half a minute."""


@pytest.fixture
def running(new_federation: NewFederation) -> Federation:
    """Two sites and an aggregator, all up."""
    federation = new_federation()
    federation.start_aggregator()
    federation.start_agents(*PAIR)
    return federation


def slow_experiment(name: str, rounds: int, steps: int = 20) -> str:
    """Rounds in which a step of training lasts a tenth of a second."""
    extra = f"[sampling]\nsites = {list(PAIR)}"
    return mean_experiment(name, rounds, extra=extra, config=f"dimension = 1000\nsteps = {steps}\ndelay_s = 0.1")


def reach(federation: Federation, name: str, number: int) -> None:
    """Wait for the middle of a round, this one or a later one."""

    def there(sight: Sight) -> bool:
        state = sight["round"]
        return state is not None and state["round"] >= number and any(task["phase"] == "train" for task in state["tasks"])

    federation.wait_until_seen(name, there, LONG_S)


def check_end(federation: Federation, name: str, toml: str, scratch: Path) -> None:
    """The experiment finished with the models of an undisturbed run, and every journal is whole."""
    assert federation.wait_until_ended(name, LONG_S)["experiment"]["state"] == "finished"
    assert federation.parts(name) == expected.models(toml, PAIR, scratch)
    for folder in (federation.state / "journal", *(federation.site(site) / "state/journal" for site in PAIR)):
        assert verify(folder).ok


def actions(federation: Federation, site: str) -> list[str]:
    return [record.action for record in records(federation.site(site) / "state/journal")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_older_state_comes_back_and_the_experiment_goes_on_to_its_end(running: Federation, tmp_path: Path) -> None:
    toml = slow_experiment("restored", 5, steps=30)
    running.submit(toml)
    reach(running, "restored", 2)
    file = backups.take(running, tmp_path / "backup")
    assert file.stat().st_mode & 0o777 == 0o600
    reach(running, "restored", 4)
    words = backups.put_back(running, file)
    assert "epoch 1 -> 2" in words
    scratch = tmp_path / "expected"
    scratch.mkdir()
    check_end(running, "restored", toml, scratch)

    # each site followed, and found the private tensors of the round that the backup knew
    for site in PAIR:
        log = running.daemons[site]
        assert log.logged("restored from a backup")
        assert {"aggregator.restored", "private.went_back"} <= set(actions(running, site))
        assert not log.logged("training starts anew"), "the tensors that the backup names were kept"
    # the journal lost nothing: what came after the backup is still in it, and then what happened
    report = verify(running.state / "journal")
    (restored,) = report.restores
    assert (restored.subject["epoch_from"], restored.subject["epoch"]) == (1, 2)
    told = [record for record in records(running.state / "journal") if record.action == "round.planned"]
    assert len(told) > 5, "rounds of the lost history are still told"
    made = [record.subject["backup"] for record in records(running.state / "journal") if record.action == "backup.made"]
    assert made == [restored.subject["backup"]], "the daemon journalled what was made beside it"
    aside = running.state / str(restored.subject["kept"])
    assert verify(aside / "journal").ok, "what was there before lies aside"

    # the same backup once more, on an empty disk: the epoch is one that sites have seen, and they say so
    words = backups.put_back_on_an_empty_disk(running, file)
    assert "nobody knows which certificates were revoked" in words
    refused = running.daemons["north"].wait_logged("restored twice from one backup", LONG_S)
    assert "restore --in-place" in refused
    running.daemons["aggregator"].stop(signal.SIGTERM)
    backups.restore(running, "--in-place", "--epoch", "9")
    running.start_aggregator()
    for site in PAIR:  # a refused site looks once a minute; a new process looks at once
        running.daemons[site].stop(signal.SIGTERM)
        running.start_agent(site)
    (tmp_path / "again").mkdir()
    check_end(running, "restored", toml, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_state_that_was_put_back_by_hand_is_noticed_and_made_honest(running: Federation, tmp_path: Path) -> None:
    toml = slow_experiment("by-hand", 3)
    running.submit(toml)
    reach(running, "by-hand", 1)
    running.daemons["aggregator"].stop(signal.SIGTERM)
    copy = backups.copy_by_hand(running, tmp_path / "copy")
    running.start_aggregator()
    reach(running, "by-hand", 2)
    backups.put_back_by_hand(running, copy)

    words = running.daemons["north"].wait_logged("does not contain what site north has seen", LONG_S)
    assert "put back from a copy without `histofed-aggregator restore`" in words
    conditions = running.cli("status")["conditions"]
    assert any("history" in each and "north" in each for each in conditions), "the operator reads it"
    assert "task.dropped" not in actions(running, "north"), "a site throws nothing away for such an aggregator"

    running.daemons["aggregator"].stop(signal.SIGTERM)
    assert "epoch 1 -> 2" in backups.restore(running, "--in-place")
    running.start_aggregator()
    for site in PAIR:
        running.daemons[site].stop(signal.SIGTERM)
        running.start_agent(site)
    (tmp_path / "expected").mkdir()
    check_end(running, "by-hand", toml, tmp_path / "expected")


# --- commands that are killed -------------------------------------------------------------------------------------------


def killed(federation: Federation, point: str, *arguments: str, module: str = "aggregator.cli") -> None:
    """Run a command that dies at a failpoint."""
    starter = f"import sys; from {module} import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", starter, *arguments],
        env={**os.environ, "HISTOFED_FAILPOINTS": f"{point}=kill"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == KILLED, done.stderr.decode()


BACKUP_POINTS = sorted(point for point in FAILPOINTS if point.startswith("backup."))
RESTORE_POINTS = sorted(point for point in FAILPOINTS if point.startswith("restore."))
DECIDED = {"restore.swap_decided", "restore.old_set_aside", "restore.swapped"}
"""From here on the new state counts."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_command_that_is_killed_leaves_the_old_state_or_the_new_one(new_federation: NewFederation, tmp_path: Path) -> None:
    federation = new_federation()
    federation.start_aggregator()
    federation.start_agents(*PAIR)
    toml = slow_experiment("killed", 1, steps=2)
    federation.submit(toml)
    federation.wait_until_ended("killed")
    config = ("--config", str(federation.aggregator_config))
    for point in BACKUP_POINTS:
        killed(federation, point, "backup", str(tmp_path / point), *config)
    assert (tmp_path / "backup.written").exists(), "complete, though nobody was told"
    assert not (tmp_path / "backup.snapshot_taken").exists()
    file = backups.take(federation, tmp_path / "backup")
    federation.submit(slow_experiment("later", 1, steps=2))
    federation.wait_until_ended("later")

    epoch = 1
    for point in RESTORE_POINTS:
        federation.daemons["aggregator"].stop(signal.SIGTERM)
        killed(federation, point, "restore", str(file), "--replace", *config)
        decided = point in DECIDED
        federation.start_aggregator()
        names = {each["name"] for each in federation.cli("experiments", "list")["experiments"]}
        assert ("later" in names) == (not decided and epoch == 1), point
        epoch += decided
        assert verify(federation.state / "journal").ok
        restores = [record for record in records(federation.state / "journal") if record.action == RESTORED]
        assert [record.subject["epoch"] for record in restores] == list(range(2, epoch + 1)), "never half of it"
        assert not (federation.state / "restore.new").exists()
        assert not (federation.state / "restore.json").exists()
    assert federation.parts("killed") == expected.models(toml, PAIR, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_site_is_backed_up_and_comes_back(running: Federation, tmp_path: Path) -> None:
    toml = slow_experiment("site", 4)
    running.submit(toml)
    reach(running, "site", 2)
    config = ("--config", str(running.site("north") / "agent.toml"))
    for point in BACKUP_POINTS:
        killed(running, point, "backup", str(tmp_path / point), *config, module="agent.cli")
    assert (tmp_path / "backup.written").exists(), "complete, though nobody was told"
    assert not (tmp_path / "backup.snapshot_taken").exists()
    file = tmp_path / "north"
    running.run("agent.cli", "backup", str(file), *config)
    assert "every byte" in running.run("agent.cli", "backup", str(file), "--check", *config)
    running.daemons["north"].stop(signal.SIGKILL)
    refused = running.run("agent.cli", "restore", str(file), *config, code=65)
    assert "--replace" in refused
    state = running.site("north") / "state"
    for point in RESTORE_POINTS:
        before = len(list(state.glob("before-restore-*")))
        killed(running, point, "restore", str(file), "--replace", *config, module="agent.cli")
        assert (state / "restore.json").exists() == (point in DECIDED), point
        # whoever comes next carries it out, or clears it away
        running.run("agent.cli", "restore", str(file), *config, code=65)
        assert not (state / "restore.json").exists()
        assert len(list(state.glob("before-restore-*"))) == before + (point in DECIDED), "never half of it"
    running.start_agent("north")
    (tmp_path / "expected").mkdir()
    check_end(running, "site", toml, tmp_path / "expected")
    made = [record.subject["backup"] for record in records(state / "journal") if record.action == "backup.made"]
    assert backup.check(tmp_path / "backup.written").digest in made, "the daemon told of it"
    restores = verify(state / "journal").restores
    assert len(restores) == len(DECIDED)
    assert all(str(restored.subject["kept"]).startswith("before-restore-") for restored in restores)
