"""`histofed presets` from the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from histofed.base.experiment import parse_experiment
from histofed.cli.main import main
from histofed.recipes import presets
from tests.unit.cli.conftest import Ran

Shell = Callable[..., Ran]


@pytest.fixture
def histofed(capsys: pytest.CaptureFixture[str]) -> Shell:
    def run(*arguments: str) -> Ran:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


def test_the_list_needs_no_further_word(histofed: Shell) -> None:
    words = histofed("presets")
    assert words.code == 0
    assert words.out == histofed("presets", "list").out
    (line,) = (line for line in words.out.splitlines() if line.startswith("paper/federated-10-swin-t "))
    assert "acgan      swin_tiny_patch4_window7_224  paper-cnn  224   40 epochs    2 of 10 sites, 40 rounds" in line

    found = histofed("presets", "--json").document["presets"]
    assert tuple(one["name"] for one in found) == presets.names()
    (vit,) = (one for one in found if one["name"] == "paper/acgan-vit-b-16")
    assert (vit["objective"], vit["epochs"], vit["federation"], vit["paper_fid"]) == ("acgan", 40, None, 192.29)
    assert vit["weights"]["file"] == "vit_b_16-c867db91.pth"


def test_show_says_where_every_value_comes_from(histofed: Shell) -> None:
    words = histofed("presets", "show", "paper/acgan-vit-b-16").out
    assert "recipe.batch                          32" in words
    assert "reconstructed  32 to 64\n" in words
    assert "§" not in words, "no section of a paper that the reader does not have"
    assert "The paper reports FID 192.29 (stated: Table 2). No distance that histofed measures compares with it" in words
    assert "starts from random weights, not from vit_b_16-c867db91.pth" in words

    document = histofed("presets", "show", "paper/acgan-vit-b-16", "--json").document["preset"]
    values = {one["key"]: one for one in document["values"]}
    assert values["epochs"] == {"key": "epochs", "value": 40, "from": "stated", "why": "Table 2"}
    assert values["recipe.augment"]["value"] is None
    assert values.keys() == presets.load("paper/acgan-vit-b-16").provenance.keys()


def test_what_the_paper_does_not_report_is_not_shown(histofed: Shell) -> None:
    assert "The paper reports FID" not in histofed("presets", "show", "default").out


def test_show_as_experiment_file(histofed: Shell) -> None:
    assert parse_experiment(histofed("presets", "show", "default", "--toml").out).file.recipe == "gan"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("show", "acgan-vit-b-16"), 65, "did you mean 'paper/acgan-vit-b-16'"),
        (("show", "paper/acgan-cnn", "--toml"), 65, "no experiment file"),
        (("show", "default", "--toml", "--json"), 2, "use one of them"),
        (("show",), 2, "NAME"),
    ],
)
def test_what_cannot_be_shown(histofed: Shell, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    found = histofed("presets", *arguments)
    assert found.code == code
    assert sentence in found.error


def test_presets_are_listed_without_the_numeric_half() -> None:
    program = (
        "import sys; from histofed.cli.main import main; main(['presets']); main(['presets', 'show', 'default']); "
        "print([name for name in ('torch', 'numpy', 'pydantic', 'grpc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
