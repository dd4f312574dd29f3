"""What arguments of commands are written with, and those that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from odc.errors import printable
from odc.options import Overrides

Arguments = dict[str, Any]  # by name, as they are written
Argument = tuple[list[str], dict[str, Any]]
LOGS = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend"}


@dataclass(frozen=True)
class Command:
    """A command: ``run`` gets its arguments by name, and returns the exit code, ``None`` for 0."""

    name: str
    help: str  # one line
    run: Callable[[Arguments], int | None]
    arguments: Sequence[Argument]
    example: str  # a call that is shown below its help


def show(text: str) -> None:
    """Print lines; names in them cannot move the cursor."""
    print(printable(text, keep="\n"))


def config_options(args: Arguments) -> dict[str, Any]:
    """Take out the options for the config; return them with the visualizers that ``--log`` asks for."""
    options = dict(args.pop("cfg_options") or {})
    if names := args.pop("log"):
        backends = [{"type": kind} for kind in ("LocalVisBackend", *(LOGS[name] for name in names))]
        options["visualizer"] = {"type": "Visualizer", "vis_backends": backends}
    return options


def prepare(args: Arguments) -> Any:
    """Take out what is for the config; return it prepared."""
    from odc.apis import prepare_config

    args.pop("local_rank", None)  # launchers may give it; the environment says it too
    names = ("config", "work_dir", "cfg_options", "strict", "launcher", "seed", "amp")
    return prepare_config(**{name: args.pop(name) for name in names if name in args})


def arg(names: str, help_: str, **options: Any) -> Argument:
    """Return an argument of a subcommand, and what :mod:`argparse` is to know of it."""
    return names.split(), {"help": help_, **options}


def flag(name: str, help_: str) -> Argument:
    """Return an argument that is there or not."""
    return arg(name, help_, action="store_true")


def pairs(name: str, help_: str) -> Argument:
    """Return an argument of many ``KEY=VALUE``."""
    return arg(name, help_, nargs="+", action=Overrides, metavar="KEY=VALUE")


def group(title: str, *arguments: Argument) -> tuple[Argument, ...]:
    """Return these arguments for a heading of their own in the help."""
    return tuple((names, {**options, "group": title}) for names, options in arguments)


CONFIG = (
    arg("config", "path of the config, or its name in the package"),
    pairs("--cfg-options", "change settings of the config, e.g. model.head.num_clusters=20"),
)
WORK = (
    *CONFIG,
    arg("--work-dir", "where everything of the run goes (default: work_dirs/<config>)"),
    flag("--strict", "unreadable images are an error, not skipped"),
)
RUN = (
    *WORK,
    arg(
        "--launcher",
        "what started these processes: none, pytorch, slurm or mpi",
        metavar="KIND",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
    ),
    arg("--local_rank --local-rank", argparse.SUPPRESS, type=int),
)
CHECKPOINT = (*RUN, arg("checkpoint", "path of the checkpoint"))
AMP = flag("--amp", "train in bfloat16 where it is safe and the machine has it")
CLUSTERS = arg("--clusters", "number of clusters (default: the configs')", type=int)
PRETRAINED = arg("--pretrained", "start from this backbone instead of pre-training one", metavar="FILE")
LOG = arg(
    "--log",
    "write the curves there too: tensorboard, wandb",
    nargs="+",
    choices=list(LOGS),
    default=[],
    metavar="BOARD",
)
DROP_NECK = flag("--drop-neck", "the backbone's output averaged over the image, without the layers of a neck")
DATASET = arg("--dataset", "name or path of a comparison config, or a folder (default: digits)")
FEATURES = arg(
    "--features",
    "features that are not learnt here: dinov2-small, timm:NAME[@FILE], torchvision:NAME[@FILE], a file of features, a "
    "checkpoint; A+B are two spaces",
    metavar="SOURCE",
)
SIZE = arg("--size", "pixels a side that the network of --features sees", type=int)
