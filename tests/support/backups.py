"""Backs up and restores what runs in a test federation: for stories, and as a fault of random runs.

    file = take(federation, folder / "one")          while everything runs
    put_back(federation, file)                       the aggregator dies, an older state comes back, it runs again

Agents go on meanwhile, as hospitals do. Commands are processes of their own, so that they can be killed too.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from tests.support.federation import Federation


def take(federation: Federation, file: Path, env: Mapping[str, str] | None = None, code: int = 0) -> Path:
    """`histofed-aggregator backup` beside the running daemon; fails when it does not end with `code`."""
    command = ("backup", str(file), "--config", str(federation.aggregator_config))
    federation.run("aggregator.cli", *command, env=env, code=code)
    return file


def restore(federation: Federation, *arguments: str, env: Mapping[str, str] | None = None, code: int = 0) -> str:
    """`histofed-aggregator restore` with these arguments; what it printed."""
    return federation.run(
        "aggregator.cli", "restore", *arguments, "--config", str(federation.aggregator_config), env=env, code=code
    )


def put_back(federation: Federation, file: Path) -> str:
    """The aggregator is killed, restored from a backup over what it was, and started again."""
    federation.daemons["aggregator"].stop(signal.SIGKILL)
    words = restore(federation, str(file), "--replace")
    federation.start_aggregator()
    return words


def put_back_on_an_empty_disk(federation: Federation, file: Path) -> str:
    """The same, but nothing of what it was is left; the operator's folder lies elsewhere in truth, and stays."""
    federation.daemons["aggregator"].stop(signal.SIGKILL)
    for path in federation.state.iterdir():
        if path != federation.operator:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = restore(federation, str(file))
    federation.start_aggregator()
    return words


def copy_by_hand(federation: Federation, folder: Path) -> Path:
    """What an operator does without us: `cp -r` of the state directory of an aggregator that is stopped."""
    shutil.copytree(federation.state, folder)
    return folder


def put_back_by_hand(federation: Federation, folder: Path) -> None:
    """The aggregator is killed, an old copy takes the place of its state, and it is started again as if nothing were."""
    federation.daemons["aggregator"].stop(signal.SIGKILL)
    shutil.rmtree(federation.state)
    shutil.copytree(folder, federation.state)
    federation.start_aggregator()
