from __future__ import annotations

import argparse

import pytest

from histofed.cli.token import duration


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("30m", 1800), ("2h", 7200), ("7d", 604800)])
def test_durations(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "59s", "8d", "-5m", "1.5h", "m", "30 m", "9999999s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a time from 60s to 7d"):
        duration(text)
