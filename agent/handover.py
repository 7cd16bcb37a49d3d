"""Hand a finished update over: upload its weights, submit its manifest, write down the verdict, and only then forget it.

An entry leaves the outbox in one of three ways, each journalled: the aggregator admitted it, rejected it, or does not want
it any more because the round has closed. Everything else (no aggregator, a certificate that expired) leaves it there for
the next connection.
"""

from __future__ import annotations

import logging

from agent.bases import Bases
from agent.link import Link, Transfer, Verdict
from agent.outbox import Entry, Outbox
from histofed.audit.journal import Journal
from histofed.base.errors import BadData
from histofed.base.failpoints import failpoint
from histofed.base.ids import Json, TaskKey
from histofed.telemetry import attributes as names
from histofed.telemetry.context import TraceContext, round_parent
from histofed.telemetry.logs import fields
from histofed.telemetry.tracing import Tracing

log = logging.getLogger(__name__)


def spoken(task: TaskKey, attempt: int) -> dict[str, Json]:
    """A task as an audit record's subject."""
    return {
        "experiment": task.round.experiment,
        "round": task.round.number,
        "kind": task.kind,
        "site": task.site,
        "attempt": attempt,
    }


def about(task: TaskKey, attempt: int) -> dict[str, object]:
    """A task as a span's attributes."""
    return {
        names.EXPERIMENT_ID: task.round.experiment,
        names.ROUND_NUMBER: task.round.number,
        names.TASK_KIND: task.kind,
        names.SITE_ID: task.site,
        names.ATTEMPT: attempt,
    }


class HandOver:
    """Carries entries from the outbox to the aggregator."""

    def __init__(self, link: Link, outbox: Outbox, bases: Bases, journal: Journal, tracing: Tracing) -> None:
        self._link = link
        self._outbox = outbox
        self._bases = bases
        self._journal = journal
        self._tracing = tracing

    async def deliver(self, entry: Entry, progress: Transfer, parent: TraceContext | None = None) -> Verdict:
        """Upload and submit one entry; it is gone from the outbox when this returns. Idempotent.

        `parent` is the round's trace; it is derived where it is not known. Raises `Stale` or `NotFound` when the round
        has closed (the entry is still there: `forget` it), and whatever stands in the way otherwise.
        """
        task = entry.task
        subject = {**spoken(task, entry.attempt), "sha256": entry.sha256, "bytes": entry.bytes}
        attributes = {
            **about(task, entry.attempt),
            names.UPDATE_SHA256: entry.sha256,
            names.UPDATE_BYTES: entry.bytes,
            names.UPDATE_ENCODING: entry.encoding,
        }
        parent = parent or round_parent(task.round.experiment, task.round.number)
        with self._tracing.span(names.TASK_UPLOAD, attributes, parent=parent) as span:
            self._journal.append("update.sent", subject=subject, trace=span.context)
            base = self._bases.get(task.round.experiment, entry.base)
            await self._link.upload(entry.weights, task, entry.sha256, base, progress)
            verdict = await self._link.submit(task, entry.attempt, entry.envelope)
            self._journal.append(
                "update.verdict",
                subject=subject,
                outcome="success" if verdict.admitted else "refused",
                reason=verdict.reason,
                trace=span.context,
            )
            span.outcome("ok" if verdict.admitted else "rejected")
        failpoint("agent.update_acknowledged")
        self._outbox.remove(task)
        if verdict.admitted:
            log.info("the update of %s was admitted", task, extra=fields(task, event="update.admitted"))
        else:
            where = fields(task, event="update.rejected")
            log.warning("the update of %s was rejected: %s", task, verdict.reason, extra=where)
        return verdict

    async def flush(self) -> None:
        """Deliver everything that an earlier connection, or an earlier life, left behind; drop what nobody takes."""
        for entry in self._outbox.entries():
            if entry.task.site != self._link.credentials.identity.name:
                self.forget(entry.task, entry.attempt, "it was made under another site's name")
                continue
            try:
                await self.deliver(entry, _unwatched)
            except BadData as error:
                self.forget(entry.task, entry.attempt, str(error))

    def forget(self, task: TaskKey, attempt: int, reason: str) -> None:
        """Nobody wants the update of `task` any more."""
        if self._outbox.get(task) is not None:
            self._journal.append("update.dropped", subject=spoken(task, attempt), outcome="refused", reason=reason)
            self._outbox.remove(task)
            log.info("the update of %s is dropped: %s", task, reason, extra=fields(task))


def _unwatched(done: int, total: int) -> None:
    """Nobody watches the progress of a flush."""
