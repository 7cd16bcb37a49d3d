"""Encoded files: exact where they promise it, bounded where they round, the same bytes every time, refused when wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from histofed import weights
from histofed.base.encoding import ENCODINGS, EXACT, Encoding
from histofed.base.errors import BadData, TryLater
from histofed.base.hashing import sha256_file
from histofed.encodings.file import DecodedFile, Encoded, Form, encode_file, encoded_header, longest, open_encoded
from histofed.encodings.planes import pack
from histofed.encodings.words import transform
from histofed.weights import HEADER_LIMIT, PIECE, Array, TensorFile, difference, dtype_of
from tests.support.failing_disk import fail_from
from tests.unit.encodings.conftest import MakePair, Pair

CODED = tuple(name for name in ENCODINGS if name != "float32")
WIDE = 1e9


def encoded(pair: Pair, encoding: Encoding, target: Path, max_norm: float = WIDE) -> Encoded:
    return encode_file(pair.update, pair.base, pair.form(encoding), max_norm, target)


def decoded(path: Path, pair: Pair, encoding: Encoding) -> dict[str, Array]:
    with TensorFile(pair.base) as base, open_encoded(path, base, pair.form(encoding)) as file:
        return {name: file.copy(name) for name in file.specs}


@pytest.mark.parametrize("encoding", CODED)
def test_tensors_come_back_in_type_and_shape_and_as_near_as_promised(pair: Pair, tmp_path: Path, encoding: Encoding) -> None:
    written = encoded(pair, encoding, tmp_path / "coded")
    assert written.file == weights.Written(sha256_file(tmp_path / "coded"), (tmp_path / "coded").stat().st_size)
    found, trained, base = decoded(tmp_path / "coded", pair, encoding), weights.read(pair.update), weights.read(pair.base)
    for name, array in trained.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        if encoding in EXACT or array.dtype != np.float32:
            assert found[name].tobytes() == array.tobytes()
        else:
            scale = array if encoding == "bfloat16" else array - base[name]
            assert (np.abs(found[name] - array) <= 2.0**-7 * np.abs(scale)).all()


@pytest.mark.parametrize("encoding", CODED)
def test_what_it_says_of_itself_is_what_a_reader_measures(pair: Pair, tmp_path: Path, encoding: Encoding) -> None:
    written = encoded(pair, encoding, tmp_path / "coded")
    with TensorFile(pair.base) as base, open_encoded(tmp_path / "coded", base, pair.form(encoding)) as file:
        assert written.norm == difference(file, base).norm or written.norm == pytest.approx(difference(file, base).norm)
    found, trained, start = decoded(tmp_path / "coded", pair, encoding), weights.read(pair.update), weights.read(pair.base)
    error = np.concatenate([(found[name].astype(float) - trained[name]).ravel() for name in trained])
    step = np.concatenate([(trained[name].astype(float) - start[name]).ravel() for name in trained])
    assert written.loss.largest == pytest.approx(np.abs(error).max())
    assert written.loss.rms == pytest.approx(np.sqrt(np.square(error).mean()))
    assert written.loss.relative == pytest.approx(np.linalg.norm(error) / np.linalg.norm(step))
    assert written.loss.ratio == written.file.bytes / sum(array.nbytes for array in trained.values())
    assert (written.loss.largest == 0.0) == (encoding in EXACT)


@pytest.mark.parametrize("encoding", CODED)
def test_none_is_longer_than_is_allowed_for(make_pair: MakePair, tmp_path: Path, encoding: Encoding) -> None:
    """Noise behind its lengths: many blocks, and tensors so small that they are nearly nothing else."""
    noise = np.random.default_rng(1)
    scalars = {f"{number}": np.array(1.0) for number in range(2000)}
    pair = make_pair({**scalars, "long": np.ones(100 * PIECE + 1, np.float32), "wide": np.ones(PIECE)}, {})
    header = encoded_header(pair.form(encoding))
    with TensorFile(pair.base) as base, (tmp_path / "coded").open("wb") as coded:
        coded.write(header)
        for name, spec in base.specs.items():
            words = transform(encoding, dtype_of(spec)).words
            for piece in base.pieces(name):
                coded.write(pack(np.frombuffer(noise.bytes(piece.size * words.itemsize), words)))
    with TensorFile(pair.base) as base, DecodedFile(tmp_path / "coded", base, pair.form(encoding)) as read:
        assert len(read.specs) == 2002
    allowed = longest(pair.base.stat().st_size)
    assert (tmp_path / "coded").stat().st_size - len(header) <= allowed - HEADER_LIMIT
    assert len(header) <= HEADER_LIMIT


def test_nor_is_a_plain_one_with_as_much_header_as_is_read(pair: Pair, tmp_path: Path) -> None:
    written = weights.save(tmp_path / "plain", weights.read(pair.update), {"words": "x" * (HEADER_LIMIT - 1000)})
    with TensorFile(tmp_path / "plain"):
        assert written.bytes <= longest(pair.base.stat().st_size)


@pytest.mark.parametrize("encoding", CODED)
def test_other_processes_write_the_same_bytes(pair: Pair, tmp_path: Path, encoding: Encoding) -> None:
    """Another hash seed, another number of threads."""
    written = encoded(pair, encoding, tmp_path / "coded")
    script = (
        "import sys; from pathlib import Path; from histofed.encodings.file import Form, encode_file\n"
        "update, base, encoding, sha, target = sys.argv[1:]\n"
        f"print(encode_file(Path(update), Path(base), Form(encoding, sha), {WIDE}, Path(target)).file.sha256)"
    )
    arguments = [str(pair.update), str(pair.base), encoding, pair.digest, str(tmp_path / "again")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "3", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == written.file.sha256


def test_an_unchanged_model_costs_next_to_nothing(make_pair: MakePair, tmp_path: Path) -> None:
    base = {"w": np.random.default_rng(0).standard_normal(4 * PIECE).astype(np.float32)}
    pair = make_pair(base, base)
    for encoding in ("float32-delta", "bfloat16-delta"):
        assert encoded(pair, encoding, tmp_path / encoding).loss.ratio < 0.01
        assert decoded(tmp_path / encoding, pair, encoding)["w"].tobytes() == base["w"].tobytes()


def test_halves_of_what_training_changed_are_less_than_half(make_pair: MakePair, tmp_path: Path) -> None:
    """The issue's number, on deltas as Adam leaves them: of one order of magnitude, with tails."""
    draw = np.random.default_rng(0)
    base = draw.standard_normal(8 * PIECE).astype(np.float32) * np.float32(0.05)
    step = draw.standard_normal(base.size) * np.exp(draw.standard_normal(base.size)) * 1e-3
    pair = make_pair({"w": base}, {"w": (base + step).astype(np.float32)})
    ratios = {encoding: encoded(pair, encoding, tmp_path / encoding).loss.ratio for encoding in CODED}
    assert ratios["bfloat16-delta"] < 0.36
    assert ratios["bfloat16"] < 0.36
    assert 0.5 < ratios["float32-delta"] < 0.75


# -- the norm bound ----------------------------------------------------------------------------------------------------


def test_rounding_never_carries_a_clipped_update_over_its_bound(make_pair: MakePair, tmp_path: Path) -> None:
    """All differences just above halfway between two values of bfloat16: to nearest, every one of them grows."""
    base = np.zeros(1000, np.float32)
    update = np.full(1000, 1 + 2.0**-8 + 2.0**-16, np.float32)
    pair = make_pair({"w": base}, {"w": update})
    bound = float(np.linalg.norm(update.astype(np.float64)))
    near = encoded(pair, "bfloat16-delta", tmp_path / "near")
    assert near.norm > bound * 1.003
    kept = encoded(pair, "bfloat16-delta", tmp_path / "kept", max_norm=bound)
    assert bound * 0.99 < kept.norm <= bound
    assert decoded(tmp_path / "kept", pair, "bfloat16-delta")["w"].max() == 1.0


@pytest.mark.parametrize("encoding", ["float32-delta", "bfloat16-delta"])
def test_an_update_that_is_at_its_bound_is_taken(make_pair: MakePair, tmp_path: Path, encoding: Encoding) -> None:
    """Nothing is rounded here; the norm may differ in its last bit all the same, as sums in another order do."""
    base = np.zeros(3 * PIECE, np.float32)
    update = np.full(base.size, 0.5, np.float32)
    pair = make_pair({"w": base}, {"w": update})
    bound = np.nextafter(0.5 * base.size**0.5, 0)
    assert encoded(pair, encoding, tmp_path / "coded", max_norm=bound).loss.largest == 0.0


def test_rounded_weights_that_leave_the_bound_are_refused_in_words(pair: Pair, tmp_path: Path) -> None:
    with TensorFile(pair.update) as new, TensorFile(pair.base) as base:
        bound = difference(new, base).norm
    with pytest.raises(BadData, match=r"'bfloat16' moves the update to a norm of .*aggregation\.max_norm.*'bfloat16-delta'"):
        encoded(pair, "bfloat16", tmp_path / "coded", max_norm=bound)


def test_weights_that_bfloat16_cannot_hold_are_refused(make_pair: MakePair, tmp_path: Path) -> None:
    largest = np.array([np.finfo(np.float32).max], np.float32)
    pair = make_pair({"w": largest}, {"w": largest})
    with pytest.raises(BadData, match="to a norm of inf"):
        encoded(pair, "bfloat16", tmp_path / "coded")


def test_other_tensors_than_the_bases_are_refused(make_pair: MakePair, tmp_path: Path) -> None:
    pair = make_pair({"w": np.zeros(3, np.float32)}, {"w": np.zeros(4, np.float32)})
    with pytest.raises(BadData, match=r"tensor 'w' is F32\[4\] where the model has F32\[3\]"):
        encoded(pair, "bfloat16-delta", tmp_path / "coded")
    assert not (tmp_path / "coded").exists()


# -- files that are not what they should be ----------------------------------------------------------------------------


def test_float32_is_the_plain_file(pair: Pair) -> None:
    with TensorFile(pair.base) as base, open_encoded(pair.update, base, Form()) as file:
        assert isinstance(file, TensorFile)


def opened(path: Path, pair: Pair, form: Form) -> None:
    with TensorFile(pair.base) as base, DecodedFile(path, base, form) as file:
        for name in file.specs:
            file.copy(name)


@pytest.fixture
def coded(pair: Pair, tmp_path: Path) -> Path:
    encoded(pair, "bfloat16-delta", tmp_path / "coded")
    return tmp_path / "coded"


def test_another_base_is_refused(pair: Pair, coded: Path) -> None:
    with pytest.raises(BadData, match=f"says base '{pair.digest}', where it must be '{'ab' * 32}'"):
        opened(coded, pair, Form("bfloat16-delta", "ab" * 32))


def test_another_encoding_is_refused(pair: Pair, coded: Path) -> None:
    with pytest.raises(BadData, match="says encoding 'bfloat16-delta', where it must be 'bfloat16'"):
        opened(coded, pair, pair.form("bfloat16"))
    with pytest.raises(BadData, match="not an update in encoding 'float32-delta'"):
        opened(pair.update, pair, pair.form("float32-delta"))
    with TensorFile(pair.base) as base, pytest.raises(BadData, match="not a safetensors file"):
        open_encoded(coded, base, Form())


def test_a_file_cut_anywhere_is_refused(pair: Pair, coded: Path) -> None:
    whole = coded.read_bytes()
    for size in (*range(0, 200, 13), *range(len(whole) - 9, len(whole)), *range(200, len(whole), len(whole) // 20)):
        coded.write_bytes(whole[:size])
        with pytest.raises(BadData, match=r"ends too soon|not an update|its header is not JSON"):
            opened(coded, pair, pair.form("bfloat16-delta"))


@pytest.fixture
def long(make_pair: MakePair) -> Pair:
    """Three pieces of one tensor."""
    return make_pair({"w": np.ones(3 * PIECE, np.float32)}, {"w": np.full(3 * PIECE, 1.5, np.float32)})


def test_a_file_that_becomes_shorter_under_a_walk_is_refused(long: Pair, tmp_path: Path) -> None:
    path, form = tmp_path / "coded", long.form("bfloat16-delta")
    encoded(long, "bfloat16-delta", path)
    with TensorFile(long.base) as base, DecodedFile(path, base, form) as file:
        walk = file.pieces("w")
        next(walk)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(BadData, match="tensor 'w' cannot be decoded: its file has become shorter"):
            list(walk)


def test_a_disk_that_fails_says_nothing_of_the_tensors(long: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, form = tmp_path / "coded", long.form("bfloat16-delta")
    size = encoded(long, "bfloat16-delta", path).file.bytes
    with TensorFile(long.base) as base, DecodedFile(path, base, form) as file:
        fail_from(monkeypatch, path, size - 1)
        with pytest.raises(TryLater, match="an update cannot be read: Input/output error; repair the disk"):
            list(file.pieces("w"))
    for byte in (0, 5, size // 2):
        fail_from(monkeypatch, path, byte)
        with pytest.raises(TryLater, match="an update cannot be read: Input/output error; repair the disk"):
            opened(path, long, form)


def test_bytes_behind_the_last_tensor_are_refused(pair: Pair, coded: Path) -> None:
    coded.write_bytes(coded.read_bytes() + b"\0")
    with pytest.raises(BadData, match="1 bytes follow its last tensor"):
        opened(coded, pair, pair.form("bfloat16-delta"))


def test_a_flipped_bit_is_refused_or_decodes_to_as_many_values(pair: Pair, coded: Path) -> None:
    whole = bytearray(coded.read_bytes())
    for place in np.random.default_rng(5).integers(0, len(whole), 60).tolist():
        whole[place] ^= 0x10
        coded.write_bytes(whole)
        try:
            opened(coded, pair, pair.form("bfloat16-delta"))
        except BadData as error:
            assert str(error)
        whole[place] ^= 0x10


HEADERS = {
    "no table": (b"[]", "says base 'None'"),
    "no JSON": (b"{", "its header is not JSON"),
    "too deep": (b"[" * 1000, "its header is not JSON"),
    "another block": (None, "says block '7', where it must be 32768"),
    "a space": (None, "not in canonical form"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_is_another_is_refused_in_words(pair: Pair, coded: Path, kind: str) -> None:
    text, words = HEADERS[kind]
    honest = coded.read_bytes()[12:].split(b"}")[0] + b"}"
    if text is None:
        text = honest.replace(b"32768", b"7") if kind == "another block" else honest + b" "
    coded.write_bytes(b"histofed" + len(text).to_bytes(4, "little") + text)
    with pytest.raises(BadData, match=words):
        opened(coded, pair, pair.form("bfloat16-delta"))
