"""A run in one place: what it leaves, that it goes on bit for bit however it ended, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from histofed import weights
from histofed.base import durable
from histofed.base.errors import (
    AlreadyThere,
    BadData,
    Cancelled,
    CannotWriteState,
    HistofedError,
    NotFound,
    NotOurs,
    OutOfMemory,
    TrainingFailed,
    UsageError,
)
from histofed.models.cnn_discriminator import CnnDiscriminator
from histofed.recipes.gan import central
from histofed.recipes.gan.building import contest_of
from histofed.recipes.gan.settings import Settings
from histofed.tiles.draw import draw_tiles
from histofed.tiles.store import TileStore
from histofed.training import checkpoint
from histofed.training.checkpoint import CheckpointStore
from histofed.training.contest import Contest
from tests.unit.recipes.gan.conftest import TABLE, MakeRunner, Runner, Ticking, files, stop_after, stretches

EVERYTHING: Mapping[str, Any] = {
    **TABLE,
    "generator": "deep",
    "discriminator": {"name": "cnn", "norm": "none", "spectral_norm": True, "heads": "reacgan"},
    "objective": {"name": "hinge", "r1": 1.0, "penalty_every": 2, "fake_labels": "even"},
    "augment": {},
    "lecam": {},
    "accumulate": 2,
}
DIVERGING: Mapping[str, Any] = {**TABLE, "generator_rate": 0.02, "returns": {"most": 20, "every": 2, "limit": 0.8}}


# -- what it leaves ----------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_sheets_a_log_and_a_record(run: Runner) -> None:
    record = run(sheet_every=4)
    out = run.folder / "out"
    assert files(out) == ["checkpoint.safetensors", "lock", "model.safetensors", "run.json", "samples", "tensorboard"]
    assert files(out / "samples") == ["latest.png", "step-000004.png", "step-000006.png"]
    assert json.loads((out / "run.json").read_bytes()) == record
    assert (record["state"], record["step"], record["steps"], record["images"]) == ("finished", 6, 6, 24)
    losses = record["losses"]
    assert isinstance(losses, dict)
    assert losses.keys() == {"generator_loss", "discriminator_loss"}
    assert [one.step for one in run.seen.steps] == [1, 2, 3, 4, 5, 6]
    assert run.seen.phases == ["reading tiles", "building networks"]
    released = weights.read(out / "model.safetensors")
    assert all(name.startswith("ema.") and np.isfinite(array).all() for name, array in released.items())


def test_the_model_is_the_average_over_the_steps(run: Runner) -> None:
    run(table={**TABLE, "ema_decay": 0.9})
    found = CheckpointStore(run.folder / "out", "").peek()
    assert found is not None
    state = weights.read(run.folder / "out" / "checkpoint.safetensors")
    released = weights.read(run.folder / "out" / "model.safetensors")
    name = "linear.weight"
    assert np.array_equal(released[f"ema.{name}"], state[f"ema.{name}"])
    assert not np.array_equal(released[f"ema.{name}"], state[f"generator.{name}"])


@pytest.mark.parametrize("table", [TABLE, EVERYTHING], ids=["plain", "everything"])
def test_looking_at_a_run_does_not_change_it(run: Runner, table: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run("watched", table=table, sheet_every=1)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    record = run("alone", table=table)
    assert run.model("watched") == run.model("alone")
    assert record["notes"] == ["no TensorBoard log: the package tensorboard is not installed (histofed[tensorboard])"]
    assert not (run.folder / "alone" / "tensorboard").exists()


def test_five_classes(run_on: MakeRunner, tmp_path: Path) -> None:
    classes = ["ADI", "LYM", "MUC", "NORM", "TUM"]
    for index, name in enumerate(classes):
        draw_tiles(tmp_path / "two", patients_per_class=2, tiles_per_patient=2, size=40, seed=index)
        shutil.move(tmp_path / "two" / "MSIH", tmp_path / "data" / name)
        shutil.rmtree(tmp_path / "two")
    run = run_on(tmp_path / "data")
    record = run(table={**EVERYTHING, "classes": classes, "batch": 10}, steps=2)
    data = record["data"]
    assert isinstance(data, dict)
    assert [(one["name"], one["tiles"], one["patients"]) for one in data["classes"]] == [(name, 4, 2) for name in classes]
    with Image.open(tmp_path / "out" / "samples" / "latest.png") as sheet:
        assert sheet.height == 5 * 100 + 4


def test_epochs_count_passes_over_the_tiles(run: Runner) -> None:
    tiles = len([*run.data.glob("*/*.jpg")])
    task = run.task(settings=Settings("small", None, TABLE, None, 2), max_steps=1)
    record = central.train_centrally(task, run.seen, lambda: False, Ticking())
    assert record["steps"] == -(-2 * tiles // 4)


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [TABLE, EVERYTHING], ids=["plain", "everything"])
def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(run: Runner, table: Mapping[str, Any]) -> None:
    run("whole", table=table)
    with pytest.raises(Cancelled, match="after 2 of 6 steps"):
        run("stopped", stop_after(2), table=table)
    stopped = json.loads((run.folder / "stopped" / "run.json").read_bytes())
    assert (stopped["state"], stopped["step"]) == ("stopped", 2)
    assert "it has taken 2 of 6 steps" in stopped["not_the_papers"]
    assert run("stopped", table=table, max_steps=1)["step"] == 3
    record = run("stopped", table=table)
    assert run.model("stopped") == run.model("whole")
    assert [(one["from_step"], one["to_step"]) for one in stretches(record)] == [(0, 2), (2, 3), (3, 6)]
    assert [(span.first, span.last) for span in run.seen.spans] == [(0, 6), (0, 6), (2, 3), (3, 6)]
    assert record["notes"] == []


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("table", [TABLE, DIVERGING], ids=["calm", "diverging"])
def test_killed_again_and_again_it_ends_in_the_same_bytes(
    run: Runner, table: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one instant of writing after another: before and after each rename, and after each checkpoint."""
    whole = run("whole", table=table, checkpoint_seconds=0.0, steps=4)
    assert bool(whole["returns"]) == (table is DIVERGING)
    for attempt in range(20):
        left = 6 + attempt

        def strike(_: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        with monkeypatch.context() as patched:
            for module in (durable, checkpoint):
                patched.setattr(module, "failpoint", strike)
            try:
                record = run("killed", table=table, checkpoint_seconds=0.0, steps=4)
                break
            except Killed:
                continue
    assert attempt > 2
    assert run.model("killed") == run.model("whole")
    assert record["returns"] == whole["returns"]
    assert record["losses"] == whole["losses"]


def test_two_processes_do_not_train_into_one_folder(run: Runner) -> None:
    (run.folder / "out").mkdir()
    with durable.lock(run.folder / "out" / "lock", "histofed train"), pytest.raises(AlreadyThere, match="another process"):
        run()


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_no_data(run_on: MakeRunner, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no such folder"):
        run_on(tmp_path / "nowhere")()


def test_a_run_that_diverges_fails_and_says_so_in_its_record(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Contest:
        contest = contest_of(*arguments, **options)
        with torch.no_grad():
            next(contest.discriminator.parameters()).fill_(float("nan"))
        return contest

    monkeypatch.setattr(central, "contest_of", broken)
    with pytest.raises(TrainingFailed, match=r"diverged: .* is nan at step 1 of 6"):
        run()
    record = json.loads((run.folder / "out" / "run.json").read_bytes())
    assert record["state"] == "failed"
    assert "is nan at step 1" in record["reason"]
    assert not (run.folder / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), MemoryError("(9999, 3, 224, 224)")]
)
def test_too_little_memory(run: Runner, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(CnnDiscriminator, "forward", full)
    with pytest.raises(OutOfMemory, match="lower in the experiment: accumulate = 2"):
        run()


def test_a_disk_that_is_full_leaves_the_checkpoint_before(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    run("whole")
    run(max_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _refuse)
        with pytest.raises(CannotWriteState, match="No space left"):
            run()
    run()
    assert run.model("out") == run.model("whole")


def test_a_cache_on_a_full_disk(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "samples").mkdir(parents=True)
    store = TileStore(tmp_path / "cache", 10**8)
    run("first", steps=1, store=store)
    shutil.rmtree(tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _refuse)
        with pytest.raises(CannotWriteState, match="No space left"):
            run(steps=1, store=store)


def _refuse(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_output_folder_that_cannot_be_written(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWriteState, match="cannot write directory"):
        run("file/out")


def test_settings_that_do_not_go_together(run: Runner) -> None:
    with pytest.raises(BadData, match="accumulate: 4 parts of at least two tiles"):
        run(table={**TABLE, "accumulate": 4})
    with pytest.raises(UsageError, match="--max-steps is at least 1"):
        run(max_steps=0)
    assert not (run.folder / "out").exists()


def test_a_folder_among_the_tiles_is_refused(run: Runner) -> None:
    with pytest.raises(UsageError, match=r"--out .*run lies in --data .*, among the tiles"):
        run(out=run.data / "MSIH" / "run", steps=1)
    assert not (run.data / "MSIH" / "run").exists()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "the memory of the GPU does not suffice; lower in the experiment"),
        (TrainingFailed("training diverged: the loss is nan at step 1/2"), "the loss is nan at step 1/2"),
    ],
)
def test_the_record_says_why_a_run_failed(run: Runner, monkeypatch: pytest.MonkeyPatch, fault: Exception, told: str) -> None:
    def fails(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(central, "train", fails)
    with pytest.raises(HistofedError, match=told):
        run(steps=2)
    record = json.loads((run.folder / "out" / "run.json").read_text())
    assert record["state"] == "failed"
    assert told in record["reason"]


@pytest.mark.parametrize("kind", [CannotWriteState, NotOurs, BadData])
def test_the_record_of_a_failed_run_names_no_place(
    run: Runner, monkeypatch: pytest.MonkeyPatch, kind: type[HistofedError]
) -> None:
    def fails(*_: object, **__: object) -> None:
        place = run.folder / "out" / "good.safetensors"
        raise kind(f"cannot use {str(place)!r} as it is") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))

    monkeypatch.setattr(central, "train", fails)
    with pytest.raises(kind, match=run.folder.name):
        run(steps=2)
    text = (run.folder / "out" / "run.json").read_text()
    assert run.folder.name not in text
    assert "good.safetensors" not in text
    assert kind.__doc__ is not None
    assert json.loads(text)["reason"] == f"{kind.__doc__} The command said where (No space left on device)."
