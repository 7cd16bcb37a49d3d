"""A command line as data, read from its argparse parser: what man pages and completion are written from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Argument:
    """One option, or one word that is told by its place."""

    flags: tuple[str, ...]
    """`--config`, or nothing for a word that is told by its place."""
    value: str
    """What stands for its value in a synopsis; empty for a switch."""
    words: str
    choices: tuple[str, ...]
    is_path: bool
    optional: bool


@dataclass(frozen=True)
class Command:
    """A command with what it takes, and the commands below it."""

    name: str
    """All of it: `histofed rounds list`."""
    words: str
    epilog: str
    options: tuple[Argument, ...]
    operands: tuple[Argument, ...]
    commands: tuple[Command, ...]

    @property
    def last(self) -> str:
        """The word that is typed for it."""
        return self.name.rpartition(" ")[2]

    def walk(self) -> Iterator[Command]:
        """Itself and every command below it, in the order of `--help`."""
        yield self
        for command in self.commands:
            yield from command.walk()


def read(parser: argparse.ArgumentParser, words: str | None = None) -> Command:
    """The command that a parser parses; argparse has no public way to ask for its actions."""
    options: list[Argument] = []
    operands: list[Argument] = []
    commands: list[Command] = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands.extend(read(below, told.get(name, "")) for name, below in action.choices.items())
        else:
            (options if action.option_strings else operands).append(_argument(parser, action))
    said = parser.description or words or ""
    return Command(parser.prog, said, parser.epilog or "", tuple(options), tuple(operands), tuple(commands))


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    takes_value = action.nargs != 0
    choices = tuple(map(str, action.choices or ()))
    metavar = action.metavar if isinstance(action.metavar, str) else None
    value = metavar or ("|".join(choices) if choices else action.dest.upper())
    words = parser._get_formatter()._expand_help(action) if action.help else ""
    return Argument(
        flags=tuple(action.option_strings),
        value=value if takes_value else "",
        words=words,
        choices=choices,
        is_path=takes_value and (action.type is Path or metavar in {"FILE", "DIR", "FOLDER"}),
        optional=action.nargs in {"?", "*"} or bool(action.option_strings and not action.required),
    )
