"""What journal, traces and metrics are told of a round; `aggregator/engine.py` tells them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Final

from aggregator.events import Event
from aggregator.rounds import Round
from aggregator.tasks import TaskState
from histofed.base.ids import Json, RoundKey, SiteId, sha256
from histofed.telemetry import attributes as names
from histofed.telemetry.metrics import Metrics

NAMED_LIMIT: Final = 1000
"""Sites whose names stand in one record of the journal; the rows name them all."""


def attributes(key: RoundKey) -> dict[str, str | int | float | bool]:
    """Of every span of the round."""
    return {names.EXPERIMENT_ID: key.experiment, names.ROUND_NUMBER: key.number}


def asked(eligible: Sequence[SiteId], sample: Sequence[SiteId]) -> dict[str, Json]:
    """For the journal: who was asked, out of how many; a sample that is too long for a record is told by its digest."""
    named: Json = sample if len(sample) <= NAMED_LIMIT else sha256("\n".join(sample).encode())
    return {"eligible": len(eligible), "sampled": len(sample), "sample": named}


def facts(event: Event) -> dict[str, Json]:
    """What the journal says about an event; times and reasons have places of their own."""
    return {name: value for name, value in asdict(event).items() if name != "reason" and not isinstance(value, datetime)}


def count(metrics: Metrics, before: Round, after: Round) -> None:
    """What a transition changed, for the metrics."""
    if before.state is not after.state:
        metrics.count(names.ROUNDS_TOTAL, 1, state=after.state.value)
        if after.committed_at is not None and after.opened_at is not None:
            metrics.observe(names.ROUND_SECONDS, (after.committed_at - after.opened_at).total_seconds())
    for old, new in zip(before.tasks, after.tasks, strict=True):
        if old.state is not new.state:
            metrics.count(names.TASKS_TOTAL, 1, state=new.state.value)
            if new.state is TaskState.RECEIVED:
                metrics.count(names.UPDATES_BYTES_TOTAL, new.update_bytes)
