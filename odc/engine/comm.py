"""Collectives for heads: the only place, with the loop, that knows ``torch.distributed``."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from odc.structures import Comm, LocalComm


class DistComm:
    """The ranks of the default process group; semantics in :class:`odc.structures.Comm`."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks."""
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, x: Tensor) -> Tensor:
        """Return the concatenation over ranks along dimension 0."""
        length = torch.tensor([x.shape[0]], device=x.device)
        lengths = [torch.empty_like(length) for _ in range(self.world)]
        dist.all_gather(lengths, length)
        sizes = [int(n) for n in lengths]
        # Collectives want equal shapes: pad to the longest, cut afterwards.
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: x.shape[0]] = x
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's ``x``."""
        copy = x.detach().clone()
        dist.broadcast(copy, src=0)
        return copy


def get_comm() -> Comm:
    """Return the process group's collectives, or the identity where there is only this process."""
    return DistComm() if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else LocalComm()
