"""Attacks with an encoded update: bytes that unpack to more, to less, to another model's or to no numbers at all.

Each is what a site with a valid certificate can upload and sign. The aggregator's inspecting child must refuse it in words,
within the memory of an honest one, and an aggregation that met it all the same must name the site.
"""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aggregator.aggregate import AggregateJob, UpdateInput, aggregate
from aggregator.inspection import check_tensors
from histofed import weights
from histofed.base.encoding import Encoding
from histofed.base.errors import BadData
from histofed.base.hashing import sha256_file
from histofed.encodings.file import Form, encode_file
from histofed.encodings.planes import pack
from histofed.weights import PIECE

COUNT = PIECE + 10
BOUND = 100.0
INFINITE, NOT_A_NUMBER = 0xFF00, 0xFF80
"""bfloat16 words, the exponent first."""


class Site:
    """A base, and what a hostile site makes of it."""

    def __init__(self, folder: Path) -> None:
        self.base, self.update = folder / "base", folder / "update"
        values = np.random.default_rng(1).standard_normal(COUNT).astype(np.float32)
        self.digest = weights.save(self.base, {"w": values}).sha256
        weights.save(folder / "trained", {"w": values + np.float32(0.01)})
        self._trained = folder / "trained"

    def form(self, encoding: Encoding = "bfloat16-delta") -> Form:
        return Form(encoding, self.digest)

    def honest(self, form: Form | None = None) -> bytes:
        encode_file(self._trained, self.base, form or self.form(), 1e9, self.update)
        return self.update.read_bytes()

    def header(self) -> bytes:
        honest = self.honest()
        return honest[: honest.index(b"}") + 1]

    def inspect(self, data: bytes, form: Form | None = None) -> float:
        self.update.write_bytes(data)
        return check_tensors(self.update, self.base, BOUND, form or self.form())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def plane(coded: bytes) -> bytes:
    return struct.pack("<I", len(coded)) + coded


def bomb(size: int) -> bytes:
    deflater = zlib.compressobj(9, wbits=-15)
    return deflater.compress(bytes(size)) + deflater.flush()


def words(value: int) -> bytes:
    """Both blocks of `w`, every word the same."""
    return b"".join(pack(np.full(count, value, np.uint16)) for count in (PIECE, COUNT - PIECE))


def test_an_honest_update_is_let_in(site: Site) -> None:
    assert site.inspect(site.honest()) == pytest.approx(0.01 * COUNT**0.5, rel=0.01)


ATTACKS: dict[str, tuple[Callable[[Site], bytes], str]] = {
    "nothing": (lambda site: b"", "not an update in encoding 'bfloat16-delta'"),
    "a plain file": (lambda site: site.base.read_bytes(), "not an update in encoding 'bfloat16-delta'"),
    "a header alone": (lambda site: site.header(), "tensor 'w' cannot be decoded: it ends too soon"),
    "cut short": (lambda site: site.honest()[:-1], "tensor 'w' cannot be decoded: it ends too soon"),
    "more at the end": (lambda site: site.honest() + bytes(100), "100 bytes follow its last tensor"),
    "one tensor twice": (lambda site: site.honest() + words(0), "bytes follow its last tensor"),
    "another base": (lambda site: site.honest(Form("bfloat16-delta", "ab" * 32)), f"says base '{'ab' * 32}'"),
    "another encoding": (lambda site: site.honest(site.form("float32-delta")), "says encoding 'float32-delta'"),
    "an encoding that nobody knows": (
        lambda site: site.honest().replace(b"bfloat16-delta", b"bfloat16-omega"),
        "says encoding 'bfloat16-omega'",
    ),
    "a bomb": (lambda site: site.header() + plane(bomb(8 << 20)) * 4, "ends too soon|claims|does not inflate"),
    "a bomb in the first plane": (
        lambda site: site.header() + plane(bomb(8 << 20)) + site.honest()[len(site.header()) :],
        "does not inflate to its 32768 bytes|claims",
    ),
    "infinite": (lambda site: site.header() + words(INFINITE), "not finite in 1 of 1 tensors"),
    "not a number": (lambda site: site.header() + words(NOT_A_NUMBER), "not finite in 1 of 1 tensors"),
    "far away": (lambda site: site.header() + words(0x8E00), r"aggregation\.max_norm"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_is_refused_in_words(site: Site, attack: str) -> None:
    make, expected = ATTACKS[attack]
    with pytest.raises(BadData, match=expected):
        site.inspect(make(site))


def test_an_encoded_update_where_a_plain_one_is_wanted(site: Site) -> None:
    with pytest.raises(BadData, match="not a safetensors file"):
        site.inspect(site.honest(), Form())


def test_exact_words_of_no_number(site: Site) -> None:
    """Every pattern of 32 bits is a value to the exact difference, NaN among them: it decodes, and is refused then."""
    values = weights.read(site.base)["w"].copy()
    values[7] = np.nan
    weights.save(site.update.with_name("trained"), {"w": values})
    coded = site.update.with_name("nan")
    with pytest.raises(BadData, match="to a norm of inf"):
        encode_file(site.update.with_name("trained"), site.base, site.form("float32-delta"), 1e9, coded)
    with pytest.raises(BadData, match="not finite in 1 of 1 tensors"):
        site.inspect(coded.read_bytes(), site.form("float32-delta"))


def test_a_bomb_costs_no_more_memory_than_an_honest_update(site: Site) -> None:
    honest = site.honest()
    attack = ATTACKS["a bomb in the first plane"][0](site)
    peaks = []
    for data in (honest, attack):
        tracemalloc.start()
        try:
            site.inspect(data)
        except BadData:
            pass
        finally:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 16)


def test_an_aggregation_names_the_site(site: Site, tmp_path: Path) -> None:
    """A disk's mistake after admission: the round is abandoned with the reason, nothing is left behind."""
    good = tmp_path / "good"
    good.write_bytes(site.honest())
    damaged = bytearray(site.honest())
    damaged[len(site.header()) + 4 + 20] ^= 0xFF
    site.update.write_bytes(damaged)
    updates = (UpdateInput("north", good, 1), UpdateInput("south", site.update, 1))
    job = AggregateJob(site.base, updates, None, (), 1, tmp_path / "next", None, form=site.form())
    with pytest.raises(BadData, match="the update of site south cannot be averaged"):
        aggregate(job)
    assert not (tmp_path / "next").exists()


def test_the_digest_of_the_base_is_that_of_its_file(site: Site) -> None:
    """The same tensors in another file are another base: what is signed is bytes, not meaning."""
    other = site.base.with_name("other")
    weights.save(other, weights.read(site.base), {"about": "the same numbers"})
    with pytest.raises(BadData, match="says base"):
        site.inspect(site.honest(), Form("bfloat16-delta", sha256_file(other)))
