"""Where everything of a demo lies, and the configuration files of its five daemons.

demo/operator.toml (with operator.key, operator.crt, ca.crt)   the operator's identity, for `histofed --config`
demo/aggregator/{aggregator.toml,state/,log,pid}               the aggregator
demo/sites/NAME/{agent.toml,consent.toml,state/,log,pid}       one hospital
demo/tiles/NAME/                                               the tiles that only this hospital's agent reads
demo/samples/round-NNNN.png, demo/report.html, demo/model.safetensors
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .daemons import DemoError

SITES = ("north", "east", "south", "west")
CLASSES = ("MSIH", "nonMSIH")


@dataclass(frozen=True)
class Layout:
    """The demo's folder; `root` is absolute."""

    root: Path

    @property
    def operator(self) -> Path:
        return self.root / "operator.toml"

    @property
    def aggregator(self) -> Path:
        return self.root / "aggregator"

    @property
    def aggregator_config(self) -> Path:
        return self.aggregator / "aggregator.toml"

    @property
    def tiles(self) -> Path:
        return self.root / "tiles"

    @property
    def experiment(self) -> Path:
        return self.root / "experiment.toml"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def model(self) -> Path:
        return self.root / "model.safetensors"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def site(self, name: str) -> Path:
        """A hospital's folder."""
        return self.root / "sites" / name

    def agent_config(self, name: str) -> Path:
        """A hospital's configuration."""
        return self.site(name) / "agent.toml"

    def sheet(self, number: int) -> Path:
        """A round's sample sheet."""
        return self.samples / f"round-{number:04d}.png"

    @property
    def made(self) -> bool:
        """There is a federation here already."""
        return self.operator.exists()


@dataclass(frozen=True)
class Ports:
    """Free ports of this machine, for the aggregator's four listeners."""

    grpc: int
    enrolment: int
    health: int
    metrics: int

    @classmethod
    def find(cls) -> Ports:
        """Four at once, so that they differ; another program could still take one before the daemon does."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(4)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return cls(*(each.getsockname()[1] for each in sockets))


def write_aggregator(layout: Layout, ports: Ports) -> None:
    """`aggregator.toml`: loopback only."""
    layout.aggregator.mkdir(parents=True)
    layout.aggregator_config.write_text(
        f"""# Written by scripts/demo.py. Everything listens on this machine only.
federation = "demo"
public_hosts = ["localhost", "127.0.0.1"]
state_dir = {_toml(layout.aggregator / "state")}

[listen]
grpc = "127.0.0.1:{ports.grpc}"
enrolment = "127.0.0.1:{ports.enrolment}"
health = "127.0.0.1:{ports.health}"
metrics = "127.0.0.1:{ports.metrics}"
""",
        encoding="utf-8",
    )


def write_site(layout: Layout, name: str, largest_size: int, steps: int) -> None:
    """A hospital's `agent.toml`, and the consent that its own people would write."""
    folder = layout.site(name)
    folder.mkdir(parents=True)
    layout.agent_config(name).write_text(
        f"""# Written by scripts/demo.py. The site's name is in its certificate, the aggregator's address in its join line.
state_dir = {_toml(folder / "state")}
consent = {_toml(folder / "consent.toml")}
minimum_patients = 2

[data]
root = {_toml(layout.tiles / name)}

[trainer]
device = "auto"
threads = 1          # two hospitals train at the same time on this machine
""",
        encoding="utf-8",
    )
    (folder / "consent.toml").write_text(
        f"""# What this hospital allows. Change or remove it, and the next task is declined.
experiments = ["demo*"]
recipes = ["gan"]
models = ["generator:*", "discriminator:*"]
image_sizes = "32..{largest_size}"
classes = {_toml(CLASSES)}
maximum_steps = {steps}
""",
        encoding="utf-8",
    )


def write_experiment(source: str, layout: Layout, *, name: str, rounds: int | None, size: int | None) -> None:
    """The experiment file that is submitted. Raises `DemoError`."""
    layout.experiment.write_text(experiment_text(source, name=name, rounds=rounds, size=size), encoding="utf-8")


def experiment_text(source: str, *, name: str, rounds: int | None, size: int | None) -> str:
    """The experiment, with the name, and the rounds and size that the caller asked for. Raises `DemoError`."""
    text = _set(source, "name", _toml(name))
    if rounds is not None:
        text = _set(text, "rounds", str(rounds))
    if size is not None:
        text = _set(text, "image_size", str(size))
    return text


def _set(text: str, key: str, value: str) -> str:
    """One `key = value` line with another value; its comment stays."""
    changed, count = re.subn(rf"(?m)^({key} *= *)(\"[^\"]*\"|[0-9]+)", rf"\g<1>{value}", text)
    if count != 1:
        raise DemoError(f"the experiment file has {count} lines that set {key}, expected one")
    return changed


def _toml(value: str | Path | Sequence[str]) -> str:
    """A TOML string or list of strings; JSON's are valid TOML."""
    return json.dumps(str(value) if isinstance(value, Path) else value)
