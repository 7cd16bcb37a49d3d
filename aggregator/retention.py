"""How much of the past stays on the disk: model files, events, signed manifests. Never the audit journal.

What goes is decided by a pure function (`expendable`), journalled, written to the database, and only then removed:

    decide -> journal -> rows say "removed" -> files that no row wants are swept

A crash in between leaves files that nobody wants; the next sweep finds them. Nothing that is referenced is ever removed:
the newest model of each experiment, released ones, what an open round starts from, uploads with their receipts, and, while
a model is being made, files that no row names yet. One that failed for want of room holds nothing up while it waits: its
next try makes its files anew. The statement of a removed model stays: what was made, from whose updates, remains provable.
The scheduler's turn calls `Retention.turn`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from aggregator.config import RetentionRules
from aggregator.engine import Engine
from aggregator.past import Held, Past
from histofed.audit.record import SYSTEM
from histofed.base import durable
from histofed.base.clock import Clock
from histofed.base.errors import CannotWriteState
from histofed.base.failpoints import failpoint
from histofed.base.health import Health
from histofed.base.ids import Digest, ExperimentId, Json
from histofed.telemetry.logs import fields
from histofed.transport.store import BlobStore

log = logging.getLogger(__name__)

TURN_S: Final = 60.0
"""Seconds between two looks when no round ended in between."""
MODELS_AT_ONCE: Final = 16
"""Models that one turn removes, so that the daemon's loop never stands still for long."""
ROUNDS_AT_ONCE: Final = 200
"""Rounds of an experiment whose details one turn removes."""
EXPERIMENTS_AT_ONCE: Final = 200
"""Experiments of which one turn removes details: a record of the journal names them all."""


def expendable(models: Sequence[Held], bases: frozenset[Digest], rules: RetentionRules) -> tuple[Digest, ...]:
    """The models whose files may go, oldest first. `bases` are the models that open rounds start from."""
    newest: dict[ExperimentId, list[Held]] = {}
    for model in sorted(models, key=lambda model: model.round, reverse=True):
        newest.setdefault(model.experiment, []).append(model)
    needed = bases | {found[0].digest for found in newest.values()} | {model.digest for model in models if model.released}
    too_many = {model.digest for found in newest.values() for model in found[rules.models :]} - needed
    candidates = sorted((model for model in models if model.digest not in needed), key=lambda model: model.created_at)
    gone = [model for model in candidates if model.digest in too_many]
    if rules.bytes:
        gone += _above(rules.bytes, [model for model in models if model not in gone], set(needed))
    return tuple(model.digest for model in candidates if model in gone)


def _above(limit: int, models: Sequence[Held], needed: set[Digest]) -> list[Held]:
    """The oldest models, but for the needed ones, without which the files fit into `limit` bytes; each counts once."""
    users = Counter(sha for model in models for sha in dict(model.parts))
    total = sum({sha: size for model in models for sha, size in model.parts}.values())
    gone = []
    for model in sorted(models, key=lambda model: model.created_at):
        if total <= limit:
            break
        if model.digest not in needed:
            gone.append(model)
            users.subtract(dict(model.parts).keys())
            total -= sum(size for sha, size in dict(model.parts).items() if users[sha] == 0)
    return gone


class Retention:
    """Applies the rules, a bounded step at each turn."""

    def __init__(
        self,
        *,
        engine: Engine,
        past: Past,
        blobs: BlobStore,
        scratch: Path,
        rules: RetentionRules,
        clock: Clock,
        health: Health,
    ) -> None:
        self._engine = engine
        self._past = past
        self._blobs = blobs
        self._scratch = scratch
        self.rules = rules
        """How much stays; a reload may change it."""
        self._clock = clock
        self._health = health
        self._seen: tuple[int, float] | None = None
        self._put_off = False
        """Nothing was swept at the last look: a model was being made."""

    def turn(self) -> None:
        """Look, when a round ended, a minute has passed, or what was put off can be done; never raises.

        A disk that refuses is told and tried again.
        """
        ended, now = self._engine.rounds_ended, self._clock.monotonic()
        fresh = self._seen is not None and self._seen[0] == ended and now - self._seen[1] < TURN_S
        if fresh and (self._engine.makes_models or not self._put_off):
            return
        self._seen = ended, now
        try:
            left = self.apply()
        except CannotWriteState as error:
            log.error("the past cannot be cleared away", extra=fields(reason=str(error)))
            self._health.set("retention", False, str(error))
            return
        self._health.set("retention", True, "what is not kept was removed")
        if left:
            self._seen = None

    def apply(self) -> bool:
        """One step; True when there is more to do. Raises `CannotWriteState`; then a later step makes it good."""
        try:
            more = self._decide()
        except CannotWriteState:
            # what was decided before may be the room that this disk lacks
            self._sweep()
            raise
        return self._sweep() == MODELS_AT_ONCE or more

    def _decide(self) -> bool:
        """What is to go, in journal and rows; True when that is not all of it."""
        bases = frozenset(state.base for state in self._engine.open_rounds)
        models = expendable(self._past.models_held(), bases, self.rules)
        detailed = self._past.detailed_rounds_before(self.rules.rounds, ROUNDS_AT_ONCE)
        some, rounds = models[:MODELS_AT_ONCE], dict(islice(detailed.items(), EXPERIMENTS_AT_ONCE))
        if some or rounds:
            through = {name: number for name, (number, _) in rounds.items()}
            subject: dict[str, Json] = {
                "models": list(some),
                "details_through_round": {str(name): number for name, number in through.items()},
            }
            self._engine.audit("retention.decided", SYSTEM, subject, reason="[retention] of the aggregator's configuration")
            self._past.forget(some, through)
            log.info("past cleared away", extra=fields(models=len(some), experiments=len(rounds)))
            failpoint("aggregator.retention_decided")
        more_rounds = len(detailed) > len(rounds) or any(more for _, more in rounds.values())
        return len(models) > len(some) or more_rounds

    def _sweep(self) -> int:
        """Remove files that no row wants; not while a model is being made, because its row comes after its files."""
        self._put_off = self._engine.makes_models
        if self._put_off:
            return 0
        for path in durable.listing(self._scratch):
            durable.remove(path)
        held = self._past.parts_held()
        # a database without a model is new, or was lost and begun anew: it is no judge of the files that are here
        return self._blobs.sweep(held.__contains__, MODELS_AT_ONCE) if held else 0
