"""What a clustering method has to write: three methods, and up to four more."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from odc.clustering.kmeans import kmeans
from odc.clustering.preprocess import check_differ
from odc.structures import Batch, Comm, FeatureTable, LabelDelta, Labels, Plan, PseudoLabels


class ClusterHead(nn.Module, ABC):
    """Base of all clustering heads.

    A head writes :meth:`plan`, :meth:`loss` and :meth:`predict`, and overrides any of :meth:`logits`,
    :meth:`refresh`, :meth:`update` and :meth:`select`, whose defaults do nothing. It is built with ``in_channels``,
    the width D of the features it gets. All it must remember is in parameters and persistent buffers.

    Attributes:
        label_classes: numbers of classes (T of them) of the labels that :meth:`refresh` makes: a checkpoint with labels
            of others is damaged. ``None``: any.
    """

    label_classes: tuple[int, ...] | None = None

    @abstractmethod
    def plan(self, epoch: int) -> Plan:
        """Return what this epoch (from 0) does; a pure function of the epoch."""

    @abstractmethod
    def loss(self, batches: dict[str, Batch], labels: Labels, comm: Comm) -> dict[str, Tensor]:
        """Return named losses of this rank's rows; those whose name contains ``loss`` are summed and trained on.

        Gradients are averaged over ranks: a mean over this rank's rows is a mean over the whole batch. Anything
        else, a weighted mean say, needs ``comm``. Changes nothing.
        """

    @abstractmethod
    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to scores (B, K) of the clusters; the argmax is the cluster."""

    def logits(self, z: Tensor) -> Tensor:
        """Map features (B, D) to what ``FeatureTable.logits`` holds; by default :meth:`predict`."""
        return self.predict(z)

    def refresh(self, table: FeatureTable, rng: torch.Generator, comm: Comm) -> PseudoLabels | None:
        """Make new labels from the features of (a chunk of) the data set; ``None`` keeps the present ones."""
        return None

    def update(self, batches: dict[str, Batch], labels: Labels, rng: torch.Generator, comm: Comm) -> LabelDelta | None:
        """Learn from the batch at the end of a step; return the rows whose label changes.

        The optimiser has moved before, unless gradients are accumulated.
        """
        return None

    def select(self, table: FeatureTable, comm: Comm) -> None:
        """Choose among candidates at the end of an epoch; ``table`` has features, no logits; writes buffers only."""
        return

    def diagnosis(self, means: dict[str, float]) -> str | None:
        """Return one line if the last epoch's means of what :meth:`loss` names say that nothing is learnt."""
        return None


def linear_classifier(in_channels: int, num_clusters: int, std: float = 0.01) -> nn.Linear:
    """Return a linear layer with weights from N(0, std²) and bias 0, as DeepCluster and ODC start it."""
    layer = nn.Linear(in_channels, num_clusters)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


def reset_linear(layer: nn.Linear, rng: torch.Generator, std: float = 0.01) -> None:
    """Draw the weights anew from N(0, std²) and set the bias to 0, as DeepCluster does after every clustering."""
    layer.weight.data.copy_(torch.empty(layer.weight.shape).normal_(std=std, generator=rng))
    layer.bias.data.zero_()


def weighted_mean(losses: Tensor, weights: Tensor, comm: Comm) -> Tensor:
    """Return Σ w·l / Σ w over the whole batch, from this rank's losses (B,) and weights (B,).

    Gradients are averaged over ranks, so each rank gives ``world`` × its part of the numerator over the sum of all
    weights.
    """
    return comm.world * (weights * losses).sum() / comm.sum(weights.sum())


def kmeans_over_ranks(
    features: Tensor, n_clusters: int, *, n_iter: int, rng: torch.Generator, comm: Comm, n_redo: int = 1
) -> tuple[Tensor, Tensor]:
    """Cluster the features of all ranks: gathered, clustered by the first rank, and the result sent to the others.

    One rank decides because two that each ran k-means could differ in a bit and then disagree for ever.

    Args:
        features: (Nr, D) float32, this rank's shard.
        n_clusters: K.
        n_iter: k-means iterations.
        rng: the same state on every rank.
        comm: the other ranks.
        n_redo: runs from different starts (k-means++ where it is more than one), of which the best is kept.

    Returns:
        Labels (N,) int64 in the order of the gathered shards, and centroids (K, D) float32; on ``features``' device.

    Raises:
        InputError: when K > N, or all features are equal (with more than one cluster).
    """
    everything = comm.gather(features)
    if n_clusters > 1:
        check_differ(everything)
    if comm.rank == 0:
        result = kmeans(everything, n_clusters, n_iter=n_iter, n_redo=n_redo, plus_plus=n_redo > 1, generator=rng)
        labels, centroids = result.labels.to(features.device), result.centroids.to(features.device)
    else:
        labels = torch.empty(everything.shape[0], dtype=torch.int64, device=features.device)
        centroids = features.new_empty(n_clusters, features.shape[1])
    return comm.broadcast(labels), comm.broadcast(centroids)
