"""ProPos: clusters that are pushed apart as wholes, in features that align the views of each image.

Huang, Chen, Zhang, Shan. *Learning Representation for Clustering via Prototype Scattering and Positive Sampling.* IEEE
TPAMI 2022 (arXiv:2111.11821). Steps 1 to 3, two networks, alignment ("positive sampling") and labels, are those of
:mod:`odc.heads.byol`. With z and z' the online and the target projections of the images of a batch, over all ranks, and
c a cluster that some of them are in,

4. μ_c = unit mean of z/‖z‖ over the images of c, μ'_c the same of z'/‖z'‖, without gradient;
   scattering L_p = mean over c of -log exp(μ_c·μ'_c/τ) / (exp(μ_c·μ'_c/τ) + Σ_{j≠c} exp(μ_c·μ_j/τ));
5. loss = alignment + λ L_p.

So no two images are negatives of each other, which could be of one class. Clusters without an image in the batch are
neither in the sum nor in the mean. In the warm-up, the paper's first 50 epochs, σ = λ = 0, and no labels are made.

Where paper and public code differ: the code of some data sets joins both views in one forward, and moves the target
before it instead of after the optimiser; here, as in the paper, each view is a forward of its own, and the target moves
last. The code ends a run by its last labels; here every image, new ones too, gets its nearest centroid.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from odc.errors import InputError
from odc.heads.byol import BYOLHead, members, prototypes
from odc.registry import HEADS
from odc.structures import Losses, Plan


def scattering(online: Tensor, target: Tensor, present: Tensor, temperature: float) -> Tensor:
    """Return L_p (), step 4, of prototypes (K, D) of unit length, of which ``present`` (K,) bool count; 0 for none."""
    positive = (online * target).sum(1)
    negative = (online @ online.T).masked_fill(~present, -torch.inf)
    own = torch.eye(len(online), dtype=torch.bool, device=online.device)
    logits = torch.where(own, positive[:, None], negative) / temperature
    losses = logits.logsumexp(1) - positive / temperature
    return (losses * present).sum() / present.sum().clamp(min=1)


@HEADS.register_module()
class ProPosHead(BYOLHead):
    """ProPos' head: :class:`odc.heads.byol.BYOLHead` with the scattering of prototypes.

    The predictor learns ten times as fast in the paper: ``paramwise_cfg={'head.predictor': dict(lr=...)}``.

    Args:
        in_channels: D of the backbone's pooled features.
        num_clusters: K.
        batch_size: images a step, over all ranks; for few images a cluster prototypes are noise.
        hidden_channels: width of the hidden layers of projector and predictor.
        out_channels: width of the projections.
        noise: σ.
        weight: λ.
        temperature: τ.
        warmup: epochs of alignment alone, without labels.
        refresh_interval: epochs from one clustering to the next; 1 in the paper, 10 for ImageNet.
        kmeans_iter: k-means iterations a clustering.
        kmeans_redo: starts of it, of which the best is kept; 1 in the paper.
        balance: draw images uniformly over the clusters instead of over the images, as the paper does for data with
            many classes.

    Raises:
        InputError: for numbers out of range.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        batch_size: int = 512,
        hidden_channels: int = 4096,
        out_channels: int = 256,
        noise: float = 0.001,
        weight: float = 0.1,
        temperature: float = 0.5,
        warmup: int = 50,
        refresh_interval: int = 1,
        kmeans_iter: int = 100,
        kmeans_redo: int = 1,
        balance: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            num_clusters,
            batch_size,
            hidden_channels,
            out_channels,
            noise,
            warmup,
            refresh_interval,
            kmeans_iter,
            kmeans_redo,
        )
        if temperature <= 0 or weight < 0:
            raise InputError(
                f"ProPosHead's temperature must be positive, not {temperature}, and its weight at least 0, not {weight}"
            )
        self.weight = weight
        self.temperature = temperature
        self.balance = balance

    def plan(self, epoch: int) -> Plan:
        """One pass over all images, each seen through two views; after the warm-up with new labels."""
        plan = super().plan(epoch)
        balance = (0,) if self.balance and epoch >= self.warmup else ()
        return replace(plan, streams=tuple(replace(stream, balance=balance) for stream in plan.streams))

    def cluster_losses(self, online: Tensor, target: Tensor, label: Tensor) -> Losses:
        """λ L_p."""
        member = members(label, self.num_clusters)
        loss = scattering(prototypes(online, member), prototypes(target, member), member.any(1), self.temperature)
        return Losses({"prototype_loss": self.weight * loss})
