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
    NotFound,
    OutOfMemory,
    TrainingFailed,
    UsageError,
)
from histofed.base.ids import Json
from histofed.models.cnn_discriminator import CnnDiscriminator
from histofed.recipes.gan import central
from histofed.recipes.gan.building import contest_of
from histofed.recipes.gan.settings import Settings
from histofed.tiles.draw import draw_tiles
from histofed.tiles.store import TileStore
from histofed.training.checkpoint import CheckpointStore
from histofed.training.contest import Contest
from tests.unit.recipes.gan.conftest import TABLE, MakeRunner, Runner, Ticking, stop_after

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


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _stretches(record: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    found = record["stretches"]
    assert isinstance(found, list)
    return found


# -- what it leaves ----------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_sheets_a_log_and_a_record(run: Runner) -> None:
    record = run(sheet_every=4)
    out = run.folder / "out"
    assert _files(out) == ["checkpoint.safetensors", "lock", "model.safetensors", "run.json", "samples", "tensorboard"]
    assert _files(out / "samples") == ["latest.png", "step-000004.png", "step-000006.png"]
    assert json.loads((out / "run.json").read_bytes()) == record
    assert (record["state"], record["step"], record["steps"], record["images"]) == ("finished", 6, 6, 24)
    losses = record["losses"]
    assert isinstance(losses, dict)
    assert losses.keys() == {"generator_loss", "discriminator_loss"}
    assert [one.step for one in run.seen.steps] == [1, 2, 3, 4, 5, 6]
    assert run.seen.phases == ["reading tiles", "building networks"]
    released = weights.read(out / "model.safetensors")
    assert all(name.startswith("ema.") and np.isfinite(array).all() for name, array in released.items())


def test_the_record_says_what_was_run_and_nothing_that_names_anybody(run: Runner) -> None:
    record = run(seed=5)
    assert (record["seed"], record["preset"], record["paper"]) == (5, None, False)
    assert record["not_the_papers"] == ["the settings are not a preset of the paper"]
    recipe, rules, data = record["recipe"], record["rules"], record["data"]
    assert isinstance(recipe, dict)
    assert isinstance(rules, dict)
    assert isinstance(data, dict)
    assert (recipe["batch"], recipe["generator_rate"], rules["heads"]) == (4, 2e-4, "class")
    names = [path.name for path in run.data.glob("*/*")]
    assert data["tiles"] == len(names)
    assert [one["name"] for one in data["classes"]] == ["MSIH", "nonMSIH"]
    (stretch,) = _stretches(record)
    assert (stretch["from_step"], stretch["to_step"], stretch["threads"]) == (0, 6, 1)
    text = json.dumps(record)
    assert str(run.data) not in text
    assert "TCGA-" not in text


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
    assert [(one["from_step"], one["to_step"]) for one in _stretches(record)] == [(0, 2), (2, 3), (3, 6)]
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
            patched.setattr(durable, "failpoint", strike)
            try:
                record = run("killed", table=table, checkpoint_seconds=0.0, steps=4)
                break
            except Killed:
                continue
    assert attempt > 2
    assert run.model("killed") == run.model("whole")
    assert record["returns"] == whole["returns"]
    assert record["losses"] == whole["losses"]


def test_half_written_files_of_a_killed_process_are_removed(run: Runner) -> None:
    (run.folder / "out" / "samples").mkdir(parents=True)
    for name in (".checkpoint.safetensors.1.tmp", "samples/.latest.png.1.tmp"):
        (run.folder / "out" / name).write_bytes(b"half")
    run(steps=1)
    assert not [*(run.folder / "out").rglob(".*.tmp")]


def test_a_finished_run_has_nothing_left_to_do_and_may_be_made_longer(run: Runner) -> None:
    run("long", steps=6)
    run("short", steps=4)
    before = run.model("short")
    assert run("short", steps=4)["state"] == "finished"
    assert run.model("short") == before
    assert run("short", steps=6)["step"] == 6
    assert run.model("short") == run.model("long")
    with pytest.raises(AlreadyThere, match="a run of 6 steps already, more than 4"):
        run("short", steps=4)


def test_other_work_in_the_folder_is_refused_in_words(run: Runner, run_on: MakeRunner, tmp_path: Path) -> None:
    run(steps=2)
    with pytest.raises(AlreadyThere, match=r"another run \(batch was 4 and is 8; seed was 0 and is 3\); go on with its"):
        run(steps=2, seed=3, table={**TABLE, "batch": 8})
    with pytest.raises(AlreadyThere, match=r"objective\.r1 was None and is 1\.0"):
        run(steps=2, table={**TABLE, "objective": {"r1": 1.0}})
    draw_tiles(tmp_path / "others", patients_per_class=2, tiles_per_patient=3, size=48)
    with pytest.raises(AlreadyThere, match="its tiles were others"):
        run_on(tmp_path / "others")(steps=2)
    assert run(steps=2, seed=3, restart=True)["seed"] == 3


def test_a_run_of_before_an_option_goes_on_without_it(run: Runner) -> None:
    """What an older release wrote says nothing of options that it did not have."""
    run(steps=4, max_steps=2)
    found = CheckpointStore(run.folder / "out", "").peek()
    assert found is not None
    recipe = found.work["recipe"]
    assert isinstance(recipe, dict) and not {"muon_rate", "decay"} & recipe.keys()
    assert len(_stretches(run(steps=4))) == 2
    with pytest.raises(AlreadyThere, match=r"muon_rate was None and is 0\.001"):
        run(steps=4, table={**TABLE, "muon_rate": 1e-3})


@pytest.mark.parametrize("name", ["model.safetensors", "samples/slide.png"])
@pytest.mark.parametrize("restart", [False, True])
def test_what_no_run_made_is_not_overwritten(run: Runner, name: str, restart: bool) -> None:
    theirs = run.folder / "out" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"pulled and signed")
    with pytest.raises(AlreadyThere, match=rf"holds {name.partition('/')[0]} and no run\.json.*choose another --out"):
        run(steps=2, restart=restart)
    assert theirs.read_bytes() == b"pulled and signed"


def test_beginning_again_forgets_everything_of_the_run_and_nothing_else(run: Runner) -> None:
    run(steps=3, sheet_every=1)
    (run.folder / "out" / "notes.txt").write_text("mine")
    record = run(steps=2, restart=True)
    assert len(_stretches(record)) == 1
    assert _files(run.folder / "out" / "samples") == ["latest.png", "step-000002.png"]
    assert (run.folder / "out" / "notes.txt").read_text() == "mine"


def test_a_damaged_checkpoint_is_not_thrown_away_silently(run: Runner) -> None:
    run(steps=2)
    (run.folder / "out" / "checkpoint.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BadData, match=r"is damaged or of another version; .* --restart"):
        run(steps=2)
    assert run(steps=2, restart=True)["state"] == "finished"


def test_another_torch_or_number_of_threads_is_told(run: Runner) -> None:
    run(steps=4, max_steps=2)
    path = run.folder / "out" / "run.json"
    record = json.loads(path.read_bytes())
    record["stretches"][0]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    assert run(steps=4)["notes"] == ["went on with other torch: not bit for bit the run that was never stopped"]


def test_two_processes_do_not_train_into_one_folder(run: Runner) -> None:
    (run.folder / "out").mkdir()
    with durable.lock(run.folder / "out" / "lock", "histofed train"), pytest.raises(AlreadyThere, match="another process"):
        run()


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_no_data(run_on: MakeRunner, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no such folder"):
        run_on(tmp_path / "nowhere")()


def test_one_class(run_on: MakeRunner, tmp_path: Path) -> None:
    draw_tiles(tmp_path / "data", patients_per_class=2, tiles_per_patient=2, size=48)
    shutil.rmtree(tmp_path / "data" / "MSIH")
    with pytest.raises(BadData, match="no folder for class MSIH"):
        run_on(tmp_path / "data")()


def test_one_patient_and_one_tile(run_on: MakeRunner, tmp_path: Path) -> None:
    for tiles in (4, 1):
        draw_tiles(tmp_path / f"data{tiles}", patients_per_class=1, tiles_per_patient=tiles, size=48)
        with pytest.raises(BadData, match=r"class MSIH has tiles of 1 patient; .* at least 2"):
            run_on(tmp_path / f"data{tiles}")()


def test_tiles_smaller_than_the_model(run: Runner) -> None:
    with pytest.raises(BadData, match=r"class MSIH has no usable tile .*smaller than 256 pixels"):
        run(table={**TABLE, "image_size": 256})


@pytest.mark.parametrize("name", ["TEST", "validation"])
def test_held_out_tiles(run_on: MakeRunner, tmp_path: Path, name: str) -> None:
    draw_tiles(tmp_path / name, patients_per_class=2, tiles_per_patient=2, size=48)
    with pytest.raises(BadData, match="must not be trained on"):
        run_on(tmp_path / name)()


def test_files_that_are_no_tiles_are_counted_by_reason(run_on: MakeRunner, tmp_path: Path) -> None:
    draw_tiles(tmp_path / "data", patients_per_class=2, tiles_per_patient=2, size=48)
    folder = tmp_path / "data" / "MSIH"
    good = next(folder.glob("*.jpg")).read_bytes()
    grey = Image.new("L", (48, 48))
    grey.save(folder / "TCGA-ZZ-0001-01Z-00-DX1.png")
    Image.new("I;16", (48, 48)).save(folder / "TCGA-ZZ-0002-01Z-00-DX1.png")
    Image.new("CMYK", (48, 48)).save(folder / "TCGA-ZZ-0003-01Z-00-DX1.jpg")
    (folder / "TCGA-ZZ-0004-01Z-00-DX1.jpg").write_bytes(good[: len(good) // 2])
    Image.new("1", (20_000, 20_000)).save(folder / "TCGA-ZZ-0005-01Z-00-DX1.png")
    record = run_on(tmp_path / "data")(steps=1)
    data = record["data"]
    assert isinstance(data, dict)
    assert data["tiles"] == 8
    assert data["refused"] == {
        "not 8-bit RGB: grey": 1,
        "not 8-bit RGB: 16 bits": 1,
        "not 8-bit RGB: CMYK": 1,
        "truncated or damaged": 1,
        "far too many pixels for a tile": 1,
    }
    notes = record["notes"]
    assert isinstance(notes, list)
    assert len(notes) == 5


def test_a_weights_file_of_another_network(run: Runner, tmp_path: Path) -> None:
    digest = weights.save(tmp_path / "other", {"conv.weight": np.zeros((2, 2), np.float32)}).sha256
    start = {"path": str(tmp_path / "other"), "sha256": digest}
    with pytest.raises(BadData, match=r"do not fit the model: tensor .* is missing"):
        run(table={**TABLE, "discriminator": {"name": "vit-mini", "weights": start}})
    with pytest.raises(BadData, match="there is no such file with SHA-256"):
        run(table={**TABLE, "discriminator": {"name": "vit-mini", "weights": {**start, "sha256": "0" * 64}}})


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
