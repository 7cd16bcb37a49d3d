"""Rounds whose updates are encoded: the mean of what they decode to, exactly where the encoding is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aggregator.aggregate import AggregateJob, FlowerCall, UpdateInput, aggregate
from aggregator.inspection import check_tensors
from histofed import weights
from histofed.base.encoding import EXACT, Encoding
from histofed.base.errors import TryLater
from histofed.encodings.file import PLAIN, Encoded, Form, encode_file
from histofed.weights import PIECE
from tests.support.failing_disk import fail_from

SITES = {"east": 3, "north": 70, "south": 20}


class Folder:
    """A base, three sites' plain updates, and the same in any encoding."""

    def __init__(self, path: Path) -> None:
        self.path = path
        draw = np.random.default_rng(4)
        base = {"w": draw.standard_normal((2, PIECE)).astype(np.float32), "b": np.zeros(7, np.float32)}
        self.base = path / "base"
        self.digest = weights.save(self.base, base).sha256
        for site in SITES:
            trained = {name: old + draw.standard_normal(old.shape).astype(np.float32) / 100 for name, old in base.items()}
            weights.save(path / site, trained)

    def encode(self, encoding: Encoding) -> dict[str, Encoded]:
        form = Form(encoding, self.digest)
        return {
            site: encode_file(self.path / site, self.base, form, 1e9, self.path / f"{site}-{encoding}") for site in SITES
        }

    def aggregate(self, encoding: Encoding, flower: FlowerCall | None = None) -> Path:
        form, ending = (PLAIN, "") if encoding == "float32" else (Form(encoding, self.digest), f"-{encoding}")
        target = self.path / f"next-{encoding}"
        updates = tuple(UpdateInput(site, self.path / f"{site}{ending}", count) for site, count in SITES.items())
        job = AggregateJob(self.base, updates, None, (), 1, target, None, flower=flower, form=form)
        if flower is None:
            aggregate(job)
        else:
            pytest.importorskip("flwr", reason="the strategies are an extra")
            from aggregator import flower as strategies

            strategies.aggregate(job)
        return target


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_exact_updates_make_the_very_model_of_plain_ones(folder: Folder) -> None:
    folder.encode("float32-delta")
    assert folder.aggregate("float32-delta").read_bytes() == folder.aggregate("float32").read_bytes()


@pytest.mark.parametrize("encoding", ["bfloat16", "bfloat16-delta"])
def test_the_aggregates_error_is_within_what_the_sites_report(folder: Folder, encoding: Encoding) -> None:
    written = folder.encode(encoding)
    rounded, exact = (weights.read(folder.aggregate(name)) for name in (encoding, "float32"))
    error = np.concatenate([(rounded[name].astype(np.float64) - exact[name]).ravel() for name in exact])
    total = sum(SITES.values())
    largest = sum(SITES[site] / total * one.loss.largest for site, one in written.items())
    rms = sum(SITES[site] / total * one.loss.rms for site, one in written.items())
    # both means are rounded to float32
    assert 0 < np.abs(error).max() <= largest + 1e-6
    assert 0 < np.sqrt(np.square(error).mean()) <= rms + 1e-6


@pytest.mark.parametrize("encoding", ["bfloat16", "float32-delta", "bfloat16-delta"])
def test_the_norm_that_admission_measures_is_the_one_that_the_site_reported(folder: Folder, encoding: Encoding) -> None:
    for site, one in folder.encode(encoding).items():
        path = folder.path / f"{site}-{encoding}"
        assert check_tensors(path, folder.base, 1e9, Form(encoding, folder.digest)) == pytest.approx(one.norm, rel=1e-12)


def test_flowers_strategies_get_decoded_tensors(folder: Folder) -> None:
    call = FlowerCall("FedMedian", {}, 1, {}, None, folder.path / "state")
    for encoding in ("bfloat16-delta", "float32-delta"):
        folder.encode(encoding)
    plain = weights.read(folder.aggregate("float32", call))
    assert weights.read(folder.aggregate("float32-delta", call))["w"].tobytes() == plain["w"].tobytes()
    np.testing.assert_allclose(weights.read(folder.aggregate("bfloat16-delta", call))["w"], plain["w"], atol=2e-4)


@pytest.mark.parametrize("encoding", ["float32", "bfloat16-delta"])
@pytest.mark.parametrize("call", [None, FlowerCall("FedMedian", {}, 1, {}, None, Path("unused"))], ids=["mean", "flower"])
def test_a_disk_that_fails_under_an_update_is_no_verdict(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, encoding: Encoding, call: FlowerCall | None
) -> None:
    path = folder.path / "north"
    if encoding != "float32":
        folder.encode(encoding)
        path = folder.path / f"north-{encoding}"
    fail_from(monkeypatch, path, path.stat().st_size - 1)
    with pytest.raises(TryLater, match="cannot be read: Input/output error; repair the disk"):
        folder.aggregate(encoding, call)
    with pytest.raises(TryLater, match="cannot be read: Input/output error; repair the disk"):
        check_tensors(path, folder.base, 1e9, PLAIN if encoding == "float32" else Form(encoding, folder.digest))


def test_every_encoding_but_two_loses_something() -> None:
    assert {"float32", "float32-delta"} == EXACT
