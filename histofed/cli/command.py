"""What every command is made of: its answer, its terminal, and how it reaches the aggregator.

A command returns an `Answer`: a JSON document and the same in words. `main.py` prints one of the two, so that no command
can mix them. Only `rounds watch`, which has no single answer, writes to its `Terminal` itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias, TypeVar

from histofed.base.errors import BadData, HistofedError
from histofed.base.ids import Json
from histofed.base.owner import denial

if TYPE_CHECKING:
    from histofed.cli.client import OperatorClient

T = TypeVar("T")

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add_subparsers` returns; argparse gives it no public name."""


@dataclass(frozen=True)
class Answer:
    """What a command found."""

    document: Mapping[str, Json]
    """For `--json`."""
    text: str
    """For people, on stdout."""
    note: str = ""
    """For people, on stderr: what must not end up in a pipe."""
    exit_code: int = 0
    """Not 0 where the answer itself is bad news, for example data that cannot be trained on."""


@dataclass(frozen=True)
class Terminal:
    """Where a command writes, and whether a person watches."""

    out: TextIO
    error: TextIO

    @property
    def live(self) -> bool:
        """A person watches stdout."""
        return self.out.isatty()


@dataclass(frozen=True)
class Finished:
    """A command that has written everything itself."""

    exit_code: int = 0


class WithFacts(Exception):
    """An error whose JSON document says more than its sentence does."""

    def __init__(self, error: HistofedError, facts: Mapping[str, Json]) -> None:
        super().__init__(str(error))
        self.error, self.facts = error, facts


Handler: TypeAlias = Callable[[argparse.Namespace, Terminal], Answer | Finished]
"""A command; `args.handler` of its parser."""


def add_command(
    commands: Commands, name: str, handler: Handler, summary: str, common: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """A parser for one command, with the global options behind the command too."""
    parser = commands.add_parser(name, help=summary, description=summary, parents=[common], allow_abbrev=False)
    parser.set_defaults(handler=handler)
    return parser


def add_group(commands: Commands, name: str, summary: str) -> Commands:
    """A group such as `rounds`, which holds commands and is none itself."""
    parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    return parser.add_subparsers(metavar="COMMAND", required=True, dest="command_of_group")


def in_json(document: Mapping[str, Json], out: TextIO) -> str:
    """A document on one line, in ASCII where `out` does not take every letter."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(document, allow_nan=False)
    return text


def printable(text: str, out: TextIO) -> str:
    """With escapes for the letters that `out` does not take."""
    encoding = out.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def refuse_unwritable(target: Path) -> None:
    """Before long work: a file can be made there.

    Raises `BadData` without its folder, `NotOurs` for another user's, `CannotWriteState` where nobody can write.
    """
    folder = target.absolute().parent
    if not folder.is_dir():
        raise BadData(f"there is no folder {folder}; make it first")
    if target.is_dir():
        raise BadData(f"{target} is a folder; name a file in it")
    if (refused := denial(folder)) is not None:
        raise refused


def ask(config: Path | None, question: Callable[[OperatorClient], Awaitable[T]]) -> T:
    """Connect as the operator, ask, disconnect. Raises what `config.load_operator` and the RPC raise."""
    import asyncio

    from histofed.base.clock import SystemClock
    from histofed.cli import lifetime
    from histofed.cli.client import OperatorClient
    from histofed.cli.config import load_operator

    operator = load_operator(config)
    lifetime.warn(operator, SystemClock(), sys.stderr)

    async def talk() -> T:
        async with OperatorClient.connect(operator) as client:
            return await question(client)

    return asyncio.run(talk())
