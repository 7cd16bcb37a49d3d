"""What the judge finds in `--out`: used when it is whole and about these tiles, refused or made again when it is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench.quality import judge, yardsticks
from bench.quality.judge import Judge
from bench.quality.recipes import CLASSES
from histofed.base.errors import AlreadyThere
from histofed.tiles import folder
from histofed.tiles.draw import draw_tiles


class _Means:
    """A feature net that takes no file and no time."""

    def __init__(self, name: str) -> None:
        self.name = name

    def features(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = np.asarray(pixels).mean((2, 3)).astype(np.float32)
        return found


@pytest.fixture(autouse=True)
def quick_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "load_feature_net", lambda name, *_: _Means(name))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return _drawn(tmp_path / "data", 2)


def _drawn(root: Path, tiles: int) -> Path:
    draw_tiles(root, patients_per_class=4, tiles_per_patient=tiles, size=64)
    return root


def _count(root: Path) -> int:
    return len(folder.scan(root, CLASSES).tiles)


def test_what_was_measured_is_found_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Judge(data, tmp_path, tmp_path / "out")
    assert _count(first.training_folder) == 12
    monkeypatch.setattr(_Means, "features", None)
    again = Judge(data, tmp_path, tmp_path / "out")
    assert again.training_folder == first.training_folder
    for name, features in first.held_out.features.items():
        assert np.array_equal(again.held_out.features[name], features)


def test_a_split_that_was_interrupted_is_made_anew(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, made = Path.symlink_to, []

    def killed(path: Path, target: Path) -> None:
        made.append(path)
        if len(made) == 5:
            raise KeyboardInterrupt
        link(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "symlink_to", killed)
        with pytest.raises(KeyboardInterrupt):
            Judge(data, tmp_path, tmp_path / "out")
    assert _count(Judge(data, tmp_path, tmp_path / "out").training_folder) == 12


def test_an_out_of_other_tiles_is_refused(data: Path, tmp_path: Path) -> None:
    Judge(data, tmp_path, tmp_path / "out")
    with pytest.raises(AlreadyThere, match="was made of other tiles than --data holds; choose another --out"):
        Judge(_drawn(tmp_path / "others", 3), tmp_path, tmp_path / "out")
    tile = folder.scan(data, CLASSES).tiles[0]
    tile.path.write_bytes(tile.path.read_bytes() + b"\0")
    with pytest.raises(AlreadyThere, match="other tiles"):
        Judge(data, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["real.npz", "tiles"])
def test_an_out_that_does_not_say_of_which_tiles_it_is_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    Judge(data, tmp_path, tmp_path / "before")
    (tmp_path / "out").mkdir()
    (tmp_path / "before" / name).rename(tmp_path / "out" / name)
    with pytest.raises(AlreadyThere, match="does not say of which tiles it was made"):
        Judge(data, tmp_path, tmp_path / "out")


def test_yardsticks_of_other_tiles_are_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "of_real", lambda _: {"tiles": 12})
    monkeypatch.setattr(Judge, "distances", lambda *_: {})
    out = tmp_path / "out"
    yardsticks.measure(data, tmp_path, out)
    assert yardsticks.read(out)["tiles"] == 12
    yardsticks.measure(data, tmp_path, out)
    with pytest.raises(AlreadyThere):
        yardsticks.measure(_drawn(tmp_path / "others", 3), tmp_path, out)
    assert json.loads((out / yardsticks.FILE).read_text())["tiles"] == 12
