"""MoCo v2: pre-training by telling an image's other view from a queue of other images' keys.

He, Fan, Wu, Xie, Girshick. *Momentum Contrast for Unsupervised Visual Representation Learning.* CVPR 2020
(arXiv:1911.05722); v2 with an MLP projector and stronger augmentation: Chen, Fan, Girshick, He, arXiv:2003.04297.
With q the projected query, k₊ its key and k₁ … k_Q the queue, all of unit length,

1. the key encoder follows the query encoder: θ_k ← m θ_k + (1 - m) θ_q (v1, equation 2), before the keys are made;
2. loss = -log exp(q·k₊/τ) / (exp(q·k₊/τ) + Σᵢ exp(q·kᵢ/τ)) (v1, equation 1, InfoNCE);
3. the keys are enqueued, and the oldest leave.

:class:`odc.models.MoCo` does step 1 and both encoders, this head the rest. There the loss can be made symmetric, as in
v3 (Chen, Xie, He, arXiv:2104.02057). MoCo has no clusters: clustering starts from its backbone.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from odc.errors import InputError
from odc.heads.base import ClusterHead
from odc.registry import HEADS
from odc.structures import Batch, Comm, Labels, Losses, Plan, Stream


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE (equation 1), (B,), of each query (B, D).

    Its positive is in ``key`` (B, D), the negatives are ``queue`` (Q, D), both without gradient; all of unit length.
    """
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction="none")


def fitting_queue(num_images: int, batch_size: int) -> tuple[int, int] | None:
    """Return batch and queue for few images: half of them in whole batches, two of which fit; ``None`` for under 4.

    The batch stays if it fits, else it is the largest power of two that does.
    """
    if num_images < 4:
        return None
    batch = min(batch_size, 2 ** ((num_images // 2).bit_length() - 1))
    return batch, num_images // 2 // batch * batch


class KeyQueue(nn.Module):
    """The last ``size`` keys of D = ``dim`` numbers, of unit length; it starts with random ones.

    Raises:
        InputError: ``size`` is less than 1.
    """

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"a queue holds at least 1 key, not {size}")
        self.keys = nn.Buffer(F.normalize(nn.init.normal_(torch.empty(size, dim)), dim=1))
        self.position = nn.Buffer(torch.zeros((), dtype=torch.int64))  # where the next key goes

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by ``keys`` (B, D), wrapping around the end; of more than ``size`` the last stay."""
        size = self.keys.shape[0]
        place = (self.position + torch.arange(len(keys), device=keys.device)) % size
        self.keys[place[-size:]] = keys[-size:].to(self.keys.dtype)
        self.position.add_(len(keys)).remainder_(size)


@HEADS.register_module()
class MoCoHead(ClusterHead):
    """MoCo v2's projector, queue and loss.

    The views ``"query"`` and ``"key"`` of the data are two of the same distribution.

    Args:
        in_channels: D of the backbone's pooled features.
        batch_size: images a step, over all ranks.
        queue_size: negatives; less than the keys of an epoch, or an image would meet its own old key, and best a
            multiple of ``batch_size``, so that all keys of a step leave together.
        temperature: τ.
        hidden_channels: width of the projector's hidden layer; by default ``in_channels``.
        out_channels: width of queries and keys.

    Raises:
        InputError: at the first step, when the queue is not smaller than the data set.
    """

    needs_images = "it learns from two augmentations of each"

    def __init__(
        self,
        in_channels: int,
        batch_size: int = 256,
        queue_size: int = 65536,
        temperature: float = 0.2,
        hidden_channels: int | None = None,
        out_channels: int = 128,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise InputError(f"MoCoHead's temperature must be positive, not {temperature}")
        self.batch_size = batch_size
        self.temperature = temperature
        hidden = in_channels if hidden_channels is None else hidden_channels
        self.projector = nn.Sequential(
            nn.Linear(in_channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_channels)
        )
        self.queue = KeyQueue(out_channels, queue_size)
        if queue_size % batch_size:
            print_log(
                f"the queue of {queue_size} keys is not a multiple of the batch of {batch_size}: it wraps within a "
                "batch",
                "current",
                logging.WARNING,
            )

    def plan(self, epoch: int) -> Plan:
        """One pass over all images, each seen through two views."""
        return Plan((Stream("train", self.batch_size, views=("query", "key")),))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """InfoNCE; ``z`` holds the projected queries and keys, (B, V, D) with V keys an image."""
        z = batches["train"].z
        V, size = z["key"].shape[1], self.queue.keys.shape[0]
        N = labels.index.shape[0]
        if size >= N * V:
            fitting = fitting_queue(N, self.batch_size)
            if fitting is None:
                raise InputError(f"MoCo tells an image from others in a queue: it needs at least 4 images, not {N}")
            batch, keys = fitting
            smaller = f" and batch_size={batch}, and model.split_bn to at most {batch // 2}"
            raise InputError(
                f"the queue holds {size} keys, but {N} images make {N * V} an epoch: an image would meet its own old "
                f"key as a negative; set model.head.queue_size={keys}{smaller if batch < self.batch_size else ''}"
            )
        # A copy, since enqueueing writes into what the backward pass needs.
        queue = self.queue.keys.clone()
        losses = info_nce(z["query"].flatten(0, 1), z["key"].flatten(0, 1), queue, self.temperature)
        return Losses({"loss": losses.mean()})

    def update(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> tuple[()]:
        """Enqueue the keys of all ranks."""
        self.queue.enqueue(comm.gather(batches["train"].z["key"].flatten(0, 1)))
        return ()

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to scores of no clusters, (B, 0)."""
        return z.new_empty(len(z), 0)
