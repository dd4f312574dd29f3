"""What a config may say: the one place where that is checked, before anything is built.

A top-level key is either one value, whose kind stands in :data:`odc.config.loading.KINDS`, or a part, whose check
stands in :data:`PARTS`. Where a part is a dict of options, these are the parameters of what is named beside it.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine import Config
from mmengine.registry import LOG_PROCESSORS
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn
from torch.distributed import init_process_group
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from odc import registry
from odc.config.loading import KINDS, at
from odc.data.transforms import build_transform
from odc.engine.data import ClusterData
from odc.engine.loops import ClusterTrainLoop
from odc.engine.optim import CONSTANT
from odc.engine.precision import PRECISIONS
from odc.errors import InputError, nearest
from odc.models.cluster_model import ClusterModel, takes_spaces
from odc.refused import REFUSED_KEYS
from odc.registry import check_arguments, check_kind, resolve
from odc.runner import Runner

DEFAULT_HOOKS = ("checkpoint", "logger", "param_scheduler", "runtime_info", "sampler_seed", "timer")

# mmengine's visualizer back ends that need a package which this one does not require.
PACKAGES = {
    f"{name}VisBackend": name.lower()
    for name in ("Aim", "ClearML", "DVCLive", "MLflow", "Neptune", "Tensorboard", "Wandb")
}


def check_config(cfg: Config) -> None:
    """Check the top-level keys of a config; helper variables start with an underscore.

    Raises InputError for an unknown key, naming the nearest known one, or a key that is missing.
    """
    where = cfg.filename or "the config"
    for key, command in (("recipe", "odc run"), ("comparison", "odc compare --dataset")):
        if key in cfg:
            raise InputError(f"{where} is a {key}, not the config of one training: give it to {command}")
    for key, instead in REFUSED_KEYS.items():
        if at(cfg, key) not in (None, False, {}, [], ()):
            raise InputError(f"{where}: '{key}' is not for this training: {instead}")
    for key in cfg:
        if key not in KNOWN_KEYS and key not in REFUSED_KEYS and not key.startswith("_"):
            raise InputError(f"{where}: unknown key '{key}'{nearest(key, KNOWN_KEYS)}")
    for key in ("model", "data", "train_cfg", "optim_wrapper"):
        if key not in cfg:
            raise InputError(f"{where}: the key '{key}' is missing")


def check_parts(cfg: Config) -> None:
    """Check names, options and simple kinds of all that a runner is built from, before anything is built.

    Raises InputError, naming the part and, for a misspelt name, the nearest known one.
    """
    for key, kind in KINDS.items():
        check_kind(cfg.get(key), f"{kind} | None", key)
    for key, check in PARTS.items():
        if (part := cfg.get(key)) is not None:
            check(part)
    check_monitored(cfg, labelled=True)


def check_seed(seed: Any, where: str) -> None:
    """Raise InputError where a seed is no whole number of 32 bits, which is what NumPy's generator takes."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InputError(f"{where} must be a whole number from 0 to {2**32 - 1}, not {seed!r}")


def check_monitored(cfg: Config, labelled: bool) -> None:
    """Check that metrics which hooks wait for are measured, of images with labels or without, as far as they say so.

    Raises InputError where one is not, naming the nearest that is.
    """
    wanted: list[tuple[str, str]] = []
    for hook in (*(cfg.get("default_hooks") or {}).values(), *(cfg.get("custom_hooks") or ())):
        for option in ("save_best", "monitor"):
            names = (hook.get(option) if isinstance(hook, Mapping) else None) or ()
            wanted += [(f"{hook['type']}'s {option}", name) for name in ([names] if isinstance(names, str) else names)]
    if not wanted:
        return
    kinds = [resolve(registry.METRICS, metric)[0] for metric in cfg.get("val_evaluator") or ()]
    if not kinds:
        where, name = wanted[0]
        raise InputError(f"{where} is '{name}', but nothing is measured: the config has no val_evaluator")
    if not all(hasattr(kind, "names") for kind in kinds):
        return
    known = [name for kind in kinds for name in (kind.names if labelled else kind.unlabelled)]
    for where, name in wanted:
        if name != "auto" and name not in known:
            without = "" if labelled else " of images without labels"
            raise InputError(f"{where}: val_evaluator does not measure '{name}'{without}{nearest(name, known)}")


def check_compile(cfg: Any) -> dict[str, Any] | None:
    """Return the options of ``torch.compile`` that ``compile`` of a config stands for, or ``None`` for none.

    It is ``True``, ``False``, ``None``, or a dict of options (``mode``, ``backend``, ``dynamic``, ...).

    Raises InputError for an option that ``torch.compile`` does not take, or a backend that needs a C++ compiler where
    there is none.
    """
    if cfg is None or cfg is False:
        return None
    if cfg is not True and not isinstance(cfg, Mapping):
        raise InputError(f"compile must be True, False or a dict of torch.compile's options, not {cfg!r}")
    options = {} if cfg is True else dict(cfg)
    check_arguments(torch.compile, options, "compile", given=("model",))
    backend, known = options.get("backend", "inductor"), torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise InputError(f"compile has no backend '{backend}'; known: {', '.join(known)}")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if backend == "inductor" and shutil.which(compiler) is None:
        raise InputError(
            f"compile needs a C++ compiler, but there is no '{compiler}': install it, name one in the environment "
            "variable CXX, or set compile=False"
        )
    try:
        torch.compile(nn.Identity(), **options)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"compile: torch does not take {options}: {str(error).splitlines()[0]}") from error
    return options


# -------------------------------------------------------------------------------------------------------------- parts


def _checked(name: str, function: Callable[..., None]) -> Callable[[Any], None]:
    """Return the check of a part that is ``function`` itself: its parameters are the options."""

    def check(part: Any) -> None:
        check_arguments(function, part, name)
        function(**part)

    return check


def _built(kinds: Any, cfg: Any, **given: Any) -> None:
    """Build what is cheap, to hear what it has to say of its options."""
    target, arguments = resolve(kinds, cfg, **given)
    try:
        target(**arguments)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        options = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if name not in given)
        raise InputError(f"{kinds.name} '{target.__name__}' does not take {options}: {error}") from error


def _data(cfg: Any) -> None:
    check_arguments(ClusterData, cfg, "data")
    for dataset in (cfg["dataset"], cfg.get("eval_dataset")):
        if dataset is not None:
            resolve(registry.DATASETS, dataset)
    for transforms in _dict("data.views", cfg["views"]).values():
        for transform in transforms if isinstance(transforms, list | tuple) else ():
            build_transform(transform)


def _train_cfg(cfg: Any) -> None:
    check_arguments(ClusterTrainLoop, cfg, "train_cfg", given=("runner", "dataloader", "accumulative_counts"))
    if cfg.get("schedule"):
        resolve(registry.SCHEDULES, cfg["schedule"])


def _model(cfg: Any) -> None:
    kind, parts = resolve(registry.MODELS, cfg)
    if isinstance(kind, type) and issubclass(kind, ClusterModel):
        resolve(registry.BACKBONES, parts["backbone"])
        resolve(registry.NECKS, parts.get("neck") or {"type": "AvgPool"}, in_channels=0)
        spaces = {"spaces": ()} if takes_spaces(parts["head"]) else {}
        resolve(registry.HEADS, parts["head"], in_channels=0, **spaces)


def _optim_wrapper(cfg: Any) -> None:
    wrapper = dict(_dict("optim_wrapper", cfg))
    groups = wrapper.pop("paramwise_cfg", None)
    constructor = wrapper.pop("constructor", "DefaultOptimWrapperConstructor")
    resolve(registry.OPTIM_WRAPPER_CONSTRUCTORS, {"type": constructor}, optim_wrapper_cfg=cfg, paramwise_cfg=groups)
    resolve(registry.OPTIM_WRAPPERS, {"type": "OptimWrapper", **wrapper})
    optimizer = _dict("optim_wrapper.optimizer", wrapper["optimizer"])
    by_name = _dict("optim_wrapper.paramwise_cfg", groups or {}) if constructor == "ByName" else {}
    for prefix, options in {"": {}, **by_name}.items():
        _dict(f"optim_wrapper.paramwise_cfg, the start of parameters' names, '{prefix}'", options)
        options = dict(options)
        check_kind(options.pop(CONSTANT, None), "bool | None", f"optim_wrapper.paramwise_cfg['{prefix}'].{CONSTANT}")
        _built(registry.OPTIMIZERS, {**optimizer, **options}, params=[nn.Parameter(torch.zeros(1))])
    if wrapper.get("clip_grad"):
        clipping = dict(_dict("optim_wrapper.clip_grad", wrapper["clip_grad"]))
        functions: dict[str, Any] = {"norm": clip_grad_norm_, "value": clip_grad_value_}
        if (kind := clipping.pop("type", "norm")) not in functions:
            raise InputError(f"optim_wrapper.clip_grad has no type '{kind}'{nearest(str(kind), functions)}")
        check_arguments(functions[kind], clipping, "optim_wrapper.clip_grad", given=("parameters",))


def _hook(cfg: Any) -> None:
    resolve(registry.HOOKS, {k: v for k, v in cfg.items() if k != "priority"} if isinstance(cfg, Mapping) else cfg)


def _default_hooks(cfg: Any) -> None:
    for name, hook in _dict("default_hooks", cfg).items():
        if name not in DEFAULT_HOOKS and "type" not in (hook or {"type": None}):
            raise InputError(f"default_hooks has no '{name}'{nearest(name, DEFAULT_HOOKS)}")
        if isinstance(hook, Mapping) and "type" in hook:
            _hook(hook)


def _visualizer(cfg: Any) -> None:
    resolve(registry.VISUALIZERS, cfg)
    for backend in cfg.get("vis_backends") or ():
        kind, _ = resolve(registry.VISBACKENDS, backend, save_dir=".")
        package = PACKAGES.get(kind.__name__)
        if package is not None and importlib.util.find_spec(package) is None:
            raise InputError(f"{kind.__name__} needs the package {package}: pip install {package}")


def _model_wrapper(cfg: Any) -> None:
    wrapper = {"type": "MMDistributedDataParallel", **_dict("model_wrapper_cfg", cfg)}
    kind, options = resolve(registry.MODEL_WRAPPERS, wrapper, module=None)
    own = inspect.signature(kind).parameters
    passed_on = {name: value for name, value in options.items() if name not in own}
    check_arguments(DistributedDataParallel, passed_on, "model_wrapper_cfg", given=("self", "module"))


def _environment(
    cudnn_benchmark: bool = False,
    mp_cfg: Mapping[str, Any] | None = None,
    dist_cfg: Mapping[str, Any] | None = None,
    resource_limit: int = 4096,
) -> None:
    check_arguments(set_multi_processing, mp_cfg or {}, "env_cfg.mp_cfg", given=("distributed",))
    methods = multiprocessing.get_all_start_methods()
    if (method := (mp_cfg or {}).get("mp_start_method", "fork")) not in methods:
        raise InputError(f"env_cfg.mp_cfg.mp_start_method must be one of {methods}, not '{method}'")
    check_arguments(init_process_group, dist_cfg or {}, "env_cfg.dist_cfg")


def _scaling(enable: bool = False, base_batch_size: int | None = None) -> None:
    if enable and (base_batch_size is None or base_batch_size < 1):
        raise InputError(
            "auto_scale_lr.base_batch_size must be the number of rows that the learning rate is meant for, not "
            f"{base_batch_size}"
        )


def _precision(asked: Any) -> None:
    if asked not in PRECISIONS:
        raise InputError(f"precision must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, not {asked!r}")


def _log_level(level: Any) -> None:
    if not isinstance(level, int) and not isinstance(logging.getLevelName(level), int):
        raise InputError(f"no log_level '{level}'{nearest(str(level), ('DEBUG', 'INFO', 'WARNING', 'ERROR'))}")


def _dict(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is configured by a dict, not by {value!r}")
    return value


def _each(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda parts: [check(part) for part in parts]


PARTS: dict[str, Callable[[Any], Any]] = {
    "data": _data,
    "model": _model,
    "train_cfg": _train_cfg,
    "optim_wrapper": _optim_wrapper,
    "default_hooks": _default_hooks,
    "custom_hooks": _each(_hook),
    "val_evaluator": _each(functools.partial(resolve, registry.METRICS)),
    "visualizer": _visualizer,
    "model_wrapper_cfg": _model_wrapper,
    "env_cfg": _checked("env_cfg", _environment),
    "auto_scale_lr": _checked("auto_scale_lr", _scaling),
    "log_processor": lambda cfg: _built(LOG_PROCESSORS, {"type": "LogProcessor", **_dict("log_processor", cfg)}),
    "compile": check_compile,
    "precision": _precision,
    "randomness": functools.partial(check_arguments, Runner.set_randomness, where="randomness", given=("self",)),
    "log_level": _log_level,
}
KNOWN_KEYS = (*KINDS, *PARTS)  # of the top level of a config
