"""The exponential moving average of a model in training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from odc.memory.shards import Shard, Sharded, shards_of


class MovingAverage(Sharded):
    """Averages θ' ← decay·θ' + (1 - decay)·θ of trained parameters and of batch norms' running statistics.

    Nothing else is averaged: memories and labels are states, whose mean would be no state. The first :meth:`update`
    copies, so the average starts from whatever was loaded. All state is in persistent buffers. ``decay`` is in [0, 1).
    """

    steps: Tensor  # () int64, updates so far

    def __init__(self, parts: Mapping[str, nn.Module], decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._shards = {
            name.replace(".", "/"): shard
            for part, module in parts.items()
            for name, shard in shards_of(module, part).items()
        }
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for name, tensor in _averaged(parts):
            self.register_buffer(name, tensor.detach().clone())

    @property
    def shards(self) -> dict[str, Shard]:
        """Averages of what is spread over the ranks."""
        return {name: shard for name, shard in self._shards.items() if name in self._buffers}

    @torch.no_grad()
    def update(self, parts: Mapping[str, nn.Module]) -> None:
        """Follow the present values; called after each move of the optimiser."""
        # 1 at the first update, which copies; it is computed where the steps are, so that nothing waits for a GPU.
        share = ((self.steps == 0) * 2.0 + (1.0 - self.decay)).clamp(max=1.0)
        for name, tensor in _averaged(parts):
            mine = self.get_buffer(name)
            mine.lerp_(tensor, share.to(mine.dtype))
        self.steps += 1

    @contextmanager
    def applied(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Let the parts hold the averages meanwhile; before the first update they stay as they are."""
        swapped = parts if int(self.steps) else {}
        self._swap(swapped)
        try:
            yield
        finally:
            self._swap(swapped)

    def _swap(self, parts: Mapping[str, nn.Module]) -> None:
        for name, tensor in _averaged(parts):
            mine = self.get_buffer(name)
            tensor.data, mine.data = mine.data, tensor.data


def follow(parts: Iterable[nn.Module], followed: Iterable[nn.Module], share: float) -> None:
    """Move the parameters of ``parts`` a ``share`` of the way to those of ``followed``; buffers stay their own."""
    for part, other in zip(parts, followed, strict=True):
        for mine, theirs in zip(part.parameters(), other.parameters(), strict=True):
            mine.lerp_(theirs, share)


def _averaged(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield what is averaged; a buffer's name cannot hold the dots."""
    for part, module in parts.items():
        for name, parameter in module.named_parameters(part):
            if parameter.requires_grad:
                yield name.replace(".", "/"), parameter
        for prefix, norm in module.named_modules(prefix=part):
            if isinstance(norm, _BatchNorm):
                for name, buffer in norm.named_buffers(prefix):
                    if buffer.is_floating_point():
                        yield name.replace(".", "/"), buffer
