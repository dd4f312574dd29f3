"""When losses are read, what of a training is not finite, and how it ends by that.

Reading a number makes the processor wait for the GPU. So losses and the sums of gradients stay where they are computed,
and are read together: at every step on a CPU, where it costs nothing, else every few steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import mmengine.runner
import torch
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from odc.checkpoints import find_resume
from odc.errors import InputError
from odc.memory.shards import shards_of
from odc.structures import Batch, Comm, Losses


def non_finite(model: nn.Module, comm: Comm) -> str | None:
    """Return the name of the first parameter or batch-norm statistic that is not finite on any rank; ``None``: all are.

    Ranks differ in what is spread over them alone: without such tensors they say nothing to each other.
    """
    model = model.get_submodule("module") if is_model_wrapper(model) else model
    named: dict[str, Tensor] = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            named.update((name, b) for name, b in module.named_buffers(prefix) if b.is_floating_point())
    if not named:
        return None
    finite = torch.stack([tensor.detach().sum(dtype=torch.float32) for tensor in named.values()]).isfinite()
    if comm.world > 1 and shards_of(model):
        finite = comm.sum((~finite).long()) == 0
    return None if bool(finite.all()) else list(named)[int((~finite).nonzero()[0])]


def sum_of_gradients(model: nn.Module, comm: Comm) -> Tensor | None:
    """Return the sum () of all gradients, the same on all ranks, which is finite where they are; ``None``: none."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients:
        return None
    total = torch.stack([g.sum() for g in gradients]).sum()  # nine times as fast as the largest of them
    # Or one rank would stop, or leave out a move, alone.
    return comm.sum(total) if comm.world > 1 and shards_of(model) else total


def broken_images(
    images: Mapping[tuple[str, str], Tensor], rows: Mapping[str, Batch], comm: Comm, paths: Sequence[str]
) -> str | None:
    """Return what says which images of a step, on any rank, have pixels that are not finite; ``None``: none has.

    They are given as ``{(stream, view): (B, P, C, H, W)}``, with the rows of each stream and the paths of all images.
    """
    for stream, view in sorted(images):
        finite = images[stream, view].isfinite().flatten(2).all(2)
        ids = comm.gather(rows[stream].index.to(finite.device)[~finite]).unique()
        if len(ids):
            first = paths[int(ids[0])]
            return f"{len(ids)} images, '{first}' first, have pixels that are not finite through data.views.{view}"
    return None


def diverged(runner: mmengine.runner.Runner, what: str, remedy: str | None = None) -> BaseException:
    """Return what to raise, on all ranks, where a training has left the finite numbers; the first rank says why.

    That is what is not finite, and where, and a remedy: by default to lower the learning rate.
    """
    if not is_main_process():
        return SystemExit(2)
    if remedy is None:
        rate = max(group.get("initial_lr", group["lr"]) for group in runner.optim_wrapper.optimizer.param_groups)
        remedy = f"lower the learning rate, now {rate:g} (optim_wrapper.optimizer.lr)"
    last = next(find_resume(runner.work_dir), None)
    kept = "no checkpoint was saved" if last is None else f"the last checkpoint, '{last}', was saved before that"
    return InputError(f"{what}: {remedy}; {kept}")


class Readings:
    """Sums of the named losses of an epoch, and what of them was not finite."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}  # the losses of the last step that was read, by name
        self._sums: dict[str, float] = {}
        self._count = 0
        self._pending: list[tuple[str, list[str], Tensor]] = []

    def add(self, where: str, loss: Tensor, gradient: Tensor | None, losses: Losses) -> None:
        """Take note of a step, without reading: the loss () that is trained on, and the sum () of all gradients.

        ``where`` is what to call the step; ``gradient`` is ``None`` where the optimiser did not move.
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
