"""`histofed-agent` as an administrator meets it: one sentence per error, the exit code of the table, no secret in argv."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.cli import main
from agent.layout import Layout
from agent.status import Status, write_status
from histofed.base.clock import SystemClock
from histofed.base.errors import NotAuthorised
from histofed.pki.credentials import Credentials
from histofed.pki.tokens import JoinLine, make
from histofed.transport.server import bind, enrolment_gate, make_server
from histofed.transport.tls import enrolment_credentials
from histofed.v1 import enrollment_pb2, enrollment_pb2_grpc
from tests.support.pki import Federation, fixed


def config(folder: Path, text: str = "") -> str:
    path = folder / "agent.toml"
    path.write_text(f'state_dir = "{folder / "state"}"\nconsent = "{folder / "consent.toml"}"\n{text}\n')
    return str(path)


# -- check -------------------------------------------------------------------------------------------------------------


def test_check_prints_every_value_with_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOFED_TRAINER__THREADS", "3")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "gpu.toml").write_text('[trainer]\ndevice = "cuda:1"\n')
    assert main(["check", "--config", config(tmp_path, "minimum_patients = 4")]) == 0
    lines = dict(line.split("  # ") for line in capsys.readouterr().out.splitlines() if "  # " in line)
    found = {key.strip(): source.strip() for key, source in lines.items()}
    assert found["minimum_patients = 4"].endswith("agent.toml:3")
    assert found['trainer.device = "cuda:1"'].endswith("gpu.toml:2")
    assert found["trainer.threads = 3"] == "environment HISTOFED_TRAINER__THREADS"
    assert found['log_level = "INFO"'] == "default"


def test_check_prints_the_cap_that_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "[transfer]\nmax_upload_bytes_per_second = 100\nmax_download_bytes_per_second = 20000"
    assert main(["check", "--config", config(tmp_path, text)]) == 0
    out = capsys.readouterr().out
    assert "transfer.max_upload_bytes_per_second = 16384 " in out
    assert "transfer.max_download_bytes_per_second = 20000 " in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("minimum_patient = 4", "agent.toml:3: there is no key 'minimum_patient'; did you mean 'minimum_patients'?"),
        ("minimum_patients = 0", "agent.toml:3: minimum_patients = 0 is not allowed"),
        ('aggregator = "nowhere"', "write it as host:port"),
        ('aggregator = "host:99999"', "write it as host:port"),
        ('aggregator = "host:0"', "write it as host:port"),
        ('[trainer]\ndevice = "gpu"', 'trainer.device = "gpu" is not allowed: use auto, cpu, cuda or cuda:N'),
        ('[trainer]\ndevice = "cuda:1"\ndevices = 2', "names one device and devices = 2 wants several"),
        ('site = "north"', "there is no key 'site'"),
        ('[data]\nroot = "/does/not/exist"', "is not a folder; mount the tiles"),
    ],
)
def test_a_wrong_configuration_is_one_sentence_and_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    assert main(["check", "--config", config(tmp_path, text)]) == 78
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_check_tells_a_broken_consent_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "consent.toml").write_text('recipe = ["gan"]\n')
    assert main(["check", "--config", config(tmp_path)]) == 78
    assert "consent.toml:1: there is no key 'recipe'; did you mean 'recipes'?" in capsys.readouterr().err


def test_check_tells_that_without_consent_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", config(tmp_path)]) == 0
    assert "nothing is allowed to run here" in capsys.readouterr().out


# -- interrupted -------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_a_command_is_130_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.doctor.checks", interrupt)
    assert main(["doctor", "--config", config(tmp_path)]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("watched", [True, False])
def test_enrolment_asks_a_person_for_the_join_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return watched

        def readline(self, _: int) -> str:
            assert ("paste the join line" in capsys.readouterr().err) == watched
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["enroll", "--config", config(tmp_path)]) == 130


# -- status ------------------------------------------------------------------------------------------------------------


def status(process: int, connected: bool = True) -> Status:
    return Status("0.1.0", "north", "a.example:8443", connected, "round 3 of pilot: train 5 of 10", "t", 1, "2026", process)


@pytest.mark.parametrize(("connected", "code"), [(True, 0), (False, 1)])
def test_status_says_what_the_agent_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], connected: bool, code: int
) -> None:
    (tmp_path / "state").mkdir()
    write_status(Layout(tmp_path / "state"), status(os.getpid(), connected))
    assert main(["status", "--config", config(tmp_path)]) == code
    out = capsys.readouterr().out
    assert "round 3 of pilot: train 5 of 10" in out
    assert ("not connected" in out) != connected


def test_status_as_a_document_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    write_status(Layout(tmp_path / "state"), status(os.getpid()))
    assert main(["status", "--json", "--config", config(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "site": "north",
        "version": "0.1.0",
        "running": True,
        "process": os.getpid(),
        "aggregator": "a.example:8443",
        "connected": True,
        "now": "round 3 of pilot: train 5 of 10",
        "task": "t",
        "updates_waiting": 1,
        "certificate_expires_at": "2026",
        "faults": [],
    }
    write_status(Layout(tmp_path / "state"), status(2**22 + 1))
    assert main(["status", "--json", "--config", config(tmp_path)]) == 1
    gone = json.loads(capsys.readouterr().out)
    assert (gone["running"], gone["connected"], gone["process"], gone["now"]) == (False, False, None, "nothing")


def test_status_says_what_the_agent_found_wrong_at_its_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    words = "data.root = /mnt/tiles is not a folder; mount the tiles or correct the setting"
    for process, told in ((os.getpid(), [words]), (2**22 + 1, [])):
        write_status(Layout(tmp_path / "state"), replace(status(process), faults=(words,)))
        main(["status", "--config", config(tmp_path)])
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("to repair")] == [f"to repair     {each}" for each in told]
        main(["status", "--json", "--config", config(tmp_path)])
        assert json.loads(capsys.readouterr().out)["faults"] == told


async def test_status_notices_that_the_agent_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    (tmp_path / "state").mkdir()
    write_status(Layout(tmp_path / "state"), status(gone.pid))
    assert main(["status", "--config", config(tmp_path)]) == 1
    assert "does not run" in capsys.readouterr().out


def test_status_of_an_agent_that_never_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--config", config(tmp_path)]) == 65
    assert "no agent ever ran" in capsys.readouterr().err
    assert main(["status", "--json", "--config", config(tmp_path)]) == 65
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "NotFound"


def test_statuss_help_names_each_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["status", "--help"])
    assert "0 when it is connected, 1 when not, 65 when none ever ran here" in " ".join(capsys.readouterr().out.split())


def test_the_help_knows_no_exit_code_for_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    """`doctor` ends with 0 where it has doubts alone (`tests/unit/base/test_doctor.py`)."""
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "0 done, 1 not connected (status) or something is wrong (doctor), 2 usage" in told


# -- enroll ------------------------------------------------------------------------------------------------------------


@dataclass
class Enrolment(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """An enrolment port that knows one token."""

    federation: Federation
    token: str
    port: int = 0

    async def Enroll(self, request: Any, context: Any) -> Any:
        if request.token != self.token:
            raise NotAuthorised("the token is unknown, used or expired: ask the operator for a new one")
        issued = self.federation.authority.issue(self.federation.authority.site("north-clinic"), request.csr_pem)
        return enrollment_pb2.EnrollResponse(
            certificate_pem=issued.certificate_pem,
            ca_pem=self.federation.authority.certificate_pem,
            identity=issued.identity.uri,
            aggregator="127.0.0.1:18443",
        )

    def line(self, token: str | None = None) -> str:
        return str(JoinLine("127.0.0.1", self.port, token or self.token, self.federation.authority.sha256))


@pytest.fixture
async def enrolment() -> AsyncIterator[Enrolment]:
    service = Enrolment(Federation(), make())
    server = make_server(enrolment_gate(clock=SystemClock()))
    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(service, server)
    service.port = bind(server, "127.0.0.1:0", enrolment_credentials(fixed(service.federation.aggregator())))
    await server.start()
    yield service
    await server.stop(grace=0)


async def enroll(folder: Path, line: str, *arguments: str) -> tuple[int | None, str, str]:
    """The command as a process, with the join line on its standard input."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "enroll", "--config", config(folder), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(line.encode() + b"\n")
    return process.returncode, out.decode(), err.decode()


async def test_a_join_line_becomes_an_identity(tmp_path: Path, enrolment: Enrolment) -> None:
    code, out, err = await enroll(tmp_path, enrolment.line())
    assert (code, err) == (0, "")
    layout = Layout(tmp_path / "state")
    assert layout.identity.stat().st_mode & 0o777 == 0o600
    assert str(Credentials.load(layout.identity).identity) in out
    assert layout.aggregator.read_text() == "127.0.0.1:18443\n"
    assert enrolment.token not in out


async def test_a_join_line_may_come_from_a_file(tmp_path: Path, enrolment: Enrolment) -> None:
    (tmp_path / "line").write_text(enrolment.line() + "\n")
    code, _, _ = await enroll(tmp_path, "", "--join-line-file", str(tmp_path / "line"))
    assert code == 0


async def test_a_valid_identity_is_replaced_only_when_asked(tmp_path: Path, enrolment: Enrolment) -> None:
    await enroll(tmp_path, enrolment.line())
    before = Layout(tmp_path / "state").identity.read_bytes()
    code, _, err = await enroll(tmp_path, enrolment.line())
    assert code == 65
    assert "add --again" in err
    assert Layout(tmp_path / "state").identity.read_bytes() == before
    code, _, _ = await enroll(tmp_path, enrolment.line(), "--again")
    assert code == 0
    assert Layout(tmp_path / "state").identity.read_bytes() != before


async def test_a_used_token_is_told(tmp_path: Path, enrolment: Enrolment) -> None:
    code, _, err = await enroll(tmp_path, enrolment.line(make()))
    assert code == 77
    assert err == "histofed-agent: the token is unknown, used or expired: ask the operator for a new one\n"
    assert not Layout(tmp_path / "state").identity.exists()


@pytest.mark.parametrize("line", ["", "not a join line", "histofed1 host:8444 s3cr3t 00"])
async def test_a_damaged_line_is_told_without_the_secret(tmp_path: Path, line: str) -> None:
    code, _, err = await enroll(tmp_path, line)
    assert code == 65
    assert "s3cr3t" not in err
    assert err.count("\n") == 1


def test_the_secret_cannot_be_given_as_an_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["enroll", "--config", config(tmp_path), "histofed1 a.example:8444 token digest"])
    assert caught.value.code == 2
    assert "token" not in capsys.readouterr().out


def test_a_join_line_file_that_is_not_there_is_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enroll", "--config", config(tmp_path), "--join-line-file", str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("histofed-agent ")
