"""`histofed-agent doctor` at a healthy site, and after each thing that can go wrong with one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from agent import backup, doctor, restore
from agent.cli import main
from agent.config import AgentConfig, DataConfig, TrainerConfig
from agent.layout import Layout
from agent.outbox import Outbox, folder_name
from agent.status import Status, read_status, write_status
from histofed.base import checkup, durable
from histofed.base.clock import Clock, FakeClock, SystemClock
from histofed.base.config import Loaded
from histofed.base.doctor import Doubt, Finding, diagnosis
from histofed.base.errors import AggregatorUnavailable, BadData, ConfigError, NotEnrolled, NotFound, TrainingFailed, WentBack
from histofed.base.proxy import ProxySetting
from histofed.pki.credentials import Credentials
from histofed.transport.server import bind, enrolment_gate, make_server
from histofed.transport.tls import enrolment_credentials
from tests.support.agent_site import SITE, AgentSite, until
from tests.support.fake_aggregator import FakeAggregator
from tests.support.federation import CONSENT, free_ports
from tests.support.pki import Federation, fixed
from tests.support.updates import manifest, put

PATIENT = "TCGA-AA-3713"
PROBE = {"torch": "2.9.0", "cpu": "AVX2", "threads": 8, "gpus": ["NVIDIA H200"]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of a container may doubt its clock; torch takes seconds, and has a test of its own."""
    monkeypatch.setattr(checkup, "kernel_keeps_time", lambda: True)
    answers(monkeypatch, json.dumps(PROBE))


def answers(monkeypatch: pytest.MonkeyPatch, out: str, code: int = 0, error: str = "") -> None:
    """What the probe's process says."""
    done = subprocess.CompletedProcess(["probe"], code, out, error)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """A root with two patients of each class and no picture in it that could be decoded."""
    folder = tmp_path / "tiles"
    for name, patients in {"msimut": (PATIENT, "TCGA-AA-0001"), "mss": ("TCGA-AA-0002", "TCGA-AA-0003")}.items():
        (folder / "TRAIN" / name).mkdir(parents=True)
        for patient in patients:
            (folder / "TRAIN" / name / f"{patient}-01Z-00-DX1.png").write_bytes(b"pixels")
    (folder / PATIENT).mkdir()
    return folder


@pytest.fixture
async def site(tmp_path: Path, federation: Federation, aggregator: FakeAggregator, tiles: Path) -> AgentConfig:
    """A site that has run and is stopped."""
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as built:
        built.start()
        await aggregator.wait_for("WaitForWork")
        await built.stop()
        built.journal.append("test.happened", subject={})
        built.layout.root.chmod(0o700)
    data = DataConfig(root=tiles, cache_bytes=10**6)
    return AgentConfig(state_dir=built.layout.root, consent=built.consent, aggregator=aggregator.address, data=data)


async def found(config: AgentConfig, clock: Clock | None = None) -> dict[str, Finding]:
    checks = doctor.checks(Loaded(config, {}), clock or SystemClock())
    done = await asyncio.to_thread(diagnosis, lambda: checks)
    return {each.name: each for each in done.findings}


def contents(state: Path) -> dict[str, str]:
    files = sorted(path for path in state.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


async def test_a_healthy_site_is_well_and_nothing_is_changed(site: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: may(path, mode) and not (path == site.data.root and mode == os.W_OK)
    )
    before = contents(site.state_dir)
    findings = await found(site)
    assert {each.name: each.words for each in findings.values() if each.state != "ok"} == {
        "daemon": "it does not run: histofed-agent run, or systemctl start histofed-agent"
    }
    assert findings["training"].words == "torch 2.9.0 on GPU NVIDIA H200"
    assert "accepts our certificate" in findings["aggregator"].words
    assert contents(site.state_dir) == before


async def test_a_daemon_that_is_refused_is_not_well(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    aggregator.answers["Hello"] = [WentBack("this aggregator's history went back")]
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as built:
        with durable.lock(built.layout.lock, "histofed-agent"):
            assert (await daemon_finding(built)).state == "warn", "it has just begun to connect"
            built.start()
            await until(lambda: "went back" in built.sessions.words)
            refused = await daemon_finding(built)
    assert (refused.state, refused.error) == ("fail", "AggregatorUnavailable")
    assert refused.words.endswith(f"and says: not connected to {aggregator.address}: this aggregator's history went back")


async def test_a_daemon_that_is_connected_is_well(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as built:
        with durable.lock(built.layout.lock, "histofed-agent"):
            built.start()
            await until(lambda: built.sessions.connected)
            finding = await daemon_finding(built)
    assert (finding.state, finding.words) == ("ok", f"it runs, process {os.getpid()}")


async def daemon_finding(site: AgentSite) -> Finding:
    """Of a daemon that has just written its status."""
    said = site.sessions
    write_status(
        site.layout,
        Status("0.1.0", SITE, site.link.address, said.connected, said.words, None, 0, "2030-01-01", os.getpid()),
    )
    return (await found(site.config))["daemon"]


async def test_no_word_names_anything_below_the_data_root(site: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: may(path, mode) and not str(path).endswith(PATIENT))
    findings = await found(site)
    assert findings["data"].words.startswith("1 of 2 entries of data.root cannot be read")
    said = json.dumps([each.words for each in findings.values()])
    assert "MSIH 2 tiles of 2 patients" in said, "the classes' names are the presets', not the disk's"
    for name in (PATIENT, "TCGA", "msimut", "TRAIN"):
        assert name not in said


def test_before_enrolment_the_first_step_is_named(tmp_path: Path) -> None:
    config = AgentConfig(state_dir=tmp_path / "none", consent=tmp_path / "none.toml")
    findings = {each.name: each for each in diagnosis(lambda: doctor.checks(Loaded(config, {}), SystemClock())).findings}
    assert "run histofed-agent enroll first" in findings["state"].words
    assert findings["certificate"].error == "NotEnrolled"
    assert "aggregator" not in findings


async def test_a_state_that_was_just_restored_is_looked_at(site: AgentConfig, tmp_path: Path) -> None:
    layout, clock = Layout(site.state_dir), SystemClock()
    backup.back_up(layout, tmp_path / "backup", clock, with_identity=True)
    restored = site.model_copy(update={"state_dir": tmp_path / "restored"})
    restore.restore(Layout(restored.state_dir), tmp_path / "backup", clock)
    findings = await found(restored)
    assert {each.name for each in findings.values() if each.state == "fail"} == set()
    assert findings["journal"].words.endswith("the chain is whole")
    assert findings["database"].words.startswith("sound")
    with pytest.raises(NotFound, match=r"no agent has run since the state was restored .*start histofed-agent run"):
        read_status(Layout(restored.state_dir), clock)


async def test_before_the_first_start_there_is_no_journal(tmp_path: Path, federation: Federation, site: AgentConfig) -> None:
    layout = Layout(durable.make_directory(tmp_path / "enrolled"))
    durable.make_directory(layout.identity.parent)
    federation.site(SITE).save(layout.identity)
    findings = await found(site.model_copy(update={"state_dir": layout.root}))
    assert (findings["journal"].state, "database" in findings) == ("warn", False)


# --- the checks, one by one -------------------------------------------------------------------------------------------


def test_consent(tmp_path: Path) -> None:
    path = tmp_path / "consent.toml"
    assert isinstance(doctor.consent(path), Doubt)
    path.write_text('experiments = ["*"]\n')
    empty = doctor.consent(path)
    assert isinstance(empty, Doubt)
    assert "allows nothing to run" in empty.words
    path.write_text(CONSENT)
    assert doctor.consent(path) == f"{path}: experiments *; at most 10000 steps"
    path.write_text("experiment = 1\n")
    with pytest.raises(ConfigError, match="did you mean 'experiments'"):
        doctor.consent(path)


def test_data(tmp_path: Path, tiles: Path) -> None:
    assert isinstance(doctor.data(DataConfig()), Doubt)
    with pytest.raises(ConfigError, match="mount the tiles"):
        doctor.data(DataConfig(root=tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="is the disk mounted"):
        doctor.data(DataConfig(root=tmp_path / "empty"))
    (tmp_path / "circle/inner").mkdir(parents=True)
    (tmp_path / "circle/loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="1 of 2 entries"):
        doctor.data(DataConfig(root=tmp_path / "circle"))
    writable = doctor.data(DataConfig(root=tiles))
    assert isinstance(writable, Doubt)
    assert "mount it read-only" in writable.words


def test_tiles_are_counted_by_their_names(tmp_path: Path, tiles: Path) -> None:
    assert _tiles(tiles) == "MSIH 2 tiles of 2 patients, nonMSIH 2 tiles of 2 patients"
    (tiles / "TRAIN/mss/private-name.png").write_bytes(b"")
    assert _tiles(tiles).endswith("; 1 file refused: no patient id in the name and no line in patients.csv")  # type: ignore[union-attr]
    few = doctor.tiles(tiles, ("MSIH", "nonMSIH"), 3)
    assert isinstance(few, Doubt)
    assert "class MSIH has tiles of 2 patients; this site requires at least 3" in few.words
    (tiles / "TRAIN/patients.csv").write_text("no table")
    with pytest.raises(BadData, match=r"patients\.csv needs a first line"):
        _tiles(tiles)


def test_tiles_that_no_training_could_use_are_a_doubt(tiles: Path) -> None:
    for number, tile in enumerate(sorted(tiles.rglob("*.png"))):
        tile.rename(tile.with_name(f"private-name-{number}.png"))
    nobodys = _tiles(tiles)
    assert isinstance(nobodys, Doubt)
    assert nobodys.words.startswith("MSIH 0 tiles of 0 patients, nonMSIH 0 tiles of 0 patients; a training on MSIH, nonMSIH")
    assert "4 files refused: no patient id in the name" in nobodys.words
    assert "write patients.csv into the data root" in nobodys.words
    assert "private-name" not in nobodys.words


def test_folders_that_no_class_is_named_after_are_a_doubt(tmp_path: Path, tiles: Path) -> None:
    (tiles / "TRAIN/msimut").rename(tiles / "TRAIN/MSI")
    (tiles / "TRAIN/mss").rename(tiles / "TRAIN/MSSS")
    unknown = _tiles(tiles)
    assert isinstance(unknown, Doubt)
    assert "4 pictures in folders of other names" in unknown.words
    assert "it needs one named MSIH or MSIMUT and one named nonMSIH or MSS" in unknown.words
    assert f"`histofed data check {tiles}` lists them" in unknown.words
    assert "MSSS" not in unknown.words
    consent = tmp_path / "consent.toml"
    consent.write_text('classes = ["MSI", "MSSS", "LYM", "M*"]\n')
    allowed = doctor.expected_classes(consent)
    assert allowed == ("MSI", "MSSS", "LYM")
    assert doctor.tiles(tiles, allowed, 2) == "MSI 2 tiles of 2 patients, MSSS 2 tiles of 2 patients"


@pytest.mark.parametrize("text", ["", 'classes = ["*"]', 'classes = ["MSIMUT", "MSIH"]', "clases = 1"])
def test_classes_are_the_presets_where_consent_names_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "consent.toml").write_text(text)
    assert doctor.expected_classes(tmp_path / "consent.toml") == ("MSIH", "nonMSIH")


def test_a_root_that_is_missing_fails_once(tmp_path: Path) -> None:
    config = AgentConfig(
        state_dir=tmp_path / "none", consent=tmp_path / "none.toml", data=DataConfig(root=tmp_path / "gone")
    )
    findings = {each.name: each for each in diagnosis(lambda: doctor.checks(Loaded(config, {}), SystemClock())).findings}
    assert (findings["data"].state, "tiles" in findings) == ("fail", False)


def _tiles(root: Path) -> str | Doubt:
    """What is said of a root where consent names no classes."""
    return doctor.tiles(root, ("MSIH", "nonMSIH"), 2)


def test_a_root_that_cannot_be_read(tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="give it the right to read"):
        doctor.data(DataConfig(root=tiles))


def test_training(monkeypatch: pytest.MonkeyPatch, tiles: Path) -> None:
    config = AgentConfig(trainer=TrainerConfig(device="cuda:1"))
    with pytest.raises(ConfigError, match=r"trainer.device = cuda:1, and torch 2.9.0 finds 1 GPUs"):
        doctor.training(config)
    with pytest.raises(ConfigError, match=r"trainer.devices = 2, and torch 2.9.0 finds 1 GPUs: lower it"):
        doctor.training(AgentConfig(trainer=TrainerConfig(devices=2)))
    processes = doctor.training(AgentConfig(trainer=TrainerConfig(device="cpu", devices=2)))
    assert processes == "torch 2.9.0 on CPU (AVX2, 8 threads)"
    assert doctor.training(AgentConfig(trainer=TrainerConfig(device="cpu"))) == "torch 2.9.0 on CPU (AVX2, 8 threads)"
    answers(monkeypatch, json.dumps({**PROBE, "cpu": "DEFAULT", "gpus": []}))
    slow = doctor.training(AgentConfig())
    assert isinstance(slow, Doubt)
    assert "no vector instructions" in slow.words
    answers(monkeypatch, "", 1, "Traceback\nModuleNotFoundError: No module named 'torch'\n")
    assert isinstance(doctor.training(AgentConfig()), Doubt)
    with pytest.raises(TrainingFailed, match="No module named 'torch'"):
        doctor.training(AgentConfig(data=DataConfig(root=tiles)))
    answers(monkeypatch, "", -11)
    with pytest.raises(TrainingFailed, match="exit code -11"):
        doctor.training(AgentConfig())


def test_a_torch_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("probe", 120)

    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(TrainingFailed, match="a GPU hung"):
        doctor.training(AgentConfig())


def test_a_certificate_at_every_age(tmp_path: Path, federation: Federation) -> None:
    path, now = tmp_path / "agent.pem", SystemClock().now()
    with pytest.raises(NotEnrolled, match="enrol first"):
        doctor.certificate(path, SystemClock())
    federation.site(SITE).save(path)
    fresh = doctor.certificate(path, FakeClock(now))
    assert isinstance(fresh, str)
    assert fresh.startswith(f"{SITE}, valid")
    soon = doctor.certificate(path, FakeClock(now + timedelta(days=6, hours=12)))
    assert isinstance(soon, Doubt)
    assert "should have been renewed" in soon.words
    for away in (timedelta(days=8), timedelta(days=-30)):
        with pytest.raises(NotEnrolled, match="set the clock, or enrol again"):
            doctor.certificate(path, FakeClock(now + away))
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        doctor.certificate(path, SystemClock())
    federation.operator().save(path)
    path.chmod(0o600)
    with pytest.raises(NotEnrolled, match="not a site's"):
        doctor.certificate(path, SystemClock())


def test_a_name_that_leads_nowhere() -> None:
    assert doctor.name("127.0.0.1:8443") == "127.0.0.1 is 127.0.0.1"
    through = doctor.name("aggregator.invalid:8443", ProxySetting("proxy.invalid:3128"))
    assert through == "aggregator.invalid is looked up by the proxy proxy.invalid:3128 (the setting proxy)"
    with pytest.raises(AggregatorUnavailable, match=r"no-such-name.invalid of the aggregator cannot be resolved"):
        doctor.name("no-such-name.invalid:8443")


async def test_an_aggregator_that_does_not_let_us_in(tmp_path: Path, site: AgentConfig) -> None:
    assert site.aggregator is not None
    path = tmp_path / "foreign.pem"
    stranger: Credentials = Federation("other.example").site(SITE)
    stranger.save(path)
    with pytest.raises(Exception, match="is not the aggregator of this federation"):
        await asyncio.to_thread(doctor.reach, site.aggregator, path, SystemClock())
    (port,) = free_ports(1)
    with pytest.raises(AggregatorUnavailable, match="nobody listens"):
        await asyncio.to_thread(doctor.reach, f"127.0.0.1:{port}", Layout(site.state_dir).identity, SystemClock())


async def test_the_enrolment_port_is_not_taken_for_the_aggregators_own(tmp_path: Path, federation: Federation) -> None:
    """It asks for no certificate, so it refuses none; nothing but enrolment is answered there."""
    federation.site(SITE).save(tmp_path / "agent.pem")
    server = make_server(enrolment_gate(clock=SystemClock()))
    port = bind(server, "127.0.0.1:0", enrolment_credentials(fixed(federation.aggregator())))
    await server.start()
    try:
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port} asks for no certificate: it is the enrolment port"):
            await asyncio.to_thread(doctor.reach, f"127.0.0.1:{port}", tmp_path / "agent.pem", SystemClock())
    finally:
        await server.stop(grace=0)


def test_only_complete_updates_wait_for_the_aggregator(tmp_path: Path) -> None:
    folder = tmp_path / "outbox"
    outbox = Outbox(folder)
    assert doctor.outbox(folder) == "empty"
    first, second = (put(outbox, tmp_path, manifest(number)) for number in (1, 2))
    assert doctor.outbox(folder) == Doubt("2 finished updates wait for the aggregator; they go out when it is reached")
    durable.remove(folder / folder_name(first) / "update.safetensors")
    assert doctor.outbox(folder) == Doubt("1 finished updates wait for the aggregator; they go out when it is reached")
    outbox.remove(second)
    assert doctor.outbox(folder) == "empty", "a manifest alone is the trace of a crash: its weights are with the work still"


def test_an_update_that_cannot_be_read_is_not_said_to_go_out(tmp_path: Path) -> None:
    folder = tmp_path / "outbox"
    outbox = Outbox(folder)
    first, second = (put(outbox, tmp_path, manifest(number)) for number in (1, 2))
    durable.replace(folder / folder_name(first) / "manifest.json", b"torn")
    before = sorted(folder.rglob("*"))
    found = doctor.outbox(folder)
    assert sorted(folder.rglob("*")) == before, "the doctor changes nothing"
    assert isinstance(found, Doubt)
    assert found.words.startswith("1 updates cannot be read and never go out, 1 wait for the aggregator")
    assert str(folder / "unreadable") in found.words
    assert [entry.task for entry in outbox.entries()] == [second], "the daemon sets the other aside"
    assert doctor.outbox(folder) == found
    outbox.remove(second)
    assert doctor.outbox(folder) != "empty"
    durable.remove(folder / "unreadable" / folder_name(first))
    assert doctor.outbox(folder) == "empty"


def test_the_cache(tmp_path: Path) -> None:
    layout = Layout(durable.make_directory(tmp_path / "state"))
    assert doctor.cache(DataConfig(cache_bytes=0), layout) == "off: tiles are decoded for every task"
    durable.replace(durable.make_directory(layout.tile_cache) / "set.tiles", b"x" * 2_000_000)
    assert doctor.cache(DataConfig(cache_bytes=4_000_000), layout) == "2 MB of 4 MB"
    assert isinstance(doctor.cache(DataConfig(cache_bytes=10**18), layout), Doubt)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'state_dir = "{tmp_path / "none"}"\nconsent = "{tmp_path / "none.toml"}"\n')
    assert main(["doctor", "--config", str(path), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert [(each["error"], each["code"]) for each in document["checks"] if each["state"] == "fail"] == [
        ("NotEnrolled", 77),
        ("NotEnrolled", 77),
    ]
    path.write_text("stat_dir = 1\n")
    assert main(["doctor", "--config", str(path)]) == 1
    assert "did you mean 'state_dir'?" in capsys.readouterr().out
