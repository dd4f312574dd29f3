"""Commands for files and for this machine."""

from __future__ import annotations

import json
import sys

from odc.cli.arguments import CONFIG, Arguments, Command, arg, flag, show
from odc.errors import printable


def _convert(args: Arguments) -> None:
    from odc.models.convert import convert

    show(convert(**args))


def _export(args: Arguments) -> int:
    from odc.export import export

    as_json = args.pop("json")
    found = export(args.pop("folder"), args.pop("form"), **args)
    if as_json:
        print(json.dumps(found.describe()))
    elif found.file is None:
        print(f"odc: {printable(str(found))}", file=sys.stderr)
    else:
        show(str(found))
    return int(found.file is None)


def _doctor(args: Arguments) -> int:
    from odc.doctor import Finding, look_at, look_at_machine, told
    from odc.doctor.findings import PROBLEM

    target = args["target"]
    found: list[Finding] = look_at_machine()
    found += [] if target is None else look_at(target, args["clusters"])
    if args["json"]:
        print(json.dumps([finding.describe() for finding in found]))
    else:
        show(told(found))
    return int(any(finding.status == PROBLEM for finding in found))


def _print_config(args: Arguments) -> None:
    from odc.config import load_config
    from odc.config.checking import check_config

    cfg = load_config(args["config"], args["cfg_options"])
    check_config(cfg)
    show(cfg.pretty_text)


_CONVERT = (
    arg("src", "checkpoint of this or another project"),
    arg("dst", "file to write, .pth or .safetensors"),
    arg("--layout", "layout of the checkpoint (default: recognised by its names)"),
    arg("--to", "names to write: those of odc (default), torchvision or timm", default="odc"),
)
_EXPORT = (
    arg("folder", "the model, DIR/model, or DIR of odc cluster itself", metavar="MODEL"),
    arg(
        "--format",
        "onnx, for other programs, or torch-export, for PyTorch without this package",
        choices=["onnx", "torch-export"],
        metavar="FORMAT",
        dest="form",
        required=True,
    ),
    arg("--out", "file to write (default: model.onnx or model.pt2 in the model's folder)", metavar="FILE"),
    arg("--size", "pixels a side of the input, where the model takes pictures of any size", type=int),
    flag("--json", "print the result as JSON"),
)
_DOCTOR = (
    arg("target", "a folder of pictures, or a config, to look at, too: some steps of it run", nargs="?"),
    arg("-k --clusters", "number of clusters, for a folder (default 10)", metavar="K", type=int, default=10),
    flag("--json", "print the findings as JSON"),
)
COMMANDS = (
    Command(
        "doctor",
        "See whether this machine, and a folder or a config, will do, and how long it takes.",
        _doctor,
        _DOCTOR,
        "odc doctor photos -k 20",
    ),
    Command(
        "export",
        "Write the model of a clustering as one graph, and see whether it does the same.",
        _export,
        _EXPORT,
        "odc export work_dirs/photos/model --format onnx --out photos.onnx",
    ),
    Command(
        "convert",
        "Take the backbone out of a checkpoint of any known layout.",
        _convert,
        _CONVERT,
        "odc convert moco.pth backbone.pth --to torchvision",
    ),
    Command(
        "print-config",
        "Print the whole config, with everything it inherits.",
        _print_config,
        CONFIG,
        "odc print-config odc_convnet_1xb64-30e_digits",
    ),
)
