"""Split one folder of real tiles over the hospitals of a demonstration, by patient: nobody is ever at two hospitals.

Writes links, not copies: `TARGET/SITE/CLASS/TILE` points at the original, so a split costs no space and the original stays
the only copy of patient data. Called by the demo; a real federation has nothing to split.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from histofed.base import durable
from histofed.base.errors import AlreadyThere, BadData
from histofed.tiles.folder import scan
from histofed.tiles.tileset import Tile, TileSet


def split_by_patient(root: Path, classes: Sequence[str], sites: Sequence[str], seed: int, target: Path) -> Mapping[str, int]:
    """Give each site its share of patients of every class under `target/SITE/`; returns the tiles per site.

    The same seed gives the same split. Raises `BadData` when a class has fewer patients than there are sites, and
    `AlreadyThere` when a site's folder is there and is not empty.
    """
    tileset = scan(root, classes)
    home = assign(tileset, sites, seed)
    for site in sites:
        if (target / site).exists() and any((target / site).iterdir()):
            raise AlreadyThere(f"site {site} has a folder with tiles already; remove it or choose another target")
    counts = Counter(dict.fromkeys(sites, 0))
    for tile in tileset.tiles:
        site = home[tile.patient]
        folder = durable.make_directory(target / site / tile.path.parent.name, mode=0o755)
        with durable.state_errors(f"links of site {site}"):
            (folder / tile.path.name).symlink_to(tile.path.resolve())
        counts[site] += 1
    return dict(counts)


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
