"""What a preset or a file and the caller's changes make together, and that nothing but the paper's is called the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import BadData, ConfigError, NotFound, UsageError
from histofed.base.hashing import sha256_file
from histofed.base.ids import Json
from histofed.recipes.gan.settings import Changes, Settings, from_file, from_preset, parse_value
from histofed.recipes.presets import load, names

PAPER = "paper/acgan-vit-b-16"


@pytest.mark.parametrize("name", names())
def test_every_preset_can_be_built_and_says_whether_it_is_the_papers(name: str) -> None:
    preset = load(name)
    settings = from_preset(preset, Changes(random_start=True))
    assert settings.config(15_000).steps == preset.steps_for(15_000)
    is_papers = name.startswith("paper/") and preset.wants_weights is None and preset.federation is None
    assert (settings.not_the_papers() == ()) == is_papers


def test_a_preset_that_starts_from_a_file_asks_for_it() -> None:
    with pytest.raises(NotFound, match=r"starts from vit_b_16-c867db91\.pth .* --weights FILE, or .* --init random"):
        from_preset(load(PAPER), Changes())
    settings = from_preset(load(PAPER), Changes(random_start=True))
    assert settings.draft().discriminator.weights is None
    assert settings.not_the_papers()[0].startswith("the discriminator starts from random weights, not from vit_b_16")


def test_a_weights_file_is_pinned_by_the_presets_digest_or_the_callers(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    digest = sha256_file(tmp_path / "file")
    with pytest.raises(BadData, match=f"its SHA-256 is {digest} and should begin with c867db91"):
        from_preset(load(PAPER), Changes(weights=tmp_path / "file"))
    with pytest.raises(NotFound, match="cannot be read"):
        from_preset(load(PAPER), Changes(weights=tmp_path / "none"))
    own = from_preset(load(PAPER), Changes(weights=tmp_path / "file", weights_sha256=digest.upper()))
    weights = own.draft().discriminator.weights
    assert weights is not None
    assert weights.sha256 == digest
    assert f"starts from a file with SHA-256 {digest[:12]}" in own.not_the_papers()[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (Changes(weights_sha256="0" * 64, random_start=True), "--weights-sha256 belongs to --weights"),
        (Changes(weights=Path("a"), random_start=True), "exclude each other"),
        (Changes(steps=1, epochs=1, random_start=True), "--steps and --epochs exclude each other"),
        (Changes(steps=0, random_start=True), "--steps is at least 1"),
        (Changes(values={"steps": 4}, random_start=True), "use --steps N or --epochs N"),
        (Changes(values={"batch.size": 4}, random_start=True), "batch is no table"),
    ],
)
def test_calls_that_mean_nothing(changes: Changes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        from_preset(load(PAPER), changes)


def test_changes_are_kept_as_sentences() -> None:
    values: dict[str, Json] = {"batch": 16, "latent": 100, "returns": "off", "augment.colour": 0.1, "augment.flips": False}
    settings = from_preset(load("default"), Changes(steps=10, values=values))
    config = settings.draft()
    assert (config.batch, config.steps, config.returns, config.augment and config.augment.colour) == (16, 10, None, 0.1)
    assert settings.departures == (
        "batch is 16 instead of 64",
        "returns is nothing instead of {'most': 2, 'every': 200, 'limit': 10000.0}",
        "augment.colour is 0.1 instead of 0.2",
        "augment.flips is false instead of true",
        "trained for 10 steps instead of 24000 steps",
    )
    changed = from_preset(load("paper/acgan-cnn"), Changes(values={"batch": 16}))
    assert changed.not_the_papers() == ("batch is 16 instead of 32",)
    assert from_preset(load("default"), Changes()).table == load("default").recipe, "the preset itself is not changed"


def test_unknown_keys_and_values_are_refused_with_the_nearest() -> None:
    with pytest.raises(
        BadData, match=r"^the table of settings is wrong: btach is not a key of this recipe \(did you mean batch\?\)"
    ):
        from_preset(load("default"), Changes(values={"btach": 16})).draft()
    with pytest.raises(BadData, match="batch: Input should be a valid integer"):
        from_preset(load("default"), Changes(values={"batch": "many"})).draft()


def test_epochs_are_passes_with_the_effective_batch() -> None:
    settings = from_preset(load("paper/acgan-cnn"), Changes(epochs=2, values={"batch": 10}))
    assert settings.config(101).steps == 21
    with pytest.raises(BadData, match="steps: Input should be less than or equal to 1000000"):
        from_preset(load("paper/acgan-cnn"), Changes(epochs=2)).config(10**8)


RECIPE = '[recipe]\nimage_size = 32\ndiscriminator = { name = "cnn" }\n'


def _file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "mine.toml").write_text(text)
    return tmp_path / "mine.toml"


def test_settings_of_a_file(tmp_path: Path) -> None:
    found = from_file(_file(tmp_path, RECIPE + "steps = 5\n"), Changes())
    assert found == Settings("mine", None, {"image_size": 32, "discriminator": {"name": "cnn"}}, 5, None)
    assert found.not_the_papers() == ("the settings are not a preset of the paper",)
    assert from_file(_file(tmp_path, RECIPE), Changes(epochs=3)).departures == ()
    with pytest.raises(UsageError, match="nothing of how long"):
        from_file(_file(tmp_path, RECIPE), Changes())
    pinned = from_file(_file(tmp_path, RECIPE + "steps = 5\n"), Changes(weights=tmp_path / "w", weights_sha256="a" * 64))
    assert pinned.table["discriminator"] == {
        "name": "cnn",
        "weights": {"path": str(tmp_path / "w"), "sha256": "a" * 64},
    }


def test_an_experiment_file_may_be_trained_in_one_place_too() -> None:
    found = from_file(Path(__file__).parents[4] / "examples" / "demo.toml", Changes())
    assert found.name == "demo"
    assert found.draft().steps == found.steps


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("steps = 4", ConfigError, "has one table"),
        (RECIPE + "[more]\n", ConfigError, "it has more"),
        ("[recipe", ConfigError, "is not TOML"),
        (RECIPE + "steps = 4.5\n", BadData, "steps is a whole number"),
        ('name = "a"\nrecipe = "mean"\nrounds = 1\n', BadData, "only 'gan' trains in one place"),
        ('name = "a"\nrecipe = "gan"\n', BadData, "rounds: missing"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        from_file(_file(tmp_path, text), Changes())
    with pytest.raises(ConfigError, match="cannot be read"):
        from_file(tmp_path / "none.toml", Changes())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("1e-4", 1e-4),
        ("true", True),
        ("deep", "deep"),
        ('"wgan-gp"', "wgan-gp"),
        ("wgan-gp", "wgan-gp"),
        ("['A', 'B']", ["A", "B"]),
        ("{ most = 2 }", {"most": 2}),
        ("off", "off"),
        ("paper/x.y", "paper/x.y"),
    ],
)
def test_values_are_written_as_in_toml(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("text", ["", "nan", "inf", "1\nother = 2", "2026-01-01", "[1", "a b", "[2026-01-01]"])
def test_what_is_no_value(text: str) -> None:
    with pytest.raises(UsageError, match="is no value"):
        parse_value(text)


@given(st.text())
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    try:
        parse_value(text)
    except UsageError:
        return
