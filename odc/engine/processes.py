"""What a config may say about processes, checked before any is started."""

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Mapping
from typing import Any

from mmengine.utils.dl_utils import set_multi_processing
from torch.distributed import init_process_group
from torch.nn.parallel import DistributedDataParallel

from odc.errors import InputError, nearest
from odc.registry import MODEL_WRAPPERS, check_arguments, resolve


def check_wrapper(wrapper: Mapping[str, Any]) -> None:
    """Check ``model_wrapper_cfg``, the options of DDP.

    Raises:
        InputError: for another wrapper, or an option that it does not take.
    """
    kind, options = resolve(MODEL_WRAPPERS, {"type": "MMDistributedDataParallel", **wrapper}, module=None)
    own = inspect.signature(kind).parameters
    passed_on = {name: value for name, value in options.items() if name not in own}
    check_arguments(DistributedDataParallel, passed_on, "model_wrapper_cfg", given=("self", "module"))


def check_environment(cfg: Mapping[str, Any]) -> None:
    """Check ``env_cfg``: how processes start, and how they speak to each other.

    Raises:
        InputError: for an unknown option or way to start.
    """
    known = ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit")
    for name in cfg:
        if name not in known:
            raise InputError(f"env_cfg has no option '{name}'{nearest(name, known)}")
    processes = cfg.get("mp_cfg") or {}
    check_arguments(set_multi_processing, processes, "env_cfg.mp_cfg", given=("distributed",))
    methods = multiprocessing.get_all_start_methods()
    if processes.get("mp_start_method", "fork") not in methods:
        raise InputError(f"env_cfg.mp_cfg.mp_start_method is one of {methods}, not '{processes['mp_start_method']}'")
    check_arguments(init_process_group, cfg.get("dist_cfg") or {}, "env_cfg.dist_cfg")
