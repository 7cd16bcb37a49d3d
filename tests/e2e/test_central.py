"""`histofed train` as a real process that is killed: the same command goes on and ends in the same model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from histofed.cli.main import main
from histofed.tiles.draw import draw_tiles
from histofed.training.checkpoint import CheckpointStore
from tests.support.daemons import KILLED

ROOT = Path(__file__).parents[2]
SETTINGS = """
[recipe]
image_size = 32
batch = 4
latent = 8
steps = 12
discriminator = { name = "cnn" }
augment = {}
returns = { every = 3 }
"""


def _arguments(folder: Path, out: str) -> list[str]:
    places = [
        "--config",
        folder / "mine.toml",
        "--data",
        folder / "tiles",
        "--out",
        folder / out,
        "--cache",
        folder / "cache",
    ]
    choices = ["--device", "cpu", "--threads", "1", "--checkpoint-every", "0", "--sheet-every", "5"]
    return ["train", *map(str, places), *choices]


def _killed(folder: Path, failpoints: str) -> int:
    """Run the command until it is killed; the last step that counts."""
    done = subprocess.run(
        [sys.executable, "-m", "histofed.cli.main", *_arguments(folder, "killed")],
        env={**os.environ, "HISTOFED_FAILPOINTS": failpoints, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == KILLED, done.stderr
    assert done.stdout == ""
    found = CheckpointStore(folder / "killed", "anybody").peek()
    return found.state.step if found else 0


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_in_the_same_model(tmp_path: Path) -> None:
    draw_tiles(tmp_path / "tiles", patients_per_class=2, tiles_per_patient=3, size=48)
    (tmp_path / "mine.toml").write_text(SETTINGS)
    assert main(_arguments(tmp_path, "whole")) == 0
    # killed in the middle of writing a checkpoint, then just after one
    first = _killed(tmp_path, "replace.before_rename=kill:14")
    assert 0 < first < 12
    second = _killed(tmp_path, "agent.checkpoint_written=kill:6")
    assert first < second < 12
    assert main(_arguments(tmp_path, "killed")) == 0
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    sheets = [sorted(path.name for path in (tmp_path / name / "samples").iterdir()) for name in ("whole", "killed")]
    assert models[0] == models[1]
    assert sheets[0] == sheets[1]
