"""What steps leave on the device, and when it is read.

Reading a number makes the processor wait for the GPU. So losses and the sums of gradients stay where they are computed,
and are read together: at every step on a CPU, where it costs nothing, else every few steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from odc.structures import Losses


class Readings:
    """Sums of the named losses of an epoch, and what of them was not finite.

    Attributes:
        last: the losses of the last step that was read, by name.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._count = 0
        self._pending: list[tuple[str, list[str], Tensor]] = []

    def add(self, where: str, loss: Tensor, gradient: Tensor | None, losses: Losses) -> None:
        """Take note of a step, without reading.

        Args:
            where: what to call the step.
            loss: () that is trained on.
            gradient: () sum of all gradients; ``None`` where the optimiser did not move.
            losses: () each.
        """
        named = {**losses.train, **losses.log}
        values = [loss, torch.zeros_like(loss) if gradient is None else gradient, *named.values()]
        numbers = [v.detach().to(loss.device, torch.float32, non_blocking=True) for v in values]
        self._pending.append((where, list(named), torch.stack(numbers)))

    def read(self) -> str | None:
        """Read the steps since the last reading; return what was not finite first, and where, or ``None``."""
        pending, self._pending = self._pending, []
        if not pending:
            return None
        numbers = iter(torch.cat([values for _, _, values in pending]).tolist())
        wrong = None
        for where, names, _ in pending:
            loss, gradient = next(numbers), next(numbers)
            self.last = {name: next(numbers) for name in names}
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in self.last.items()}
            self._count += 1
            if wrong is None and not math.isfinite(loss):
                wrong = f"the loss is {loss} at {where}"
            elif wrong is None and not math.isfinite(gradient):
                wrong = f"the loss is finite but its gradient sums to {gradient} at {where}"
        return wrong

    def means(self) -> dict[str, float]:
        """Return the means of what was read since :meth:`clear`."""
        return {name: total / self._count for name, total in self._sums.items()}

    def clear(self) -> None:
        """Begin an epoch."""
        self._sums, self._count = {}, 0
