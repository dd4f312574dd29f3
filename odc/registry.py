"""Registries under scope ``odc``: children of mmengine's, so mmengine's own types resolve by name too."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Mapping
from typing import Any

import mmengine.registry as root
from mmengine.registry import Registry

from odc.errors import InputError, nearest
from odc.options import BY_KEYWORD, alternatives, parameters
from odc.refused import REFUSED_TYPES

BACKBONES = Registry("backbone", scope="odc", locations=["odc.models.backbones"])
NECKS = Registry("neck", scope="odc", locations=["odc.models.necks"])
HEADS = Registry("head", scope="odc", locations=["odc.heads"])
MODELS = Registry("model", parent=root.MODELS, scope="odc", locations=["odc.models"])
DATASETS = Registry("dataset", scope="odc", locations=["odc.data"])  # mmengine's unpickle files
TRANSFORMS = Registry("transform", parent=root.TRANSFORMS, scope="odc", locations=["odc.data.transforms"])
LOOPS = Registry("loop", parent=root.LOOPS, scope="odc", locations=["odc.engine.loops", "odc.engine.validation"])
HOOKS = Registry("hook", parent=root.HOOKS, scope="odc", locations=["odc.engine.hooks"])
VISUALIZERS = Registry("visualizer", parent=root.VISUALIZERS, scope="odc", locations=["odc.engine.hooks"])
VISBACKENDS = Registry("vis_backend", parent=root.VISBACKENDS, scope="odc", locations=["odc.engine.hooks"])
OPTIMIZERS = Registry("optimizer", parent=root.OPTIMIZERS, scope="odc", locations=["odc.engine.optim"])
METRICS = Registry("metric", scope="odc", locations=["odc.evaluation.evaluator"])
STAGES = Registry("stage", scope="odc", locations=["odc.recipes"])
SCHEDULES = Registry("schedule", scope="odc", locations=["odc.engine.optim"])
OPTIM_WRAPPERS = Registry("optim wrapper", parent=root.OPTIM_WRAPPERS, scope="odc", locations=["odc.engine.optim"])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optim wrapper constructor", parent=root.OPTIM_WRAPPER_CONSTRUCTORS, scope="odc", locations=["odc.engine.optim"]
)
MODEL_WRAPPERS = Registry("model wrapper", parent=root.MODEL_WRAPPERS, scope="odc", locations=["mmengine.model"])
REGISTRIES = tuple(value for value in list(globals().values()) if isinstance(value, Registry))


def _registered(registry: Registry, name: str) -> Any:
    """Return what is registered as ``name``, or ``scope.name``, in ``registry`` or above it, or ``None``.

    Nothing is imported, whatever the name: data files, configs in JSON too, hold names of parts. mmengine's own look-up
    takes a dotted name for the path of any object in any module, ``os.system`` too.
    """
    scope, _, key = name.rpartition(".")
    above = registry
    while above is not None:
        above.import_from_location()
        if scope in ("", above.scope) and key in above.module_dict:
            return above.module_dict[key]
        if scope in above.children:
            return _registered(above.children[scope], key)
        above = above.parent
    return None


Registry.get = _registered  # what mmengine builds itself follows the same rule


# What a config may give for a parameter annotated so; anything else is not checked.
_KINDS: dict[str, Any] = {
    "None": type(None),
    "bool": bool,
    "int": numbers.Integral,
    "float": numbers.Real,
    "str": str,
    "list": (list, tuple),
    "tuple": (list, tuple),
    "Sequence": (list, tuple),
    "dict": Mapping,
    "Mapping": Mapping,
}


def check_kind(value: Any, annotation: Any, where: str) -> None:
    """Raise InputError where a value is not of the kinds that an annotation allows, if these are simple ones."""
    names = [name.partition("[")[0] for name in alternatives(annotation)]
    if not all(name in _KINDS for name in names):
        return
    flag = isinstance(value, bool) and "bool" not in names  # Python takes True for 1
    if flag or not isinstance(value, tuple(_KINDS[name] for name in names)):
        raise InputError(f"{where} must be {' or '.join(names)}, not {value!r}")


def check_arguments(target: Any, arguments: Mapping[str, Any], where: str, given: tuple[str, ...] = ()) -> None:
    """Check that ``target`` (a class or function) takes these keyword arguments, besides those ``given`` it anyway.

    Raises InputError for an argument it does not take (naming the nearest one it does), one that it lacks, or one of
    another kind than a simple annotation (``int``, ``str``, a list, a dict) says.
    """
    if not isinstance(arguments, Mapping):
        raise InputError(f"{where} is configured by a dict, not by {arguments!r}")
    own = inspect.signature(target).parameters  # what a base needs, the class may give it
    known = {name: p for name, p in parameters(target).items() if name not in given}
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        for name in arguments:
            if name not in known:
                raise InputError(f"{where} has no option '{name}'{nearest(name, known)}")
    for name, p in known.items():
        if name in own and p.default is p.empty and p.kind in BY_KEYWORD and name not in arguments:
            raise InputError(f"{where} needs the option '{name}'")
        if name in arguments:
            check_kind(arguments[name], p.annotation, f"{where}: '{name}'")


def resolve(registry: Registry, cfg: Any, **given: Any) -> tuple[Any, dict[str, Any]]:
    """Return the class that ``cfg`` (a dict with ``type``) names, in ``registry`` or above it, and its arguments.

    Raises InputError for a missing or unknown type, and for arguments that the type does not take or lacks.
    """
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise InputError(f"a {registry.name} is configured by a dict with 'type', not by {cfg!r}")
    arguments = {**given, **cfg}
    target = kind = arguments.pop("type")
    if isinstance(kind, str):
        target = registry.get(kind)
        name = kind.rpartition(".")[2]
        if name in REFUSED_TYPES and (target is None or target.__module__.startswith(("mmengine.", "torch."))):
            raise InputError(f"{registry.name} '{kind}' is not for this training: {REFUSED_TYPES[name]}")
        if target is None:
            known = {**(registry.parent.module_dict if registry.parent else {}), **registry.module_dict}
            raise InputError(f"unknown {registry.name} '{kind}'{nearest(kind, known.keys() - REFUSED_TYPES.keys())}")
    elif not callable(kind):
        raise InputError(f"the type of a {registry.name} is the name of one, not {kind!r}")
    check_arguments(target, arguments, f"{registry.name} '{target.__name__}'")
    return target, arguments


def build(registry: Registry, cfg: Mapping[str, Any], **given: Any) -> Any:
    """Build what :func:`resolve` returns; ``given`` are arguments that ``cfg`` need not repeat."""
    target, arguments = resolve(registry, cfg, **given)
    return target(**arguments)
