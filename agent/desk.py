"""What the work on a task needs around it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from agent.bases import Bases
from agent.link import Link
from agent.outbox import Outbox
from agent.private import PrivateTensors
from agent.state import State
from agent.training import Trainers
from histofed.audit.journal import Journal
from histofed.base.clock import Clock
from histofed.telemetry.tracing import Tracing


@dataclass(frozen=True)
class Desk:
    """The parts of the agent that a task touches; the daemon lays them out."""

    clock: Clock
    random: Random
    link: Link
    state: State
    outbox: Outbox
    private: PrivateTensors
    bases: Bases
    journal: Journal
    tracing: Tracing
    trainers: Trainers | None = None
    """None starts each trainer the long way."""
