"""What an optimiser is given: groups of parameters by name, and the schedule of its learning rate.

A schedule is a function of progress in [0, 1], (epoch + share of the epoch) / max_epochs, never of a number of batches:
that changes at a refresh. It has no state: the rate at a step is the configured rate times its factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from odc.errors import InputError, nearest
from odc.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS, SCHEDULES, build

CONSTANT = "constant_lr"  # of a group of parameters: its rate follows no schedule


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ByName:
    """Optimiser groups by prefix of the parameter's name, each with any options of the optimiser.

    Config: ``optim_wrapper=dict(constructor='ByName', paramwise_cfg={'head.classifier': dict(momentum=0.)}, ...)``;
    the longest matching prefix wins. Frozen parameters are left out. ``constant_lr=True`` keeps a group's rate what it
    is, whatever the schedule.

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


def forget(optimizer: Any, parameter: nn.Parameter) -> None:
    """Let an optimiser know no more of ``parameter`` than at its first step."""
    known = optimizer.state.pop(parameter, None)
    if known and isinstance(optimizer, torch.optim.Adagrad):  # before torch 2.15 only its constructor makes a state
        options = {name: optimizer.defaults[name] for name in ("initial_accumulator_value", "fused")}
        optimizer.state[parameter] = torch.optim.Adagrad([parameter], **options).state[parameter]


class Schedule:
    """Constant rate, after a linear warm-up over the first ``warmup`` share of the training (0: none).

    Before that it is 0 for the share ``delay`` of the training, in which only groups of a constant rate move.
    """

    def __init__(self, warmup: float = 0.0, delay: float = 0.0) -> None:
        if min(warmup, delay) < 0.0 or warmup + delay >= 1.0:
            raise InputError(
                f"a schedule's warmup and delay must be shares of the training, in [0, 1) together, not {warmup} and "
                f"{delay}"
            )
        self.warmup = warmup
        self.delay = delay

    def factor(self, progress: float) -> float:
        """Return the factor on the configured learning rate at ``progress`` in [0, 1]."""
        begun = progress - self.delay
        if begun < 0.0:
            return 0.0
        if begun < self.warmup:
            return begun / self.warmup
        return self.after_warmup((begun - self.warmup) / (1.0 - self.delay - self.warmup))

    def after_warmup(self, progress: float) -> float:
        """Return the factor at ``progress`` in [0, 1] of what follows the warm-up."""
        return 1.0


@SCHEDULES.register_module()
class Constant(Schedule):
    """The configured rate throughout."""


@SCHEDULES.register_module()
class Cosine(Schedule):
    """Half a cosine from 1 down to ``final``."""

    def __init__(self, warmup: float = 0.0, final: float = 0.0, delay: float = 0.0) -> None:
        super().__init__(warmup, delay)
        self.final = final

    def after_warmup(self, progress: float) -> float:
        """Return final + (1 - final)(1 + cos π·progress) / 2."""
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@SCHEDULES.register_module()
class CosineArc(Schedule):
    """The first part of a cosine, cos(arc·π·progress), as FixMatch's (arXiv:2001.07685, section 2.4).

    Args:
        warmup: as in :class:`Schedule`.
        arc: in (0, 0.5]; FixMatch's 7/16 ends at 0.195 of the rate.
    """

    def __init__(self, warmup: float = 0.0, arc: float = 7 / 16) -> None:
        super().__init__(warmup)
        if not 0.0 < arc <= 0.5:
            raise InputError(f"a CosineArc's arc must be a share of π in (0, 0.5], not {arc}")
        self.arc = arc

    def after_warmup(self, progress: float) -> float:
        """Return cos(arc·π·progress)."""
        return math.cos(self.arc * math.pi * progress)


@SCHEDULES.register_module()
class Step(Schedule):
    """The rate is multiplied by ``gamma`` at each of ``milestones``, shares of the training."""

    def __init__(self, milestones: Sequence[float], gamma: float = 0.1, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        if any(not 0.0 < m < 1.0 for m in milestones):
            raise InputError(
                f"milestones of a Step schedule must be shares of the training in (0, 1), not {milestones}"
            )
        self.milestones = tuple(milestones)
        self.gamma = gamma

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``; milestones count from the start, the warm-up included."""
        return super().factor(progress) * self.gamma ** sum(progress >= m for m in self.milestones)
