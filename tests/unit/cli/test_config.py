from __future__ import annotations

from pathlib import Path

import pytest

from histofed.base.errors import ConfigError
from histofed.cli.config import load_operator

GOOD = """
aggregator = "aggregator.example.org:8443"
certificate = "operator.crt"
key = "keys/operator.key"
ca = "/etc/ca.crt"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "operator.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD)
    monkeypatch.chdir("/")

    config = load_operator(path)

    assert config.aggregator == "aggregator.example.org:8443"
    assert config.key == tmp_path / "keys/operator.key"
    assert config.ca == Path("/etc/ca.crt")


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOFED_CONFIG", str(write(tmp_path, GOOD)))

    assert load_operator(None).certificate == tmp_path / "operator.crt"


def test_a_folder_is_told_from_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path} is a folder: name its file, {tmp_path}/operator.toml$"):
        load_operator(tmp_path)


def test_the_home_folder_is_looked_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTOFED_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="--config FILE or HISTOFED_CONFIG"):
        load_operator(None)

    folder = tmp_path / ".config/histofed"
    folder.mkdir(parents=True)
    write(folder, GOOD)
    assert load_operator(None).certificate == folder / "operator.crt"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD + 'certifcate = "x"\n', "certificate"),
        (GOOD.replace('key = "keys/operator.key"\n', ""), "key"),
        (GOOD.replace(":8443", ""), "not HOST:PORT"),
        (GOOD.replace(":8443", ":99999"), "not HOST:PORT"),
        ("aggregator = \n", "operator.toml"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_operator(write(tmp_path, text))
