"""A TOML file that remembers on which line each key stands, so that an error can name it.

`tomllib` gives values without positions. `parse` reads the text once for its values, then reads it again statement by
statement: a statement is the shortest run of lines that is TOML by itself, which is true of headers, of keys and of
values over several lines alike. Quadratic in the length of one statement, which is a few lines in a configuration.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from histofed.base.errors import ConfigError
from histofed.base.ids import Json

KeyPath: TypeAlias = tuple[str | int, ...]
"""Where a value stands: keys, and positions in arrays."""

_POSITION = re.compile(r"\(at line (\d+), column \d+\)\Z")


@dataclass(frozen=True)
class TomlFile:
    """A parsed file."""

    path: Path
    values: Mapping[str, Json]
    lines: Mapping[KeyPath, int]
    """From 1, for every table and key."""

    def line(self, key: KeyPath) -> int | None:
        """The line of `key`, or of the nearest thing around it."""
        for length in range(len(key), 0, -1):
            if (found := self.lines.get(key[:length])) is not None:
                return found
        return None


def read(path: Path) -> TomlFile:
    """Parse a file. Raises `ConfigError` with file and line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return parse(path, data)


def files(folder: Path) -> list[Path]:
    """The TOML files in a folder, by name; none where no folder is.

    Raises `ConfigError` where it cannot be read: its settings would be missed by nobody.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def unreadable(path: Path, error: OSError) -> ConfigError:
    """What to say of a file or a folder that is not there, or that this user may not read."""
    return ConfigError(f"{path}: cannot be read ({error.strerror}); check its name and its permissions")


def parse(path: Path, data: bytes) -> TomlFile:
    """Parse what was read from `path`. Raises `ConfigError` with file and line."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text; save the file as UTF-8") from error
    try:
        return TomlFile(path, tomllib.loads(text), _lines(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_broken(path, text, str(error))) from error
    except (ValueError, RecursionError) as error:
        # limits of Python's, not of TOML's
        what = "has a number of thousands of digits, or values nested hundreds deep"
        raise ConfigError(f"{path}: {what}; nothing here needs that, correct it") from error


def _broken(path: Path, text: str, message: str) -> str:
    found = _POSITION.search(message)
    line = int(found[1]) if found else text.rstrip("\n").count("\n") + 1
    what = _POSITION.sub("", message).removesuffix("(at end of document)").strip()
    return f"{path}:{line}: this is not TOML: {what[:1].lower()}{what[1:]}"


def _lines(text: str) -> dict[KeyPath, int]:
    """The line of every key of a text that is known to be TOML."""
    lines = text.replace("\r\n", "\n").split("\n")
    found: dict[KeyPath, int] = {}
    arrays: dict[KeyPath, int] = {}
    table: KeyPath = ()
    begin = 0
    while begin < len(lines):
        end, statement = _statement(lines, begin)
        if lines[begin].lstrip().startswith("["):
            table = _enter(statement, arrays)
            found.setdefault(table, begin + 1)
        else:
            _note(statement, table, begin + 1, found)
        begin = end
    return found


def _statement(lines: list[str], begin: int) -> tuple[int, Mapping[str, Json]]:
    """The shortest run of lines from `begin` that parses: the line behind it, and what it says."""
    for end in range(begin + 1, len(lines) + 1):
        try:
            return end, tomllib.loads("\n".join(lines[begin:end]))
        except tomllib.TOMLDecodeError:
            continue
    return len(lines), {}


def _enter(header: Mapping[str, Json], arrays: dict[KeyPath, int]) -> KeyPath:
    """The full path of a `[table]` or `[[array of tables]]`; counts the elements of arrays."""
    path: KeyPath = ()
    value: Json = header
    while isinstance(value, Mapping) and value:
        key, value = next(iter(value.items()))
        path = (*path, key)
        if isinstance(value, list):
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, arrays[path])
    return path


def _note(value: Json, path: KeyPath, line: int, found: dict[KeyPath, int]) -> None:
    """Write down the line of every key in a statement, also inside inline tables and arrays."""
    children: list[tuple[str | int, Json]] = []
    if isinstance(value, Mapping):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(cast("list[Json]", value)))
    for key, child in children:
        found.setdefault((*path, key), line)
        _note(child, (*path, key), line, found)
