"""The part of admission that reads an update's tensors: may these numbers be averaged with the others?

It costs a pass over the whole update, so it runs in a child process (`aggregator/worker.py`, job `inspect`), and it is
apart from `aggregator/admission.py` so that the child needs neither pydantic nor cryptography.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aggregator.aggregate import open_tensors
from histofed.base.errors import BadData
from histofed.encodings.file import PLAIN, Form, open_encoded
from histofed.weights import difference

TOLERANCE: Final = 1e-3
"""Relative excess over the norm bound that is let in: a site's own clipping may round `base + delta` to float32 elsewhere
than ours does. An attacker gains a thousandth."""


def check_tensors(update: Path, base: Path, max_norm: float, form: Form = PLAIN) -> float:
    """The L2 norm of (update - base), in float64 and of decoded values, of an update that may enter.

    Raises `BadData` for a damaged file, one in another form, other names, shapes or types than the base's, types that
    cannot be averaged, values that are not finite, and a norm above `max_norm`; another `HistofedError` where the base
    is damaged, and where a disk of ours does not give what it has.
    """
    with open_tensors(base, "the base model") as old, open_encoded(update, old, form) as new:
        found = difference(new, old)
    if found.not_finite:
        raise BadData(
            f"the update holds values that are not finite in {len(found.not_finite)} of {len(old.names)} tensors, "
            f"the first is {found.not_finite[0][:80]!r}: training diverged at the site, a lower learning rate may help"
        )
    if found.norm > max_norm * (1 + TOLERANCE):
        raise BadData(
            f"the update is too far from its base: its norm is {found.norm:.6g}, the experiment allows "
            f"{max_norm:.6g} (aggregation.max_norm); the site must clip it"
        )
    return found.norm
