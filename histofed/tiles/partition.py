"""Which site gets which tile: the partitions of `paper.md` §7, as pure functions of (tiles, sites, seed).

A partition is one site index per tile, in the tiles' order. Patients stay whole in all of them but `iid-tile`, the paper's,
which puts one person's tiles at several hospitals; `Achieved.shared_patients` counts them. With whole patients a wanted
ratio is met only as far as the patients' sizes allow, so what was achieved is always reported beside what was asked for.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from histofed.base.errors import BadData, UsageError
from histofed.tiles.tileset import TileSet

Homes: TypeAlias = tuple[int, ...]
"""For each tile the index of its site."""
Method: TypeAlias = Literal["iid-tile", "iid-patient", "class-majority", "dirichlet", "hospital"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
Targets: TypeAlias = npt.NDArray[np.float64]
"""Wanted tiles, (sites, classes)."""

_PASSES: Final = 20
"""Rounds of improvement; in practice three or four change anything."""


@dataclass(frozen=True)
class Achieved:
    """What a partition really is."""

    tiles: tuple[tuple[int, ...], ...]
    """By site, then by class."""
    patients: tuple[tuple[int, ...], ...]
    """By site, then by class."""
    people: tuple[int, ...]
    """Patients by site."""
    shared_patients: int
    """Patients with tiles at more than one site; 0 in all partitions but `iid-tile`."""

    def majority(self, site: int) -> float:
        """The share of a site's largest class; 0 for a site without tiles."""
        return max(self.tiles[site]) / sum(self.tiles[site]) if sum(self.tiles[site]) else 0.0


def achieved(tileset: TileSet, homes: Homes, sites: int) -> Achieved:
    """Count."""
    tiles: Counter[tuple[int, int]] = Counter()
    patients: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    people: defaultdict[int, set[str]] = defaultdict(set)
    of_patient: defaultdict[str, set[int]] = defaultdict(set)
    for tile, home in zip(tileset.tiles, homes, strict=True):
        tiles[home, tile.class_index] += 1
        patients[home, tile.class_index].add(tile.patient)
        people[home].add(tile.patient)
        of_patient[tile.patient].add(home)
    classes = range(len(tileset.classes))
    return Achieved(
        tuple(tuple(tiles[site, k] for k in classes) for site in range(sites)),
        tuple(tuple(len(patients[site, k]) for k in classes) for site in range(sites)),
        tuple(len(people[site]) for site in range(sites)),
        sum(len(found) > 1 for found in of_patient.values()),
    )


def iid_tile(tileset: TileSet, sites: int, seed: int) -> Homes:
    """The paper's: an equal random split of tiles that does not ask whose they are."""
    places = list(range(len(tileset.tiles)))
    random.Random(seed).shuffle(places)
    homes = [0] * len(places)
    for turn, place in enumerate(places):
        homes[place] = turn % sites
    return tuple(homes)


def iid_patient(tileset: TileSet, sites: int, seed: int) -> Homes:
    """Each site an equal share of every class, patients whole. Raises `BadData` for too few patients."""
    wanted = np.repeat(_class_counts(tileset)[None] / sites, sites, axis=0)
    return towards(tileset, wanted, seed, everywhere=True)


def class_majority(tileset: TileSet, sites: int, ratio: float, seed: int) -> Homes:
    """Equal groups of sites lean towards one class each, with `ratio` of their tiles of it, patients whole.

    The paper's non-IID: six sites and 0.6 to 0.9 make three that lean one way and three that lean the other. Every tile is
    used, so groups differ in size where classes do. Raises `BadData` when the classes' sizes do not allow the ratio.
    """
    classes = len(tileset.classes)
    if not 1 / classes < ratio < 1:
        raise UsageError(f"--ratio {ratio:g} is no majority: give more than {1 / classes:.2f} and less than 1")
    if sites < classes:
        raise UsageError(f"{sites} sites cannot lean towards {classes} classes; give at least {classes}")
    mixture = np.full((classes, classes), (1 - ratio) / (classes - 1))
    np.fill_diagonal(mixture, ratio)
    totals = np.linalg.solve(mixture, _class_counts(tileset))
    if (totals <= 0).any():
        smallest = _class_counts(tileset) / len(tileset.tiles)
        # all tiles are used, so the smallest class must fill its minority share at every site that leans elsewhere
        needed = 1 - (classes - 1) * smallest.min()
        name = tileset.classes[int(smallest.argmin())]
        raise BadData(
            f"class {name} has {smallest.min():.0%} of the tiles, too few for a majority of {ratio:g} at every site; "
            f"give --ratio more than {needed:.3f}, or as many tiles of every class"
        )
    leaning = [site * classes // sites for site in range(sites)]
    wanted = np.array([mixture[k] * totals[k] / leaning.count(k) for k in leaning])
    return towards(tileset, wanted, seed, everywhere=True)


def dirichlet(tileset: TileSet, sites: int, alpha: float, seed: int) -> Homes:
    """Each class is shared out by Dirichlet(alpha) (Hsu et al. 2019), patients whole; a small alpha puts it at few sites."""
    if not 0 < alpha <= 1e6:
        raise UsageError(f"--alpha {alpha:g} is not a number above 0 and at most 1000000")
    shares = np.random.default_rng(seed).dirichlet([alpha] * sites, len(tileset.classes))
    return towards(tileset, (shares * _class_counts(tileset)[:, None]).T, seed, everywhere=False)


def hospitals(tileset: TileSet, sites: int | None) -> tuple[Homes, tuple[tuple[str, ...], ...]]:
    """The real hospitals, one per site, or several where there are fewer sites. Also says who is where.

    Raises `BadData` when a tile's hospital is unknown, a patient has two, or there are fewer hospitals than sites.
    """
    tiles = Counter(tile.hospital for tile in tileset.tiles)
    if "" in tiles:
        raise BadData(f"the hospital of {tiles['']} tiles is unknown; add the column hospital to patients.csv")
    of_patient: dict[str, str] = {}
    for tile in tileset.tiles:
        if of_patient.setdefault(tile.patient, tile.hospital) != tile.hospital:
            raise BadData("a patient has tiles of two hospitals; a split by hospital would put them at two sites")
    count = len(tiles) if sites is None else sites
    if len(tiles) < count:
        raise BadData(f"the tiles come from {len(tiles)} hospitals, too few for {count} sites; use fewer")
    groups: list[list[str]] = [[] for _ in range(count)]
    load = [0] * count
    for hospital, size in sorted(tiles.items(), key=lambda pair: (-pair[1], pair[0])):
        site = load.index(min(load))
        groups[site].append(hospital)
        load[site] += size
    home = {hospital: site for site, group in enumerate(groups) for hospital in group}
    return tuple(home[tile.hospital] for tile in tileset.tiles), tuple(tuple(sorted(group)) for group in groups)


def towards(tileset: TileSet, wanted: Targets, seed: int, *, everywhere: bool) -> Homes:
    """Whole patients to sites, as near to `wanted` as a greedy start and single moves come (sum of squares).

    `everywhere`: every site has a patient of every class, because a site without one cannot train. Raises `BadData` when
    there are too few patients for that.
    """
    sizes = _sizes(tileset)
    patients = sorted(sizes)
    random.Random(seed).shuffle(patients)
    patients.sort(key=lambda patient: -int(sizes[patient].sum()))
    home = _one_everywhere(tileset, sizes, patients, wanted) if everywhere else {}
    current = np.zeros_like(wanted)
    for patient, site in home.items():
        current[site] += sizes[patient]
    for patient in patients:
        if patient not in home:
            home[patient] = _best(current, wanted, sizes[patient])
            current[home[patient]] += sizes[patient]
    _improve(home, current, wanted, sizes, keep=everywhere)
    return tuple(home[tile.patient] for tile in tileset.tiles)


def _class_counts(tileset: TileSet) -> npt.NDArray[np.float64]:
    return np.array([tileset.count(k) for k in range(len(tileset.classes))], np.float64)


def _sizes(tileset: TileSet) -> dict[str, npt.NDArray[np.int64]]:
    """Patient → tiles by class."""
    sizes: defaultdict[str, npt.NDArray[np.int64]] = defaultdict(lambda: np.zeros(len(tileset.classes), np.int64))
    for tile in tileset.tiles:
        sizes[tile.patient][tile.class_index] += 1
    return dict(sizes)


def _best(current: Targets, wanted: Targets, size: npt.NDArray[np.int64]) -> int:
    """The site where a patient brings the sum of squared distances down most."""
    return int(np.argmin(((current - wanted) * size).sum(1)))


def _one_everywhere(
    tileset: TileSet, sizes: Mapping[str, npt.NDArray[np.int64]], patients: Sequence[str], wanted: Targets
) -> dict[str, int]:
    """One patient of each class per site: the smallest where least is wanted, so that a small share stays small."""
    home: dict[str, int] = {}
    for k, name in enumerate(tileset.classes):
        without = [site for site in np.argsort(wanted[:, k], kind="stable") if not _has(home, sizes, int(site), k)]
        free = sorted((p for p in patients if sizes[p][k] and p not in home), key=lambda p: int(sizes[p][k]))
        if len(free) < len(without):
            count = sum(bool(size[k]) for size in sizes.values())
            raise BadData(f"class {name} has tiles of {count} patients, too few for {len(wanted)} sites; use fewer")
        home.update((patient, int(site)) for patient, site in zip(free, without, strict=False))
    return home


def _has(home: Mapping[str, int], sizes: Mapping[str, npt.NDArray[np.int64]], site: int, k: int) -> bool:
    return any(at == site and sizes[patient][k] for patient, at in home.items())


def _improve(
    home: dict[str, int],
    current: Targets,
    wanted: Targets,
    sizes: Mapping[str, npt.NDArray[np.int64]],
    *,
    keep: bool,
) -> None:
    """Move single patients as long as that brings the sum of squares down; `keep` leaves no site without a class."""
    for _ in range(_PASSES):
        moved = False
        for patient in sorted(home):
            size, old = sizes[patient], home[patient]
            current[old] -= size
            new = old if keep and (current[old][size > 0] <= 0).any() else _best(current, wanted, size)
            current[new] += size
            home[patient] = new
            moved |= new != old
        if not moved:
            return
