"""The one table of exit codes and gRPC statuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from histofed.base import errors
from histofed.base.console import BROKEN_PIPE, INTERRUPTED
from histofed.base.errors import HistofedError, all_errors, from_status

EXIT_CODES = {
    "HistofedError": 70,
    "WorkerLost": 70,
    "WorkerKilled": 70,
    "NoWorker": 70,
    "UsageError": 2,
    "BadData": 65,
    "Lost": 65,
    "TooFewPatients": 65,
    "HeldOutPatients": 65,
    "NotFound": 65,
    "AlreadyThere": 65,
    "Stale": 65,
    "DigestMismatch": 65,
    "TooLarge": 65,
    "AggregatorUnavailable": 69,
    "TrainingFailed": 71,
    "OutOfMemory": 72,
    "CannotWriteState": 73,
    "NotOurs": 78,
    "Damaged": 78,
    "TryLater": 75,
    "Unreadable": 75,
    "Cancelled": 75,
    "DeadlineExceeded": 75,
    "NotAuthorised": 77,
    "NotEnrolled": 77,
    "ConfigError": 78,
    "VersionMismatch": 78,
    "WentBack": 78,
}


def test_the_table_is_complete_and_right() -> None:
    assert {cls.__name__: cls.exit_code for cls in all_errors()} == EXIT_CODES


def test_the_readme_tells_every_code() -> None:
    told = (
        (Path(__file__).parents[3] / "README.md").read_text().partition("Exit codes are one table")[2].partition("\n\n")[0]
    )
    assert {int(number) for number in re.findall(r"\b\d+\b", told)} == {*EXIT_CODES.values(), INTERRUPTED, BROKEN_PIPE}


def test_every_error_of_the_module_is_in_the_table() -> None:
    defined = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, HistofedError)}
    assert defined == set(all_errors())


@pytest.mark.parametrize("cls", all_errors())
def test_every_error_has_a_sentence_for_the_manual(cls: type[HistofedError]) -> None:
    assert cls.__doc__
    assert "status" in vars(cls), "an inherited status could not be turned back into this class"


@pytest.mark.parametrize("cls", all_errors())
def test_a_status_is_turned_back_into_its_error(cls: type[HistofedError]) -> None:
    error = from_status(cls.status, "words")
    assert str(error) == "words"
    assert error.status == cls.status
    assert issubclass(cls, type(error)) or error.exit_code == cls.exit_code or cls.status in SHARED


SHARED = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED", "ABORTED"}
"""Statuses that stand for two classes: the wire does not tell usage from data, a stale state from a configuration, what
kind of internal error it was, why a disk refused, whose file cannot be read now, nor a training that failed for want of
memory from any other (trainer and agent speak through a pipe, which does)."""


def test_only_the_known_statuses_are_shared() -> None:
    statuses = [cls.status for cls in all_errors()]
    assert {status for status in statuses if statuses.count(status) > 1} == SHARED


def test_an_unknown_status_is_an_internal_error() -> None:
    assert type(from_status("UNHEARD_OF", "")) is HistofedError
    assert str(from_status("UNHEARD_OF", "")) == "UNHEARD_OF"
