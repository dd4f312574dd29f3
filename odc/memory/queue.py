"""A first-in-first-out queue of keys: MoCo's negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odc.errors import InputError


def fitting_queue(num_images: int, batch_size: int) -> tuple[int, int] | None:
    """Return batch and queue for few images: half of them in whole batches, two of which fit; ``None`` for under 4.

    The batch stays if it fits, else it is the largest power of two that does.
    """
    if num_images < 4:
        return None
    batch = min(batch_size, 2 ** ((num_images // 2).bit_length() - 1))
    return batch, num_images // 2 // batch * batch


class KeyQueue(nn.Module):
    """The last ``size`` keys; it starts with random ones.

    Args:
        dim: D.
        size: keys that it holds.

    Attributes:
        keys: (size, D) float32, rows of unit length.
        position: () int64, where the next key goes.

    Raises:
        InputError: ``size`` is less than 1.
    """

    keys: Tensor
    position: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"a queue holds at least 1 key, not {size}")
        self.register_buffer("keys", F.normalize(nn.init.normal_(torch.empty(size, dim)), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by ``keys`` (B, D), wrapping around the end; of more than ``size`` the last stay."""
        size = self.keys.shape[0]
        place = (self.position + torch.arange(len(keys), device=keys.device)) % size
        self.keys[place[-size:]] = keys[-size:].to(self.keys.dtype)
        self.position.add_(len(keys)).remainder_(size)
