"""The agent as a real process under a notify socket: start, stop, restart, kill at every failpoint."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Final

import pytest

from agent import backup, doctor
from agent.config import AgentConfig
from agent.daemon import AgentService, note_lost_journal
from agent.failure import for_the_operator
from agent.layout import Layout
from agent.rooms import LIVES
from histofed.audit.history import History
from histofed.audit.journal import Journal
from histofed.audit.verify import Head, records
from histofed.backup import snapshot
from histofed.base.clock import FakeClock, SystemClock
from histofed.base.config import Loaded
from histofed.base.errors import AlreadyThere, CannotWriteState, ConfigError, NotEnrolled, NotFound, WorkerLost
from histofed.base.ids import SiteId
from histofed.pki.credentials import Credentials
from tests.support.agent_site import LONG, task, training, until
from tests.support.failing_disk import hide
from tests.support.fake_aggregator import FakeAggregator
from tests.support.federation import CONSENT, DaemonProcess
from tests.support.pki import Federation
from tests.support.processes import has_ended, mapped_files, resident_bytes, trainers

SITE = "north-clinic"
IDLE_LIMIT: Final = 100 * 1000 * 1000
"""Bytes of resident memory that an idle agent may use."""


@pytest.fixture
async def aggregator(tmp_path: Path) -> AsyncIterator[FakeAggregator]:
    async with FakeAggregator(tmp_path / "aggregator", Federation()) as running:
        yield running


def enrolled(folder: Path, credentials: Credentials, address: str, extra: str = "") -> Path:
    """A site's configuration file, with an identity in place."""
    layout = Layout(folder / "state")
    layout.identity.parent.mkdir(parents=True, exist_ok=True)
    credentials.save(layout.identity)
    (folder / "consent.toml").write_text(CONSENT)
    (folder / "agent.toml").write_text(
        f'aggregator = "{address}"\nstate_dir = "{layout.root}"\nconsent = "{folder / "consent.toml"}"\n{extra}\n'
        '[trainer]\ndevice = "cpu"\nthreads = 1\nnice = 0\n'
    )
    return folder / "agent.toml"


def start(folder: Path, config: Path, failpoints: str = "") -> DaemonProcess:
    env = {"HISTOFED_FAILPOINTS": failpoints} if failpoints else {}
    return DaemonProcess("agent", [sys.executable, "-m", "agent", "run", "--config", str(config)], folder, env)


def status_of(folder: Path) -> dict[str, object]:
    """What the daemon last wrote about itself."""
    path = folder / "state" / "status.json"
    found: dict[str, object] = json.loads(path.read_bytes()) if path.exists() else {}
    return found


async def ended(daemon: DaemonProcess) -> int:
    """The exit code of a daemon that ends by itself."""
    await asyncio.to_thread(daemon.process.wait, 60)
    return await asyncio.to_thread(daemon.stop)


async def notified(daemon: DaemonProcess, wanted: str) -> str:
    return await asyncio.to_thread(daemon.wait_notified, wanted)


async def test_it_is_ready_without_an_aggregator_and_says_what_is_wrong(tmp_path: Path) -> None:
    config = enrolled(tmp_path, Federation().site(SITE), "127.0.0.1:1")
    daemon = start(tmp_path, config)
    await notified(daemon, "READY=1")
    assert "nobody listens at 127.0.0.1:1" in await notified(daemon, "STATUS=not connected")
    assert await asyncio.to_thread(daemon.stop) == 0
    assert '"msg": "not connected to 127.0.0.1:1' in daemon.log.read_text()


async def test_an_idle_agent_is_small(tmp_path: Path, aggregator: FakeAggregator) -> None:
    config = enrolled(tmp_path, aggregator.federation.site(SITE), aggregator.address)
    daemon = start(tmp_path, config)
    try:
        await aggregator.wait_for("WaitForWork")
        await until(lambda: status_of(tmp_path).get("connected") is True)
        assert resident_bytes(daemon.pid) <= IDLE_LIMIT
        assert not any("torch" in path for path in mapped_files(daemon.pid))
        status = status_of(tmp_path)
        assert (status["site"], status["process"], status["task"]) == (SITE, daemon.pid, None)
        assert status["words"] == "waits for work"
    finally:
        assert await asyncio.to_thread(daemon.stop) == 0
    assert status_of(tmp_path)["connected"] is False, "the file outlives it"


async def test_sigterm_in_mid_training_keeps_the_work(tmp_path: Path, aggregator: FakeAggregator) -> None:
    config = enrolled(tmp_path, aggregator.federation.site(SITE), aggregator.address)
    aggregator.offer(aggregator.make_offer(task(), config="steps = 60\ndelay_s = 0.03"))
    daemon = start(tmp_path, config)
    while (await aggregator.wait_for("ReportProgress", aggregator.called("ReportProgress") + 1)).request.phase != "train":
        pass
    (trainer,) = trainers(daemon.pid)
    assert await asyncio.to_thread(daemon.stop) == 0
    assert has_ended(trainer, 0)
    reports = aggregator.called("ReportProgress")
    daemon = start(tmp_path, config)
    heard = await aggregator.wait_for("ReportProgress", reports + 1)
    assert (heard.request.phase, heard.request.done > 1) == ("train", True)
    await aggregator.wait_for("SubmitUpdate")
    assert await asyncio.to_thread(daemon.stop) == 0


@pytest.mark.parametrize(
    "failpoint",
    [
        "agent.task_accepted",
        "agent.private_state_advanced",
        "agent.weights_stored",
        "agent.update_in_outbox",
        "agent.update_acknowledged",
        "journal.before_fsync:3",
    ],
)
async def test_a_kill_anywhere_loses_nothing(tmp_path: Path, aggregator: FakeAggregator, failpoint: str) -> None:
    name, _, passage = failpoint.partition(":")
    config = enrolled(tmp_path, aggregator.federation.site(SITE), aggregator.address)
    aggregator.offer(aggregator.make_offer(task()))
    daemon = start(tmp_path, config, f"{name}=kill:{passage or 1}")
    assert await ended(daemon) == -signal.SIGKILL
    submitted = aggregator.called("SubmitUpdate")
    daemon = start(tmp_path, config)
    await aggregator.wait_for("SubmitUpdate", submitted + 1)
    await until(lambda: not list((tmp_path / "state" / "outbox").iterdir()))
    assert await asyncio.to_thread(daemon.stop) == 0
    assert {manifest.weights for manifest in aggregator.manifests()} == {aggregator.manifests()[0].weights}


async def test_an_agent_that_dies_in_each_training_fails_the_attempt_in_words(
    tmp_path: Path, aggregator: FakeAggregator
) -> None:
    """As where the kernel kills daemon and trainer together for want of memory: a pod in a cluster."""
    config = enrolled(tmp_path, aggregator.federation.site(SITE), aggregator.address)
    aggregator.offer(aggregator.make_offer(task(), config=LONG))
    for _ in range(LIVES):
        reports = aggregator.called("ReportProgress")
        daemon = start(tmp_path, config)
        await training(aggregator, reports)
        assert await asyncio.to_thread(daemon.stop, signal.SIGKILL) == -signal.SIGKILL
    daemon = start(tmp_path, config)
    failed = (await aggregator.wait_for("FailTask")).request
    assert "ended 3 times in the middle of this training" in failed.reason
    assert failed.retryable, "another attempt goes on from the checkpoint"
    assert await asyncio.to_thread(daemon.stop) == 0


async def test_a_second_agent_on_the_same_state_is_refused(tmp_path: Path) -> None:
    config = enrolled(tmp_path, Federation().site(SITE), "127.0.0.1:1")
    first = start(tmp_path, config)
    await notified(first, "READY=1")
    (tmp_path / "second").mkdir()
    second = start(tmp_path / "second", config)
    assert await ended(second) == AlreadyThere.exit_code
    assert "another process uses" in second.log.read_text()
    assert await asyncio.to_thread(first.stop) == 0


def service(folder: Path, config: AgentConfig, again: AgentConfig | None = None) -> AgentService:
    return AgentService(Loaded(config, {}), lambda: Loaded(again or config, {}), SystemClock(), Random(1))


async def test_without_an_identity_it_says_how_to_enrol(tmp_path: Path) -> None:
    built = service(tmp_path, AgentConfig(state_dir=tmp_path / "state"))
    with pytest.raises(NotEnrolled, match="histofed-agent enroll"):
        await built.start()
    await built.stop()


async def test_what_a_killed_backup_left_goes_at_the_next_start(tmp_path: Path) -> None:
    enrolled(tmp_path, Federation().site(SITE), "127.0.0.1:1")
    left = tmp_path / "state" / snapshot.ROOM
    (left / "private").mkdir(parents=True)
    built = service(tmp_path, AgentConfig(state_dir=tmp_path / "state", aggregator="127.0.0.1:1"))
    await built.start()
    await built.stop()
    assert not left.exists()


async def test_a_key_that_a_killed_process_was_writing_goes_at_the_next_start(tmp_path: Path) -> None:
    enrolled(tmp_path, Federation().site(SITE), "127.0.0.1:1")
    left = Layout(tmp_path / "state").identity.with_name(".agent.pem.0123abcd.tmp")
    left.write_text("a private key")
    built = service(tmp_path, AgentConfig(state_dir=tmp_path / "state", aggregator="127.0.0.1:1"))
    await built.start()
    await built.stop()
    assert not left.exists()


async def test_an_operators_identity_is_no_sites(tmp_path: Path) -> None:
    enrolled(tmp_path, Federation().operator("ada"), "127.0.0.1:1")
    built = service(tmp_path, AgentConfig(state_dir=tmp_path / "state", aggregator="127.0.0.1:1"))
    with pytest.raises(NotEnrolled, match="not a site's"):
        await built.start()
    await built.stop()


async def test_beside_a_trainer_that_does_not_end_the_agent_ends(tmp_path: Path) -> None:
    """Its manager starts it again; with that trainer on the GPU another one would fail, or hang as well."""
    enrolled(tmp_path, Federation().site(SITE), "127.0.0.1:1")
    built = service(tmp_path, AgentConfig(state_dir=tmp_path / "state", aggregator="127.0.0.1:1"))
    await built.start()
    assert built._parts is not None
    built._parts.trainers.lose(WorkerLost("process 7 did not end within 30 s of SIGKILL"))
    with pytest.raises(WorkerLost, match="process 7"):
        await asyncio.wait_for(built.serve(asyncio.Event()), 60)
    await built.stop()


async def test_an_outbox_that_cannot_be_listed_for_a_moment_ends_no_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted every other second, whatever is in hand."""
    enrolled(tmp_path, Federation().site(SITE), "127.0.0.1:1")
    built = service(tmp_path, AgentConfig(state_dir=tmp_path / "state", aggregator="127.0.0.1:1"))
    await built.start()
    hide(monkeypatch, tmp_path / "state" / "outbox", looks=1)
    drain = asyncio.Event()
    serving = asyncio.create_task(built.serve(drain))
    await until(lambda: serving.done() or bool(status_of(tmp_path)))
    assert f"cannot write {tmp_path}/state/outbox" in caplog.text
    drain.set()
    await serving
    await built.stop()


async def test_a_reload_says_what_changed_and_what_waits_for_a_restart(tmp_path: Path) -> None:
    config = AgentConfig(state_dir=tmp_path / "state")
    again = config.model_copy(update={"minimum_patients": 5, "aggregator": "a.example:8443"})
    assert await service(tmp_path, config, again).reload() == (
        "changed: aggregator, minimum_patients; a restart is needed for aggregator"
    )
    assert await service(tmp_path, config).reload() == "nothing changed"


async def test_a_reload_leaves_what_waits_for_a_restart_as_it_was(tmp_path: Path) -> None:
    """Errors go on naming the old places, by which they are kept from leaving the site."""
    enrolled(tmp_path, Federation().site(SITE), "127.0.0.1:1")
    config = AgentConfig(state_dir=tmp_path / "state", aggregator="127.0.0.1:1")
    again = {"state_dir": tmp_path / "elsewhere", "data": {"root": tmp_path / "tiles"}, "minimum_patients": 5}
    built = service(tmp_path, config, AgentConfig.model_validate({"aggregator": "127.0.0.1:1", **again}))
    await built.start()
    assert "a restart is needed for state_dir" in await built.reload()
    assert built._parts is not None
    now = built._parts.work.config
    assert (now.data.root, now.minimum_patients) == (tmp_path / "tiles", 5)
    assert now.state_dir == tmp_path / "state"
    full = CannotWriteState(f"cannot write {now.state_dir}/state.db: No space left on device")
    assert str(tmp_path) not in for_the_operator(full, now)
    await built.stop()


async def test_a_broken_consent_file_and_tiles_that_are_away_are_said_from_the_start_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first sign of either was a round that this site declined, or failed."""
    enrolled(tmp_path, Federation().site(SITE), "127.0.0.1:1")
    (tmp_path / "consent.toml").write_text('experimants = ["e*"]\n')
    config = AgentConfig.model_validate(
        {
            "state_dir": tmp_path / "state",
            "aggregator": "127.0.0.1:1",
            "consent": tmp_path / "consent.toml",
            "data": {"root": tmp_path / "tiles"},
        }
    )
    wrong = [
        f"{tmp_path}/consent.toml:1: there is no key 'experimants'; did you mean 'experiments'?",
        f"data.root = {tmp_path}/tiles is not a folder; mount the tiles or correct the setting",
    ]
    built, drain = service(tmp_path, config), asyncio.Event()
    await built.start()
    serving = asyncio.create_task(built.serve(drain))
    await until(lambda: status_of(tmp_path).get("faults") == wrong)
    (tmp_path / "consent.toml").write_text(CONSENT)
    await built.reload()
    await until(lambda: status_of(tmp_path)["faults"] == wrong[1:])
    (tmp_path / "tiles").mkdir()
    await built.reload()
    await until(lambda: status_of(tmp_path)["faults"] == [])
    drain.set()
    await serving
    await built.stop()
    assert [one.getMessage() for one in caplog.records if one.name == "agent.premises" and one.levelname == "ERROR"] == wrong


async def test_telemetry_files_that_are_not_there_are_a_configuration_error(tmp_path: Path) -> None:
    enrolled(tmp_path, Federation().site(SITE), "127.0.0.1:1")
    telemetry = {"otlp_endpoint": "https://localhost:4317", "ca_file": tmp_path / "missing.pem"}
    config = AgentConfig.model_validate(
        {"state_dir": tmp_path / "state", "aggregator": "127.0.0.1:1", "telemetry": telemetry}
    )
    built = service(tmp_path, config)
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        await built.start()
    await built.stop()


@pytest.mark.parametrize("emptied", [False, True])
async def test_a_state_file_that_was_lost_is_journalled_before_another_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, emptied: bool
) -> None:
    enrolled(tmp_path, Federation().site(SITE), "127.0.0.1:1")
    layout, config = Layout(tmp_path / "state"), AgentConfig(state_dir=tmp_path / "state", aggregator="127.0.0.1:1")

    async def live() -> list[str]:
        built = service(tmp_path, config)
        await built.start()
        await built.stop()
        return [record.action for record in records(layout.journal)]

    assert await live() == ["agent.started"], "a new site begins, and not again"
    layout.state.unlink()
    if emptied:
        layout.state.touch()
    with pytest.raises(NotFound, match="restore a backup, or start the agent, which forgets") as said:
        doctor.database(layout.state)
    with pytest.raises(NotFound) as refused:
        backup.back_up(layout, tmp_path / "backup", SystemClock())
    assert str(refused.value) == str(said.value)
    assert await live() == ["agent.started", "state.begun_again", "agent.started"]
    assert "had seen of its aggregator's history is forgotten" in caplog.text
    assert doctor.database(layout.state).startswith("sound")
    assert len(await live()) == 4


def test_a_journal_that_was_emptied_begins_with_a_record_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path, FakeClock(), "agent-north")
    note_lost_journal(journal, None, SiteId("north"))  # a new site
    assert journal.head.sequence == 0
    heard = History(2, Head(40, "a" * 64))
    note_lost_journal(journal, heard, SiteId("north"))
    note_lost_journal(journal, heard, SiteId("north"))
    journal.close()
    (record,) = records(tmp_path)
    assert (record.action, record.outcome, record.subject) == (
        "journal.begun_again",
        "failed",
        {"site": "north", "heard": "epoch 2, record 40"},
    )
    assert "removed or emptied" in caplog.text
