"""Both daemons on one host, under a real systemd, with the units as shipped: started, broken, reloaded, stopped.

The agent trains on drawn tiles that are mounted where the unit expects them. Where a test shortens a time of the unit (the
watchdog's minute), it says so by a drop-in, as an administrator would.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from histofed.telemetry.events import message_id
from tests.deploy.federation import (
    AGENT,
    AGGREGATOR,
    TILES,
    committed,
    drawn_tiles,
    ended,
    found,
    join,
    submit,
    trains,
    watching,
)
from tests.deploy.installed import DEPLOY, drop_in, install, machine
from tests.deploy.machine import Follower, Machine, monotonic, wait_for_end
from tests.deploy.numbers import Numbers
from tests.support.federation import gan_experiment, mean_experiment

READY_S = {AGENT: 2.0, AGGREGATOR: 5.0}
STOP_S = 10.0
RESTART_SEC = 10.0
"""Of both units."""
STARTED = "39f53479d3a045ac8e11786248231fbf"
"""systemd's MESSAGE_ID of a unit that has finished starting."""
AGGREGATORS_ADDRESS = "192.0.2.10"
"""As the shipped egress drop-in names it, an address of documentation; the machine has it."""
ANOTHER_ADDRESS = "198.51.100.10"
"""Of the same aggregator; the drop-in does not name it."""
LONG = 150
"""Steps of a training that is not over before a test is."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that is aggregator and hospital at once, with the shipped units and no drop-in."""
    with machine("both", binds=drawn_tiles(tmp_path_factory.mktemp("tiles") / "north", 1)) as host:
        install(host)
        for address in (AGGREGATORS_ADDRESS, ANOTHER_ADDRESS):
            host.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        found(host, "localhost", "127.0.0.1", AGGREGATORS_ADDRESS, ANOTHER_ADDRESS)
        host.run("systemctl", "start", AGGREGATOR)
        join(host, host, "north")
        host.run("systemctl", "start", AGENT)
        yield host


@pytest.fixture
def calm(host: Machine) -> Machine:
    """The host with both daemons running, and no earlier failures counted."""
    host.run("systemctl", "reset-failed")
    host.run("systemctl", "start", AGGREGATOR, AGENT)
    return host


# --- as installed --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare() -> Iterator[Machine]:
    """A machine on which histofed is installed and nothing is configured."""
    with machine("bare") as bare:
        install(bare)
        yield bare


@pytest.mark.parametrize("unit", [AGENT, AGGREGATOR])
def test_what_is_not_configured_is_skipped_quietly(bare: Machine, unit: str) -> None:
    bare.run("systemctl", "start", unit)
    assert bare.show(unit, "ActiveState", "ConditionResult") == {"ActiveState": "inactive", "ConditionResult": "no"}
    assert not bare.run("systemctl", "--failed", "--quiet", "--no-legend").stdout


@pytest.mark.parametrize(
    ("unit", "words"),
    [(AGENT, "run `histofed-agent enroll` with a join line"), (AGGREGATOR, "run `histofed-aggregator init` first")],
)
def test_what_is_configured_but_has_no_identity_fails_loudly_and_once(bare: Machine, unit: str, words: str) -> None:
    bare.write(f"/etc/histofed/{unit.removeprefix('histofed-')}.toml", "")
    fails_once(bare, unit, 77, words)


@pytest.mark.parametrize("unit", [AGENT, AGGREGATOR])
def test_a_broken_configuration_does_not_flap(bare: Machine, unit: str) -> None:
    file = f"/etc/histofed/{unit.removeprefix('histofed-')}.toml"
    bare.write(file, 'log_level = "INFO"\nlog_levl = "DEBUG"\n')
    fails_once(bare, unit, 78, f"{file}:2: there is no key 'log_levl'; did you mean 'log_level'?")


def test_a_wrong_command_line_does_not_flap(bare: Machine) -> None:
    bare.write("/etc/histofed/agent.toml", "")
    drop_in(bare, AGENT, "wrong", "[Service]\nExecStart=\nExecStart=/usr/bin/histofed-agent rum\n")
    fails_once(bare, AGENT, 2, "invalid choice: 'rum'")
    bare.run("rm", f"/etc/systemd/system/{AGENT}.service.d/wrong.conf")
    bare.run("systemctl", "daemon-reload")


@pytest.mark.parametrize("unit", [AGENT, AGGREGATOR])
def test_a_masked_unit_stays_down_and_a_disabled_one_is_not_started_at_boot(bare: Machine, unit: str) -> None:
    assert bare.run("systemctl", "is-enabled", unit, check=False).stdout.strip() == "disabled"
    bare.run("systemctl", "enable", "--quiet", unit)
    wanted = bare.path(f"/etc/systemd/system/multi-user.target.wants/{unit}.service")
    assert wanted.is_symlink()
    bare.run("systemctl", "disable", "--quiet", unit)
    assert not wanted.is_symlink()
    bare.run("systemctl", "mask", "--quiet", unit)
    refused = bare.run("systemctl", "start", unit, check=False)
    assert refused.returncode != 0
    assert "masked" in refused.stderr
    bare.run("systemctl", "unmask", "--quiet", unit)


def fails_once(machine: Machine, unit: str, code: int, words: str) -> None:
    """The start fails, the journal says why, and systemd does not try again."""
    machine.run("systemctl", "reset-failed", unit, check=False)
    with machine.following() as journal:
        assert machine.run("systemctl", "start", unit, check=False).returncode != 0
        said = journal.wait_said(words)
        assert code == 2 or said["PRIORITY"] == "3", "an error, also to those who look for errors only"
    shown = machine.show(unit, "ActiveState", "SubState", "ExecMainStatus", "NRestarts")
    # with a restart to come it would be "activating (auto-restart)"
    assert shown == {"ActiveState": "failed", "SubState": "failed", "ExecMainStatus": str(code), "NRestarts": "0"}


# --- both on one host ----------------------------------------------------------------------------------------------------


def test_both_daemons_live_on_one_host_and_neither_reads_the_others_state(host: Machine) -> None:
    for unit, other in ((AGENT, AGGREGATOR), (AGGREGATOR, AGENT)):
        assert host.show(unit, "ActiveState", "DropInPaths") == {"ActiveState": "active", "DropInPaths": ""}
        assert host.run("stat", "--format=%a %U", f"/var/lib/{unit}").stdout.strip() == f"700 {unit}"
        looked = host.run("ls", f"/var/lib/{unit}", user=other, check=False)
        assert "Permission denied" in looked.stderr


@pytest.mark.parametrize("unit", [AGENT, AGGREGATOR])
def test_a_start_is_ready_in_time(calm: Machine, unit: str, numbers: Numbers) -> None:
    """The time in which the process waited for a processor that others had is not the daemon's: it is told beside."""
    found = []
    for _ in range(3):
        calm.run("systemctl", "stop", unit)
        calm.run("systemctl", "start", unit)
        shown = calm.show(unit, "ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
        began, ready = (int(value) / 1e6 for value in shown.values())
        waited = waited_s(calm, unit)
        found.append((abs(ready - began) - waited, waited))
        calm.run("systemctl", "reset-failed", unit)
    own, waited = min(found)
    numbers.hold(f"{unit}: start to READY", own, READY_S[unit], remark=f"best of 3; and {waited:.2f} s for a processor")


@pytest.mark.parametrize("unit", [AGENT, AGGREGATOR])
def test_a_running_unit_is_hardly_exposed(calm: Machine, unit: str, numbers: Numbers) -> None:
    told = calm.run("systemd-analyze", "security", "--no-pager", unit).stdout
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert level, told
    numbers.hold(f"exposure of {unit}, running", float(level[1]), 1.5, "")
    assert not calm.run("systemd-analyze", "verify", "--man=no", f"{unit}.service").stderr


@pytest.mark.parametrize("unit", [AGENT, AGGREGATOR])
def test_the_kernel_holds_what_the_unit_promises(calm: Machine, unit: str) -> None:
    process = Path(f"/proc/{calm.main_pid(unit)}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    mounts = {words[4]: words[5].split(",") for words in map(str.split, (process / "mountinfo").read_text().splitlines())}
    assert {"rw", "noexec"} <= set(mounts[f"/var/lib/{unit}"])
    assert "ro" in mounts["/"]
    if unit == AGENT:
        assert "ro" in mounts[TILES]


def test_the_watchdog_ends_a_loop_that_hangs_and_systemd_starts_it_again(calm: Machine) -> None:
    drop_in(calm, AGENT, "test", "[Service]\nWatchdogSec=3\nTimeoutAbortSec=2\nRestartSec=1\n")
    calm.run("systemctl", "restart", AGENT)
    with calm.following() as journal:
        calm.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", AGENT)
        journal.wait_said("Watchdog timeout (limit 3s)!")
        wait_started(journal, AGENT)
    assert calm.show(AGENT, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "1"}
    calm.run("rm", f"/etc/systemd/system/{AGENT}.service.d/test.conf")
    calm.run("systemctl", "daemon-reload")
    calm.run("systemctl", "restart", AGENT)


def wait_started(journal: Follower, unit: str) -> float:
    """The moment at which systemd says that the unit has started."""
    entry = journal.wait(lambda e: e.get("MESSAGE_ID") == STARTED and e.get("UNIT") == f"{unit}.service", f"{unit} started")
    return monotonic(entry)


# --- a round -------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_a_round_survives_kills_and_a_stop_in_training(calm: Machine, numbers: Numbers) -> None:
    experiment = submit(calm, gan_experiment("survivor", ["north"], steps=LONG))
    with watching(calm, experiment) as until, calm.following() as journal:
        until(trains("north"))
        kill_and_wait(calm, AGENT, journal, numbers)
        until(trains("north"))
        process, began = calm.main_pid(AGENT), time.monotonic()
        calm.run("systemctl", "stop", AGENT)
        numbers.hold("stop of the agent in training", time.monotonic() - began, STOP_S)
        assert wait_for_end(process, 0)
        journal.wait_said("histofed-agent drains")
        assert calm.show(AGENT, "Result") == {"Result": "success"}
        kept = calm.run("find", "/var/lib/histofed-agent/work", "-type", "f").stdout
        assert "checkpoint" in kept, f"a training that was stopped leaves a checkpoint; there is: {kept}"
        calm.run("systemctl", "start", AGENT)
        kill_and_wait(calm, AGGREGATOR, journal, numbers)
        until(ended)
    assert [each["round"] for each in committed(calm, experiment)] == [1]


def kill_and_wait(machine: Machine, unit: str, journal: Follower, numbers: Numbers) -> None:
    """From the moment at which systemd sees the death; the new process's wait for a processor is told beside."""
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit)
    died = monotonic(journal.wait(lambda e: e.get("UNIT") == f"{unit}.service", "the death is seen"))
    started = wait_started(journal, unit)
    waited = waited_s(machine, unit)
    what = f"{unit}: kill -9 to READY again, RestartSec={RESTART_SEC:g}"
    numbers.hold(what, started - died - waited, RESTART_SEC + 2.0, remark=f"and {waited:.2f} s for a processor")


def waited_s(machine: Machine, unit: str) -> float:
    """For how long the unit's process, ready to run, waited for a processor that others had."""
    return int(Path(f"/proc/{machine.main_pid(unit)}/schedstat").read_text().split()[1]) / 1e9


def test_the_journal_is_asked_by_round_event_and_site(calm: Machine) -> None:
    experiment = submit(calm, mean_experiment("spoken", rounds=2, extra="[sampling]\nminimum = 1\n"))
    with watching(calm, experiment) as until:
        until(ended)
    units = {entry["_SYSTEMD_UNIT"] for entry in calm.entries(f"HISTOFED_EXPERIMENT={experiment}", "HISTOFED_ROUND=2")}
    assert units == {f"{AGENT}.service", f"{AGGREGATOR}.service"}
    ends = calm.entries(f"MESSAGE_ID={message_id('round.ended')}", f"HISTOFED_EXPERIMENT={experiment}")
    assert [(end["HISTOFED_ROUND"], end["HISTOFED_STATE"], end["PRIORITY"]) for end in ends] == [
        ("1", "committed", "6"),
        ("2", "committed", "6"),
    ]
    (accepted, _) = calm.entries("HISTOFED_EVENT=task.accepted", f"HISTOFED_EXPERIMENT={experiment}")
    assert (accepted["HISTOFED_SITE"], accepted["SYSLOG_IDENTIFIER"]) == ("north", AGENT)


# --- reload --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "good", "said"),
    [
        (
            AGENT,
            "minimum_patients = 3\n[telemetry]\nenvironment = 'test'\n",
            "changed: minimum_patients, telemetry.environment",
        ),
        (AGGREGATOR, "workers = 3\n[retention]\nmodels = 7\n", "changed: retention.models, workers"),
    ],
)
def test_a_reload_takes_a_good_file_and_refuses_a_bad_one(calm: Machine, unit: str, good: str, said: str) -> None:
    late = "telemetry.environment" if unit == AGENT else "workers"
    more = f"/etc/histofed/conf.d/{unit.removeprefix('histofed-')}/50-test.toml"
    process = calm.main_pid(unit)
    with calm.following() as journal:
        calm.write(more, good)
        calm.run("systemctl", "reload", unit)
        journal.wait_said(f"configuration read again: {said}; a restart is needed for {late}")
        calm.write(more, f"{good}modls = 8\n")
        calm.run("systemctl", "reload", unit)
        refusal = journal.wait_said("the configuration was not changed")
        assert f"{more}:" in refusal["MESSAGE"]
        assert (refusal["PRIORITY"], refusal["HISTOFED_EVENT"]) == ("3", "configuration.refused")
        calm.run("rm", more)
        calm.run("systemctl", "reload", unit)
        journal.wait_said(f"configuration read again: {said}")
    assert calm.main_pid(unit) == process
    assert calm.show(unit, "ActiveState", "NRestarts")["ActiveState"] == "active"


def test_with_the_egress_drop_in_the_agent_reaches_its_aggregator_alone(calm: Machine) -> None:
    """The file as shipped; the other address is the same aggregator's, so that only the drop-in can be in the way."""
    shipped = (DEPLOY / "histofed-agent.service.d" / "egress.conf").read_text()
    with calm.following() as journal:
        talks(calm, ANOTHER_ADDRESS, "aggregator.connected", journal)
        drop_in(calm, AGENT, "egress", shipped)
        talks(calm, AGGREGATORS_ADDRESS, "aggregator.connected", journal)
        talks(calm, ANOTHER_ADDRESS, "aggregator.lost", journal)
    calm.run("rm", f"/etc/systemd/system/{AGENT}.service.d/egress.conf", "/etc/histofed/conf.d/agent/60-address.toml")
    calm.run("systemctl", "daemon-reload")
    calm.run("systemctl", "restart", AGENT)


def talks(machine: Machine, address: str, event: str, journal: Follower) -> None:
    """With this address of its aggregator the agent tells of this event."""
    machine.write("/etc/histofed/conf.d/agent/60-address.toml", f'aggregator = "{address}:8443"\n')
    machine.run("systemctl", "reset-failed", AGENT)
    machine.run("systemctl", "restart", AGENT)
    journal.wait(lambda e: e.get("HISTOFED_EVENT") == event and address in e["MESSAGE"], f"{event}: {address}", 90)


# --- commands ------------------------------------------------------------------------------------------------------------


def test_check_doctor_and_status_answer_beside_the_daemons(calm: Machine) -> None:
    for program in (AGENT, AGGREGATOR):
        checked = calm.run(program, "check", user=program).stdout
        assert "state_dir" in checked
        doctor = calm.run(program, "doctor", user=program)
        assert not [line for line in doctor.stdout.splitlines() if line.startswith("fail")]
    told = calm.run("histofed-agent", "status", user=AGENT).stdout
    assert "connected" in told
    calm.run("systemctl", "stop", AGENT)
    assert calm.run("histofed-agent", "status", user=AGENT, check=False).returncode == 1
