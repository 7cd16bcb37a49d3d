"""Models told as steps: whoever applies them has the very file that the aggregator wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histofed import weights
from histofed.base.encoding import ENCODINGS, STEPS, Encoding
from histofed.base.errors import BadData
from histofed.base.hashing import sha256_file
from histofed.encodings.file import Encoded, Form
from histofed.encodings.step import apply_steps, step_form, writing_step
from histofed.weights import Array, TensorFile, Written, pieces
from tests.unit.encodings.conftest import tensors

CODED = tuple(STEPS)


class Way:
    """Models, each trained a little from the one before, and the steps between them."""

    def __init__(self, folder: Path, encoding: Encoding) -> None:
        self.folder = folder
        self.encoding = encoding
        self.model = folder / "model-0"
        self.written = weights.save(self.model, tensors(1))
        self.steps: list[tuple[Path, Form]] = []

    def go(self, new: dict[str, Array]) -> Encoded:
        """The next model is what `new` becomes on its way through the step."""
        form = step_form(self.encoding, self.written.sha256)
        assert form is not None
        number = len(self.steps) + 1
        target, path = self.folder / f"model-{number}", self.folder / f"step-{number}"
        with TensorFile(self.model) as base, writing_step(path, base, form) as step:
            specs = [spec.meaning for spec in base.specs.values()]
            self.written = weights.save_stream(
                target, specs, step.through(p for name in base.names for p in pieces(new[name]))
            )
            encoded = step.finish()
        self.model = target
        self.steps.append((path, form))
        return encoded

    def near(self, seed: int) -> dict[str, Array]:
        """What sites make of the present model."""
        return tensors(seed, near=weights.read(self.model))


def test_every_encoding_but_the_plain_one_has_a_step() -> None:
    assert {name for name in ENCODINGS if step_form(name, "ab" * 32) is not None} == set(ENCODINGS) - {"float32"}


@pytest.mark.parametrize("encoding", CODED)
def test_a_step_leads_to_the_very_file(tmp_path: Path, encoding: Encoding) -> None:
    way = Way(tmp_path, encoding)
    encoded = way.go(way.near(2))
    assert encoded.file == Written(sha256_file(way.steps[0][0]), way.steps[0][0].stat().st_size)
    assert apply_steps(tmp_path / "model-0", way.steps, tmp_path / "reached") == way.written
    assert (tmp_path / "reached").read_bytes() == way.model.read_bytes()
    assert encoded.file.bytes < way.model.stat().st_size * (0.5 if encoding == "bfloat16-delta" else 0.9)


@pytest.mark.parametrize("encoding", CODED)
def test_several_steps_lead_further(tmp_path: Path, encoding: Encoding) -> None:
    way = Way(tmp_path, encoding)
    for seed in (2, 3, 4):
        way.go(way.near(seed))
    assert apply_steps(tmp_path / "model-0", way.steps, tmp_path / "reached") == way.written
    assert apply_steps(tmp_path / "model-1", way.steps[1:], tmp_path / "later") == way.written


def test_only_rounding_steps_change_the_model_and_say_by_how_much(tmp_path: Path) -> None:
    for encoding in CODED:
        folder = tmp_path / encoding
        folder.mkdir()
        way = Way(folder, encoding)
        new = way.near(2)
        encoded = way.go(new)
        stored = weights.read(way.model)
        same = all(np.array_equal(stored[name], new[name]) for name in new)
        assert same == (encoding != "bfloat16-delta")
        assert (encoded.loss.relative == 0.0) == same
        assert encoded.loss.relative < 2**-8, "a bfloat16 has eight bits"


@pytest.mark.parametrize("damage", ["short", "long", "other base", "another encoding"])
def test_a_wrong_step_is_refused_in_words(tmp_path: Path, damage: str) -> None:
    way = Way(tmp_path, "bfloat16-delta")
    way.go(way.near(2))
    path, form = way.steps[0]
    match damage:
        case "short":
            path.write_bytes(path.read_bytes()[:-1])
        case "long":
            path.write_bytes(path.read_bytes() + b"\0")
        case "other base":
            form = Form(form.encoding, "ab" * 32)
        case "another encoding":
            form = Form("float32-delta", form.base)
    with pytest.raises(BadData, match=r"damaged|says (base|encoding)"):
        apply_steps(tmp_path / "model-0", [(path, form)], tmp_path / "reached")
    assert not (tmp_path / "reached").exists()


def test_a_difference_beyond_the_encoding_is_refused_and_leaves_no_model(tmp_path: Path) -> None:
    way = Way(tmp_path, "bfloat16-delta")
    largest = np.finfo(np.float32).max
    new = {name: (np.full_like(old, largest) if name == "w" else old) for name, old in weights.read(way.model).items()}
    with pytest.raises(BadData, match="a difference is too large"):
        way.go(new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-0"]
