"""The command line: ``odc <subcommand>``; ``tools/*.py`` are the same functions in OpenMMLab's places."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from odc.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code: 0, or 2 for wrong input, told in one line."""
    parser = argparse.ArgumentParser(prog="odc", description="Deep clustering of images.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, help_, add, run in _COMMANDS:
        command = commands.add_parser(name, help=help_, description=help_)
        add(command)
        command.set_defaults(run=run)
    args = parser.parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except InputError as e:
        print(f"odc: error: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _add_config(parser: argparse.ArgumentParser) -> None:
    from odc.compat import Overrides

    parser.add_argument("config", help="path of the config")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=Overrides,
        metavar="KEY=VALUE",
        help="change settings of the config, e.g. model.head.num_clusters=20",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--work-dir", help="where everything of the run goes (default: work_dirs/<config>)")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--strict", action="store_true", help="unreadable images are an error, not skipped")


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from a checkpoint; without a value, from the newest in the work directory",
    )
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16 where it is safe")
    parser.add_argument("--seed", type=int, help="instead of the config's randomness.seed")


def _add_test(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("checkpoint", help="path of the checkpoint")
    parser.add_argument("--out", metavar="DIR", help="write clusters.csv, clusters.png and metrics.json there")


def _prepare(args: argparse.Namespace, **more: Any) -> Any:
    from odc.apis import prepare_config

    return prepare_config(
        args.config,
        work_dir=args.work_dir,
        cfg_options=args.cfg_options,
        strict=args.strict,
        launcher=args.launcher,
        **more,
    )


def _train(args: argparse.Namespace) -> None:
    from odc.apis import train

    cfg = _prepare(args, seed=args.seed, amp=args.amp)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    train(cfg)


def _test(args: argparse.Namespace) -> None:
    from odc.apis import evaluate

    evaluate(_prepare(args), args.checkpoint, args.out)


def _print_config(args: argparse.Namespace) -> None:
    from odc.apis import check_config
    from odc.compat import load_config

    cfg = load_config(args.config, args.cfg_options)
    check_config(cfg)
    print(cfg.pretty_text)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", help="checkpoint of this or another project")
    parser.add_argument("dst", help="file to write, .pth or .safetensors")
    parser.add_argument("--layout", help="of the checkpoint (default: recognised by its names)")
    parser.add_argument("--to", default="odc", help="whose names to write: odc (default), torchvision or timm")


def _convert(args: argparse.Namespace) -> None:
    from odc.apis import convert

    print(convert(args.src, args.dst, layout=args.layout, to=args.to))


_COMMANDS: list[tuple[str, str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]] = [
    ("train", "Train by a config.", _add_train, _train),
    ("test", "Evaluate a checkpoint; --out writes its clusters.", _add_test, _test),
    ("convert", "Take the backbone out of a checkpoint of any known layout.", _add_convert, _convert),
    ("print-config", "Print the whole config, with everything it inherits.", _add_config, _print_config),
]


if __name__ == "__main__":
    sys.exit(main())
