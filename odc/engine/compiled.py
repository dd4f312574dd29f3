"""``compile`` of a config: ``torch.compile`` for the backbone, where a step spends its time.

It is compiled in place (``nn.Module.compile``), so parameters keep their names, and checkpoints with and without it are
the same. Heads stay as they are: they are small, and what they do depends on data.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from odc.errors import InputError
from odc.models.cluster_model import ClusterModel
from odc.registry import check_arguments


def check_compile(cfg: Any) -> dict[str, Any] | None:
    """Return the options of ``torch.compile`` that ``compile`` of a config stands for, or ``None`` for none.

    Args:
        cfg: ``True``, ``False``, ``None``, or a dict of options (``mode``, ``backend``, ``dynamic``, ...).

    Raises:
        InputError: for an option that ``torch.compile`` does not take, or a backend that needs a C++ compiler where
            there is none.
    """
    if cfg is None or cfg is False:
        return None
    if cfg is not True and not isinstance(cfg, Mapping):
        raise InputError(f"compile is True, False or a dict of torch.compile's options, not {cfg!r}")
    options = {} if cfg is True else dict(cfg)
    check_arguments(torch.compile, options, "compile", given=("model",))
    backend = options.get("backend", "inductor")
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise InputError(f"compile has no backend '{backend}'; known: {', '.join(known)}")
    if backend == "inductor":
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise InputError(
                f"compile needs a C++ compiler, but there is no '{compiler}': install it, name one in the environment "
                "variable CXX, or set compile=False"
            )
    try:
        torch.compile(nn.Identity(), **options)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"compile: torch does not take {options}: {str(error).splitlines()[0]}") from error
    return options


def compile_backbone(model: ClusterModel, options: Mapping[str, Any]) -> None:
    """Compile the backbone, and whatever else has its architecture, as MoCo's key encoder, at their first use."""
    for module in model.modules():
        if type(module) is type(model.backbone):
            module.compile(**options)
    print_log("the backbone is compiled at its first use, which takes up to minutes", "current")
