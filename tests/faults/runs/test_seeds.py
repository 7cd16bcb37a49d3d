"""How seeds are named on the command line, and what is remembered of those that passed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from tests.faults import __main__ as runner
from tests.faults.runs import seeds
from tests.faults.runs.schedule import draw
from tests.faults.runs.transfers import Resumed


def test_seeds_are_named_by_ranges_and_numbers() -> None:
    assert seeds.parse("1-3,7") == [1, 2, 3, 7]
    assert seeds.parse("fast") == list(seeds.FAST)
    assert set(seeds.FOUND) <= set(seeds.FAST)
    with pytest.raises(ValueError):
        seeds.parse("all")


def test_a_seed_that_passed_with_this_very_schedule_and_code_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(seed: int, *_: Path) -> runner.Outcome:
        ran.append(seed)
        return runner.Outcome(seed, ("bytes: something",) if seed == 2 else (), 1.0, 0.5, {}, ())

    monkeypatch.setattr(runner, "run_seed", run)
    monkeypatch.setattr(runner, "wanting", list)
    monkeypatch.setattr(runner, "template", contextlib.nullcontext)
    state, keep = tmp_path / "not there yet" / "passed.json", tmp_path / "keep"
    words = ["--seeds", "1-3", "--resume", str(state), "--keep", str(keep)]
    assert runner.main(words) == 1
    assert "2 of 3 passed; failed: [2]" in capsys.readouterr().out
    assert json.loads(state.read_text())["1"]["schedule"] == runner.fingerprint(draw(1))
    assert runner.main(words) == 1
    assert ran == [1, 2, 3, 2], "only what failed is run again"
    state.write_text(state.read_text().replace(runner.fingerprint(draw(3)), "of another release"))
    runner.main(words)
    assert ran[-2:] == [2, 3], "a seed that draws another schedule now is another seed"
    monkeypatch.setattr(runner, "code", lambda: "a line more")
    runner.main(words)
    assert ran[-3:] == [1, 2, 3], "what passed was other code"


def test_seeds_that_are_there_for_resumed_transfers_fail_where_none_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, lucky = list[int](), 11

    def run(seed: int, *_: Path) -> runner.Outcome:
        ran.append(seed)
        return runner.Outcome(seed, (), 1.0, 0.5, {}, (), Resumed(0, 1) if len(ran) == lucky else Resumed(2, 0))

    monkeypatch.setattr(runner, "run_seed", run)
    monkeypatch.setattr(runner, "wanting", list)
    monkeypatch.setattr(runner, "template", contextlib.nullcontext)
    words = ["--keep", str(tmp_path), "--jobs", "1", "--seeds"]
    monkeypatch.setattr(runner, "_MORE_TRIES", 1)
    assert runner.main([*words, ",".join(map(str, seeds.MEETING))]) == 1
    assert "no part with bytes was opened again" in capsys.readouterr().out
    assert ran == [*seeds.MEETING] * 2
    assert runner.main([*words, str(seeds.MEETING[0])]) == 0, "one seed need not meet both"
    assert "Cut; resumed 2 uploads, 0 downloads\n1 of 1 passed; resumed 2 uploads, 0 downloads" in capsys.readouterr().out
    assert runner.main([*words, ",".join(map(str, seeds.MEETING))]) == 0, "a slow machine has another chance"
    assert len(ran) == 13


def test_a_machine_that_cannot_run_them_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert runner.main(["--seeds", "1"]) == 2
    assert (
        "need unshare (util-linux) and nsenter (util-linux) and ip (iproute2) and cc (a C compiler)"
        in capsys.readouterr().err
    )
