"""A set of decoded tiles: read again only whole, alive as long as it is open, and another one for other tiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from histofed.base import durable
from histofed.tiles.store import TileStore
from histofed.tiles.stored_set import Decoding
from tests.unit.tiles.conftest import SIZE, load, same


@pytest.mark.parametrize("damage", ["a bit of a picture", "a bit of the index", "cut off", "empty", "another kind"])
def test_a_damaged_set_is_decoded_again(data: Path, store: TileStore, damage: str) -> None:
    load(data, store)
    (path,) = store.directory.glob("*.tiles")
    content = bytearray(path.read_bytes())
    match damage:
        case "a bit of a picture":
            content[100] ^= 1
        case "a bit of the index":
            content[-100] ^= 1
        case "cut off":
            content = content[: len(content) // 2]
        case "empty":
            content = bytearray()
        case "another kind":
            content = bytearray(b"hello" * 1000)
    path.write_bytes(content)
    assert same(load(data, store), load(data, None))
    assert path.stat().st_size > 12 * 3 * SIZE * SIZE, "it was written again"


def test_an_open_set_outlives_its_removal(data: Path, store: TileStore) -> None:
    tiles = load(data, store)
    durable.remove(store.directory)
    assert (tiles.pixels == load(data, None).pixels).all()


def test_the_key_depends_on_everything() -> None:
    contents = [bytes(32), bytes([1] * 32)]
    keys = {Decoding(32, 32).key(contents), Decoding(32, 32).key(contents[::-1]), Decoding(32, 32).key(contents[:1])}
    keys |= {Decoding(33, 32).key(contents), Decoding(32, 33).key(contents), Decoding(32, 32, 1).key(contents)}
    assert len(keys) == 6
