"""Bad input of a training, from the offer to what the aggregator hears, with the real trainer process in between.

Every row is one mistake: the trainer's own exit code, the sentence that leaves the site, and whether another attempt makes
sense. A trainer imports torch, so a row takes a few seconds.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histofed import weights
from histofed.base.errors import (
    BadData,
    CannotWriteState,
    HeldOutPatients,
    HistofedError,
    OutOfMemory,
    TooFewPatients,
    TrainingFailed,
    TryLater,
)
from histofed.base.hashing import sha256_file
from histofed.recipes.registry import recipe
from histofed.tiles.draw import draw_tiles
from histofed.tiles.manifest import make_manifest, write_manifest
from tests.support.agent_site import AgentSite, task
from tests.support.bad_pictures import BAD_PICTURES, UNREADABLE
from tests.support.fake_aggregator import FakeAggregator
from tests.support.pki import Federation
from tests.support.processes import trainers

CONFIG: dict[str, Any] = {"image_size": 32, "latent": 8, "steps": 1, "batch": 4, "discriminator": {"name": "cnn"}}
NO_MEMORY = """
import torch
from histofed.models.cnn_discriminator import CnnDiscriminator
def forward(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
CnnDiscriminator.forward = forward
"""
"""Runs in the trainer before anything else, as Python's `sitecustomize`."""


def one_class(tiles: Path) -> None:
    shutil.rmtree(tiles / "nonMSIH")


def one_patient(tiles: Path) -> None:
    first = min(tiles.glob("MSIH/*")).name.partition("TCGA-")[2][:7]
    for tile in tiles.glob("MSIH/*"):
        if first not in tile.name:
            tile.unlink()


def one_tile(tiles: Path) -> None:
    for tile in sorted(tiles.glob("nonMSIH/*"))[1:]:
        tile.unlink()


def two_halves(tiles: Path) -> None:
    (tiles / "TRAIN").mkdir()
    for name in ("MSIH", "nonMSIH"):
        shutil.copytree(tiles / name, tiles / "TEST" / name)
        (tiles / name).rename(tiles / "TRAIN" / name)


def held_out(tiles: Path) -> None:
    patients = {tile.name.partition("TCGA-")[2][:7] for tile in tiles.glob("MSIH/*")}
    write_manifest(tiles, make_manifest("train", "salt", [f"TCGA-{patient}" for patient in patients]))


def bad_pictures_only(tiles: Path) -> None:
    for tile, write in zip(sorted(tiles.glob("MSIH/*")), BAD_PICTURES.values(), strict=False):
        write(tile)
    for tile in sorted(tiles.glob("MSIH/*"))[len(BAD_PICTURES) :]:
        tile.unlink()


def a_hanging_share(tiles: Path) -> None:
    for tile in sorted(tiles.glob("MSIH/*"))[1:]:
        tile.unlink()
        tile.symlink_to(UNREADABLE)


def tiles_of_nobody(tiles: Path) -> None:
    for number, tile in enumerate(sorted(tiles.glob("MSIH/*"))):
        tile.rename(tile.with_name(f"private-{number}.png"))


def of_another_network(base: Path) -> None:
    recipe("gan").workshop().initialise({**CONFIG, "discriminator": {"name": "vit-mini"}}, 1, base)


def not_a_number(base: Path) -> None:
    tensors = {name: array.copy() for name, array in weights.read(base).items()}
    tensors["discriminator.heads.validity.bias"][:] = np.nan
    weights.save(base, tensors)


def as_it_is(_: Path) -> None:
    """No change."""


@dataclass(frozen=True)
class Mistake:
    """What is wrong, and what is said about it."""

    error: type[HistofedError]
    words: tuple[str, ...]
    tiles: Callable[[Path], None] = as_it_is
    base: Callable[[Path], None] = as_it_is
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    program: str = ""
    """Python that the trainer runs when it starts."""


MISTAKES = {
    "tiles of one class": Mistake(BadData, ("no folder for class nonMSIH",), one_class),
    "tiles of one patient": Mistake(TooFewPatients, ("class has too few patients for this site's own rule",), one_patient),
    "one tile": Mistake(TooFewPatients, ("class has too few patients for this site's own rule",), one_tile),
    "patients of two halves": Mistake(
        HeldOutPatients, ("Patients who are held out for validation or test are among those to train on",), two_halves
    ),
    "patients whom a split holds out": Mistake(
        HeldOutPatients, ("Patients who are held out for validation or test are among those to train on",), held_out
    ),
    "tiles smaller than the model": Mistake(
        BadData, ("class MSIH has no usable tile", "12 files refused: smaller than 64 pixels"), config={"image_size": 64}
    ),
    "pictures that are no tiles": Mistake(
        BadData,
        ("class MSIH has no usable tile", "add tiles", *(f"1 file refused: {reason}" for reason in BAD_PICTURES)),
        bad_pictures_only,
    ),
    "tiles on a share that hangs": Mistake(
        TryLater, ("the disk of the tiles cannot be read: Input/output error", "mount it again"), a_hanging_share
    ),
    "tiles without a patient": Mistake(
        BadData,
        ("class MSIH has no usable tile", "6 files refused: no patient id", "write patients.csv", "columns file"),
        tiles_of_nobody,
    ),
    "a model of another network": Mistake(
        BadData, ("the global weights are not those of", "belong to other work"), base=of_another_network
    ),
    "NaN": Mistake(
        TrainingFailed, ("training diverged", "nan at step 1 of 1", "lower the learning rates"), base=not_a_number
    ),
    "too little memory on the GPU": Mistake(
        OutOfMemory,
        ("memory of the GPU does not suffice", "accumulate = 2", 'precision = "bf16"', "image_size below 32"),
        program=NO_MEMORY,
    ),
    "a full disk under the cache": Mistake(
        CannotWriteState,
        ("cache of decoded tiles cannot be written: No space left on device", "cache_bytes = 0"),
        environment={"HISTOFED_FAILPOINTS": "replace.before_rename=ENOSPC"},
    ),
}


@pytest.fixture
async def aggregator(tmp_path: Path) -> AsyncIterator[FakeAggregator]:
    async with FakeAggregator(tmp_path / "aggregator", Federation()) as running:
        yield running


@pytest.fixture
async def site(tmp_path: Path, aggregator: FakeAggregator) -> AsyncIterator[AgentSite]:
    """A site with 12 tiles of 2 patients of each class."""
    tiles = tmp_path / "tiles"
    draw_tiles(tiles, patients_per_class=2, tiles_per_patient=3, size=32)
    async with AgentSite(tmp_path / "site", aggregator.federation.site(), aggregator.address) as built:
        built.work.config = built.config.model_copy(update={"data": built.config.data.model_copy(update={"root": tiles})})
        yield built


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_ends_the_trainer_with_its_code_and_is_told(
    name: str,
    site: AgentSite,
    aggregator: FakeAggregator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mistake = MISTAKES[name]
    mistake.tiles(tmp_path / "tiles")
    config = {**CONFIG, **mistake.config}
    aggregator.offer(aggregator.make_offer(task(), toml=_toml(config), base=_base(tmp_path, config, mistake)))
    for variable, value in mistake.environment.items():
        monkeypatch.setenv(variable, value)
    if mistake.program:
        _at_start(mistake.program, tmp_path, monkeypatch)
    site.start()
    heard = await aggregator.wait_for("FailTask", seconds=120)
    assert [word for word in mistake.words if word not in heard.request.reason] == [], heard.request.reason
    assert f"the trainer ended with exit code {mistake.error.exit_code}" in caplog.text
    assert heard.request.retryable == issubclass(mistake.error, TrainingFailed | CannotWriteState | TryLater)
    assert aggregator.called("SubmitUpdate") == 0
    assert site.actions()[-1] == "task.failed"
    for secret in (str(tmp_path), "TCGA", ".jpg", "private-"):
        assert secret not in heard.request.reason
    assert not re.search(r"\d patient", heard.request.reason)
    assert not trainers()


async def test_a_weights_file_of_another_network_is_told_without_its_place(
    site: AgentSite, aggregator: FakeAggregator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "trunk.safetensors"
    recipe("gan").workshop().initialise(CONFIG, 1, file)
    started = {**CONFIG, "discriminator": {"name": "vit-mini"}}
    base = tmp_path / "base.safetensors"
    recipe("gan").workshop().initialise(started, 1, base)
    named = {"name": "vit-mini", "weights": {"path": str(file), "sha256": sha256_file(file)}}
    aggregator.offer(aggregator.make_offer(task(), toml=_toml({**CONFIG, "discriminator": named}), base=base))
    site.start()
    heard = await aggregator.wait_for("FailTask", seconds=120)
    assert "use the file that belongs to this model" in heard.request.reason
    assert str(tmp_path) not in heard.request.reason
    assert not heard.request.retryable
    assert "the trainer ended with exit code 65" in caplog.text


async def test_an_experiment_with_one_class_starts_no_trainer(site: AgentSite, aggregator: FakeAggregator) -> None:
    aggregator.offer(aggregator.make_offer(task(), toml=_toml({**CONFIG, "classes": ["MSIH"]})))
    site.start()
    heard = await aggregator.wait_for("DeclineTask")
    assert "this site cannot run the experiment" in heard.request.reason
    assert "classes: " in heard.request.reason
    assert "at least 2" in heard.request.reason


async def test_bad_pictures_among_good_ones_are_counted_and_cost_nothing(
    site: AgentSite, aggregator: FakeAggregator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for place, write in enumerate(BAD_PICTURES.values()):
        write(tmp_path / "tiles" / "MSIH" / f"blk-BAD{place}-TCGA-ZZ-000{place}-01Z-00-DX1.png")
    base = _base(tmp_path, CONFIG, Mistake(BadData, ()))
    aggregator.offer(aggregator.make_offer(task(), toml=_toml(CONFIG), base=base))
    site.start()
    await aggregator.wait_for("SubmitUpdate", seconds=120)
    (manifest,) = aggregator.manifests()
    assert (manifest.tiles, manifest.patients) == (12, 4)
    for reason in BAD_PICTURES:
        assert f"training: 1 file refused: {reason}" in caplog.text
    assert "BAD" not in caplog.text


def _base(folder: Path, config: Mapping[str, Any], mistake: Mistake) -> Path:
    """The round's global tensors, spoilt as the mistake says."""
    file = folder / "base.safetensors"
    recipe("gan").workshop().initialise(config, 1, file)
    mistake.base(file)
    return file


def _toml(config: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_value(value)}" for key, value in config.items()]
    return "\n".join(['name = "pilot"\nrecipe = "gan"\nrounds = 1\n[config]', *lines])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def _at_start(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "start").mkdir()
    (folder / "start" / "sitecustomize.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'start'}:{Path.cwd()}")
