"""`histofed-aggregator init`: killed at any instant, it can be run again until a federation is there, and never after."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import pytest

from aggregator import doctor, setup
from histofed.base import failpoints
from histofed.base.config import Loaded
from histofed.base.doctor import diagnosis
from histofed.base.errors import AlreadyThere, BadData, CannotWriteState, ConfigError, HistofedError, NotEnrolled
from histofed.cli.client import load_credentials
from histofed.cli.config import load_operator
from histofed.pki.credentials import Credentials
from histofed.pki.keys import certificate_from_pem
from tests.support.centre import Centre


class Killed(BaseException):
    """Nobody handles it."""


@dataclass
class _Cut:
    """An armed failpoint: the process ends at this passage."""

    left: int

    def pass_by(self, name: str) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def ended(centre: Centre, monkeypatch: pytest.MonkeyPatch, point: str, passage: int) -> bool:
    """Run `init`, which is killed there; whether a federation is there then."""
    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "_armed", {point: _Cut(passage)})
        try:
            setup.create(centre.config, centre.clock, "admin", centre.folder / "operator")
        except Killed:
            return (centre.state / "identity" / "ca.key").exists()
    return True


def check_whole(centre: Centre) -> None:
    """There is a federation that can run, an operator of it, and no way to replace it."""
    identity = setup.load(centre.config, centre.clock)
    operator = load_credentials(load_operator(centre.folder / "operator" / "operator.toml"))
    certificate_from_pem(operator.certificate_pem).verify_directly_issued_by(identity.authority.certificate)
    assert operator.ca_pem == identity.authority.certificate_pem
    assert Credentials.load(centre.state / "identity" / "aggregator.pem").ca == identity.authority.certificate
    before = identity.authority.sha256
    with pytest.raises(AlreadyThere, match="holds a federation already"):
        setup.create(centre.config, centre.clock, "admin", centre.folder / "another")
    assert setup.load(centre.config, centre.clock).authority.sha256 == before


@pytest.mark.parametrize(
    ("point", "again"),
    [
        ("replace.after_rename", "replace.after_rename"),
        ("journal.after_fsync", "journal.after_fsync"),
        # the first life has nothing to remove
        ("replace.after_rename", "remove.after_unlink"),
    ],
)
def test_killed_at_any_file_and_again_at_any_other(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, point: str, again: str
) -> None:
    for first in count(1):
        for second in count(1):
            centre = Centre(tmp_path_factory.mktemp("centre"))
            if ended(centre, monkeypatch, point, first):
                check_whole(centre)
                assert (first, second) > (1, 1), "it was killed at least once"
                return
            if ended(centre, monkeypatch, again, second):
                check_whole(centre)
                break
            centre.cli("init", "--operator-dir", str(centre.folder / "operator"))
            check_whole(centre)


def test_a_key_without_its_certificate_as_older_releases_left_it(centre: Centre) -> None:
    """They wrote the key first: `init` said that there is a federation, `run` that there is none."""
    setup.create(centre.config, centre.clock, "admin", centre.folder / "unused")
    (centre.state / "identity" / "ca.pem").unlink()
    with pytest.raises(NotEnrolled, match="init` first"):
        setup.load(centre.config, centre.clock)
    centre.cli("init", "--operator-dir", str(centre.folder / "operator"))
    check_whole(centre)


@pytest.mark.parametrize("gone", [("ca.pem",), ("ca.key",), ("ca.pem", "ca.key"), ("token.key",)])
@pytest.mark.parametrize("left", ["state.db", "journal"])
def test_what_is_lost_of_the_ca_of_a_federation_that_has_run_is_not_made_anew(
    centre: Centre, gone: tuple[str, ...], left: str
) -> None:
    centre.cli("init")
    centre.populate()
    for name in gone:
        (centre.state / "identity" / name).unlink()
    if left == "journal":
        (centre.state / "state.db").unlink()
    identity = {path.name: path.read_bytes() for path in (centre.state / "identity").iterdir()}
    refused = centre.cli("init", "--operator-dir", str(centre.folder / "other"), code=AlreadyThere.exit_code)
    assert f"has lost {' and '.join(gone)} of a federation that has run: put back what is missing from a backup" in refused
    assert ("is any operator's ca.crt too" in refused) == ("ca.pem" in gone)
    assert {path.name: path.read_bytes() for path in (centre.state / "identity").iterdir()} == identity
    with pytest.raises(NotEnrolled, match="put back what is missing from a backup"):
        setup.load(centre.config, centre.clock)
    findings = diagnosis(lambda: doctor.checks(Loaded(centre.config, {}), centre.clock)).findings
    told = {finding.name: finding.words for finding in findings}
    assert "put back what is missing" in told["CA" if gone == ("ca.pem",) else "keys"]


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        (("--operator", "Dr. Müller"), BadData("operator name 'Dr. Müller' is not allowed: use 1 to 40 lower-case letters")),
        (("--operator-dir", "a-file/operator"), CannotWriteState("a file is where a folder must be, name another place")),
        (("--operator-dir", "taken"), AlreadyThere("holds an operator's key already; name another folder")),
    ],
)
def test_an_operator_that_cannot_be_is_refused_before_anything_of_a_federation_is_made(
    centre: Centre, monkeypatch: pytest.MonkeyPatch, wrong: tuple[str, str], refusal: HistofedError
) -> None:
    monkeypatch.chdir(centre.folder)
    (centre.folder / "a-file").touch()
    (centre.folder / "taken").mkdir()
    (centre.folder / "taken/operator.key").write_text("of another federation")
    assert str(refusal) in centre.cli("init", *wrong, code=refusal.exit_code)
    assert not list(centre.state.rglob("*.*")), "neither a CA nor a record"
    centre.cli("init", "--operator-dir", str(centre.folder / "operator"))
    check_whole(centre)


def test_a_second_federation_is_refused_with_the_command_for_another_operator(centre: Centre) -> None:
    centre.cli("init")
    again = centre.cli("init", "--operator", "bea", code=AlreadyThere.exit_code)
    assert "`histofed-aggregator operator NAME --out DIR` makes another operator" in again


def test_another_federations_operator_is_not_replaced(centre: Centre) -> None:
    folder = centre.folder / "operator"
    folder.mkdir()
    for name in ("operator.key", "ca.crt"):
        (folder / name).write_text("of another federation")
    assert "name another folder" in centre.cli("init", "--operator-dir", str(folder), code=AlreadyThere.exit_code)
    assert (folder / "operator.key").read_text() == "of another federation"
    centre.cli("init")


def test_a_damaged_certificate_of_the_aggregator_s_is_issued_anew(centre: Centre) -> None:
    setup.create(centre.config, centre.clock, "admin", centre.folder / "operator")
    path = setup.own_certificate(centre.config)
    path.write_bytes(b"x")
    with pytest.raises(BadData, match=f"{path} .*: remove it, and the daemon's next start issues another one"):
        setup.load(centre.config, centre.clock)
    path.unlink()
    assert setup.load(centre.config, centre.clock).credentials.identity.name == ""


def test_an_aggregator_s_key_that_others_can_read_is_not_told_to_enrol(centre: Centre) -> None:
    setup.create(centre.config, centre.clock, "admin", centre.folder / "operator")
    setup.own_certificate(centre.config).chmod(0o644)
    with pytest.raises(ConfigError, match="run chmod 600 on it; if somebody may have copied it, remove it"):
        setup.load(centre.config, centre.clock)


def test_without_its_certificate_an_aggregator_is_told_to_start(centre: Centre) -> None:
    with pytest.raises(NotEnrolled, match="start the daemon, which issues it"):
        setup.own_credentials(centre.state / "identity")
