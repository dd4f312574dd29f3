"""The command line: ``odc <command>``; ``tools/*.py`` are the same functions in OpenMMLab's places.

What a command is called with has the names of its function's parameters, and is passed on by them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from odc.cli import folder, labels, machine, training
from odc.cli.help import build_parser
from odc.errors import InputError, printable
from odc.files import explain

GROUPS = {
    "a folder of images": (*folder.COMMANDS, *labels.COMMANDS),
    "methods": training.COMMANDS,
    "files and this machine": machine.COMMANDS,
}
COMMANDS = tuple(one for commands in GROUPS.values() for one in commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code: 0, 1 where a compared method failed, or 2 for wrong input."""
    args = vars(build_parser(GROUPS).parse_args(argv))
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
