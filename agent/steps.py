"""Fetches the base of a task: by steps from one that this site holds, or all of it.

A step is a file of differences (`histofed/encodings/step.py`); the aggregator offers those that are cheaper than the model
itself. What they lead to has the digest that the offer names, or it is dropped and the whole model is fetched: a step can
save bytes, never change them. `agent/work.py` is the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from agent.bases import Bases
from agent.link import Transfer
from agent.offers import Offer, Step
from histofed.base import durable
from histofed.base.encoding import STEPS, Encoding
from histofed.base.errors import BadData, DigestMismatch, Lost, NotAuthorised, NotFound, TryLater
from histofed.base.experiment import Experiment
from histofed.base.ids import Digest
from histofed.encodings.file import Form
from histofed.encodings.step import apply_steps
from histofed.telemetry.logs import fields
from histofed.transport.held import Held
from histofed.transport.watchdog import in_thread

log = logging.getLogger(__name__)


class Fetcher(Protocol):
    """Where blobs come from; the link."""

    async def download(self, blob: Digest, size: int, target: Path, held: Held | None, progress: Transfer) -> None:
        """Fetch a blob to `target`, from where an earlier try stopped; its digest is checked."""
        ...


async def fetch(source: Fetcher, bases: Bases, offer: Offer, experiment: Experiment, progress: Transfer) -> None:
    """The base of `offer`, complete and right at its place.

    Raises what `Link.download` raises, but `Lost` where the aggregator has no such file: that is not its word on the round.
    """
    name = experiment.name
    way = way_from(bases, offer, experiment)
    if way and await _by_steps(source, bases, offer, STEPS[experiment.file.aggregation.encoding], way, progress):
        return
    earlier = bases.earlier(name, offer.base)
    try:
        await source.download(offer.base, offer.base_bytes, bases.place(name, offer.base), earlier, progress)
    except NotFound as error:
        raise Lost(f"the aggregator has lost the model that it offers: {error}; its doctor says how to go on") from error


def way_from(bases: Bases, offer: Offer, experiment: Experiment) -> tuple[Step, ...]:
    """The steps to the base, oldest first, from the nearest one that is here; none where all of it is to be fetched."""
    if experiment.file.aggregation.encoding not in STEPS:
        return ()
    target = bases.place(experiment.name, offer.base)
    if target.exists() or target.with_name(f"{target.name}.part").exists():
        return ()  # it is here, or was begun
    for count, step in enumerate(offer.steps, start=1):
        if bases.get(experiment.name, step.begin) is not None:
            return offer.steps[:count][::-1]
    return ()


async def _by_steps(
    source: Fetcher, bases: Bases, offer: Offer, encoding: Encoding, way: Sequence[Step], progress: Transfer
) -> bool:
    """Go the way; False where it leads elsewhere. Raises what `Link.download` raises, but for a step that is gone."""
    name, total, done = offer.task.round.experiment, sum(step.bytes for step in way), 0
    places = [bases.step_place(name, step.file) for step in way]
    begin = bases.get(name, way[0].begin)
    assert begin is not None, "a way begins at a base that is here"
    try:
        for step, place in zip(way, places, strict=True):
            await source.download(step.file, step.bytes, place, None, _behind(done, total, progress))
            done += step.bytes
        forms = [(place, Form(encoding, step.begin)) for step, place in zip(way, places, strict=True)]
        reached = await in_thread(_applied, begin.path, forms, bases.place(name, offer.base), offer.base)
    except (BadData, NotFound, NotAuthorised) as error:
        log.warning("the model is fetched whole: %s", error, extra=fields(round=offer.task.round.number))
        reached = False
    for place in places:
        durable.remove(place)
    return reached


def _behind(done: int, total: int, progress: Transfer) -> Transfer:
    """The progress of one file as that of all, of which `done` bytes are here."""
    return lambda now, _: progress(done + now, total)


def _applied(begin: Path, forms: Sequence[tuple[Path, Form]], target: Path, wanted: Digest) -> bool:
    """Write what the steps lead to; it stays only when it is what was wanted.

    Raises `DigestMismatch` otherwise, `BadData` for what cannot be read, and `CannotWriteState`.
    """
    beside = target.with_name(f"{target.name}.reached")
    try:
        if apply_steps(begin, forms, beside).sha256 != wanted:
            raise DigestMismatch("what the steps lead to is not the model: this site's earlier base may be damaged")
        durable.adopt(beside, target)
    except (OSError, TryLater) as error:
        # the whole model needs nothing of it, while another try of the same would wait for this disk
        raise BadData(f"a base that this site holds, or a step from it, cannot be read: {error}") from error
    finally:
        durable.remove(beside)
    return True
