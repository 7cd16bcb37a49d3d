"""What the agent's tests share: an assignment of the torch-free recipe that a real child process can train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.assignment import Assignment
from histofed.base.ids import sha256
from histofed.recipes.registry import recipe

MakeAssignment = Callable[..., Assignment]


@pytest.fixture
def make_assignment(tmp_path: Path) -> MakeAssignment:
    """`make_assignment(steps=5, delay_s=0.0, ...)`: fields of the assignment, everything else goes into the config."""

    def make(*, max_norm: float = 1e4, threads: int = 1, private: Path | None = None, **config: Any) -> Assignment:
        config = {"dimension": 10, "steps": 5, **config}
        base = tmp_path / "base.safetensors"
        recipe("mean").workshop().initialise({"dimension": 10, "steps": 1}, 1, base)
        output = tmp_path / "output"
        output.mkdir(exist_ok=True)
        return Assignment(
            recipe="mean",
            config=config,
            base=base,
            base_sha256=sha256(base.read_bytes()),
            private=private,
            private_round=0,
            data=tmp_path / "tiles",
            minimum_patients=2,
            seed=7,
            max_norm=max_norm,
            output=output,
            threads=threads,
            device="cpu",
            nice=0,
        )

    return make
