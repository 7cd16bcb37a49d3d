"""What becomes of a finished training: an update, signed with its manifest, in the outbox.

The order is journal, private tensors, outbox, so that a crash in between leaves nothing that was not told, and the same
training can be finished again. The manifest says what was trained from what, and which consent allowed it; the aggregator
holds the weights against it. `agent/work.py` is the caller.
"""

from __future__ import annotations

from agent.assignment import PRIVATE_FILE, UPDATE_FILE, Assignment, Result
from agent.consent import Decision
from agent.desk import Desk
from agent.handover import spoken
from agent.offers import Offer
from agent.outbox import Entry
from histofed.base.clock import iso
from histofed.pki.signing import sign
from histofed.statements import UPDATE_TYPE, UpdateManifest, encode


def finish(offer: Offer, assignment: Assignment, result: Result, decision: Decision, desk: Desk) -> Entry:
    """Journal what was made, keep the private tensors as pending, sign, and put the update into the outbox."""
    task = offer.task
    subject = {
        **spoken(task, offer.attempt),
        "base": offer.base,
        "sha256": result.weights.sha256,
        "steps": result.steps,
        "norm": result.norm,
        "clipped": result.clipped,
    }
    desk.journal.append("task.trained", subject=subject, trace=offer.trace)
    desk.private.add_pending(task.round, assignment.output / PRIVATE_FILE)
    manifest = UpdateManifest(
        federation=desk.link.credentials.federation,
        experiment=task.round.experiment,
        experiment_sha256=offer.experiment_sha256,
        round=task.round.number,
        kind=task.kind,
        site=task.site,
        attempt=offer.attempt,
        base=offer.base,
        encoding=assignment.encoding,
        weights=result.weights,
        tiles=result.tiles,
        patients=result.patients,
        steps=result.steps,
        metrics={**result.metrics, "update_norm": result.norm},
        private_round=assignment.private_round,
        policy_sha256=decision.policy_sha256,
        created_at=iso(desk.clock.now()),
    )
    envelope = sign(UPDATE_TYPE, encode(manifest), desk.link.credentials)
    return desk.outbox.put(envelope, assignment.output / UPDATE_FILE, assignment.minimum_patients)
