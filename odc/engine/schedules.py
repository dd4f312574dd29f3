"""Learning-rate schedules: functions of progress in [0, 1], never of a number of batches.

The number of rows, so of batches, changes at a refresh; progress = (epoch + share of the epoch) / max_epochs does
not. A schedule has no state: the rate at a step is the configured rate times its factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from odc.errors import InputError
from odc.registry import SCHEDULES


class Schedule:
    """Constant rate, after a linear warm-up over the first ``warmup`` share of the training (0: none)."""

    def __init__(self, warmup: float = 0.0) -> None:
        if not 0.0 <= warmup < 1.0:
            raise InputError(f"a schedule's warmup must be a share of the training in [0, 1), not {warmup}")
        self.warmup = warmup

    def factor(self, progress: float) -> float:
        """Return the factor on the configured learning rate at ``progress`` in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        return self.after_warmup((progress - self.warmup) / (1.0 - self.warmup))

    def after_warmup(self, progress: float) -> float:
        """Return the factor at ``progress`` in [0, 1] of what follows the warm-up."""
        return 1.0


@SCHEDULES.register_module()
class Constant(Schedule):
    """The configured rate throughout."""


@SCHEDULES.register_module()
class Cosine(Schedule):
    """Half a cosine from 1 down to ``final``."""

    def __init__(self, warmup: float = 0.0, final: float = 0.0) -> None:
        super().__init__(warmup)
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
