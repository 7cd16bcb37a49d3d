"""A data set looked at from all sides: who, how many, how good, what twice, what not at all. For `histofed data check`.

Runs inside the hospital and names patients and files: what it returns must not leave the site. It decodes each picture once,
at its own size, and keeps numbers, never pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from histofed.base.errors import BadData, TryLater
from histofed.base.words import readable
from histofed.tiles import duplicates, folder
from histofed.tiles.decode import MINIMUM_EDGE, Refused, decode_picture, read_bytes, suspicion_is_enough
from histofed.tiles.folder import Unusable
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
_FOLDERS: Final = 20
"""Names of folders in one sentence; a tree may have one for each slide."""


@dataclass(frozen=True)
class Seen:
    """A tile that could be decoded."""

    tile: Tile
    measures: Measures


@dataclass(frozen=True)
class Survey:
    """Everything that was found."""

    root: Path
    classes: tuple[str, ...]
    seen: tuple[Seen, ...]
    unusable: tuple[Unusable, ...]
    """Files that cannot be trained on, by name or by content."""
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
    missing: tuple[str, ...]
    """Classes without a folder."""
    folders: tuple[str, ...]
    """The outermost folders that may be classes."""
    guessed: bool
    """The classes were taken from the folders' names, none of which the presets know."""

    @property
    def refused(self) -> dict[str, int]:
        """Reason → files that cannot be trained on."""
        return dict(Counter(file.reason for file in self.unusable))

    def place(self, path: Path) -> str:
        """A file as it is told: its path below the root with `/`, escaped where nobody could read it."""
        return readable(path.relative_to(self.root).as_posix())

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

    def contradicting(self) -> tuple[tuple[Tile, ...], ...]:
        """Groups of copies that give one patient's picture two classes."""
        return tuple(
            group
            for group in self.crossing()
            if len({(tile.patient, tile.class_index) for tile in group}) > len({tile.patient for tile in group})
        )

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

    def advice(self) -> tuple[str, ...]:
        """What to do about folders whose names are no classes, in sentences that name them."""
        found = []
        if self.missing:
            found.append(f"the folders that are there: {_some([readable(name) for name in self.folders]) or 'none'}")
        if self.guessed:
            known = ", ".join(map(folder.folders_for, folder.PUBLISHED))
            asked = _some([json.dumps(name) for name in self.classes])
            found.append(
                f"no folder has the name of a class that the presets know ({known}): rename the folders, or have the "
                f"experiment name them in its [config], classes = [{asked}]"
            )
        return tuple(found)

    def warnings(self) -> tuple[str, ...]:
        """What a person should look at, in sentences without names of patients, files or folders."""
        refused = self.refused
        reasons = ", ".join(f"{count} {reason}" if len(refused) > 1 else reason for reason, count in sorted(refused.items()))
        counts = [
            (len(self.unusable), "file", f"that cannot be used: {reasons}"),
            (sum(len(group) - 1 for group in self.exact), "tile", "with the same bytes as another"),
            (sum(len(group) - 1 for group in self.near), "tile", "that looks like another, only compressed or scaled"),
            (len(self.crossing()), "group", "of copies across patients or classes"),
            (len(self.contradicting()), "group", "of copies in two classes of one patient: all but one label is wrong"),
            (len(self.blurred()), "tile", f"with less than {BLURRED:.0%} of the median focus"),
            (len(self.mostly_glass()), "tile", f"with less than {LITTLE_TISSUE:.0%} of tissue"),
        ]
        return tuple(f"{count} {what}{'s' * (count > 1)} {which}" for count, what, which in counts if count)


def survey(root: Path, classes: Sequence[str] | None = None) -> Survey:
    """Look at every file under `root`, held-out parts too. Without `classes` they are found by `folder.discover`.

    Raises `BadData` when the tree itself cannot be read.
    """
    looked = folder.look(root, classes or folder.discover(root))
    listed = looked.tileset
    trainable, refusal = _trainable(root, listed)
    seen: list[Seen] = []
    contents: list[bytes] = []
    unusable = list(looked.unusable)
    with suspicion_is_enough(), ThreadPoolExecutor(len(os.sched_getaffinity(0)), "survey") as pool:
        for tile, found in zip(listed.tiles, pool.map(_look, listed.tiles), strict=True):
            if isinstance(found, Exception):
                unusable.append(Unusable(tile.path, str(found)))
                # one bad sector stops a training; here its file is named
                refusal = refusal or (str(found) if isinstance(found, TryLater) else "")
            else:
                contents.append(found[0])
                seen.append(Seen(tile, found[1]))
    same = duplicates.exact(contents)
    alike = duplicates.near([one.measures.perceptual for one in seen], same)
    return Survey(
        root=root,
        classes=listed.classes,
        seen=tuple(seen),
        unusable=tuple(sorted(unusable)),
        exact=tuple(tuple(seen[place].tile for place in group) for group in same),
        near=tuple(tuple(seen[place].tile for place in group) for group in alike),
        leaking=_leaking(listed, root),
        trainable=trainable,
        refusal=refusal,
        missing=looked.missing,
        folders=folder.outermost(root),
        guessed=classes is None and listed.classes != tuple(folder.PUBLISHED),
    )


def _some(names: Sequence[str]) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:_FOLDERS]) + (f" and {len(names) - _FOLDERS} more" if len(names) > _FOLDERS else "")


def _trainable(root: Path, listed: TileSet) -> tuple[frozenset[Tile], str]:
    """What `folder.scan`, the only door to a training, lets through, or why it lets nothing through."""
    try:
        read = {tile.path for tile in folder.scan(root, listed.classes).tiles}
        # by path: a scan may have met another spelling of a patient first
        return frozenset(tile for tile in listed.tiles if tile.path in read), ""
    except BadData as error:
        return frozenset(listed.tiles), str(error)


def _look(tile: Tile) -> tuple[bytes, Measures] | Refused | TryLater:
    """The content's hash and the measures, or why there are none."""
    try:
        data = read_bytes(tile.path)
        return hashlib.sha256(data).digest(), measure(decode_picture(data, MINIMUM_EDGE))
    except (Refused, TryLater) as reason:
        return reason


def _leaking(listed: TileSet, root: Path) -> tuple[str, ...]:
    """Patients on both sides of a split by folder names."""
    held_out, trained = set[str](), set[str]()
    for tile in listed.tiles:
        side = held_out if folder.is_held_out(tile.path.relative_to(root)) else trained
        side.add(tile.patient)
    return tuple(sorted(held_out & trained))
