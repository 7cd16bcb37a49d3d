"""A run's folder: nobody else's files are touched, and nothing half-written stays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from histofed.base import durable
from histofed.base.errors import AlreadyThere, CannotWriteState, ConfigError, HistofedError
from histofed.recipes.gan import record
from histofed.recipes.gan.outputs import Outputs
from tests.unit.recipes.gan.conftest import TABLE, Runner, files, stretches

NORMLESS = {**TABLE, "generator": "deep", "discriminator": {"name": "cnn", "norm": "none"}}
"""What several devices can train."""


def test_half_written_files_of_a_killed_process_are_removed(run: Runner) -> None:
    (run.folder / "out" / "samples").mkdir(parents=True)
    for name in (".checkpoint.safetensors.1.tmp", "samples/.latest.png.1.tmp"):
        (run.folder / "out" / name).write_bytes(b"half")
    run(steps=1)
    assert not [*(run.folder / "out").rglob(".*.tmp")]


@pytest.mark.parametrize("name", ["model.safetensors", "samples/slide.png"])
@pytest.mark.parametrize("restart", [False, True])
def test_what_no_run_made_is_not_overwritten(run: Runner, name: str, restart: bool) -> None:
    theirs = run.folder / "out" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"pulled and signed")
    with pytest.raises(AlreadyThere, match=rf"holds {name.partition('/')[0]} and no run\.json.*choose another --out"):
        run(steps=2, restart=restart)
    assert theirs.read_bytes() == b"pulled and signed"


@pytest.mark.parametrize("wrong", [{"data": Path("/nowhere")}, {"device": "cuda:3"}, {"devices": 3}])
def test_beginning_again_takes_nothing_away_where_it_cannot_begin(run: Runner, wrong: dict[str, Any]) -> None:
    run(steps=2)
    kept = run.model("out"), (run.folder / "out" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(HistofedError):
        run(steps=2, restart=True, **wrong)
    assert (run.model("out"), (run.folder / "out" / "checkpoint.safetensors").read_bytes()) == kept
    assert run(steps=2)["state"] == "finished"


def test_beginning_again_forgets_everything_of_the_run_and_nothing_else(run: Runner) -> None:
    run(steps=3, sheet_every=1)
    (run.folder / "out" / "notes.txt").write_text("mine")
    record = run(steps=2, restart=True)
    assert len(stretches(record)) == 1
    assert files(run.folder / "out" / "samples") == ["latest.png", "step-000002.png"]
    assert (run.folder / "out" / "notes.txt").read_text() == "mine"


def test_beginning_again_takes_nothing_away_without_what_several_devices_need(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(steps=2, table=NORMLESS)
    kept = {path: path.read_bytes() for path in (run.folder / "out").rglob("*") if path.is_file()}
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"install histofed\[devices\]"):
        run(steps=2, table=NORMLESS, restart=True, devices=2)
    assert {path: path.read_bytes() for path in (run.folder / "out").rglob("*") if path.is_file()} == kept


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("removals", [1, 2, 3, 4, 5, 6])
def test_killed_while_it_forgets_a_run_it_can_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removals: int
) -> None:
    for name in ("model", "checkpoint", "good"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"tensors")
    for name in ("run.json", "samples/latest.png", "tensorboard/events"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"the run's")

    def strike(name: str) -> None:
        nonlocal removals
        removals -= name == "remove.after_unlink"
        if removals == 0:
            raise Killed

    outputs = Outputs(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(durable, "failpoint", strike)
        outputs.clear()
    outputs.require_own()
    outputs.clear()
    assert files(tmp_path) == []


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_a_run_that_could_write_no_record_does_not_stand_in_its_own_way(
    run: Runner, monkeypatch: pytest.MonkeyPatch, before: bool, restart: bool
) -> None:
    def full(*_: object) -> None:
        raise CannotWriteState("cannot write run.json: No space left on device")

    if before:
        run(steps=3)
    with monkeypatch.context() as patched:
        patched.setattr(record, "write", full)
        with pytest.raises(CannotWriteState, match="No space left"):
            run(steps=2, restart=before)
    assert run(steps=2, restart=restart)["step"] == 2
