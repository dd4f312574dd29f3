"""What ProPos and DCBoost share: BYOL's alignment of two views, and k-means of the target's projections.

Grill et al. *Bootstrap Your Own Latent.* NeurIPS 2020 (arXiv:2006.07733); as a part of clustering with the noise of
Huang, Chen, Zhang, Shan. *Learning Representation for Clustering via Prototype Scattering and Positive Sampling.* IEEE
TPAMI 2022 (arXiv:2111.11821). With z = the online projection of one view of an image, z' the target projection of the
other view, which has no gradient, and g the predictor,

1. the target follows the online network: θ' ← m θ' + (1 - m) θ, after every move of the optimiser;
2. alignment = -2 cos(g(z + σ ε), z'), ε ~ N(0, I): an image's views are neighbours, and the space around them is
   smooth; σ = 0 in the warm-up;
3. before an epoch, target projections of all images, of unit length and without augmentation → spherical k-means into K
   clusters, whose assignments are the labels. None in the warm-up;
4. a loss of the method on the projections and labels of the whole batch, over all ranks. Not in the warm-up.

All of it for both views in either part, and averaged. :class:`odc.models.BYOL` does step 1 and both networks.
The cluster of an image is its nearest centroid in the last clustering of step 3: these are an epoch old when the
training ends, and by then it hardly moves. Before the first clustering all images are in cluster 0.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odc.clustering.kmeans import kmeans_over_ranks
from odc.errors import InputError
from odc.heads.base import ClusterHead
from odc.structures import Batch, Comm, FeatureTable, Labels, Losses, Plan, PseudoLabels, Refresh, Stream


def mlp(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Sequential:
    """Return BYOL's projector or predictor: linear, batch norm, ReLU, linear."""
    return nn.Sequential(
        nn.Linear(in_channels, hidden_channels),
        nn.BatchNorm1d(hidden_channels),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_channels, out_channels),
    )


def members(label: Tensor, num_clusters: int) -> Tensor:
    """Return which rows are in which cluster, (K, B) bool, from labels (B,) int64; unlabelled ones (-1) are in none."""
    return label == torch.arange(num_clusters, device=label.device)[:, None]


def prototypes(x: Tensor, member: Tensor) -> Tensor:
    """Return the unit means (K, D) of the rows x (B, D) that are members (K, B) of each cluster; 0 for an empty one."""
    return F.normalize(member.to(x.dtype) @ x, dim=1)


class BYOLHead(ClusterHead):
    """Projector, predictor, alignment and labels; a method inherits and adds :meth:`cluster_losses`.

    The views ``"query"`` and ``"key"`` of the data are two of the same distribution.

    Args:
        in_channels: D of the backbone's pooled features.
        num_clusters: K.
        batch_size: images a step, over all ranks.
        hidden_channels: width of the hidden layers of projector and predictor.
        out_channels: width of the projections.
        noise: σ.
        warmup: epochs of alignment alone, without labels.
        refresh_interval: epochs from one clustering to the next.
        kmeans_iter: k-means iterations a clustering.
        kmeans_redo: starts of it, of which the best is kept.

    Raises:
        InputError: for numbers out of range.
    """

    needs_images = "it learns from two augmentations of each"

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        batch_size: int,
        hidden_channels: int,
        out_channels: int,
        noise: float,
        warmup: int,
        refresh_interval: int,
        kmeans_iter: int,
        kmeans_redo: int,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if num_clusters < 1:
            raise InputError(f"{name}'s num_clusters must be at least 1, not {num_clusters}")
        if noise < 0:
            raise InputError(f"{name}'s noise must be at least 0, not {noise}")
        if warmup < 0 or refresh_interval < 1:
            raise InputError(
                f"{name}'s warmup must be at least 0 epochs, not {warmup}, and its refresh_interval at least 1, not "
                f"{refresh_interval}"
            )
        self.num_clusters = num_clusters
        self.label_classes = (num_clusters,)
        self.batch_size = batch_size
        self.noise = noise
        self.warmup = warmup
        self.refresh_interval = refresh_interval
        self.kmeans_iter = kmeans_iter
        self.kmeans_redo = kmeans_redo
        self.projector: nn.Module = mlp(in_channels, hidden_channels, out_channels)
        self.predictor = mlp(out_channels, hidden_channels, out_channels)
        for layer in self.predictor:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        self.centroids = nn.Buffer(torch.zeros(num_clusters, out_channels))  # of the last clustering, of unit length

    def plan(self, epoch: int) -> Plan:
        """One pass over all images, each seen through two views; after the warm-up with labels, by another name."""
        trained = epoch - self.warmup
        stream = Stream("align" if trained < 0 else "train", self.batch_size, views=("query", "key"))
        refreshes = trained >= 0 and trained % self.refresh_interval == 0
        return Plan((stream,), refresh=Refresh(logits="extract") if refreshes else None)

    def logits(self, z: Tensor) -> Tensor:
        """Map features (B, D) to projections of unit length, (B, ``out_channels``)."""
        return F.normalize(self.projector(z).float(), dim=1)

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        """Cluster the target's projections of unit length, step 3."""
        assert table.logits is not None  # as planned
        labels, centroids = kmeans_over_ranks(
            table.logits,
            self.num_clusters,
            n_iter=self.kmeans_iter,
            n_redo=self.kmeans_redo,
            spherical=True,
            generator=generator,
            comm=comm,
        )
        self.centroids.copy_(centroids)
        return PseudoLabels(comm.gather(table.index)[:, None], labels[:, None], (self.num_clusters,))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Alignment, step 2, and the method's losses, step 4; ``z`` has projections, (B, 2, D), as BYOL gives them."""
        ((stream, batch),) = batches.items()
        online, target = batch.z["online"], batch.z["target"]
        if stream == "align":
            return Losses({"align_loss": self._alignment(online, target)})
        loss = self._alignment(online + self.noise * self._noise(online, generator, comm), target)
        x = comm.gather(F.normalize(online, dim=2), gradient=True)
        y = comm.gather(F.normalize(target, dim=2))
        label = comm.gather(batch.target[:, 0])
        found = [self.cluster_losses(*views, label) for views in zip(x.unbind(1), y.unbind(1), strict=True)]
        train, log = (
            {name: torch.stack([losses[name] for losses in of_views]).mean() for name in of_views[0]}
            for of_views in ([losses.train for losses in found], [losses.log for losses in found])
        )
        return Losses({"align_loss": loss, **train}, log)

    def _alignment(self, online: Tensor, target: Tensor) -> Tensor:
        views = zip(online.unbind(1), target.unbind(1), strict=True)
        return -2.0 * torch.stack([F.cosine_similarity(self.predictor(x), y, dim=1) for x, y in views]).mean()

    @staticmethod
    def _noise(x: Tensor, generator: torch.Generator, comm: Comm) -> Tensor:
        """Return ε for the rows x (B, ...) of this rank, drawn on their device: its part of what all ranks draw."""
        here = torch.Generator(x.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return torch.randn(comm.world, *x.shape, generator=here, dtype=x.dtype, device=x.device)[comm.rank]

    @abstractmethod
    def cluster_losses(self, online: Tensor, target: Tensor, label: Tensor) -> Losses:
        """Return the losses, () each, of one view of the whole batch: unit projections (B, D) and labels (B,)."""

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to cosines (B, K) between projections and the centroids of the last clustering."""
        return self.logits(z) @ self.centroids.T
