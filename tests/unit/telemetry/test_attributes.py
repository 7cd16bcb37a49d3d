"""The allow-list keeps what it knows, in the form it knows."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import ConfigError, all_errors
from histofed.telemetry import attributes as names
from tests.unit.telemetry.identifiers import identifiers

GOOD: dict[str, object] = {
    names.EXPERIMENT_ID: "crc-2026",
    names.ROUND_NUMBER: 3,
    names.TASK_KIND: "train",
    names.SITE_ID: "north-clinic",
    names.ATTEMPT: 1,
    names.MODEL_DIGEST: "ab" * 32,
    names.MODEL_BYTES: 344_000_000,
    names.UPDATE_BYTES: 344_000_000,
    names.UPDATE_SHA256: "0" * 64,
    names.UPDATE_NORM: 1.5,
    names.UPDATE_CLIPPED: True,
    names.UPDATE_ENCODING: "float32",
    names.STEPS: 100,
    names.TILES_BUCKET: names.tiles_bucket(5000),
    names.RESUMED: False,
    names.SITES_ELIGIBLE: 4,
    names.SITES_SAMPLED: 2,
    names.UPDATES_ADMITTED: 2,
    names.UPDATES_REFUSED: 0,
    names.OUTCOME: "ok",
    names.ERROR_CODE: 78,
    names.ERROR_TYPE: "ConfigError",
}


def test_every_attribute_has_a_value_that_passes() -> None:
    assert GOOD.keys() == names.ATTRIBUTES.keys()
    assert names.keep(GOOD, names.ATTRIBUTES) == (GOOD, 0)


@pytest.mark.parametrize("name", names.ATTRIBUTES)
@pytest.mark.parametrize("value", [None, "", "/srv/tiles", "TCGA-AA-3488", -1, 1.5, True, float("nan"), 2**60, b"x", ["x"]])
def test_what_does_not_fit_is_dropped(name: str, value: object) -> None:
    kept, dropped = names.keep({name: value}, names.ATTRIBUTES)
    fits = {names.UPDATE_NORM: (-1, 1.5, 2**60), names.UPDATE_CLIPPED: (True,), names.RESUMED: (True,)}
    if any(value is good or (value == good and type(value) is type(good)) for good in fits.get(name, ())):
        assert (kept, dropped) == ({name: value}, 0)
    else:
        assert (kept, dropped) == ({}, 1)


@given(identifiers)
def test_an_identifier_passes_under_no_name(identifier: str) -> None:
    for allowed in (names.ATTRIBUTES, names.RESOURCE):
        kept, dropped = names.keep(dict.fromkeys(allowed, identifier), allowed)
        assert (kept, dropped) == ({}, len(allowed))
    assert names.keep({identifier: "x"}, names.ATTRIBUTES) == ({}, 1)
    assert names.span_name(identifier) == "other"


@given(st.integers(0, 10**7))
def test_a_cohort_is_told_by_its_order_of_magnitude(count: int) -> None:
    bucket = names.tiles_bucket(count)
    low, _, high = bucket.partition("-")
    assert int(low) <= count <= int(high or 10**7)


def test_buckets_are_what_they_were() -> None:
    assert [names.tiles_bucket(count) for count in (0, 99, 100, 1000, 99_999, 100_000)] == [
        "0-99", "0-99", "100-999", "1000-9999", "10000-99999", "100000-",
    ]  # fmt: skip


def test_every_error_of_ours_is_told_by_its_class() -> None:
    assert all(names.error_type(cls("x")) == cls.__name__ for cls in all_errors())


def test_an_unknown_error_is_told_by_the_class_above_it() -> None:
    class PatientDoe(ConfigError):
        pass

    class Odd(BaseException):
        pass

    assert names.error_type(PatientDoe("x")) == "ConfigError"
    assert names.error_type(Odd()) == "BaseException"


def test_names_follow_the_conventions() -> None:
    assert all(re.fullmatch(r"histofed(\.[a-z0-9]+)+|error\.type", name) for name in names.ATTRIBUTES)
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+", name) for name in names.SPANS)
    for metric in names.METRICS:
        assert re.fullmatch(r"histofed_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
