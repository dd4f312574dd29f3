"""Optimiser groups by parameter name."""

from __future__ import annotations

from typing import Any

from mmengine.optim import OptimWrapper
from torch import nn

from odc.errors import InputError, nearest
from odc.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS, build


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ByName:
    """Optimiser groups by prefix of the parameter's name, each with any options of the optimiser.

    Config: ``optim_wrapper=dict(constructor='ByName', paramwise_cfg={'head.classifier': dict(momentum=0.)}, ...)``;
    the longest matching prefix wins. Frozen parameters are left out.

    Raises:
        InputError: for a prefix that no parameter has.
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
        optimizer = build(OPTIMIZERS, {**self.optimizer, "params": params})
        wrapper = {"type": "OptimWrapper", **self.wrapper}
        return build(OPTIM_WRAPPERS, {**wrapper, "optimizer": optimizer})
