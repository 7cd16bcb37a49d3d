"""The round as the architecture tells it, written a second time and smaller: what the fault tests hold the product against.

It knows nothing of `aggregator/rounds.py`. It is fed the events that the aggregator wrote down, in their order, and answers
with a sentence whenever one of them could not have happened; at the end it says what every task and the round must be.
Written after docs/architecture.md, "The round". Callers: `history.py` and the rounds' own state machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

WITH_SITE = frozenset({"offered", "accepted", "uploading"})
LIVE = WITH_SITE | {"received"}
ENDED = frozenset({"committed", "abandoned"})

_FROM = {
    "Accepted": frozenset({"offered"}),
    "Declined": WITH_SITE,
    "Failed": WITH_SITE,
    "Announced": frozenset({"accepted", "uploading"}),
    "Received": frozenset({"accepted", "uploading"}),
    "Admitted": frozenset({"received"}),
    "Rejected": frozenset({"accepted", "uploading", "received"}),
    "Late": frozenset({"expired"}),
}
"""From which states of a task each event may come."""
_TO = {
    "Accepted": "accepted",
    "Declined": "declined",
    "Announced": "uploading",
    "Received": "received",
    "Admitted": "admitted",
    "Rejected": "rejected",
    "Late": "expired",
}
_OF_AN_ATTEMPT = frozenset({"Accepted", "Declined", "Failed", "Received"})


class Impossible(Exception):
    """The event could not have happened; the text says why."""


@dataclass
class ModelTask:
    """One site's part."""

    state: str = "offered"
    attempt: int = 1
    manifest: str | None = None
    weights: str | None = None


@dataclass
class RoundModel:
    """A planned round; `apply` takes it through its events."""

    sample: tuple[str, ...]
    quorum: int
    enough: int
    attempts: int
    deadline_s: int
    state: str = "planned"
    deadline: datetime | None = None
    model: str | None = None
    tasks: dict[str, ModelTask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tasks = {site: ModelTask() for site in self.sample}

    @property
    def admitted(self) -> tuple[str, ...]:
        """Sites whose updates belong into the aggregate."""
        return tuple(sorted(self._in({"admitted"})))

    def apply(self, name: str, facts: Mapping[str, Any]) -> None:
        """One event; times among its facts are `datetime`. Raises `Impossible`."""
        if self.state in ENDED and name != "Late":
            raise Impossible(f"{name} came after the round was {self.state}")
        match name:
            case "Opened":
                self._must_be("planned", name)
                self.state, self.deadline = "open", facts["now"] + timedelta(seconds=self.deadline_s)
            case "DeadlinePassed":
                self._must_be("open", name)
                if self.deadline is None or facts["now"] < self.deadline:
                    raise Impossible(f"the deadline {self.deadline} had not passed at {facts['now']}")
                self._expire(WITH_SITE)
                self._settle()
            case "Aggregated":
                self._must_be("aggregating", name)
                self.state, self.model = "committed", facts["model"]
            case "Abandoned":
                self._expire(LIVE)
                self.state = "abandoned"
            case "Late":
                self._task_event(name, facts)
            case _:
                self._must_be("open", name)
                self._task_event(name, facts)
                self._settle()

    def _task_event(self, name: str, facts: Mapping[str, Any]) -> None:
        site = facts["site"]
        task = self.tasks.get(site)
        if task is None:
            raise Impossible(f"{name} of site {site}, which is not in the sample")
        if name not in _FROM or task.state not in _FROM[name]:
            raise Impossible(f"{name} of site {site}, whose task was {task.state}")
        if name in _OF_AN_ATTEMPT and facts["attempt"] != task.attempt:
            raise Impossible(f"{name} of attempt {facts['attempt']} of site {site}, which was at attempt {task.attempt}")
        if name == "Failed":
            again = facts["retryable"] and task.attempt < self.attempts
            self.tasks[site] = ModelTask(attempt=task.attempt + 1) if again else ModelTask("declined", task.attempt)
            return
        task.state = _TO[name]
        if name == "Received":
            task.manifest, task.weights = facts["manifest"], facts["weights"]

    def _settle(self) -> None:
        if len(self.admitted) >= self.enough:
            self._expire(WITH_SITE)
        if not self._in(LIVE):
            self.state = "aggregating" if len(self.admitted) >= self.quorum else "abandoned"

    def _in(self, states: Iterable[str]) -> list[str]:
        return [site for site, task in self.tasks.items() if task.state in states]

    def _expire(self, states: Iterable[str]) -> None:
        for site in self._in(states):
            self.tasks[site].state = "expired"

    def _must_be(self, state: str, name: str) -> None:
        if self.state != state:
            raise Impossible(f"{name} came while the round was {self.state}")
