"""Tiles and networks from a configuration: what cannot be used is refused in words, or counted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from histofed import weights
from histofed.base.errors import BadData, TooFewPatients
from histofed.recipes.gan.building import compile_networks, contest_of
from histofed.recipes.gan.config import GanConfig
from histofed.tiles.draw import draw_tiles
from tests.support.tiles import TilesRoot
from tests.unit.recipes.gan.conftest import TABLE, WORKSHOP, MakeRunner, Runner, site_task, train_task

# -- for a run in one place --------------------------------------------------------------------------------------------


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


# -- for a site's task -------------------------------------------------------------------------------------------------


def test_a_site_with_too_few_patients_is_refused(tiles_root: TilesRoot, tmp_path: Path) -> None:
    with pytest.raises(TooFewPatients, match="this site requires at least 500"):
        train_task(replace(site_task(tmp_path, tiles_root.path), minimum_patients=500))


def test_tiles_smaller_than_the_model_are_refused(tmp_path: Path) -> None:
    draw_tiles(tmp_path / "data", patients_per_class=2, tiles_per_patient=2, size=48)
    with pytest.raises(BadData, match=r"class MSIH has no usable tile .*8 files refused: smaller than 64 pixels"):
        train_task(site_task(tmp_path, tmp_path / "data", image_size=64))


@pytest.mark.parametrize("name", ["TEST", "VALIDATION"])
def test_held_out_tiles_cannot_be_given(tiles_root: TilesRoot, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiles_root.path, tmp_path / name)
    with pytest.raises(BadData, match="must not be trained on"):
        train_task(site_task(tmp_path, tmp_path / name))


def test_one_patient_is_refused(tmp_path: Path) -> None:
    draw_tiles(tmp_path / "data", patients_per_class=1, tiles_per_patient=4, size=48)
    with pytest.raises(TooFewPatients, match="class MSIH has tiles of 1 patient; this site requires at least 2"):
        train_task(site_task(tmp_path, tmp_path / "data"))


def test_a_network_that_cannot_be_compiled_is_trained_as_written(
    tiles_root: TilesRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train_task(site_task(tmp_path / "plain", tiles_root.path))

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", fails))
    task = site_task(tmp_path / "compiled", tiles_root.path, compile=True)
    result = WORKSHOP.train(task, lambda _: None, lambda: False)
    assert [note.partition(":")[0] for note in result.notes] == ["generator", "discriminator"]
    assert "torch.compile does not work here (RuntimeError)" in result.notes[0]
    assert (task.output / "shared.safetensors").read_bytes() == plain["shared.safetensors"]


def test_networks_are_compiled_for_the_parts_that_a_device_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[int] = set()

    def compiled(network: torch.nn.Module) -> None:
        def call(*inputs: torch.Tensor) -> object:
            sizes.add(len(inputs[0]))
            return network.forward(*inputs)

        network._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    table: dict[str, Any] = {**TABLE, "steps": 1, "batch": 12, "accumulate": 2, "compile": True}
    config = GanConfig(**table)
    contest = contest_of(config, torch.device("cpu"))
    assert compile_networks(config, contest, devices=3) == ()
    assert sizes == {2}
