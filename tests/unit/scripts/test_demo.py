"""What `scripts/demo.py run` does before it begins; the demo itself is run by `make demo`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A demo that ended well."""
    folder = tmp_path / "demo"
    (folder / "aggregator").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"trained")
    return folder


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`demo.py run` in `folder`."""
    command = [sys.executable, str(ROOT / "scripts/demo.py"), "--folder", str(folder), "run", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [("--data", "there is no folder of tiles {}"), ("--experiment", "there is no experiment file {}")],
)
def test_a_mistyped_path_removes_nothing(earlier: Path, tmp_path: Path, option: str, sentence: str) -> None:
    wrong = str(tmp_path / "no such")

    refused = demo(earlier, option, wrong)

    assert refused.returncode == 1
    assert refused.stderr == f"demo: {sentence.format(wrong)}\n"
    assert (earlier / "model.safetensors").read_bytes() == b"trained"


def test_tiles_that_cannot_be_split_remove_nothing(earlier: Path, tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()

    refused = demo(earlier, "--data", str(tmp_path / "tiles"))

    assert refused.returncode == 1
    assert "no folder for class" in refused.stderr
    assert (earlier / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--size", "33", "image_size"),
        ("--size", "0", "image_size"),
        ("--rounds", "0", "rounds"),
        ("--rounds", "-1", "rounds"),
        ("--patients", "0", "draw 1 to 500 patients"),
        ("--tiles", "0", "draw 1 to 500 patients"),
    ],
)
def test_a_number_that_cannot_be_removes_nothing(earlier: Path, option: str, value: str, words: str) -> None:
    refused = demo(earlier, option, value)

    assert refused.returncode == 1
    assert refused.stderr.startswith("demo: ")
    assert words in refused.stderr
    assert (earlier / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rounds = 4", "", "0 lines that set rounds"),
        ('generator = "paper-cnn"', 'generator = "none"', "generator: Input should be"),
    ],
)
def test_an_experiment_that_cannot_be_removes_nothing(earlier: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text((ROOT / "examples/demo.toml").read_text().replace(old, new))
    (tmp_path / "tiles").mkdir()

    for data in ((), ("--data", str(tmp_path / "tiles"))):
        refused = demo(earlier, "--experiment", str(file), "--rounds", "3", *data)

        assert refused.returncode == 1
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
        assert (earlier / "model.safetensors").exists()


def test_a_folder_of_somebody_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "mine.png").touch()

    refused = demo(tmp_path)

    assert refused.returncode == 1
    assert "holds something that is no demo" in refused.stderr
    assert (tmp_path / "samples" / "mine.png").exists()
