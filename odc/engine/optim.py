"""Optimiser groups by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from odc.errors import InputError, nearest
from odc.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS, check_arguments, resolve


def check_optimizer(cfg: Any) -> None:
    """Check an optimiser's config by building it for a parameter of one number.

    Raises:
        InputError: for an unknown type or option, or a value that it does not take.
    """
    target, arguments = resolve(OPTIMIZERS, cfg, params=[nn.Parameter(torch.zeros(1))])
    try:
        target(**arguments)
    except (TypeError, ValueError) as error:
        options = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if name != "params")
        raise InputError(f"optimizer '{target.__name__}' does not take {options}: {error}") from error


def check_clipping(cfg: Any) -> None:
    """Check the options of ``optim_wrapper.clip_grad``.

    Raises:
        InputError: for an unknown type or option, or one that lacks.
    """
    if not isinstance(cfg, Mapping):
        raise InputError(f"optim_wrapper.clip_grad is configured by a dict, not by {cfg!r}")
    options = dict(cfg)
    kind = options.pop("type", "norm")
    functions: dict[str, Any] = {"norm": clip_grad_norm_, "value": clip_grad_value_}
    if kind not in functions:
        raise InputError(f"optim_wrapper.clip_grad has no type '{kind}'{nearest(str(kind), functions)}")
    check_arguments(functions[kind], {"parameters": (), **options}, "optim_wrapper.clip_grad")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ByName:
    """Optimiser groups by prefix of the parameter's name, each with any options of the optimiser.

    Config: ``optim_wrapper=dict(constructor='ByName', paramwise_cfg={'head.classifier': dict(momentum=0.)}, ...)``;
    the longest matching prefix wins. Frozen parameters are left out.

    Raises:
        InputError: for a prefix that no parameter has, and options that the optimiser does not take.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, dict[str, Any]] | None = None):
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        self.options = paramwise_cfg or {}

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the optimiser wrapper for the parameters of ``model`` (which may be wrapped for several ranks)."""
        model = getattr(model, "module", model)
        groups: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in ("", *self.options)}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups[max((p for p in groups if name.startswith(p)), key=len)].append(parameter)
        for prefix, members in groups.items():
            if prefix and not members:
                names = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
                raise InputError(
                    f"paramwise_cfg: no trainable parameter's name starts with '{prefix}'{nearest(prefix, names)}"
                )
        params = [{"params": p, **self.options.get(prefix, {})} for prefix, p in groups.items() if p]
        for options in self.options.values():
            check_optimizer({**self.optimizer, **options})
        optimizer = OPTIMIZERS.build({**self.optimizer, "params": params})
        wrapper = {"type": "OptimWrapper", **self.wrapper}
        return OPTIM_WRAPPERS.build({**wrapper, "optimizer": optimizer})
