"""May this update enter the round? Everything that can be said from its signed manifest, before a tensor is read.

Pure: an envelope and what the aggregator expects go in, a manifest or one sentence come out. The sentence names the task
and is written for both readers, the site's administrator and the operator. The order is: who signed, for which task, from
which base, in which form, counting for what. `aggregator/inspection.py` looks at the tensors afterwards, and nothing
reaches the accumulator before both. `aggregator/services` calls `open_manifest` when a site reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from histofed import statements
from histofed.base.clock import from_iso
from histofed.base.errors import BadData, HistofedError, NotAuthorised, Stale, TooLarge
from histofed.base.ids import Digest, TaskKey, digest
from histofed.base.words import one_line
from histofed.pki.identity import Identity, Role
from histofed.pki.signing import Envelope, verify
from histofed.statements import UpdateManifest

COUNT_LIMIT: Final = 10**9
"""Tiles or patients of one site; above it the number is a mistake, or an attempt to outweigh the others."""

LOSS_LIMIT: Final = 1e6
"""A loss that a strategy weighs by; above it a training has diverged, or the site would outweigh the others alone."""


@dataclass(frozen=True)
class Expected:
    """What the aggregator offered to the site, and so what it takes back."""

    federation: str
    task: TaskKey
    attempt: int
    """The attempt in hand; an older one may still run in a forgotten copy of the site."""
    experiment_sha256: Digest
    base: Digest
    """Digest of the shared tensors that the round started from."""
    encoding: str
    weights: str
    """What an update counts by: `tiles`, `patients` or `uniform`."""
    max_update_bytes: int
    loss: str | None = None
    """The metric that the strategy weighs updates by; None where it weighs by none."""


def open_manifest(
    envelope: Envelope, *, ca: x509.Certificate, signer: Identity, at: datetime, expected: Expected
) -> UpdateManifest:
    """The manifest in an envelope that `signer` (the calling site) handed over at `at`, after every check.

    Raises `NotAuthorised`, `BadData`, `Stale` or `TooLarge` with one sentence.
    """
    if signer != Identity(expected.federation, Role.SITE, expected.task.site):
        raise NotAuthorised(f"{signer} cannot answer {expected.task}, only the site that it was offered to")
    verify(envelope, ca=ca, payload_type=statements.UPDATE_TYPE, signer=signer, at=at)
    manifest = statements.decode_update(envelope.payload)
    check_manifest(manifest, expected)
    return manifest


def check_manifest(manifest: UpdateManifest, expected: Expected) -> None:
    """Compare a manifest with what was offered. Raises `NotAuthorised`, `BadData`, `Stale` or `TooLarge`."""
    for check in (_whose, _which_task, _which_base, _which_form, _which_counts, _which_loss, _which_history):
        problem = check(manifest, expected)
        if problem is not None:
            raise type(problem)(f"the update for {expected.task} is refused: {problem}")


def weight_of(manifest: UpdateManifest, weights: str) -> int:
    """What an update counts by in the average (`aggregation.weights`). Raises `BadData` for an unknown word."""
    match weights:
        case "tiles":
            return manifest.tiles
        case "patients":
            return manifest.patients
        case "uniform":
            return 1
    raise BadData(f"updates cannot be weighted by {weights!r}; tiles, patients and uniform are known")


def _whose(manifest: UpdateManifest, expected: Expected) -> HistofedError | None:
    if manifest.federation != expected.federation:
        return NotAuthorised(f"it is for federation {manifest.federation[:60]!r}, this is {expected.federation!r}")
    if manifest.site != expected.task.site:
        return NotAuthorised(f"it names site {manifest.site[:60]!r}; a site answers only for itself")
    return None


def _which_task(manifest: UpdateManifest, expected: Expected) -> HistofedError | None:
    task = expected.task
    if manifest.experiment != task.round.experiment:
        return BadData(f"it is for experiment {manifest.experiment[:60]!r}")
    if manifest.experiment_sha256 != expected.experiment_sha256:
        return BadData("the site trained another version of the experiment file; it must accept the offered one")
    if manifest.round != task.round.number:
        return Stale(f"it is for round {manifest.round}; the round asked for is {task.round.number}")
    if manifest.kind != task.kind:
        return BadData(f"it answers a task of kind {manifest.kind[:60]!r}, the task is of kind {task.kind!r}")
    if manifest.attempt != expected.attempt:
        return Stale(f"it is of attempt {manifest.attempt}; attempt {expected.attempt} is the one in hand")
    return None


def _which_base(manifest: UpdateManifest, expected: Expected) -> HistofedError | None:
    if manifest.base != expected.base:
        return BadData(
            f"the site started from weights {manifest.base[:12]}..., the round started from {expected.base[:12]}...; "
            "it must download them and train again"
        )
    return None


def _which_form(manifest: UpdateManifest, expected: Expected) -> HistofedError | None:
    if manifest.encoding != expected.encoding:
        return BadData(f"its encoding is {manifest.encoding[:60]!r}, the experiment asks for {expected.encoding!r}")
    if manifest.weights is None:
        return BadData("it has no weights, and a training task must return some") if expected.task.kind == "train" else None
    if manifest.weights.bytes > expected.max_update_bytes:
        return TooLarge(
            f"its weights are {manifest.weights.bytes} bytes, the experiment allows {expected.max_update_bytes} "
            "(aggregation.max_update_bytes)"
        )
    return None


def _which_counts(manifest: UpdateManifest, expected: Expected) -> HistofedError | None:
    for name, count in (("tiles", manifest.tiles), ("patients", manifest.patients), ("steps", manifest.steps)):
        if not 0 <= count <= COUNT_LIMIT:
            return BadData(f"{count} {name} cannot be; a count is between 0 and {COUNT_LIMIT}")
    if weight_of(manifest, expected.weights) == 0:
        return BadData(f"it counts by {expected.weights}, and the site reports none")
    return None


def _which_loss(manifest: UpdateManifest, expected: Expected) -> HistofedError | None:
    """One update that cannot be weighed would cost the whole round."""
    if expected.loss is None:
        return None
    if expected.loss not in manifest.metrics:
        reported = one_line(", ".join(sorted(manifest.metrics)), 200) or "none"
        return BadData(
            f"the strategy weighs by metric {expected.loss!r}, and the site reports {reported} "
            "(aggregation.options.train_loss_key)"
        )
    if not 0 <= (loss := manifest.metrics[expected.loss]) <= LOSS_LIMIT:
        return BadData(
            f"the strategy weighs by {expected.loss!r}, which is {loss:g}; it must be between 0 and {LOSS_LIMIT:g}"
        )
    return None


def _which_history(manifest: UpdateManifest, expected: Expected) -> HistofedError | None:
    """Fields that nothing is decided by today and the audit reads later must still be possible."""
    if not 0 <= manifest.private_round < expected.task.round.number:
        return BadData(
            f"the site's private state is of round {manifest.private_round}, which is not before round "
            f"{expected.task.round.number}"
        )
    try:
        digest(manifest.policy_sha256)
        from_iso(manifest.created_at)
    except (BadData, ValueError):
        return BadData("the consent policy's digest or the time of its making cannot be read")
    return None
