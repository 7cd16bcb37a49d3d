"""A man page per program, from its parser: every command, every option, the words of `--help`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from packlib.commands import Argument, Command

_TEXTS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "histofed-agent": (
        (
            "FILES",
            "/etc/histofed/agent.toml: the configuration; `histofed-agent check` prints values and sources.\n"
            "/etc/histofed/consent.toml: what this hospital allows; read again for every task.\n"
            "/var/lib/histofed-agent: identity, private tensors, finished updates, the audit journal.",
        ),
        ("SIGNALS", "SIGHUP reads the configuration again; SIGTERM keeps a checkpoint and ends; a second one ends now."),
    ),
    "histofed-aggregator": (
        (
            "FILES",
            "/etc/histofed/aggregator.toml: the configuration; `histofed-aggregator check` prints values and sources.\n"
            "/var/lib/histofed-aggregator: the federation's CA, rounds, models, the audit journal.",
        ),
        ("SIGNALS", "SIGTERM ends what is in hand and stops; a second one ends now."),
    ),
    "histofed": (
        ("FILES", "operator.toml: where the aggregator is, and the operator's certificate and key; given with --config."),
    ),
}
"""What a parser does not know: paths and signals, by program."""
_EXIT_CODES: Final = (
    "0 done, 1 done with warnings, 2 wrong usage, 65 bad data, 69 aggregator unavailable, 70 internal, 73 cannot write, "
    "75 try later, 77 not authorised or not enrolled, 78 configuration, or another user's files."
)
_SEE: Final = ("histofed(1)", "histofed-agent(8)", "histofed-aggregator(8)")


def man_page(command: Command, section: str) -> str:
    """The page of one program, in man(7)'s macros."""
    head = _sentence(command.words)
    manual = "User Commands" if section == "1" else "System Administration"
    parts = [
        f'.TH {command.name.upper()} {section} "" histofed "{manual}"',
        f".SH NAME\n{_plain(command.name)} \\- {_plain(head[0].lower() + head[1:].rstrip('.'))}",
        f".SH SYNOPSIS\n{_synopsis(command)}",
        f".SH DESCRIPTION\n{_plain(command.words)}",
        f".SH OPTIONS\n{_arguments(command.options)}",
        ".SH COMMANDS\n" + "\n".join(_section(each) for each in command.walk() if each is not command and not each.commands),
        ".SH EXIT STATUS\n" + _exit_status(command),
    ]
    parts += [f".SH {title}\n{_lines(text)}" for title, text in _TEXTS[command.name]]
    others = ", ".join(f".BR {_plain(page[:-3])} ({page[-2]})" for page in _SEE if page != f"{command.name}({section})")
    parts.append(".SH SEE ALSO\n" + others.replace(", .BR", " ,\n.BR"))
    return "\n".join(parts) + "\n"


def _section(command: Command) -> str:
    own = [argument for argument in command.options if "--help" not in argument.flags]
    text = f".SS {_plain(command.name)}\n{_plain(command.words)}\n.PP\n{_synopsis(command)}"
    arguments = _arguments([*command.operands, *own])
    return text + (f"\n{arguments}" if arguments else "")


def _synopsis(command: Command) -> str:
    words = [f"\\fB{_plain(command.name)}\\fR"]
    words += [_shown(option) if not option.optional else f"[{_shown(option)}]" for option in command.options]
    operands = [(f"\\fI{_plain(each.value)}\\fR", each.optional) for each in command.operands]
    words += [f"[{shown}]" if optional else shown for shown, optional in operands]
    if command.commands:
        words.append("\\fICOMMAND\\fR ...")
    return " ".join(words)


def _shown(option: Argument) -> str:
    flag = f"\\fB{_plain(option.flags[-1])}\\fR"
    return f"{flag} \\fI{_plain(option.value)}\\fR" if option.value else flag


def _arguments(arguments: Iterable[Argument]) -> str:
    return "\n".join(f".TP\n{_heading(each)}\n{_plain(each.words)}" for each in arguments)


def _heading(argument: Argument) -> str:
    value = f"\\fI{_plain(argument.value)}\\fR" if argument.value else ""
    flags = ", ".join(f"\\fB{_plain(flag)}\\fR" for flag in argument.flags)
    return f"{flags} {value}".strip()


def _exit_status(command: Command) -> str:
    told = [each.epilog for each in command.walk() if each.epilog]
    return _plain(told[0] if told else _EXIT_CODES)


def _lines(text: str) -> str:
    return "\n.PP\n".join(_plain(line) for line in text.splitlines())


def _sentence(text: str) -> str:
    return re.split(r"[.:] ", text, maxsplit=1)[0]


def _plain(text: str) -> str:
    """A text that roff prints as it is."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines())
