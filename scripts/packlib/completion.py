"""Completion for bash, zsh and fish, from the parsers: commands, options, choices, files. No process is started on Tab."""

from __future__ import annotations

import re

from packlib.commands import Argument, Command


def bash(command: Command) -> str:
    """For bash-completion: the commands typed so far decide what may follow."""
    name = _function(command.name)
    lines = [f"# {command.name}: completion for bash; written by scripts/cli_papers.py", f"_{name}() {{"]
    lines += [
        '    local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" path="" word',
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        '        case "$path $word" in',
        *(f'        "{_path(each)}") path="{_path(each)}" ;;' for each in command.walk() if each is not command),
        "        esac",
        "    done",
        '    case "$path:$before" in',
        *(line for each in command.walk() for option in each.options if option.value for line in _bash_value(each, option)),
        "    esac",
        '    case "$path" in',
    ]
    for each in command.walk():
        words = [below.last for below in each.commands] + [flag for option in each.options for flag in option.flags]
        words += [choice for operand in each.operands for choice in operand.choices]
        files = " -f" if any(operand.is_path for operand in each.operands) else ""
        lines.append(f'    "{_path(each)}") COMPREPLY=($(compgen{files} -W "{" ".join(words)}" -- "$current")) ;;')
    return "\n".join([*lines, "    esac", "}", f"complete -o filenames -F _{name} {command.name}", ""])


def zsh(command: Command) -> str:
    """For zsh: one function per command, each with `_arguments`."""
    lines = [f"#compdef {command.name}", f"# {command.name}: completion for zsh; written by scripts/cli_papers.py", ""]
    for each in reversed(tuple(command.walk())):
        lines += [f"_{_function(each.name)}() {{", *_zsh_body(each), "}", ""]
    return "\n".join([*lines, f'_{_function(command.name)} "$@"', ""])


def fish(command: Command) -> str:
    """For fish: one line per word that may be typed, with the commands after which it may."""
    lines = [f"# {command.name}: completion for fish; written by scripts/cli_papers.py", f"complete -c {command.name} -f"]
    for each in command.walk():
        where = _fish_condition(each)
        for below in each.commands:
            lines.append(f"complete -c {command.name} {where} -a {below.last} -d {_quoted(_brief(below.words))}")
        for option in each.options:
            lines.append(f"complete -c {command.name} {where} {_fish_option(option)} -d {_quoted(_brief(option.words))}")
        for operand in each.operands:
            if operand.is_path:
                lines.append(f"complete -c {command.name} {where} -F")
            elif operand.choices:
                lines.append(f"complete -c {command.name} {where} -a {_quoted(' '.join(operand.choices))}")
    return "\n".join([*lines, ""])


def _bash_value(command: Command, option: Argument) -> list[str]:
    patterns = "|".join(f'"{_path(command)}:{flag}"' for flag in option.flags)
    words = f'-W "{" ".join(option.choices)}"' if option.choices else "-f" if option.is_path else ""
    reply = f'COMPREPLY=($(compgen {words} -- "$current"))' if words else "COMPREPLY=()"
    return [f"    {patterns}) {reply}; return ;;"]


def _zsh_body(command: Command) -> list[str]:
    specs = [_zsh_option(option) for option in command.options]
    if not command.commands:
        specs += [
            f"{_quoted(f'{index}:{_zsh(each.value)}:{_zsh_values(each)}')}" for index, each in enumerate(command.operands, 1)
        ]
        return ["    _arguments \\", *(f"        {spec} \\" for spec in specs), "        && return"]
    described = " ".join(_quoted(f"{below.last}:{_zsh(_brief(below.words))}") for below in command.commands)
    return [
        "    local -a commands=(" + described + ")",
        "    local context state state_descr line",
        "    typeset -A opt_args",
        "    _arguments -C \\",
        *(f"        {spec} \\" for spec in specs),
        "        '1:command:->command' '*::argument:->argument' && return",
        "    case $state in",
        "    command) _describe command commands ;;",
        "    argument)",
        "        case $line[1] in",
        *(f"        {below.last}) _{_function(below.name)} ;;" for below in command.commands),
        "        esac ;;",
        "    esac",
    ]


def _zsh_option(option: Argument) -> str:
    value = f":{_zsh(option.value)}:{_zsh_values(option)}" if option.value else ""
    told = f"[{_zsh(_brief(option.words))}]{value}"
    return " ".join(_quoted(f"{flag}{told}") for flag in option.flags)


def _zsh_values(argument: Argument) -> str:
    return f"({' '.join(argument.choices)})" if argument.choices else "_files" if argument.is_path else ""


def _fish_condition(command: Command) -> str:
    typed = command.name.split()[1:]
    seen = [f"__fish_seen_subcommand_from {word}" for word in typed]
    if command.commands:
        names = " ".join(below.last for below in command.commands)
        seen.append(f"not __fish_seen_subcommand_from {names}")
    return f"-n {_quoted('; and '.join(seen))}" if seen else ""


def _fish_option(option: Argument) -> str:
    names = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
    if not option.value:
        return " ".join(names)
    values = f" -xa {_quoted(' '.join(option.choices))}" if option.choices else " -rF" if option.is_path else " -x"
    return " ".join(names) + values


def _path(command: Command) -> str:
    """The commands typed for it, each with a space before: empty for the program itself."""
    return "".join(f" {word}" for word in command.name.split()[1:])


def _function(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name)


def _brief(words: str) -> str:
    return re.split(r"[;.:] ", words, maxsplit=1)[0].rstrip(".")


def _zsh(text: str) -> str:
    return re.sub(r"([:\[\]\\])", r"\\\1", text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
