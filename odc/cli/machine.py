"""Commands for files and for this machine."""

from __future__ import annotations

from odc.cli.arguments import CONFIG, Arguments, Command, arg, show


def _convert(args: Arguments) -> None:
    from odc.models.convert import convert

    show(convert(**args))


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
COMMANDS = (
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
