"""Puts a prepared state in the place of the old one, so that a crash at any instant leaves one of the two.

    STATE/restore.new/...            the new state, complete and synced before anything else happens
    STATE/restore.json               the decision: which entries go aside, which come in, and to where
    STATE/before-restore-MOMENT/     the old state, kept for a person to remove

Renames of several entries are not one step, but their plan is: before `restore.json` is on disk the old state counts and
`restore.new` is litter; from then on the new one counts, and whoever holds the state's lock next carries the plan out
(`settle`, at each start of a daemon). Each rename is skipped when it was done. The state directory itself is not renamed: it
may be a mount point, or its parent belong to root. What is not the daemon's (an operator's folder) stays where it is.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from histofed.base import durable
from histofed.base.doctor import Doubt
from histofed.base.errors import AlreadyThere, BadData
from histofed.base.failpoints import failpoint
from histofed.base.ids import Json, canonical

log = logging.getLogger(__name__)

NEW: Final = "restore.new"
PLAN: Final = "restore.json"
ASIDE: Final = "before-restore-"


@contextlib.contextmanager
def preparing(state: Path) -> Iterator[Path]:
    """An empty folder for the new state, removed when the block fails before the decision. Raises `CannotWriteState`."""
    durable.remove(state / NEW)
    try:
        yield durable.make_directory(state / NEW)
    except Exception:
        if not (state / PLAN).exists():
            durable.remove(state / NEW)
        raise


def aside_name(moment: datetime, state: Path) -> str:
    """A folder's name for the old state that is not taken."""
    name = f"{ASIDE}{moment:%Y%m%dT%H%M%SZ}"
    taken = sum(1 for _ in state.glob(f"{name}*"))
    return f"{name}-{taken + 1}" if taken else name


def occupied(state: Path, entries: Sequence[str]) -> tuple[str, ...]:
    """Those of a daemon's entries that are in the state directory."""
    return tuple(name for name in entries if (state / name).exists())


def make_way(state: Path, replace: bool) -> None:
    """Settle what an earlier restore left, for another one. Raises as `settle`.

    With `replace` a damaged plan is passed over: it keeps daemons from a state of which a part may lie aside, until the next
    plan takes its place.
    """
    try:
        settle(state)
    except BadData:
        if not replace:
            raise
        words = "the plan of an interrupted restore is damaged: a part of the state before may be in another folder %s"
        log.warning(words, f"{ASIDE}...")


def refuse_occupied(state: Path, entries: Sequence[str], replace: bool) -> None:
    """A restore needs an empty state, or leave to move the old one aside. Raises `AlreadyThere`.

    Called when the backup is known to be of whose state is here: no leave helps with another's.
    """
    if not replace and occupied(state, entries):
        raise AlreadyThere(f"{state} holds a state; add --replace to move it aside, into {state}/{ASIDE}..., and restore")


def swap(state: Path, entries: Sequence[str], aside: str) -> None:
    """The state in `restore.new` becomes the state. The caller holds the lock. Raises `CannotWriteState`."""
    new = state / NEW
    failpoint("restore.before_swap")
    plan: dict[str, Json] = {
        "aside": aside,
        "old": list(occupied(state, entries)),
        "new": sorted(path.name for path in new.iterdir()),
    }
    durable.replace(state / PLAN, canonical(plan))
    failpoint("restore.swap_decided")
    settle(state)


def settle(state: Path) -> str | None:
    """Carry out a plan that a crash interrupted, or clear away what was never decided; the folder of the old state.

    The caller holds the lock. Raises `CannotWriteState`, and `BadData` for a plan that nobody wrote.
    """
    if not (state / PLAN).exists():
        durable.remove(state / NEW)
        return None
    aside, old, new = _read(state / PLAN)
    if old:
        durable.make_directory(state / aside)
    for name in old:
        if not (state / aside / name).exists() and (state / name).exists():
            durable.adopt(state / name, state / aside / name)
    if old:
        durable.fsync_directory(state)
    failpoint("restore.old_set_aside")
    for name in new:
        if (state / NEW / name).exists():
            durable.adopt(state / NEW / name, state / name)
    failpoint("restore.swapped")
    durable.remove(state / PLAN)
    durable.remove(state / NEW)
    log.warning("the state was restored from a backup")
    return aside if old else None


def refuse_interrupted(state: Path) -> None:
    """Between two renames there is neither the old state nor the new one. Raises `AlreadyThere`."""
    if (state / PLAN).exists():
        raise AlreadyThere(f"a restore was interrupted in {state}: start the daemon, which finishes it")


def interrupted(state: Path) -> Doubt:
    """For `doctor`, when the plan of a restore is there. Raises `BadData` for one that nobody wrote."""
    _read(state / PLAN)
    return Doubt(
        f"a restore was interrupted in {state}; it is decided, and the daemon's next start carries it out: start the daemon"
    )


def _read(plan: Path) -> tuple[str, list[str], list[str]]:
    try:
        document = json.loads(plan.read_bytes())
        aside, old, new = str(document["aside"]), list(map(str, document["old"])), list(map(str, document["new"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{plan} is damaged: a restore was interrupted here; run the restore again with --replace") from error
    return aside, old, new
