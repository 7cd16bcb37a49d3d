"""The way to a model from those before it, for sites that hold one of them: a step is cheaper than the model.

A model's step begins at the model before (`histofed/encodings/step.py`). Steps are told as long as together they have fewer
bytes than the model itself; further back a site fetches all of it. Files that retention removed are not told.
`aggregator/services/offers.py` is the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aggregator.models import SHARED, STEP
from aggregator.store import Store
from histofed.base.ids import Digest
from histofed.statements import File


@dataclass(frozen=True)
class StepTold:
    """One step: the shared tensors that it begins from, and its file."""

    begin: Digest
    file: File


def steps_to(store: Store, model: Digest) -> tuple[StepTold, ...]:
    """Newest first; each begins where the one behind it ends. Raises `NotFound` for an unknown model."""
    room = store.part(model, SHARED).bytes
    found: list[StepTold] = []
    for step in _back(store, model):
        room -= step.file.bytes
        if room <= 0 or not store.is_part(Digest(step.file.sha256)):
            break
        found.append(step)
    return tuple(found)


def _back(store: Store, model: Digest) -> Iterator[StepTold]:
    """All steps to the model, newest first."""
    while True:
        statement = store.outline(model)
        if STEP not in statement.parts or not statement.base:
            return
        model = Digest(statement.base)
        yield StepTold(Digest(store.part(model, SHARED).sha256), statement.parts[STEP])
