"""A `gan` task from files to files, on real tiles where there are some."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from histofed import weights
from histofed.base.errors import BadData, Cancelled, CannotWriteState, OutOfMemory, TrainingFailed
from histofed.base.ids import canonical, sha256
from histofed.models.cnn_discriminator import CnnDiscriminator
from histofed.recipes.contract import Counts, Progress, TrainTask
from histofed.tiles import cache
from histofed.training.checkpoint import CheckpointStore
from tests.support.tiles import TilesRoot
from tests.unit.recipes.gan.conftest import CONFIG, WORKSHOP, site_task, train_task


def _never() -> bool:
    return False


def _groups(path: Path) -> set[str]:
    return {spec.name.partition(".")[0] for spec in weights.read_header(path)}


def test_a_task_trains_and_reports(tiles_root: TilesRoot, tmp_path: Path) -> None:
    print(f"on {tiles_root.kind} tiles")
    task, seen = site_task(tmp_path, tiles_root.path), list[Progress]()
    result = WORKSHOP.train(task, seen.append, _never)
    assert result.counts.tiles == len([*tiles_root.path.glob("*/*.jpg")])
    assert 2 <= result.counts.patients < result.counts.tiles
    assert result.steps == 3 == seen[-1].step
    assert seen[-1].device == "cpu"
    assert result.metrics.keys() == {"generator_loss", "discriminator_loss"}
    assert result.notes == ()
    before, after = weights.read(task.shared), weights.read(task.output / "shared.safetensors")
    assert {name: array.shape for name, array in before.items()} == {name: array.shape for name, array in after.items()}
    assert all(array.dtype == np.float32 for array in after.values())
    assert not np.array_equal(before["generator.linear.weight"], after["generator.linear.weight"])
    assert sorted(path.name for path in task.output.iterdir()) == ["private.safetensors", "shared.safetensors"]


@pytest.mark.parametrize(
    ("share", "persist", "shared", "private"),
    [
        ("generator+discriminator", False, {"generator", "discriminator"}, set()),
        ("generator+discriminator", True, {"generator", "discriminator"}, {"adam"}),
        ("generator", False, {"generator"}, {"discriminator"}),
        ("generator", True, {"generator"}, {"discriminator", "adam"}),
    ],
)
def test_what_travels_and_what_stays(
    tiles_root: TilesRoot, tmp_path: Path, share: str, persist: bool, shared: set[str], private: set[str]
) -> None:
    task = site_task(tmp_path, tiles_root.path, share=share, persist_moments=persist, steps=1)
    assert _groups(task.shared) == shared
    first = train_task(task)
    assert _groups(task.output / "shared.safetensors") == shared
    assert _groups(task.output / "private.safetensors") == private

    # the next round: the same task, with the private state that this round leaves
    adopted = tmp_path / "private.safetensors"
    (task.output / "private.safetensors").rename(adopted)
    second = train_task(replace(task, private=adopted))
    assert (first["shared.safetensors"] == second["shared.safetensors"]) == (not private)
    steps = weights.read(task.output / "private.safetensors").get("adam.generator.linear.weight.step")
    assert (None if steps is None else float(steps)) == (2 if persist else None)


def test_a_stopped_task_goes_on_and_ends_in_the_same_bytes(tiles_root: TilesRoot, tmp_path: Path) -> None:
    config = {"share": "generator", "persist_moments": True, "discriminator": {"name": "vit-mini"}}
    whole = train_task(site_task(tmp_path / "whole", tiles_root.path, **config))
    task = site_task(tmp_path / "stopped", tiles_root.path, **config)
    answers = iter([False, True])
    with pytest.raises(Cancelled, match="after 1 of 3 steps"):
        WORKSHOP.train(task, lambda _: None, lambda: next(answers))
    assert not (task.output / "shared.safetensors").exists()
    assert train_task(task) == whole
    kept = CheckpointStore(task.output, "").peek()
    assert kept is not None and kept.state.step == 1, "until somebody has kept the result"
    assert train_task(task) == whole


def test_a_stopped_task_with_muon_and_falling_rates_ends_in_the_same_bytes(tiles_root: TilesRoot, tmp_path: Path) -> None:
    config = {"generator": "deep", "muon_rate": 2e-3, "decay": {"after": 1, "half_life": 1}, "persist_moments": True}
    whole = train_task(site_task(tmp_path / "whole", tiles_root.path, **config))
    task = site_task(tmp_path / "stopped", tiles_root.path, **config)
    answers = iter([False, False, True])
    with pytest.raises(Cancelled, match="after 2 of 3 steps"):
        WORKSHOP.train(task, lambda _: None, lambda: next(answers))
    assert train_task(task) == whole
    private = {spec.name for spec in weights.read_header(task.output / "private.safetensors")}
    assert {"adam.generator.linear.weight.momentum", "adam.generator.linear.bias.exp_avg"} <= private


def test_rates_fall_over_the_rounds(tiles_root: TilesRoot, tmp_path: Path) -> None:
    config = {"generator": "deep", "muon_rate": 2e-3, "decay": {"after": 0, "half_life": 3}}
    moved = []
    for number in (1, 11):
        task = replace(site_task(tmp_path / str(number), tiles_root.path, **config), round=number)
        train_task(task)
        before, after = weights.read(task.shared), weights.read(task.output / "shared.safetensors")
        name = "generator.blocks.0.conv1.weight"
        moved.append(np.linalg.norm(after[name] - before[name]))
    # ten rounds of three steps later, with a half-life of one round
    assert moved[1] == pytest.approx(moved[0] / 2**10, rel=0.2)


def test_a_checkpoint_of_another_seed_is_not_used(tiles_root: TilesRoot, tmp_path: Path) -> None:
    whole = train_task(site_task(tmp_path / "whole", tiles_root.path))
    task = site_task(tmp_path / "other", tiles_root.path)
    answers = iter([False, True])
    with pytest.raises(Cancelled):
        WORKSHOP.train(replace(task, seed=8), lambda _: None, lambda: next(answers))
    assert train_task(task) == whole


def test_a_checkpoint_of_another_kind_of_device_is_not_used(
    tiles_root: TilesRoot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train_task(site_task(tmp_path / "whole", tiles_root.path))
    task = site_task(tmp_path / "moved", tiles_root.path)
    answers = iter([False, True])
    with pytest.raises(Cancelled):
        WORKSHOP.train(task, lambda _: None, lambda: next(answers))
    _as_if_made_on_a_gpu(task.output)
    assert train_task(task) == whole
    assert "belongs to other work or another version (differing: device); starting from the beginning" in caplog.text


def _as_if_made_on_a_gpu(output: Path) -> None:
    found = CheckpointStore(output, "").peek()
    assert found is not None and found.work["device"] == "cpu"
    work = {**found.work, "device": "cuda"}
    tensors = weights.read(output / "checkpoint.safetensors")
    CheckpointStore(output, sha256(canonical(work)), work=work).save(replace(found.state, tensors=tensors))


def test_the_start_depends_on_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        WORKSHOP.initialise(CONFIG, seed, tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_a_sheet_is_drawn_from_the_released_generator(tmp_path: Path) -> None:
    WORKSHOP.initialise(CONFIG, 1, tmp_path / "global")
    released = {f"ema.{name.removeprefix('generator.')}": array for name, array in weights.read(tmp_path / "global").items()}
    weights.save(tmp_path / "ema", {name: array for name, array in released.items() if "discriminator" not in name})
    assert WORKSHOP.sample_sheet(CONFIG, tmp_path / "ema", 1, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 2 * 100 + 4
    with pytest.raises(BadData, match="not those of this experiment's generator"):
        WORKSHOP.sample_sheet(CONFIG, tmp_path / "global", 1, tmp_path / "other.png")


def test_refused_tiles_are_reported_by_count_and_reason(tiles_root: TilesRoot, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in sorted(path for path in tiles_root.path.iterdir() if path.is_dir()):
        shutil.copytree(folder, data / folder.name)
        (data / folder.name / "TCGA-ZZ-0001-01Z-00-DX1.jpg").write_bytes(b"no image")
        (data / folder.name / "secret name.jpg").write_bytes(b"no image")
    result = WORKSHOP.train(site_task(tmp_path, data, steps=1), lambda _: None, _never)
    assert result.notes == (
        "2 files refused: no patient id in the name and no line in patients.csv",
        "2 files refused: not a JPEG, PNG or TIFF image",
    )


def test_a_site_without_a_data_root_is_told_so(tiles_root: TilesRoot, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no data root"):
        train_task(replace(site_task(tmp_path, tiles_root.path), data=None))


def test_weights_of_another_experiment_are_refused(tiles_root: TilesRoot, tmp_path: Path) -> None:
    task = site_task(tmp_path, tiles_root.path)
    WORKSHOP.initialise({**CONFIG, "discriminator": {"name": "vit-mini"}}, 1, task.shared)
    with pytest.raises(BadData, match="belong to other work"):
        train_task(task)
    WORKSHOP.initialise({**CONFIG, "image_size": 36}, 1, task.shared)
    with pytest.raises(BadData, match="not those of this generator"):
        train_task(task)


def test_a_run_that_diverges_leaves_no_update(tiles_root: TilesRoot, tmp_path: Path) -> None:
    task = site_task(tmp_path, tiles_root.path)
    tensors = weights.read(task.shared)
    tensors["discriminator.heads.validity.bias"][:] = np.nan
    weights.save(task.shared, tensors)
    with pytest.raises(TrainingFailed, match="diverged"):
        train_task(task)
    assert not [*task.output.glob("*.safetensors")]


def test_decoded_tiles_are_kept_for_the_next_task(
    tiles_root: TilesRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without the cache the same bytes; the second task decodes nothing."""
    plain = train_task(site_task(tmp_path / "plain", tiles_root.path))

    def kept(name: str) -> TrainTask:
        return replace(site_task(tmp_path / name, tiles_root.path), cache=tmp_path / "cache", cache_bytes=10**8)

    assert train_task(kept("cold")) == plain
    monkeypatch.setattr(cache, "decode_tile", lambda *_: pytest.fail("decoded again"))
    assert train_task(kept("warm")) == plain


def test_a_cache_that_cannot_be_written_stops_the_task(tiles_root: TilesRoot, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    task = replace(site_task(tmp_path / "task", tiles_root.path), cache=tmp_path / "file/cache", cache_bytes=10**8)
    with pytest.raises(CannotWriteState, match="cache of decoded tiles") as caught:
        train_task(task)
    assert str(tmp_path) not in str(caught.value)


DEFAULTS: Mapping[str, Any] = {
    "generator": "deep",
    "discriminator": {"name": "cnn", "norm": "none", "spectral_norm": True, "batch_deviation": True, "heads": "reacgan"},
    "objective": {"name": "hinge", "r1": 1.0, "penalty_every": 2, "class_ramp": 2, "fake_labels": "even"},
    "augment": {},
    "lecam": {},
    "returns": {},
    "textures": 0.5,
    "clip_gradient": 10.0,
    "accumulate": 2,
    "precision": "bf16",
    "share": "generator",
    "persist_moments": True,
}


def test_everything_together_resumes_and_goes_on_in_the_next_round(tiles_root: TilesRoot, tmp_path: Path) -> None:
    whole = train_task(site_task(tmp_path / "whole", tiles_root.path, **DEFAULTS))
    task = site_task(tmp_path / "stopped", tiles_root.path, **DEFAULTS)
    answers = iter([False, True])
    with pytest.raises(Cancelled, match="after 1 of 3 steps"):
        WORKSHOP.train(task, lambda _: None, lambda: next(answers))
    assert train_task(task) == whole
    assert whole.keys() == {"shared.safetensors", "private.safetensors"}, "no state to return to is left"
    assert _groups(task.output / "private.safetensors") == {"discriminator", "adam", "lecam"}
    adopted = tmp_path / "private.safetensors"
    (task.output / "private.safetensors").rename(adopted)
    assert train_task(replace(task, private=adopted)) != whole


def _weights_of(folder: Path, name: str) -> dict[str, str]:
    WORKSHOP.initialise({**CONFIG, "discriminator": {"name": name}}, 5, folder / "donor")
    tensors = weights.read(folder / "donor")
    trunk = {key.removeprefix("discriminator.trunk."): array for key, array in tensors.items() if ".trunk." in key}
    return {"path": str(folder / "trunk"), "sha256": weights.save(folder / "trunk", trunk).sha256}


def test_a_frozen_trunk_does_not_travel(tiles_root: TilesRoot, tmp_path: Path) -> None:
    start = {"name": "vit-mini", "weights": _weights_of(tmp_path, "vit-mini"), "trunk": "frozen"}
    task = site_task(tmp_path / "task", tiles_root.path, discriminator=start)
    heads = {
        f"discriminator.heads.{name}" for name in ("validity.weight", "validity.bias", "classes.weight", "classes.bias")
    }
    before = weights.read(task.shared)
    assert {name for name in before if name.startswith("discriminator.")} == heads
    train_task(task)
    after = weights.read(task.output / "shared.safetensors")
    assert {name for name in after if name.startswith("discriminator.")} == heads
    assert all((before[name] != after[name]).any() for name in heads)


@pytest.mark.parametrize("objective", [{"name": "wgan-gp", "critic_steps": 1}, {"name": "acgan", "r1": 0.1}])
def test_a_frozen_resnet_may_be_penalised_and_a_trained_one_may_not(
    tiles_root: TilesRoot, tmp_path: Path, objective: Mapping[str, Any]
) -> None:
    critic = {"objective": objective}
    with pytest.raises(BadData, match="'test_resnet' has batch norm, which mixes the tiles"):
        site_task(tmp_path / "a", tiles_root.path, discriminator={"name": "test_resnet"}, **critic)
    start = {"name": "test_resnet", "weights": _weights_of(tmp_path, "test_resnet"), "trunk": "frozen"}
    train_task(site_task(tmp_path / "b", tiles_root.path, discriminator=start, **critic))
    train_task(site_task(tmp_path / "c", tiles_root.path, discriminator={"name": "test_resnet", "norm": "group"}, **critic))


def test_five_classes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    classes = ["ADI", "LYM", "MUC", "NORM", "TUM"]
    for index, name in enumerate(classes):
        (tmp_path / "data" / name).mkdir(parents=True)
        for patient in range(3):
            pixels = generator.integers(0, 120, (40, 40, 3), np.uint8) + np.uint8(25 * index)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"TCGA-ZZ-{index}{patient}00-01Z-00-DX1.png")
    for objective in ("acgan", "cgan", "hinge"):
        folder = tmp_path / objective
        task = site_task(
            folder, tmp_path / "data", classes=classes, generator="deep", objective={"name": objective}, batch=10
        )
        assert WORKSHOP.train(task, lambda _: None, _never).counts == Counts(15, 15)
    released = {f"ema.{name.removeprefix('generator.')}": array for name, array in weights.read(task.shared).items()}
    weights.save(tmp_path / "ema", {name: array for name, array in released.items() if "discriminator" not in name})
    assert WORKSHOP.sample_sheet(task.config, tmp_path / "ema", 1, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 5 * 100 + 4


def test_too_little_memory_is_told_with_what_to_lower(
    tiles_root: TilesRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = site_task(tmp_path, tiles_root.path)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(CnnDiscriminator, "forward", full)
    with pytest.raises(OutOfMemory, match=r'accumulate = 2 \(the batch of 4 in 2 parts\).*precision = "bf16"'):
        train_task(task)


def test_divergence_returns_and_then_fails_in_words(tiles_root: TilesRoot, tmp_path: Path) -> None:
    task = site_task(tmp_path, tiles_root.path, returns={"most": 1, "every": 1, "limit": 1e-9})
    with pytest.raises(TrainingFailed, match=r"diverged: generator loss is .*lower the learning rates .*after 1 returns"):
        train_task(task)
    assert not [*task.output.glob("good*"), *task.output.glob("shared*")]
