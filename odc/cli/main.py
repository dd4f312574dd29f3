"""The command line: ``odc <command>``; ``tools/*.py`` are the same functions in OpenMMLab's places.

What a command is called with has the names of its function's parameters, and is passed on by them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import odc
from odc.cli import folder, machine, training
from odc.errors import InputError, printable
from odc.files import explain

COMMANDS = (*folder.COMMANDS, *training.COMMANDS, *machine.COMMANDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code: 0, 1 where a compared method failed, or 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="odc", description="Deep clustering of images.")
    parser.add_argument("--version", action="version", version=f"odc {odc.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for one in COMMANDS:
        command = commands.add_parser(
            one.name,
            help=one.help,
            description=one.help,
            epilog=f"example:\n  {one.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for names, options in one.arguments:
            command.add_argument(*names, **options)
        command.set_defaults(run=one.run)
    args = vars(parser.parse_args(argv))
    try:
        code = args.pop("run")(args) or 0
        sys.stdout.flush()
    except InputError as e:
        print(f"odc: error: {printable(str(e))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        line = explain(e)
        if line is None:
            raise
        print(f"odc: error: {line}", file=sys.stderr)
        return 2
    return int(code)
