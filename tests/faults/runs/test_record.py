"""The track record names tests that exist, and the documents name every failpoint."""

from __future__ import annotations

import re
from pathlib import Path

from histofed.base.failpoints import FAILPOINTS
from tests.faults.runs.seeds import FOUND

ROOT = Path(__file__).parents[3]
RECORD = (ROOT / "tests/faults/TRACK-RECORD.md").read_text()


def test_every_test_that_the_record_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", RECORD)
    assert len(named) > 20
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert missing == []


def test_the_seeds_that_found_something_are_those_of_the_record() -> None:
    assert {int(seed) for seed in re.findall(r"\| seeds \((\d+)\) \|", RECORD)} == FOUND.keys()


def test_every_failpoint_is_in_the_table_of_boundaries() -> None:
    page = (ROOT / "docs/durability.md").read_text()
    assert [name for name in sorted(FAILPOINTS) if f"`{name}`" not in page] == []
