"""Tiles that are there more than once: the same bytes, or a copy that was compressed or scaled again.

A copy under another patient or class is worse than a waste: it crosses every split. Called by `survey.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Final, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)

NEAR_BITS: Final = 8
"""Of 64; tiles of different tissue differ in 18 and more, about 32, a compressed or scaled copy in 0 to 8."""
_BLOCK: Final = 1024
"""Rows compared at a time: 1024 x N differences of 8 bytes."""


def exact(contents: Sequence[Key]) -> list[tuple[int, ...]]:
    """Groups of positions with equal contents, each with at least two."""
    places: defaultdict[Key, list[int]] = defaultdict(list)
    for position, content in enumerate(contents):
        places[content].append(position)
    return [tuple(group) for group in places.values() if len(group) > 1]


def near(hashes: Sequence[int], same: Iterable[tuple[int, ...]], bits: int = NEAR_BITS) -> list[tuple[int, ...]]:
    """Groups of positions connected by hashes that differ in at most `bits`; members of `same` count once.

    Compares all pairs: 20,000 tiles in seconds, 100,000 in a minute or two.
    """
    copies = {position for group in same for position in group[1:]}
    kept = [position for position in range(len(hashes)) if position not in copies]
    values = np.array([hashes[position] for position in kept], np.uint64)
    leader = list(range(len(kept)))
    for begin in range(0, len(kept), _BLOCK):
        block = values[begin : begin + _BLOCK]
        apart = np.bitwise_count(block[:, None] ^ values[None, begin:])
        for row, column in zip(*np.nonzero(apart <= bits), strict=True):
            if row < column:
                _join(leader, begin + int(row), begin + int(column))
    return [tuple(kept[place] for place in group) for group in exact([_find(leader, place) for place in range(len(kept))])]


def _find(leader: list[int], place: int) -> int:
    """The group's first member; shortens the way for the next search."""
    while leader[place] != place:
        leader[place] = leader[leader[place]]
        place = leader[place]
    return place


def _join(leader: list[int], one: int, other: int) -> None:
    first, second = sorted((_find(leader, one), _find(leader, other)))
    leader[second] = first
