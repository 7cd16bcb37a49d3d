"""Split one folder of real tiles over sites, and set validation and test apart: links, not copies.

    TARGET/SITE/<path below the root>     a site's tiles          marked train
    TARGET/VALIDATION/..., TARGET/TEST/...                        marked so that `folder.scan` refuses them

Every entry is a symbolic link to the original, so a split costs no space and the original stays the only copy of patient
data. Patients that are known from a `patients.csv` get one in every part. Called by `histofed data split` and the demo; a
real federation has nothing to split.
"""

from __future__ import annotations

import csv
import io
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from histofed.base import durable
from histofed.base.errors import AlreadyThere, BadData
from histofed.base.ids import sha256
from histofed.tiles import barcode
from histofed.tiles.folder import scan
from histofed.tiles.manifest import MANIFEST, Role, make_manifest, write_manifest
from histofed.tiles.patients import TABLE
from histofed.tiles.tileset import Tile, TileSet

HELD_OUT_FOLDERS: Final[Mapping[Role, str]] = {"validation": "VALIDATION", "test": "TEST"}


@dataclass(frozen=True)
class Part:
    """One folder to be written."""

    folder: str
    role: Role
    tiles: tuple[Tile, ...]


def split_by_patient(root: Path, classes: Sequence[str], sites: Sequence[str], seed: int, target: Path) -> Mapping[str, int]:
    """Give each site its share of patients of every class under `target/SITE/`; returns the tiles per site.

    The same seed gives the same split. Raises `BadData` when a class has fewer patients than there are sites, and
    `AlreadyThere` when a site's folder is there and is not empty.
    """
    tileset = scan(root, classes)
    home = assign(tileset, sites, seed)
    parts = [Part(site, "train", tuple(t for t in tileset.tiles if home[t.patient] == site)) for site in sites]
    write_parts(root, parts, target)
    return {part.folder: len(part.tiles) for part in parts}


def only(tileset: TileSet, roles: Mapping[str, Role], role: Role) -> TileSet:
    """The tiles of the patients with one role."""
    return replace(tileset, tiles=tuple(tile for tile in tileset.tiles if roles[tile.patient] == role))


def held_out_parts(tileset: TileSet, roles: Mapping[str, Role]) -> list[Part]:
    """The folders of validation and test, those that have a patient."""
    parts = [Part(name, role, only(tileset, roles, role).tiles) for role, name in HELD_OUT_FOLDERS.items()]
    return [part for part in parts if part.tiles]


def write_parts(root: Path, parts: Sequence[Part], target: Path) -> None:
    """Link every tile into its part and mark the parts. Raises `AlreadyThere`, `BadData`, `CannotWriteState`."""
    if target.resolve().is_relative_to(root.resolve()):
        raise BadData("the split would lie inside the data that it splits; choose a folder elsewhere")
    for part in parts:
        if durable.listing(target / part.folder):
            raise AlreadyThere(f"{target / part.folder} is a folder with tiles already; remove it or choose another target")
    with durable.state_errors(str(target)):
        others = [folder.name for folder in durable.listing(target) if (folder / MANIFEST).exists()]
    if others:
        # the same patients would be in two splits side by side, held out of one of them only
        raise AlreadyThere(f"the target holds another split ({', '.join(others)}); remove it or choose another target")
    held_out = sorted({tile.patient for part in parts if part.role != "train" for tile in part.tiles})
    salt = sha256("\0".join(sorted({tile.patient for part in parts for tile in part.tiles})).encode())[:32]
    for part in parts:
        folder = durable.make_directory(target / part.folder, mode=0o755)
        # the mark comes first: a split that was interrupted is marked too
        write_manifest(folder, make_manifest(part.role, salt, held_out))
        _write_table(root, part, folder)
        _link(root, part, folder)


def _link(root: Path, part: Part, folder: Path) -> None:
    for parent in sorted({(folder / tile.path.relative_to(root)).parent for tile in part.tiles}):
        durable.make_directory(parent, mode=0o755)
    with durable.state_errors(f"links of site {part.folder}"):
        for tile in part.tiles:
            (folder / tile.path.relative_to(root)).symlink_to(tile.path.resolve())


def _write_table(root: Path, part: Part, folder: Path) -> None:
    """`patients.csv` for the tiles whose name does not tell patient and hospital."""
    rows = [
        (tile.path.relative_to(root).as_posix(), tile.patient, tile.hospital) for tile in part.tiles if not _name_tells(tile)
    ]
    if not rows:
        return
    text = io.StringIO()
    csv.writer(text).writerows([("file", "patient", "hospital"), *rows])
    durable.replace(folder / TABLE, text.getvalue().encode(), mode=0o644)


def _name_tells(tile: Tile) -> bool:
    name = barcode.parse(tile.path.name)
    return name is not None and (name.patient, name.source_site) == (tile.patient, tile.hospital)


def assign(tileset: TileSet, sites: Sequence[str], seed: int) -> Mapping[str, str]:
    """Patient → site. Each site gets its share of the patients of each class, then about as many tiles.

    Raises `BadData` when a class has fewer patients than there are sites.
    """
    order = random.Random(seed)
    home: dict[str, str] = {}
    for index, name in enumerate(tileset.classes):
        mine: defaultdict[str, list[Tile]] = defaultdict(list)
        for tile in tileset.tiles:
            if tile.class_index == index:
                mine[tile.patient].append(tile)
        if len(mine) < len(sites):
            raise BadData(f"class {name} has tiles of {len(mine)} patients, too few for {len(sites)} hospitals; use fewer")
        patients = sorted(mine)
        order.shuffle(patients)
        # largest first, each to the hospital that has fewest: the usual bound on how uneven it gets
        patients.sort(key=lambda patient: -len(mine[patient]))
        people, tiles = Counter[str](), Counter[str]()
        for patient in patients:
            if patient in home:  # somebody with tiles of two classes stays where the first class put them
                people[home[patient]] += 1
                tiles[home[patient]] += len(mine[patient])
        for patient in patients:
            if patient not in home:
                site = min(sites, key=lambda site: (people[site], tiles[site], sites.index(site)))
                home[patient] = site
                people[site] += 1
                tiles[site] += len(mine[patient])
    return home
