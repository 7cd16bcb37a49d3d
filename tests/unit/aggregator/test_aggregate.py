"""Streaming FedAvg: exact where it must be, deterministic always, small in memory, and plain about bad input."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.aggregate import AggregateJob, AggregateResult, Share, UpdateInput, aggregate, follow
from histofed import weights
from histofed.base.errors import BadData, HistofedError, TryLater
from histofed.base.hashing import sha256_file
from histofed.encodings.file import Form
from histofed.recipes.contract import ServerRule
from histofed.weights import Array
from tests.support.failing_disk import fail_from

Tensors = Mapping[str, Array]
EMA = ServerRule("ema.w", "w", 0.9)


def tensors(seed: int) -> dict[str, Array]:
    """Two types, a scalar, an empty tensor, and one longer than a piece."""
    draw = np.random.default_rng(seed)
    return {
        "w": draw.standard_normal((3, weights.PIECE // 2 + 5)).astype(np.float32),
        "half": draw.standard_normal((7,)).astype(np.float16),
        "scalar": np.array(draw.standard_normal(), np.float32),
        "none": np.zeros((0, 4), np.float32),
        "wide": draw.standard_normal((2, 3)),
    }


class Bench:
    """Files of one round in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shared, self.server = folder / "next.safetensors", folder / "server.safetensors"

    def write(self, name: str, content: Tensors) -> Path:
        path = self.folder / f"{name}.safetensors"
        weights.save(path, content)
        return path

    def job(self, updates: Mapping[str, Tensors], counts: Mapping[str, int], base: Tensors | None = None) -> AggregateJob:
        return AggregateJob(
            base=self.write("base", base if base is not None else next(iter(updates.values()))),
            updates=tuple(UpdateInput(site, self.write(site, content), counts[site]) for site, content in updates.items()),
            state=None,
            rules=(),
            round=1,
            out_shared=self.shared,
            out_server=None,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_is_the_weighted_mean_and_keeps_types_and_shapes(bench: Bench) -> None:
    updates = {"south": tensors(1), "north": tensors(2), "east": tensors(3)}
    counts = {"south": 10, "north": 70, "east": 20}
    result = aggregate(bench.job(updates, counts))
    found = weights.read(bench.shared)
    assert {name: (array.dtype, array.shape) for name, array in found.items()} == {
        name: (array.dtype, array.shape) for name, array in updates["south"].items()
    }
    for name, array in found.items():
        expected = sum(counts[site] / 100 * updates[site][name].astype(np.float64) for site in counts)
        np.testing.assert_allclose(array, expected, rtol=1e-3 if array.dtype == np.float16 else 2e-7, atol=1e-12)
    assert result.shares == (Share("east", 0.2), Share("north", 0.7), Share("south", 0.1))
    assert result.server is None


def test_its_digest_and_length_are_those_of_the_file(bench: Bench) -> None:
    result = aggregate(bench.job({"north": tensors(1), "south": tensors(2)}, {"north": 1, "south": 2}))
    assert result.shared == weights.Written(sha256_file(bench.shared), bench.shared.stat().st_size)


def test_neither_order_of_arrival_nor_repetition_changes_a_bit(bench: Bench) -> None:
    job = bench.job({name: tensors(seed) for seed, name in enumerate("abcd")}, {"a": 3, "b": 5, "c": 7, "d": 1})
    results = {aggregate(dataclasses.replace(job, updates=order)) for order in itertools.permutations(job.updates)}
    assert len(results) == 1


@pytest.mark.parametrize("threads", ["1", "4"])
def test_threads_do_not_change_a_bit(bench: Bench, threads: str) -> None:
    job = bench.job({"a": tensors(1), "b": tensors(2), "c": tensors(3)}, {"a": 3, "b": 5, "c": 7})
    here = aggregate(job).shared.sha256
    code = (
        "import sys; from aggregator.aggregate import aggregate; from aggregator.jobs import decode_job;"
        "print(aggregate(decode_job(sys.stdin.buffer.read())).shared.sha256)"
    )
    from aggregator.jobs import encode_job

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=encode_job(job),
        capture_output=True,
        check=True,
        env={"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
    )
    assert done.stdout.decode().strip() == here


def test_one_update_gives_its_own_file(bench: Bench) -> None:
    job = bench.job({"north": tensors(4)}, {"north": 17})
    aggregate(job)
    assert bench.shared.read_bytes() == job.updates[0].path.read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "half", "wide", "scalar"])
def test_a_value_that_is_not_finite_is_refused_with_site_and_tensor(bench: Bench, value: float, name: str) -> None:
    broken = {key: array.copy() for key, array in tensors(2).items()}
    broken[name].reshape(-1)[-1] = value
    job = bench.job({"north": tensors(1), "south": broken}, {"north": 1, "south": 1})
    with pytest.raises(BadData, match=f"site south cannot be averaged: tensor '{name}' holds values that are not finite"):
        aggregate(job)
    assert not bench.shared.exists()


def test_updates_that_do_not_fit_the_model_are_refused_with_site_and_tensor(bench: Bench) -> None:
    good = {"w": np.zeros((2, 2), np.float32)}
    for other, words in (
        ({"w": np.zeros((4,), np.float32)}, r"site south .* tensor 'w' is F32\[4\] where the model has F32\[2, 2\]"),
        ({"w": np.zeros((2, 2), np.float64)}, r"site south .* tensor 'w' is F64"),
        ({}, "site south .* tensor 'w' is missing"),
        (good | {"x": np.zeros(1, np.float32)}, "site south .* tensor 'x' is unknown"),
    ):
        with pytest.raises(BadData, match=words):
            aggregate(bench.job({"north": good, "south": other}, {"north": 1, "south": 1}))


def test_tensors_that_are_not_floating_are_refused(bench: Bench) -> None:
    counts = {"steps": np.ones(2, np.int64)}
    with pytest.raises(BadData, match="type I64 cannot be averaged; only floating tensors are shared"):
        aggregate(bench.job({"north": counts}, {"north": 1}))


def test_a_damaged_or_missing_update_is_named(bench: Bench) -> None:
    job = bench.job({"north": tensors(1), "south": tensors(2)}, {"north": 1, "south": 1})
    path = bench.folder / "south.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadData, match="the update of site south cannot be used: damaged"):
        aggregate(job)


def test_what_is_wrong_with_a_file_of_ours_is_no_verdict(bench: Bench) -> None:
    def trouble(words: str) -> None:
        with pytest.raises(HistofedError, match=words) as caught:
            aggregate(job)
        assert not isinstance(caught.value, BadData)

    job = bench.job({"north": tensors(1), "south": tensors(2)}, {"north": 1, "south": 1})
    (bench.folder / "south.safetensors").unlink()
    trouble("the update of site south cannot be read: No such file or directory; repair the disk")
    job.base.write_bytes(job.base.read_bytes()[:-1])
    trouble("the base model cannot be used: damaged.*; restore it from a backup")
    job.base.unlink()
    trouble("the base model cannot be read: No such file or directory; repair the disk, or restore a backup")


@pytest.mark.parametrize("name", ["base", "south"])
def test_a_disk_that_fails_under_an_average_is_no_verdict(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    job = bench.job({"north": tensors(1), "south": tensors(2)}, {"north": 1, "south": 1})
    job = dataclasses.replace(job, step=Form("float32-delta", "ab" * 32), out_step=bench.folder / "step")
    struck = job.base if name == "base" else job.updates[-1].path
    fail_from(monkeypatch, struck, struck.stat().st_size - 8)
    with pytest.raises(TryLater, match="cannot be read: Input/output error"):
        aggregate(job)
    assert not bench.shared.exists()


@pytest.mark.parametrize(
    ("counts", "sites", "words"),
    [
        ([], "", "no update to average"),
        ([1, 0], "ab", "site b counts by 0; it must be above zero"),
        ([1, -4], "ab", "site b counts by -4"),
        ([1, 1], "aa", "site a has more than one update"),
    ],
)
def test_impossible_sets_of_updates_are_refused(bench: Bench, counts: list[int], sites: str, words: str) -> None:
    path = bench.write("update", tensors(1))
    updates = tuple(UpdateInput(site, path, count) for site, count in zip(sites, counts, strict=True))
    job = AggregateJob(path, updates, None, (), 1, bench.shared, None)
    with pytest.raises(BadData, match=words):
        aggregate(job)


def test_memory_does_not_depend_on_the_number_of_updates(bench: Bench) -> None:
    code = (
        "import re, sys, pathlib; from aggregator.aggregate import aggregate; from aggregator.jobs import decode_job;"
        "job = decode_job(sys.stdin.buffer.read());"
        "status = lambda: int(re.search(r'RssAnon:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]);"
        "before = status(); aggregate(job); print(status() - before)"
    )
    from aggregator.jobs import encode_job

    path = bench.write("update", {"w": np.ones((8, 1 << 20), np.float32)})  # 32 MiB
    used = []
    for sites in (2, 12):
        updates = tuple(UpdateInput(f"site-{index}", path, 1) for index in range(sites))
        job = AggregateJob(path, updates, None, (), 1, bench.shared, None)
        done = subprocess.run([sys.executable, "-c", code], input=encode_job(job), capture_output=True, check=True)
        used.append(int(done.stdout))
    assert max(used) < 8 * 1024, f"kilobytes with 2 and 12 updates of 32 MiB: {used}"


# -- server tensors ----------------------------------------------------------------------------------------------------


def with_rules(bench: Bench, round_number: int, state: Tensors | None, *rules: ServerRule) -> AggregateResult:
    job = bench.job({"north": {"w": np.full(3, 4.0, np.float32)}}, {"north": 1})
    return aggregate(
        dataclasses.replace(
            job,
            rules=rules,
            round=round_number,
            state=bench.write("state", state) if state is not None else None,
            out_server=bench.server,
        )
    )


def test_a_missing_server_tensor_starts_as_a_copy(bench: Bench) -> None:
    result = with_rules(bench, 7, None, EMA)
    assert result.server == weights.Written(sha256_file(bench.server), bench.server.stat().st_size)
    np.testing.assert_array_equal(weights.read(bench.server)["ema.w"], np.full(3, 4.0, np.float32))


@pytest.mark.parametrize(("round_number", "decay"), [(1, 0.0), (2, 1 / 6), (3, 2 / 7), (1000, 0.9)])
def test_early_rounds_remember_less(bench: Bench, round_number: int, decay: float) -> None:
    with_rules(bench, round_number, {"ema.w": np.full(3, 1.0, np.float32)}, EMA)
    found = weights.read(bench.server)["ema.w"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.full(3, decay * 1.0 + (1 - decay) * 4.0, np.float32))


def test_several_rules_may_follow_one_tensor_in_any_order(bench: Bench) -> None:
    slow, quick = ServerRule("z.slow", "w", 0.99), ServerRule("a.quick", "w", 0.0)
    state = {"z.slow": np.zeros(3, np.float32), "a.quick": np.zeros(3, np.float32)}
    first = with_rules(bench, 5, state, slow, quick)
    assert with_rules(bench, 5, state, quick, slow) == first
    found = weights.read(bench.server)
    np.testing.assert_array_equal(found["a.quick"], np.full(3, 4.0, np.float32))
    np.testing.assert_allclose(found["z.slow"], (1 - 4 / 9) * 4.0)


@pytest.mark.parametrize(
    ("state", "rules", "words"),
    [
        (None, (ServerRule("e", "gone", 0.9),), "'e' follows 'gone', which the model does not have"),
        (None, (EMA, EMA), "'ema.w' follows two rules"),
        ({"old": np.zeros(3, np.float32)}, (EMA,), "'old' follows no rule"),
        ({"ema.w": np.zeros(4, np.float32)}, (EMA,), "'ema.w' has another type or shape than 'w'"),
        ({"ema.w": np.zeros(3, np.float64)}, (EMA,), "'ema.w' has another type or shape than 'w'"),
        ({"ema.w": np.full(3, np.nan, np.float32)}, (EMA,), "'ema.w' holds values that are not finite"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(
    bench: Bench, state: Tensors | None, rules: tuple[ServerRule, ...], words: str
) -> None:
    with pytest.raises(BadData, match=words):
        with_rules(bench, 3, state, *rules)
    assert not bench.server.exists()


def test_rules_need_a_place_to_write_to(bench: Bench) -> None:
    path = bench.write("model", {"w": np.zeros(3, np.float32)})
    with pytest.raises(BadData, match="no file to write them to"):
        follow(path, None, (EMA,), 1, None)


@given(decay=st.floats(0, 1), round_number=st.integers(1, 100_000), value=st.floats(-(2.0**100), 2.0**100, width=32))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_a_server_tensor_that_caught_up_stays(tmp_path: Path, decay: float, round_number: int, value: float) -> None:
    model, state, out = (tmp_path / name for name in ("model", "state", "out"))
    weights.save(model, {"w": np.full(3, value, np.float32)})
    weights.save(state, {"ema.w": np.full(3, value, np.float32)})
    follow(model, state, (ServerRule("ema.w", "w", decay),), round_number, out)
    np.testing.assert_array_equal(weights.read(out)["ema.w"], np.full(3, value, np.float32))
