"""A backup is believed byte by byte or not at all."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from histofed.backup import archive
from histofed.backup.archive import Source
from histofed.backup.manifest import CA_MEMBER, FORMAT, Manifest, decode, encode, seal
from histofed.base.clock import FakeClock, SystemClock, iso
from histofed.base.errors import (
    AlreadyThere,
    BadData,
    CannotWriteState,
    ConfigError,
    DigestMismatch,
    HistofedError,
    NotAuthorised,
    NotFound,
    VersionMismatch,
)
from histofed.base.ids import canonical
from histofed.pki.credentials import Credentials
from tests.support.pki import Federation

NAMES = re.compile(r"identity/ca\.pem|files/[a-z]+")
REFUSED = (BadData, NotAuthorised, ConfigError)


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return Federation().aggregator()


@pytest.fixture(scope="module")
def made(credentials: Credentials, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of three files, one of them empty."""
    folder = tmp_path_factory.mktemp("made")
    write(folder / "backup", credentials, {"files/one": b"one" * 5000, "files/none": b""})
    return folder / "backup"


def write(target: Path, credentials: Credentials, files: dict[str, bytes], **changed: object) -> Manifest:
    contents = {CA_MEMBER: credentials.ca_pem, **files}
    room = target.with_name(f"{target.name}.room")
    sources = []
    for name, data in contents.items():
        path = room / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sources.append(Source.read(name, path))
    fields = {
        "format": FORMAT, "kind": "aggregator", "id": "1", "made_at": iso(SystemClock().now()), "version": "0.1.0",
        "db_schema": "0003", "federation": credentials.federation, "ca_sha256": credentials.ca_sha256,
        "holder": credentials.identity.uri, "epoch": 1, "records": 0, "head": "0" * 64, "rounds": {"demo": 3},
        "open_rounds": [], "members": [source.member for source in sources],
    }  # fmt: skip
    manifest = Manifest(**(fields | changed))  # type: ignore[arg-type]  # each has its type
    archive.write(target, manifest, sources, credentials)
    return manifest


def check(path: Path) -> Manifest:
    return archive.check(path, "aggregator", NAMES)


def test_what_was_written_is_read(made: Path, tmp_path: Path) -> None:
    manifest = check(made)
    assert manifest.rounds == {"demo": 3}
    assert made.stat().st_mode & 0o777 == 0o600
    with archive.reading(made, "aggregator", NAMES) as opened:
        archive.unpack(opened, tmp_path, lambda _: None)
    assert (tmp_path / "files/one").read_bytes() == b"one" * 5000
    assert (tmp_path / "files/none").read_bytes() == b""
    with tarfile.open(made) as tar:  # an ordinary tar shows it
        assert tar.getnames() == ["manifest.json", "signature.json", CA_MEMBER, "files/one", "files/none"]


def test_nothing_is_overwritten(made: Path, credentials: Credentials, tmp_path: Path) -> None:
    before = made.read_bytes()
    with pytest.raises(AlreadyThere, match="overwrites nothing"):
        write(made, credentials, {})
    assert made.read_bytes() == before
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(AlreadyThere):
        archive.refuse_existing(tmp_path / "link")
    with pytest.raises(NotFound, match="there is no folder"):
        archive.refuse_existing(tmp_path / "missing" / "backup")


@settings(deadline=None, max_examples=150)
@given(place=some.floats(0, 1, exclude_max=True), bit=some.integers(0, 7))
def test_a_flipped_bit_is_never_restored(made: Path, place: float, bit: int) -> None:
    """Some bytes of a tar mean nothing (padding); whatever is read back is then still what was written."""
    data = bytearray(made.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    damaged = made.with_name("damaged")
    damaged.write_bytes(data)
    try:
        found = check(damaged)
    except REFUSED:
        return
    assert found == check(made)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.6])
def test_a_file_that_was_cut_short_is_refused(made: Path, tmp_path: Path, share: float) -> None:
    data = made.read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadData):
        check(tmp_path / "cut")


def rewritten(
    made: Path, target: Path, change: Callable[[tarfile.TarInfo, bytes], list[tuple[tarfile.TarInfo, bytes]]]
) -> Path:
    """The backup with its members passed through `change`."""
    with tarfile.open(made) as old, tarfile.open(target, "w") as new:
        for info in old:
            opened = old.extractfile(info)
            for header, data in change(info, opened.read() if opened else b""):
                header.size = len(data)
                new.addfile(header, io.BytesIO(data))
    return target


def test_members_are_neither_added_nor_left_out_nor_moved(made: Path, tmp_path: Path) -> None:
    def twice(info: tarfile.TarInfo, data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        return [(info, data)] * (1 + (info.name == "files/none"))

    def without(info: tarfile.TarInfo, data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        return [] if info.name == "files/one" else [(info, data)]

    def renamed(info: tarfile.TarInfo, data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        info.name = info.name.replace("files/one", "../../etc/passwd")
        return [(info, data)]

    def linked(info: tarfile.TarInfo, data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        if info.name == "files/none":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        return [(info, data)]

    for number, change in enumerate((twice, without, renamed, linked)):
        with pytest.raises(BadData):
            check(rewritten(made, tmp_path / f"{number}", change))


def test_a_manifest_of_somebody_else_is_refused(made: Path, credentials: Credentials, tmp_path: Path) -> None:
    forger = Federation().aggregator()
    payload = encode(check(made))

    def forged(info: tarfile.TarInfo, data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        return [(info, seal(payload, forger) if info.name == "signature.json" else data)]

    with pytest.raises(NotAuthorised, match="not issued by this federation's CA"):
        check(rewritten(made, tmp_path / "forged", forged))
    write(tmp_path / "site", credentials, {}, holder="spiffe://test.example/site/north")
    with pytest.raises(NotAuthorised, match="must be signed by"):
        check(tmp_path / "site")


def test_a_certificate_that_has_ended_still_proves_a_backup(tmp_path: Path) -> None:
    old = Federation().at(FakeClock()).aggregator()
    write(tmp_path / "old", old, {})
    assert check(tmp_path / "old").federation == "test.example"


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"kind": "agent"}, BadData, "backup of an agent: use histofed-agent"),
        ({"format": 2}, VersionMismatch, "install a newer one"),
        ({"ca_sha256": "0" * 64}, BadData, "not the one that its manifest names"),
    ],
)
def test_a_backup_of_another_kind_or_time(
    credentials: Credentials, tmp_path: Path, changed: dict[str, object], error: type[HistofedError], words: str
) -> None:
    write(tmp_path / "backup", credentials, {}, **changed)
    with pytest.raises(error, match=words):
        check(tmp_path / "backup")


def test_names_that_no_state_has_are_refused(credentials: Credentials, tmp_path: Path) -> None:
    write(tmp_path / "backup", credentials, {"files/UPPER": b""})
    with pytest.raises(BadData, match="names files that no backup"):
        check(tmp_path / "backup")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"format":1}', b"[" * 10000, canonical({"format": 1, "kind": "agent"})]
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(BadData):
        decode(data)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a tar\n" * 200)
    with pytest.raises(BadData, match="not a backup of histofed"):
        check(tmp_path / "text")
    with pytest.raises(NotFound, match="cannot be read"):
        check(tmp_path / "nothing")
    with pytest.raises(NotFound):
        check(tmp_path)


def test_a_file_that_is_not_what_its_name_says_is_not_backed_up(credentials: Credentials, tmp_path: Path) -> None:
    (tmp_path / "ca").write_bytes(credentials.ca_pem)
    (tmp_path / "blob").write_bytes(b"rotten")
    sound = Source.read(CA_MEMBER, tmp_path / "ca")
    rotten = Source("files/one", tmp_path / "blob", 6, sound.sha256)
    manifest = write(tmp_path / "sound", credentials, {})
    with pytest.raises(DigestMismatch, match="disk under the state is failing"):
        archive.write(tmp_path / "backup", manifest, [sound, rotten], credentials)
    assert not list(tmp_path.glob("*backup*")), "nothing is left"


def test_a_full_disk_leaves_nothing(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from histofed.base import failpoints

    monkeypatch.setattr(failpoints, "_armed", failpoints._parse("replace.before_rename=ENOSPC:2"))
    with archive.reading(made, "aggregator", NAMES) as opened, pytest.raises(CannotWriteState, match="No space left"):
        archive.unpack(opened, tmp_path, lambda _: None)
    assert not (tmp_path / "files/one").exists()
