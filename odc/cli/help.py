"""The parser of the command line, and what it tells: an overview in groups, and a screen for each command."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import odc
from odc.cli.arguments import Command

WIDTH, _TEXTS = 100, 32  # columns of a line, and where the text of an option begins
_NUMBERS: dict[Any, str] = {int: "N", float: "NUMBER"}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Options in lines of one width, however wide the terminal, and ``KEY=VALUE ...`` for lists."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_TEXTS, width=WIDTH)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == "+":
            (metavar,) = self._metavar_formatter(action, default_metavar)(1)
            return f"{metavar} ..."
        return super()._format_args(action, default_metavar)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _NUMBERS.get(action.type) or super()._get_default_metavar_for_optional(action)

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return super()._get_default_metavar_for_positional(action).upper()


class _Parser(argparse.ArgumentParser):
    """A parser whose usage names what must be given, and no more."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, **options)

    def set_usage(self) -> None:
        """Make the usage: positional arguments, required options, and ``[options]`` for all others."""
        formatter, parts = self._get_formatter(), []
        for action in self._actions:
            if action.help == argparse.SUPPRESS:
                continue
            value = formatter._format_args(action, action.dest.upper())
            if action.option_strings and action.required:
                parts.append(f"{action.option_strings[0]} {value}")
            elif not action.option_strings:
                parts.append(value)
        self.usage = " ".join([self.prog, *parts, "[options]"]).replace("%", "%%")


class _Overview(argparse.ArgumentParser):
    """The parser of ``odc``: its help lists the commands by what they are for; without a command it is an error."""

    groups: Mapping[str, Sequence[Command]]

    def format_help(self) -> str:
        width = max(len(one.name) for commands in self.groups.values() for one in commands)
        parts = [f"usage: {self.prog} COMMAND ...\n\n{self.description}\n"]
        for title, commands in self.groups.items():
            parts.append(f"\n{title}:\n")
            parts += [f"  {one.name:{width}}  {one.help}\n" for one in commands]
        parts.append(
            f"\n`{self.prog} COMMAND --help` tells what a command takes, with an example; `{self.prog} --version` is "
            "the version.\n"
        )
        return "".join(parts)

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            self.exit(2, self.format_help())
        super().error(message)


def build_parser(groups: Mapping[str, Sequence[Command]]) -> argparse.ArgumentParser:
    """Return the parser of all commands, by the title of their group; parsed, ``run`` is the command's function."""
    parser = _Overview(prog="odc", description="Deep clustering of images: sort them into clusters without labels.")
    parser.groups = groups
    parser.usage = "odc COMMAND ..."
    parser.add_argument("--version", action="version", version=f"odc {odc.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for one in (one for members in groups.values() for one in members):
        command = commands.add_parser(
            one.name, prog=f"odc {one.name}", description=one.help, epilog=f"example:\n  {one.example}"
        )
        titled: dict[str, argparse._ArgumentGroup] = {}
        for names, options in one.arguments:
            options = dict(options)
            title = options.pop("group", None)
            if title is not None and title not in titled:
                titled[title] = command.add_argument_group(title)
            (command if title is None else titled[title]).add_argument(*names, **options)
        command.set_usage()
        command.set_defaults(run=one.run)
    return parser
