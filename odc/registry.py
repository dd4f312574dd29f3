"""Registries under scope ``odc``: children of mmengine's, so mmengine's own types resolve by name too."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import mmengine.registry as root
from mmengine.registry import Registry

from odc.errors import InputError, nearest

BACKBONES = Registry("backbone", scope="odc", locations=["odc.models.backbones"])
NECKS = Registry("neck", scope="odc", locations=["odc.models.necks"])
HEADS = Registry("head", scope="odc", locations=["odc.heads"])
MODELS = Registry("model", parent=root.MODELS, scope="odc", locations=["odc.models"])
DATASETS = Registry("dataset", parent=root.DATASETS, scope="odc", locations=["odc.data.datasets"])
TRANSFORMS = Registry("transform", parent=root.TRANSFORMS, scope="odc", locations=["odc.data.transforms"])
LOOPS = Registry("loop", parent=root.LOOPS, scope="odc", locations=["odc.engine.loops"])
HOOKS = Registry("hook", parent=root.HOOKS, scope="odc", locations=["odc.engine.hooks"])
VISBACKENDS = Registry("vis_backend", parent=root.VISBACKENDS, scope="odc", locations=["odc.engine.hooks"])
OPTIMIZERS = Registry("optimizer", parent=root.OPTIMIZERS, scope="odc", locations=["odc.engine.optim"])
METRICS = Registry("metric", scope="odc", locations=["odc.evaluation.evaluator"])
SCHEDULES = Registry("schedule", scope="odc", locations=["odc.engine.schedules"])
OPTIM_WRAPPERS = Registry("optim wrapper", parent=root.OPTIM_WRAPPERS, scope="odc", locations=["odc.compat"])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optim wrapper constructor",
    parent=root.OPTIM_WRAPPER_CONSTRUCTORS,
    scope="odc",
    locations=["odc.engine.optim"],
)


def check_arguments(target: Any, arguments: Mapping[str, Any], where: str) -> None:
    """Check that ``target`` (a class or function) takes these keyword arguments.

    Raises:
        InputError: for an argument it does not take (naming the nearest one it does) or one that it lacks.
    """
    parameters = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in arguments:
            if name not in parameters:
                raise InputError(f"{where} has no option '{name}'{nearest(name, parameters)}")
    for name, p in parameters.items():
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in arguments:
            raise InputError(f"{where} needs the option '{name}'")


def build(registry: Registry, cfg: Mapping[str, Any], **given: Any) -> Any:
    """Build ``cfg`` (a dict with ``type``) from ``registry``; ``given`` are arguments the config need not repeat.

    Raises:
        InputError: for a missing or unknown type, and for arguments that the type does not take or lacks.
    """
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise InputError(f"a {registry.name} is configured by a dict with 'type', not by {cfg!r}")
    arguments = {**given, **cfg}
    kind = arguments.pop("type")
    if isinstance(kind, str):
        registry.import_from_location()
        target = registry.module_dict.get(kind)
        if target is None:
            raise InputError(f"unknown {registry.name} '{kind}'{nearest(kind, registry.module_dict)}")
    else:
        target = kind
    check_arguments(target, arguments, f"{registry.name} '{target.__name__}'")
    return target(**arguments)
