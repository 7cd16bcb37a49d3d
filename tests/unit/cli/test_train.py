"""`histofed train` from the command line: its answer, its words while it works, and its exit codes."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from histofed.base.clock import FakeClock
from histofed.cli.command import Terminal
from histofed.cli.main import main
from histofed.cli.training_show import LINE_SECONDS, Bar, Lines, numbers, training_show
from histofed.recipes.contract import Progress
from histofed.recipes.gan import central
from histofed.recipes.gan.show import Span
from histofed.tiles.draw import draw_tiles
from histofed.training.sheet import render_sheet
from tests.unit.cli.conftest import Ran

RECIPE = """
[recipe]
image_size = 32
batch = 4
latent = 8
steps = 3
discriminator = { name = "cnn" }
"""

Train = Callable[..., Ran]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiles")
    draw_tiles(root, patients_per_class=2, tiles_per_patient=2, size=48, seed=3)
    return root


@pytest.fixture
def train(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        own = ["--data", tiles, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--device", "cpu", "--threads", 1]
        code = main([str(one) for one in ("train", *own, *arguments)])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(RECIPE)
    return tmp_path / "small.toml"


def test_a_run_ends_with_what_it_made(train: Train, settings: Path, tmp_path: Path) -> None:
    ran = train("--config", settings)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == "Trained 3 of 3 steps"
    assert "images        12 in " in ran.out
    assert "histofed: training from step 0 to 3 of 3, 4 tiles each" in ran.error
    assert "histofed: step 3/3  discriminator" in ran.error
    assert "0 s left" in ran.error
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_with_json_stdout_holds_one_document(train: Train, settings: Path, tmp_path: Path) -> None:
    ran = train("--config", settings, "--max-steps", 2, "--json")
    assert ran.code == 0
    found = ran.document
    assert (found["state"], found["step"], found["steps"], found["images"]) == ("stopped", 2, 3, 8)
    assert found["files"]["model"] == str(tmp_path / "out" / "model.safetensors")
    assert found.keys() >= {"seconds", "losses", "notes", "paper"}
    words = train("--config", settings, "--max-steps", 1)
    assert words.out.startswith("Trained 3 of 3 steps")


def test_max_steps_says_how_to_go_on(train: Train, settings: Path) -> None:
    ran = train("--config", settings, "--max-steps", 1)
    assert ran.code == 0
    assert ran.out.startswith("Stopped after 1 of 3 steps")
    assert ran.error.endswith("histofed: run the same command again to go on\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_done(
    train: Train, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    whole = train("--config", settings, "--out", tmp_path / "whole")
    assert whole.code == 0

    def interrupted(*arguments: Any) -> bytes:
        signal.raise_signal(number)
        return render_sheet(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(central, "render_sheet", interrupted)
        ran = train("--config", settings, "--sheet-every", 1)
    assert ran.code == 75
    assert ran.error.endswith(
        "histofed: training stopped on request after 1 of 3 steps; run the same command again to go on\n"
    )
    assert signal.getsignal(number) == before
    assert train("--config", settings).code == 0
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert models[0] == models[1]


def test_a_second_signal_ends_at_once(train: Train, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(*_: object) -> bytes:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still here")

    monkeypatch.setattr(central, "render_sheet", twice)
    assert train("--config", settings, "--sheet-every", 1).code == 130


def test_before_the_first_step_a_signal_ends_at_once(train: Train, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(central, "load_tiles", lambda *_: signal.raise_signal(signal.SIGINT))
    assert train("--config", settings).code == 130


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "either --preset NAME"),
        (("--preset", "default", "--config", "x.toml"), 2, "either --preset NAME"),
        (("--preset", "defalt"), 65, "there is no preset 'defalt'; did you mean 'default'?"),
        (("--preset", "DEFAULT"), 65, "there is no preset 'DEFAULT'; did you mean 'default'?"),
        (("--preset", "nope"), 65, "there is no preset 'nope': `histofed presets` lists all"),
        (("--preset", "paper/acgan-vit-b-16"), 65, "starts from vit_b_16-c867db91.pth"),
        (("--preset", "default", "--set", "batch"), 2, "'batch' is not KEY=VALUE"),
        (("--preset", "default", "--set", "batch=[1"), 2, "is no value"),
        (("--preset", "default", "--set", "btach=1"), 65, "did you mean batch?"),
        (("--preset", "default", "--max-steps", "0"), 2, "--max-steps is at least 1"),
        (("--preset", "default", "--sheet-every", "-1"), 2, "--sheet-every is at least 0"),
        (("--preset", "default", "--checkpoint-every", "nan"), 2, "--checkpoint-every is at least 0"),
        (("--preset", "default", "--seed", f"{2**63}"), 2, f"--seed is at least 0 and below 2^63; {2**63} was given"),
        (("--preset", "default", "--data", "/nowhere/at/all"), 65, "there is no such folder"),
        (("--preset", "default"), 65, "smaller than 128 pixels"),
        (("--preset", "default", "--device", "cuda:7", "--set", "image_size=32"), 78, "is not on this machine"),
        (("--config", "/nowhere/at/all.toml"), 78, "cannot be read"),
    ],
)
def test_calls_that_cannot_work(train: Train, arguments: tuple[str, ...], code: int, words: str) -> None:
    ran = train(*arguments)
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.error


@pytest.mark.parametrize("out", ["precious.txt", "precious.txt/below"])
def test_a_file_is_no_folder_for_what_is_made(train: Train, settings: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    ran = train("--config", settings, "--out", tmp_path / out)
    assert ran.code == 65
    assert f"{tmp_path / 'precious.txt'} is a file, and --out takes a folder" in ran.error
    assert (tmp_path / "precious.txt").read_text() == "precious"


def test_an_error_is_a_document_too(train: Train) -> None:
    ran = train("--preset", "defalt", "--json")
    assert ran.code == 65
    assert json.loads(ran.out)["error"]["kind"] == "BadData"


def test_of_the_papers_presets_it_is_said_whether_it_is_the_papers(train: Train) -> None:
    ran = train("--preset", "paper/acgan-cnn", "--set", "image_size=32", "--set", "batch=2", "--max-steps", 1)
    assert ran.code == 0, ran.error
    assert "the paper's   no" in ran.out
    assert "because       image_size is 32 instead of 224" in ran.out
    assert "because       it has taken 1 of " in ran.out


# -- the show ----------------------------------------------------------------------------------------------------------

SPAN = Span(first=10, last=30, steps=100, batch=4)


def _progress(step: int) -> Progress:
    return Progress(step, 100, {"generator_loss": 0.5, "discriminator_loss": 1.25}, 2.0)


def test_a_log_gets_a_line_now_and_then() -> None:
    out, clock = io.StringIO(), FakeClock()
    show = Lines(out, clock)
    before = show.training
    show.begin(SPAN)
    assert (before, show.training) == (False, True)
    for step in (11, 12, 13):
        show.progress(_progress(step))
        clock.advance(LINE_SECONDS * 0.6)
    show.progress(_progress(30))
    assert out.getvalue().splitlines() == [
        "histofed: training from step 10 to 30 of 100, 4 tiles each",
        "histofed: step 13/100  discriminator 1.250  generator 0.500  2.0 images/s  34 s left to step 30",
        "histofed: step 30/100  discriminator 1.250  generator 0.500  2.0 images/s  0 s left to step 30",
    ]


def test_a_person_gets_a_bar() -> None:
    out = io.StringIO()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
    with RichProgress(*columns, console=Console(file=out, force_terminal=True, width=120)) as rich:
        show = Bar(rich)
        show.phase("reading tiles")
        assert not show.training
        show.begin(SPAN)
        show.progress(_progress(20))
        rich.refresh()
    assert "step 20/100" in out.getvalue()
    assert "discriminator 1.250  generator 0.500  2.0 images/s  20 s left to step 30" in out.getvalue()
    whole = replace(SPAN, last=100)
    assert numbers(_progress(100), whole).endswith("0 s left")


def test_who_watches_decides() -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    with training_show(Terminal(io.StringIO(), io.StringIO()), FakeClock()) as show:
        assert isinstance(show, Lines)
    with training_show(Terminal(io.StringIO(), Screen()), FakeClock()) as show:
        assert isinstance(show, Bar)
