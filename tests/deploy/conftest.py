"""The rules of `make deploy-test`: as root, nothing skipped that is not on the list, and every number printed.

These tests boot machines and run pods; they need root, some minutes, and Debian packages that a failure names. They are no
part of `make test`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from typing import Final

import pytest

from tests.deploy.numbers import Numbers

ALLOWED_SKIPS: Final[Mapping[str, str]] = {}
"""Tests that may be skipped, by the end of their id, and why. Any other skip is a failure: nobody reads skips."""
NUMBERS: Final = pytest.StashKey[Numbers]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin a table of numbers."""
    config.stash[NUMBERS] = Numbers()


def pytest_sessionstart() -> None:
    """Machines need root."""
    if os.geteuid() != 0:
        raise pytest.UsageError("tests/deploy boots machines: run `make deploy-test` as root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip outside the list fails."""
    report = yield
    if report.skipped and not any(item.nodeid.endswith(allowed) for allowed in ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped, which only the tests in ALLOWED_SKIPS may be: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def numbers(pytestconfig: pytest.Config) -> Numbers:
    """Where a test puts what it measured."""
    return pytestconfig.stash[NUMBERS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print each number beside its bound."""
    if lines := config.stash[NUMBERS].lines():
        terminalreporter.section("numbers")
        for line in lines:
            terminalreporter.write_line(line)
