"""The sample files that packages bring: every key, its default, and nothing that a daemon would refuse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from agent.config import AgentConfig
from agent.consent import load_policy
from aggregator.config import AggregatorConfig
from histofed.base.config import explain, load

SAMPLES: Final = Path(__file__).parents[2] / "deploy/systemd/conf"
MODELS: Final = {"agent": AgentConfig, "aggregator": AggregatorConfig}


@pytest.mark.parametrize("name", MODELS)
def test_the_sample_configuration_names_every_key_and_no_other(name: str, tmp_path: Path) -> None:
    sample = (SAMPLES / f"{name}.toml").read_text()
    file = tmp_path / f"{name}.toml"
    file.write_text(sample)
    model: type = MODELS[name]
    as_shipped = explain(load(model, name=name, path=file, flags={}, environ={}))
    # every key is there, behind a `#` where the default is right
    file.write_text("\n".join(_uncommented(sample)))
    whole = explain(load(model, name=name, path=file, flags={}, environ={}))
    unnamed = [setting.key for setting in whole if setting.source == "default"]
    assert not unnamed, f"{name}.toml does not name {unnamed}"
    examples = {"aggregator", "data.root"}
    shipped = {setting.key: setting.value for setting in as_shipped}
    differ = [s.key for s in whole if shipped[s.key] != s.value and shipped[s.key] != "not set" and s.key not in examples]
    assert not differ, f"{name}.toml shows other values than the defaults for {differ}"


def test_the_sample_consent_is_one(tmp_path: Path) -> None:
    policy = load_policy(SAMPLES / "consent.toml")
    assert not policy.missing
    assert policy.consent.maximum_steps > 0


def _uncommented(sample: str) -> Iterator[str]:
    """Settings and tables without the `#` right before them; sentences begin with `# `."""
    for line in sample.splitlines():
        yield line[1:] if re.match(r"#[\[a-z]", line) else line
