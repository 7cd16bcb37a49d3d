"""A data set looked at from all sides: who, how many, how good, what twice, what not at all. For `histofed data check`.

Runs inside the hospital and names patients and files: what it returns must not leave the site. It decodes each picture once,
at its own size, and keeps numbers, never pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from histofed.base.errors import BadData
from histofed.tiles import duplicates, folder
from histofed.tiles.decode import MINIMUM_EDGE, Refused, decode_picture, read_bytes, suspicion_is_enough
from histofed.tiles.measure import Measures, measure
from histofed.tiles.tileset import Tile, TileSet

PERCENTILES: Final = (0, 5, 50, 95, 100)
BLURRED: Final = 0.1
"""A tile is suspiciously blurred below this share of the median focus of its set."""
LITTLE_TISSUE: Final = 0.2
"""A tile with less tissue than this is mostly glass."""
_QUANTITIES: Final = ("focus", "tissue", "haematoxylin", "eosin", "brightness")
MINIMUM_PATIENTS: Final = 2
"""The agent's default; with one patient a class is that person."""


@dataclass(frozen=True)
class Seen:
    """A tile that could be decoded."""

    tile: Tile
    measures: Measures


@dataclass(frozen=True)
class Survey:
    """Everything that was found."""

    classes: tuple[str, ...]
    seen: tuple[Seen, ...]
    refused: Mapping[str, int]
    """Reason → files, by name or by content."""
    exact: tuple[tuple[Tile, ...], ...]
    """Groups with the same bytes."""
    near: tuple[tuple[Tile, ...], ...]
    """Groups that look the same; one of each exact group."""
    leaking: tuple[str, ...]
    """Patients with tiles in the training part and in a test or validation part."""
    trainable: frozenset[Tile]
    """The tiles that a training would read; all of `seen` where it would read none."""
    refusal: str
    """Why a training would not begin with these folders and names, in its own words; empty where it would."""

    def blurred(self) -> tuple[Seen, ...]:
        """The tiles with little focus, least first."""
        limit = BLURRED * float(np.median([seen.measures.focus for seen in self.seen])) if self.seen else 0.0
        return tuple(sorted((s for s in self.seen if s.measures.focus < limit), key=lambda seen: seen.measures.focus))

    def mostly_glass(self) -> tuple[Seen, ...]:
        """The tiles with little tissue, least first."""
        found = (seen for seen in self.seen if seen.measures.tissue < LITTLE_TISSUE)
        return tuple(sorted(found, key=lambda seen: seen.measures.tissue))

    def crossing(self) -> tuple[tuple[Tile, ...], ...]:
        """Groups of copies that belong to several patients or classes."""
        return tuple(g for g in (*self.exact, *self.near) if len({(tile.patient, tile.class_index) for tile in g}) > 1)

    def quantities(self, of: Iterable[Seen] | None = None) -> dict[str, tuple[float, ...]]:
        """`PERCENTILES` of every measured quantity; empty tuples where there is no tile."""
        chosen = [seen.measures for seen in (self.seen if of is None else of)]
        if not chosen:
            return dict.fromkeys(_QUANTITIES, ())
        return {
            name: tuple(float(value) for value in np.percentile([getattr(one, name) for one in chosen], PERCENTILES))
            for name in _QUANTITIES
        }

    def by_hospital(self) -> dict[str, list[Seen]]:
        """Tiles by hospital, sorted by name; an unknown hospital is ``."""
        found: defaultdict[str, list[Seen]] = defaultdict(list)
        for seen in self.seen:
            found[seen.tile.hospital].append(seen)
        return dict(sorted(found.items()))

    def by_patient(self) -> dict[str, list[Seen]]:
        """Tiles by patient, sorted."""
        found: defaultdict[str, list[Seen]] = defaultdict(list)
        for seen in self.seen:
            found[seen.tile.patient].append(seen)
        return dict(sorted(found.items()))

    def problems(self) -> tuple[str, ...]:
        """Why a training would refuse this data, in sentences without names; empty when it would not."""
        found = [self.refusal] if self.refusal else []
        if len(self.classes) < 2:
            found.append("there is one class only; a conditional generator needs at least two")
        for index, name in enumerate(self.classes):
            mine = [seen.tile for seen in self.seen if seen.tile.class_index == index and seen.tile in self.trainable]
            patients = len({tile.patient for tile in mine})
            if not mine and not self.refusal:
                found.append(f"class {name} has no usable tile")
            elif mine and patients < MINIMUM_PATIENTS:
                found.append(
                    f"class {name} has tiles of {patients} patient; sites require at least {MINIMUM_PATIENTS} by default"
                )
        return tuple(found)

    def warnings(self) -> tuple[str, ...]:
        """What a person should look at, in sentences without names."""
        counts = [
            *((count, "file", f"that cannot be used: {reason}") for reason, count in sorted(self.refused.items())),
            (sum(len(group) - 1 for group in self.exact), "tile", "with the same bytes as another"),
            (sum(len(group) - 1 for group in self.near), "tile", "that looks like another, only compressed or scaled"),
            (len(self.crossing()), "group", "of copies across patients or classes"),
            (len(self.blurred()), "tile", f"with less than {BLURRED:.0%} of the median focus"),
            (len(self.mostly_glass()), "tile", f"with less than {LITTLE_TISSUE:.0%} of tissue"),
        ]
        return tuple(f"{count} {what}{'s' * (count > 1)} {which}" for count, what, which in counts if count)


def survey(root: Path, classes: Sequence[str] | None = None) -> Survey:
    """Look at every file under `root`, held-out parts too. Without `classes` they are found by `folder.discover`.

    Raises `BadData` when the tree itself cannot be read.
    """
    listed = folder.list_all(root, classes or folder.discover(root))
    trainable, refusal = _trainable(root, listed)
    seen: list[Seen] = []
    contents: list[bytes] = []
    refused = Counter(listed.refused)
    with suspicion_is_enough(), ThreadPoolExecutor(len(os.sched_getaffinity(0)), "survey") as pool:
        for tile, found in zip(listed.tiles, pool.map(_look, listed.tiles), strict=True):
            if isinstance(found, str):
                refused[found] += 1
            else:
                contents.append(found[0])
                seen.append(Seen(tile, found[1]))
    same = duplicates.exact(contents)
    alike = duplicates.near([one.measures.perceptual for one in seen], same)
    return Survey(
        classes=listed.classes,
        seen=tuple(seen),
        refused=dict(refused),
        exact=tuple(tuple(seen[place].tile for place in group) for group in same),
        near=tuple(tuple(seen[place].tile for place in group) for group in alike),
        leaking=_leaking(listed, root),
        trainable=trainable,
        refusal=refusal,
    )


def _trainable(root: Path, listed: TileSet) -> tuple[frozenset[Tile], str]:
    """What `folder.scan`, the only door to a training, lets through, or why it lets nothing through."""
    try:
        return frozenset(folder.scan(root, listed.classes).tiles), ""
    except BadData as error:
        return frozenset(listed.tiles), str(error)


def _look(tile: Tile) -> tuple[bytes, Measures] | str:
    """The content's hash and the measures, or why there are none."""
    try:
        data = read_bytes(tile.path)
        return hashlib.sha256(data).digest(), measure(decode_picture(data, MINIMUM_EDGE))
    except Refused as reason:
        return str(reason)


def _leaking(listed: TileSet, root: Path) -> tuple[str, ...]:
    """Patients on both sides of a split by folder names."""
    held_out = {tile.patient for tile in listed.tiles if folder.is_held_out(tile.path.relative_to(root))}
    trained = {tile.patient for tile in listed.tiles if not folder.is_held_out(tile.path.relative_to(root))}
    return tuple(sorted(held_out & trained))
