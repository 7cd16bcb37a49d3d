"""Checks and findings: one that fails stops no other, and words, JSON and exit code say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from histofed.base.doctor import Check, Doubt, Finding, diagnosis
from histofed.base.errors import ConfigError, NotEnrolled


def enrolled() -> str:
    raise NotEnrolled("there is no identity: enrol first")


def broken() -> str:
    raise ZeroDivisionError


def test_one_bad_check_stops_no_other() -> None:
    found = diagnosis(
        lambda: (
            Check("a", lambda: "fine"),
            Check("b", enrolled),
            Check("c", broken),
            Check("d", lambda: Doubt("look at it")),
        )
    )
    assert found.findings == (
        Finding("a", "ok", "fine"),
        Finding("b", "fail", "there is no identity: enrol first", "NotEnrolled", 77),
        Finding("c", "fail", "the check itself failed with ZeroDivisionError; please report it", "HistofedError", 70),
        Finding("d", "warn", "look at it"),
    )
    assert found.exit_code == 1
    document = json.loads(found.render(as_json=True))
    assert document["ok"] is False
    assert document["checks"][1] == {
        "name": "b",
        "state": "fail",
        "words": "there is no identity: enrol first",
        "error": "NotEnrolled",
        "code": 77,
    }
    lines = found.render(as_json=False).splitlines()
    assert lines[1].split(maxsplit=2) == ["fail", "b", "there is no identity: enrol first"]
    assert lines[-1] == "4 checks: 2 failed, 1 to look at."


def test_a_doubt_is_no_failure() -> None:
    found = diagnosis(lambda: (Check("d", lambda: Doubt("look at it")),))
    assert found.exit_code == 0
    assert json.loads(found.render(as_json=True))["ok"] is True
    assert "All 1 checks are well." in diagnosis(lambda: (Check("a", lambda: "fine"),)).render(as_json=False)


def test_a_configuration_that_cannot_be_read_is_the_one_finding() -> None:
    def unreadable() -> tuple[Check, ...]:
        raise ConfigError("agent.toml:3: there is no key 'sites'")

    assert diagnosis(unreadable).findings == (
        Finding("configuration", "fail", "agent.toml:3: there is no key 'sites'", "ConfigError", 78),
    )


def test_what_may_not_be_looked_at_is_a_finding_and_no_bug(tmp_path: Path) -> None:
    def closed() -> str:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    def checks() -> Iterator[Check]:
        yield Check("a", closed)
        yield Check("b", lambda: "fine")
        closed()

    found = diagnosis(checks).findings
    assert [(each.name, each.state, each.code) for each in found] == [
        ("a", "fail", 78),
        ("b", "ok", 0),
        ("permissions", "fail", 78),
    ]
    assert str(tmp_path) in found[0].words
