"""What `doctor` is made of: small checks, each of which says in words what it saw, what is wrong and what to do.

A check reads, connects, or binds a port and lets go of it again; it never changes state. One that finds something wrong
raises the error that the daemon would raise, so that both say the same sentence; a `Doubt` is what should be looked at and
stops nothing. `aggregator/doctor.py` and `agent/doctor.py` choose the checks, their command lines print the findings.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

from histofed.base.errors import CannotWriteState, ConfigError, HistofedError, NotOurs
from histofed.base.owner import in_words

log = logging.getLogger(__name__)

State: TypeAlias = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Doubt:
    """Something that may be meant so, and should be looked at."""

    words: str


@dataclass(frozen=True)
class Check:
    """One question."""

    name: str
    examine: Callable[[], str | Doubt]
    """What is well, in words. Raises `HistofedError` for what must be repaired."""


@dataclass(frozen=True)
class Finding:
    """One answer."""

    name: str
    state: State
    words: str
    error: str = ""
    """The error's class in the one table (`histofed/base/errors.py`); empty where nothing is wrong."""
    code: int = 0
    """The exit code with which the daemon would end for it."""


def _examine(check: Check) -> Finding:
    try:
        with in_words():
            found = check.examine()
    except HistofedError as error:
        return Finding(check.name, "fail", str(error), type(error).__name__, error.exit_code)
    except Exception as error:
        log.exception("the check %s failed by itself; please report it", check.name)
        words = f"the check itself failed with {type(error).__name__}; please report it"
        return Finding(check.name, "fail", words, HistofedError.__name__, HistofedError.exit_code)
    return Finding(check.name, "warn", found.words) if isinstance(found, Doubt) else Finding(check.name, "ok", found)


@dataclass(frozen=True)
class Diagnosis:
    """Every finding."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 when nothing is wrong, else 1."""
        return int(any(finding.state == "fail" for finding in self.findings))

    def render(self, *, as_json: bool) -> str:
        """A table for people, or one JSON document."""
        if as_json:
            document = {"ok": self.exit_code == 0, "checks": [asdict(finding) for finding in self.findings]}
            return json.dumps(document, ensure_ascii=False) + "\n"
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{finding.state:<4}  {finding.name:<{width}}  {finding.words}" for finding in self.findings]
        return "\n".join([*lines, "", self._summary()]) + "\n"

    def _summary(self) -> str:
        failed, doubts = (sum(finding.state == state for finding in self.findings) for state in ("fail", "warn"))
        if not failed and not doubts:
            return f"All {len(self.findings)} checks are well."
        return f"{len(self.findings)} checks: {failed} failed, {doubts} to look at."


_OF_THE_CHOICE: Final = {ConfigError: "configuration", NotOurs: "permissions", CannotWriteState: "state directory"}


def diagnosis(checks: Callable[[], Iterable[Check]]) -> Diagnosis:
    """Every check's finding, in order; one that fails stops no other. A configuration that cannot be read is the one.

    What may not be looked at while the checks are chosen is the last one.
    """
    found: list[Finding] = []
    try:
        with in_words():
            for check in checks():
                found.append(_examine(check))
    except (ConfigError, CannotWriteState) as error:
        name = next(name for kind, name in _OF_THE_CHOICE.items() if isinstance(error, kind))
        found.append(Finding(name, "fail", str(error), type(error).__name__, error.exit_code))
    return Diagnosis(tuple(found))
