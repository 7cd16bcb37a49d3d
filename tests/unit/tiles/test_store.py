"""The cache of decoded tiles: found again, never stale, never larger than allowed, and honest about a full disk."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from histofed.base import durable
from histofed.base.errors import CannotWriteState
from histofed.tiles import cache, decode, folder
from histofed.tiles.store import TileStore, default_directory
from tests.support.tiles import CLASSES, TilesRoot
from tests.unit.tiles.conftest import SIZE, load, same


def sets(store: TileStore) -> set[str]:
    return {path.name for path in store.directory.glob("*.tiles")}


@contextmanager
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail when a tile is decoded."""
    with monkeypatch.context() as patch:
        patch.setattr(cache, "decode_tile", lambda *_: pytest.fail("decoded again"))
        yield


@contextmanager
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail when a tile's file is read."""
    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_bytes", lambda *_: pytest.fail("read again"))
        yield


@contextmanager
def files_no_longer_than(limit: int) -> Iterator[None]:
    """The kernel writes `limit` bytes of a file, short, and refuses the rest: a full disk for one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_with_and_without_a_store_the_same(tiles_root: TilesRoot, store: TileStore) -> None:
    plain = load(tiles_root.path, None)
    assert same(plain, load(tiles_root.path, store))
    again = load(tiles_root.path, store)
    assert same(plain, again)
    assert not again.pixels.flags.writeable
    assert not again.pixels.flags.owndata, "mapped, not copied"


def test_a_second_run_reads_no_tile(data: Path, store: TileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(data, store)
    with nothing_read(monkeypatch):
        assert same(load(data, TileStore(store.directory)), first)


def test_another_copy_of_the_data_is_read_and_not_decoded(
    data: Path, store: TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(data, store)
    moved = data.with_name("moved")
    data.rename(moved)
    with no_decoding(monkeypatch):
        assert load(moved, store).fingerprint() == first.fingerprint()
    assert len(sets(store)) == 1, "the same contents are one set"


def test_part_of_the_data_is_not_decoded_again(data: Path, store: TileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    load(data, store)
    min((data / "MSIH").iterdir()).unlink()
    with no_decoding(monkeypatch):
        fewer = load(data, store)
    assert len(fewer.labels) == 11
    assert same(fewer, load(data, None))
    assert len(sets(store)) == 2


def test_a_changed_file_is_another_tile(data: Path, store: TileStore) -> None:
    load(data, store)
    victim = min((data / "MSIH").iterdir())
    times = victim.stat()
    Image.new("RGB", (48, 48), (1, 2, 3)).save(victim)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))  # even with its old date
    changed = load(data, store)
    assert changed.pixels[0, :, 0, 0].tolist() == [1, 2, 3]
    assert same(changed, load(data, None))


def test_refusals_are_remembered(data: Path, store: TileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (48, 48)).save(data / "MSIH" / "TCGA-AA-0999-01Z-00-DX1.png")
    first = load(data, store)
    assert first.tileset.refused == {"not 8-bit RGB: grey": 1}
    with nothing_read(monkeypatch):
        assert same(load(data, store), first)


def test_another_size_is_another_set(data: Path, store: TileStore) -> None:
    load(data, store)
    assert cache.load(folder.scan(data, CLASSES), 16, store=store).pixels.shape == (12, 3, 16, 16)
    assert len(sets(store)) == 2


def test_the_set_used_longest_ago_goes_first(data: Path, tmp_path: Path) -> None:
    one_set = 12 * (3 * SIZE * SIZE + 160) + 4096
    store = TileStore(tmp_path / "cache", 2 * one_set + 2000)
    tileset = folder.scan(data, CLASSES)
    names = []
    for edge in (30, 31):
        before = sets(store)
        cache.load(tileset, SIZE, edge, store)
        names.append((sets(store) - before).pop())
    cache.load(tileset, SIZE, 30, store)  # the older one is used again
    cache.load(tileset, SIZE, 32, store)
    assert names[0] in sets(store)
    assert names[1] not in sets(store)
    assert sum(path.stat().st_size for path in store.directory.iterdir()) <= store.limit


def test_a_kill_while_room_is_made_leaves_nothing_for_ever(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TileStore(tmp_path / "cache", 12 * (3 * SIZE * SIZE + 160) + 4096)
    load(data, store)
    (old,) = store.directory.glob("*.tiles")

    def killed(_: str) -> None:
        if not (old.exists() and old.with_suffix(".stamps").exists()):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(durable, "failpoint", killed)
        cache.load(folder.scan(data, CLASSES), SIZE, 31, store)
    assert old.exists(), "the next one finds it by its name"
    cache.load(folder.scan(data, CLASSES), SIZE, 31, store)
    assert not old.exists()
    assert len([*store.directory.glob("*.stamps")]) == 1


def test_stamps_that_a_killed_process_left_are_removed(data: Path, store: TileStore) -> None:
    load(data, store)
    (old,) = store.directory.glob("*.tiles")
    old.unlink()
    cache.load(folder.scan(data, CLASSES), 16, store=store)
    assert not old.with_suffix(".stamps").exists()


def test_files_of_somebody_else_are_neither_counted_nor_touched(data: Path, tmp_path: Path) -> None:
    store = TileStore(tmp_path / "cache", 2 * (12 * (3 * SIZE * SIZE + 160) + 4096))
    durable.make_directory(store.directory)
    (store.directory / "notes.bin").write_bytes(bytes(store.limit))
    (store.directory / "notes.stamps").write_bytes(bytes(64))
    load(data, store)
    cache.load(folder.scan(data, CLASSES), SIZE, 31, store)
    assert len(sets(store)) == 2, "there is room for both"
    assert {"notes.bin", "notes.stamps"} <= {path.name for path in store.directory.iterdir()}


def test_tiles_that_do_not_fit_are_not_cached(data: Path, tmp_path: Path) -> None:
    store = TileStore(tmp_path / "cache", 10_000)
    assert same(load(data, store), load(data, None))
    assert not store.directory.exists()
    assert same(load(data, TileStore(tmp_path / "cache", 0)), load(data, None))


@pytest.mark.parametrize("limit", [100, 12 * 3 * SIZE * SIZE - 10, 12 * 3 * SIZE * SIZE + 50])
def test_a_full_disk_is_an_error_with_a_way_out(data: Path, store: TileStore, limit: int) -> None:
    """Full among the pixels' first bytes, at their end, and inside the index."""
    with files_no_longer_than(limit), pytest.raises(CannotWriteState) as caught:
        load(data, store)
    assert "cache of decoded tiles cannot be written: File too large" in str(caught.value)
    assert "cache_dir" in str(caught.value)
    assert "`histofed train`: --cache" in str(caught.value)
    assert "cache_bytes" in str(caught.value)
    assert str(store.directory) not in str(caught.value), "the sentence may leave the site"
    assert {path.name for path in store.directory.iterdir()} == {"lock"}, "nothing half-written stays"
    assert same(load(data, store), load(data, None)), "with room it works again"


def test_a_cache_folder_that_cannot_be_made(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWriteState, match="Not a directory"):
        load(data, TileStore(tmp_path / "file" / "cache"))


def test_while_another_process_builds_the_tiles_are_decoded_without(data: Path, store: TileStore) -> None:
    durable.make_directory(store.directory)
    program = (
        "import sys; from pathlib import Path; from histofed.base import durable\n"
        f"with durable.lock(Path({str(store.directory / 'lock')!r}), 'another'):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        assert same(load(data, store), load(data, None))
        assert sets(store) == set()
        other.stdin.close()
    load(data, store)
    assert len(sets(store)) == 1


def test_two_processes_at_once_see_the_same_tiles(data: Path, store: TileStore) -> None:
    program = (
        "from pathlib import Path; from histofed.tiles import cache, folder; from histofed.tiles.store import TileStore\n"
        f"tiles = folder.scan(Path({str(data)!r}), {CLASSES!r})\n"
        f"print(cache.load(tiles, {SIZE}, store=TileStore(Path({str(store.directory)!r}))).fingerprint())\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {one.communicate(timeout=120)[0].strip() for one in running}
    assert [one.returncode for one in running] == [0, 0, 0]
    assert said == {load(data, None).fingerprint()}
    assert len(sets(store)) == 1


def test_what_a_killed_process_left_is_removed(data: Path, store: TileStore) -> None:
    durable.make_directory(store.directory)
    (store.directory / ".building.tiles.4711.tmp").write_bytes(bytes(1000))
    (store.directory / "building.tiles").write_bytes(bytes(1000))
    load(data, store)
    assert {path.suffix for path in store.directory.iterdir()} == {"", ".tiles", ".stamps"}


def test_the_cache_holds_no_name(data: Path, store: TileStore) -> None:
    load(data, store)
    for path in store.directory.iterdir():
        assert b"TCGA" not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0
    assert store.directory.stat().st_mode & 0o077 == 0


def test_where_a_persons_cache_lies() -> None:
    assert default_directory({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/histofed/tiles")
    assert default_directory({"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == Path("/h/.cache/histofed/tiles")


def test_pillows_filter_is_put_back(data: Path, store: TileStore) -> None:
    import warnings

    before = list(warnings.filters)
    load(data, store)
    assert warnings.filters == before
    assert decode.MINIMUM_EDGE == SIZE
