"""Finished updates that wait for the aggregator's verdict: on disk before they are mentioned to anybody, gone only after it.

    outbox/EXPERIMENT.ROUND.KIND/manifest.json         the signed envelope, and the minimum of patients in training
                                 update.safetensors    the weights that it names

The envelope is written first and the weights are renamed in last, and they are the first to be removed, so an entry with
weights is complete; one without is the trace of a crash, which the next life removes: what is still wanted of it lies in the
work folder. An entry whose bytes are lost, by a disk's mistake perhaps, is set aside under outbox/unreadable, where a person
may look at it: it holds up neither the others nor its task's next attempt. The daemon is the only caller;
`agent/doctor.py` counts what lies there.
"""

from __future__ import annotations

import base64
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from histofed.base import durable
from histofed.base.errors import BadData, CannotWriteState, TryLater, passes
from histofed.base.failpoints import failpoint
from histofed.base.ids import Digest, TaskKey, canonical, digest
from histofed.pki.signing import Envelope
from histofed.statements import File, decode_update

log = logging.getLogger(__name__)

_MANIFEST: Final = "manifest.json"
_WEIGHTS: Final = "update.safetensors"
UNREADABLE: Final = "unreadable"
"""No task's folder: those have dots."""


@dataclass(frozen=True)
class Entry:
    """One finished update."""

    task: TaskKey
    attempt: int
    experiment_sha256: Digest
    envelope: Envelope
    weights: Path
    sha256: Digest
    bytes: int
    encoding: str
    base: Digest
    """What training started from."""
    minimum_patients: int | None
    """In a class, as the hospital asked for when it was trained; None in an entry of a release that did not write it."""


def folder_name(task: TaskKey) -> str:
    """A task as the name of a folder; the site is always this one."""
    return f"{task.round.experiment}.{task.round.number}.{task.kind}"


class Outbox:
    """The entries of one site."""

    def __init__(self, folder: Path) -> None:
        """Removes the traces of crashes. Raises `CannotWriteState`."""
        self._folder = durable.make_directory(folder)
        for entry in durable.listing(folder, "*.*.*"):
            if entry.is_dir() and not (entry / _WEIGHTS).exists():
                durable.remove(entry)

    def put(self, envelope: Envelope, weights: Path, minimum_patients: int) -> Entry:
        """Take over `weights` (a complete file on the same disk) with its signed manifest. Durable on return.

        `minimum_patients` is what the training was told to ask for in each class. An entry of the same task is
        replaced. Raises `CannotWriteState`.
        """
        manifest = decode_update(envelope.payload)
        folder = durable.make_directory(self._folder / folder_name(manifest.task))
        target = folder / _WEIGHTS
        # never a new manifest beside old weights
        durable.remove(target)
        durable.replace(folder / _MANIFEST, _encode(envelope, minimum_patients))
        durable.adopt(weights, target)
        failpoint("agent.update_in_outbox")
        return _entry(envelope, target, minimum_patients)

    def get(self, task: TaskKey) -> Entry | None:
        """The finished update of `task`, if there is one that can be read. Raises `TryLater` where that may be so later."""
        return self._read(self._folder / folder_name(task) / _WEIGHTS) if self.holds(task) else None

    def entries(self) -> tuple[Entry, ...]:
        """Every finished update, by task, but those that were set aside.

        Raises `TryLater` where one may be read later, `CannotWriteState` where the disk does not say which there are.
        """
        found = [self._read(weights) for weights in self._waiting()]
        return tuple(entry for entry in found if entry is not None)

    def readable(self) -> tuple[Entry, ...]:
        """Every finished update that can be read now, by task; one that may be read later is logged and waits.

        Raises `CannotWriteState` where the disk does not say which there are.
        """
        found = []
        for weights in self._waiting():
            try:
                found.append(self._read(weights))
            except TryLater as error:
                log.warning("%s", error)
        return tuple(entry for entry in found if entry is not None)

    def holds(self, task: TaskKey) -> bool:
        """Whether an update of `task` waits, one that cannot be read now included."""
        return (self._folder / folder_name(task) / _WEIGHTS).exists()

    def __len__(self) -> int:
        """How many updates wait. Raises `CannotWriteState` where the disk does not say."""
        return len(self._waiting())

    def withdraw(self, entry: Entry, target: Path) -> None:
        """Take an update out again: its weights go to `target` (same disk), the rest is gone. Durable on return."""
        durable.adopt(entry.weights, target)
        durable.remove(entry.weights.parent)

    def remove(self, task: TaskKey) -> None:
        """There is a verdict, or nobody wants it any more."""
        folder = self._folder / folder_name(task)
        # while they are there the entry must be whole
        durable.remove(folder / _WEIGHTS)
        durable.remove(folder)

    def _waiting(self) -> list[Path]:
        """The weights of every entry, by task. Raises `CannotWriteState`."""
        return [entry / _WEIGHTS for entry in durable.listing(self._folder) if (entry / _WEIGHTS).exists()]

    def _read(self, weights: Path) -> Entry | None:
        """One entry; None for one that is damaged and was set aside. Raises `TryLater`."""
        try:
            return _stored(weights)
        except (BadData, OSError) as error:
            if isinstance(error, OSError) and passes(error):
                raise TryLater(
                    f"the update {weights.parent.name} in the outbox cannot be read now: {error.strerror}; it stays there"
                ) from error
            log.error("the update %s in the outbox cannot be read (%s)", weights.parent.name, _words(error))
        try:
            aside = durable.make_directory(self._folder / UNREADABLE) / weights.parent.name
            durable.remove(aside)
            durable.adopt(weights.parent, aside)
            log.error("it was set aside under outbox/%s; look at it or remove it", UNREADABLE)
        except CannotWriteState as error:
            log.error("it stays where it is: %s", error)
        return None


def counted(folder: Path) -> tuple[int, int]:
    """How many updates below `folder` wait, and how many cannot be read, set aside or not; nothing is changed there."""
    waiting, damaged = 0, sum(1 for _ in (folder / UNREADABLE).glob("*"))
    for weights in folder.glob(f"*/{_WEIGHTS}"):
        try:
            _stored(weights)
            waiting += 1
        except (BadData, OSError):
            # one that has gone out meanwhile is neither
            damaged += weights.exists()
    return waiting, damaged


def _words(error: Exception) -> str:
    """Without the place, which an OSError tells."""
    return error.strerror or "damaged" if isinstance(error, OSError) else str(error)


def _stored(weights: Path) -> Entry:
    """The entry of these weights. Raises `BadData` or `OSError` for one that is damaged."""
    envelope, minimum_patients = _decode((weights.parent / _MANIFEST).read_bytes())
    return _entry(envelope, weights, minimum_patients)


def _entry(envelope: Envelope, weights: Path, minimum_patients: int | None) -> Entry:
    manifest = decode_update(envelope.payload)
    file: File | None = manifest.weights
    if file is None:
        raise BadData(f"the manifest of {manifest.task} in the outbox names no weights")
    told = digest(file.sha256), file.bytes, manifest.encoding, digest(manifest.base)
    experiment = digest(manifest.experiment_sha256)
    return Entry(manifest.task, manifest.attempt, experiment, envelope, weights, *told, minimum_patients)


def _encode(envelope: Envelope, minimum_patients: int) -> bytes:
    return canonical(
        {
            "payload_type": envelope.payload_type,
            "payload": base64.b64encode(envelope.payload).decode(),
            "signature": base64.b64encode(envelope.signature).decode(),
            "certificate": base64.b64encode(envelope.certificate).decode(),
            "minimum_patients": minimum_patients,
        }
    )


def _decode(data: bytes) -> tuple[Envelope, int | None]:
    try:
        document = json.loads(data)
        envelope = Envelope(
            str(document["payload_type"]),
            *(base64.b64decode(document[name], validate=True) for name in ("payload", "signature", "certificate")),
        )
        told = document.get("minimum_patients")
        return envelope, None if told is None else int(told)
    except (ValueError, KeyError, TypeError) as error:
        raise BadData("its manifest is damaged") from error
