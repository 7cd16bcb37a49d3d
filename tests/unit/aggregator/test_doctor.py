"""`histofed-aggregator doctor` on a state of its own, and after each thing that can go wrong with one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from aggregator import doctor, restore, setup
from aggregator.cli import main
from aggregator.config import AggregatorConfig, Listen
from aggregator.database import Database
from aggregator.history import Chronicle
from aggregator.past import Past
from histofed.audit.history import CLAIMED, History, claimed
from histofed.audit.journal import Journal
from histofed.audit.verify import Head
from histofed.base import checkup, durable
from histofed.base.clock import FakeClock, SystemClock
from histofed.base.config import Loaded
from histofed.base.doctor import Finding, diagnosis
from histofed.base.errors import WentBack
from histofed.base.health import Health
from histofed.base.ids import Digest, ExperimentId, SiteId
from tests.support.engine_bench import Bench, StandInForge, running


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a federation that has run, with one experiment."""
    folder = tmp_path_factory.mktemp("template")
    clock = SystemClock()
    setup.create(AggregatorConfig(state_dir=folder / "state"), clock, "admin", folder / "operator")
    journal = Journal(folder / "state/journal", clock, "test")
    for number in range(2):  # after the operator's
        journal.append("test.happened", subject={"number": number})
    journal.close()
    return folder / "state"


@pytest.fixture
def state(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def unused(state: Path) -> Path:
    """On which no daemon has run: its journal knows the first operator alone."""
    (segment,) = (state / "journal").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes().splitlines(keepends=True)[0])
    return state


@pytest.fixture
async def experienced(state: Path, tmp_path: Path) -> Path:
    """With an experiment and the file of its first model."""
    clock = FakeClock()
    bench = Bench(durable.make_directory(tmp_path / "bench"), clock, StandInForge(clock))
    async with bench.engine() as engine:
        await running(engine)
        shared = engine.store.part(bench.forge._model(0).digest, "shared")
    durable.adopt(bench.folder / "state.db", state / "state.db")
    durable.make_directory(state / "blobs")
    durable.replace(state / "blobs" / shared.sha256, b"x" * shared.bytes)
    return state


def config(state: Path, **more: object) -> Loaded[AggregatorConfig]:
    listen = Listen(grpc="127.0.0.1:0", enrolment="127.0.0.1:0", health="127.0.0.1:0", metrics="127.0.0.1:0")
    return Loaded(AggregatorConfig(state_dir=state, listen=listen, **more), {})  # type: ignore[arg-type]  # test input


def found(loaded: Loaded[AggregatorConfig], clock: SystemClock | FakeClock | None = None) -> dict[str, Finding]:
    return {each.name: each for each in diagnosis(lambda: doctor.checks(loaded, clock or SystemClock())).findings}


@pytest.fixture(autouse=True)
def kept_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's kernel may say otherwise."""
    monkeypatch.setattr(checkup, "kernel_keeps_time", lambda: True)


def contents(state: Path) -> dict[str, str]:
    files = sorted(path for path in state.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


async def test_a_healthy_aggregator_is_well_and_nothing_is_changed(experienced: Path) -> None:
    before = contents(experienced)
    findings = found(config(experienced))
    assert {each.name: each.words for each in findings.values() if each.state == "fail"} == {}
    assert [each.name for each in findings.values() if each.state == "warn"] == ["daemon"]
    assert findings["journal"].words == "3 records, the chain is whole"
    assert findings["models"].words == "1 files, 0 MB"
    assert contents(experienced) == before


def test_before_init_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    findings = found(config(tmp_path / "none"))
    failed = [each for each in findings.values() if each.state == "fail"]
    assert [(each.name, each.error, each.code) for each in failed] == [("state", "NotEnrolled", 77)]
    assert "run histofed-aggregator init first" in failed[0].words


def test_before_init_in_a_folder_that_a_package_made_the_first_step_is_named(tmp_path: Path) -> None:
    findings = found(config(durable.make_directory(tmp_path / "state")))
    failed = [each for each in findings.values() if each.state == "fail"]
    assert [(each.name, each.error, each.code) for each in failed] == [("keys", "NotEnrolled", 77)]
    assert "run histofed-aggregator init" in failed[0].words


def test_before_its_first_start_only_the_database_is_missing(unused: Path) -> None:
    findings = found(config(unused))
    assert not [each for each in findings.values() if each.state == "fail"]
    assert findings["database"].state == "warn"


def test_a_database_that_is_gone_is_told_with_the_models_folder_gone_too(state: Path) -> None:
    assert "and a daemon ran here: restore a backup" in found(config(state))["database"].words


def test_a_key_that_others_can_read(state: Path) -> None:
    (state / "identity/ca.key").chmod(0o640)
    finding = found(config(state))["keys"]
    assert (finding.state, finding.error) == ("fail", "ConfigError")
    assert "run chmod 600" in finding.words
    assert "copied it, whoever has it can be anybody here: make a new federation" in finding.words


def test_a_key_that_is_gone(state: Path) -> None:
    (state / "identity/token.key").unlink()
    assert "has lost token.key of a federation that has run" in found(config(state))["keys"].words


def test_a_federation_that_is_not_the_configured_one(state: Path) -> None:
    finding = found(config(state, federation="other"))["CA"]
    assert (finding.state, "'other'" in finding.words) == ("fail", True)


@pytest.mark.parametrize(("days", "state_of_ca"), [(0, "ok"), (3640, "warn"), (3700, "fail")])
def test_a_ca_that_comes_to_its_end(state: Path, days: int, state_of_ca: str) -> None:
    assert found(config(state), FakeClock(SystemClock().now() + timedelta(days=days)))["CA"].state == state_of_ca


def test_a_certificate_without_the_public_name(state: Path) -> None:
    finding = found(config(state, public_hosts=("localhost", "hub.example.org")))["certificate"]
    assert finding.state == "fail"
    assert "does not have hub.example.org of public_hosts: restart the daemon" in finding.words
    assert "cannot be resolved" in found(config(state, public_hosts=("no-such-name.invalid",)))["names"].words


@pytest.mark.parametrize(("days", "word"), [(0, "ok"), (304, "ok"), (306, "warn"), (364, "warn"), (366, "fail")])
def test_the_daemon_s_certificate_comes_to_its_end(state: Path, days: int, word: str) -> None:
    finding = found(config(state), FakeClock(SystemClock().now() + timedelta(days=days)))["certificate"]
    assert (finding.state, "a daemon that runs renews it" in finding.words) == (word, word != "ok")


def test_a_certificate_that_the_next_start_issues(state: Path) -> None:
    (state / "identity/aggregator.pem").unlink()
    assert "next start issues it" in found(config(state))["certificate"].words


def test_a_clock_behind_the_journal(state: Path) -> None:
    behind = FakeClock(SystemClock().now() - timedelta(hours=3))
    assert "the clock was set back" in found(config(state), behind)["clock"].words


async def test_an_edited_journal(experienced: Path) -> None:
    (segment,) = (experienced / "journal").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b'"number":1', b'"number":7'))
    finding = found(config(experienced))["journal"]
    assert (finding.state, finding.error) == ("fail", "DigestMismatch")
    assert "line 3" in finding.words


async def test_a_journal_whose_last_line_was_torn_is_no_harm(experienced: Path) -> None:
    (segment,) = (experienced / "journal").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes()[:-10])
    finding = found(config(experienced))["journal"]
    assert (finding.state, finding.words.split(";")[0]) == ("warn", "2 records are whole")


async def test_a_history_that_sites_miss_is_a_doubt_until_a_restore_says_so(experienced: Path) -> None:
    clock = SystemClock()
    shutil.copytree(experienced, experienced.parent / "copy")
    with contextlib.closing(Journal(experienced / "journal", clock, "test")) as journal:
        journal.append("test.happened", subject={})
        seen = History(1, journal.head)
    shutil.rmtree(experienced / "journal")
    shutil.copytree(experienced.parent / "copy/journal", experienced / "journal")
    assert found(config(experienced))["journal"].state == "ok", "nobody has missed anything yet"
    says_hello(experienced, "north", seen)
    finding = found(config(experienced))["journal"]
    assert (finding.state, "north saw a history that is not in it" in finding.words) == ("warn", True)
    assert finding.words.endswith("restore --in-place`")
    restore.in_place(config(experienced).config, clock)
    says_hello(experienced, "south", seen)
    assert found(config(experienced))["journal"].state == "ok", "what was lost before a restore is told and done with"


async def test_what_no_site_can_have_seen_is_repeated_by_nobody(experienced: Path) -> None:
    """It is in the journals of releases that wrote down whatever a site said."""
    with contextlib.closing(Journal(experienced / "journal", SystemClock(), "test")) as journal:
        journal.append(CLAIMED, subject=claimed("north", History(2**31 - 2, Head(1, "a" * 64))))
    finding = found(config(experienced))["journal"]
    assert (finding.state, "epoch" in finding.words) == ("ok", False)


def says_hello(state: Path, site: str, seen: History) -> None:
    clock = FakeClock()
    with (
        contextlib.closing(Journal(state / "journal", clock, "test")) as journal,
        contextlib.closing(Database(state / "state.db")) as database,
        contextlib.suppress(WentBack),
    ):
        Chronicle(database, journal, clock, Health(clock, required=())).meet(SiteId(site), seen)


async def test_a_database_of_a_newer_release(experienced: Path) -> None:
    with sqlite3.connect(experienced / "state.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert found(config(experienced))["database"].error == "VersionMismatch"


async def test_model_files_that_are_gone_or_cut_short(experienced: Path) -> None:
    (blob,) = (experienced / "blobs").iterdir()
    blob.write_bytes(b"")
    finding = found(config(experienced))["models"]
    assert finding.words.startswith("1 of 1 model files are missing or cut short")
    database = Database(experienced / "state.db")
    Past(database, SystemClock()).forget([the_model(experienced)], {ExperimentId("demo"): 0})
    database.close()
    assert found(config(experienced))["models"].state == "ok", "retention's removals are not missing"


def the_model(state: Path) -> Digest:
    connection = sqlite3.connect(state / "state.db")
    (found,) = connection.execute("SELECT digest FROM models").fetchone()
    connection.close()
    return Digest(found)


def test_a_port_that_is_taken(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        loaded = Loaded(AggregatorConfig(state_dir=state, listen=Listen(grpc=address)), {})
        assert f"grpc {address} (Address already in use)" in found(loaded)["ports"].words


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(unused: Path, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "aggregator.toml"
    ports = "\n".join(f'{name} = "127.0.0.1:0"' for name in ("grpc", "enrolment", "health", "metrics"))
    path.write_text(f'state_dir = "{unused}"\n[listen]\n{ports}\n')
    yield path


def test_the_command_ends_with_0_when_nothing_is_wrong(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", str(file)]) == 0
    out = capsys.readouterr().out
    assert "ok    configuration" in out
    assert not [line for line in out.splitlines() if line.startswith("fail")]


def test_the_command_ends_with_1_when_something_is(file: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "identity/ca.key").chmod(0o644)
    assert main(["doctor", "--config", str(file), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in document["checks"] if each["state"] == "fail"] == ["keys"]


def test_a_configuration_that_is_wrong_is_the_finding(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("stat_dir = 1\n")
    assert main(["doctor", "--config", str(file)]) == 1
    assert "did you mean 'state_dir'?" in capsys.readouterr().out
