"""DC: alternate k-means on the features of the whole set with training on its assignments.

Caron, Bojanowski, Joulin, Douze. *Deep Clustering for Unsupervised Learning of Visual Features.* ECCV 2018
(arXiv:1807.05520). Before each epoch, with f the network and V its last layer:

1. features f(x) of every image → PCA to 256 with whitening → L2 → k-means into K clusters, whose assignments are the
   labels y (section 3.2 and "Implementation details");
2. V is drawn anew, since the names of clusters mean nothing from one clustering to the next;
3. one epoch of min Σ ℓ(V f(x), y) (equation 1) over images drawn uniformly over the clusters, so that a few large
   clusters do not make the labels trivial (section 3.3).

Step 3 may weight the loss by N_c^-½ instead of sampling, as the ODC paper does when it compares (arXiv:2006.10645).
The cluster of an image is that of step 1, from the last clustering: V is always young, and on a small data set has
hardly begun to learn when it is thrown away.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odc.clustering.kmeans import kmeans_over_ranks
from odc.clustering.preprocess import distances_to, fit_whitening, l2_normalize
from odc.errors import InputError
from odc.heads.base import ClusterHead, LinearClassifier, weighted_mean
from odc.registry import HEADS
from odc.structures import Batch, Comm, FeatureTable, Labels, Losses, Plan, PseudoLabels, Refresh, Stream


@HEADS.register_module()
class DeepClusterHead(ClusterHead):
    """DeepCluster's head: a linear classifier of the k-means assignments.

    Args:
        in_channels: D, the width of the features.
        num_clusters: K; 10,000 in the paper for ImageNet.
        batch_size: rows a step, over all ranks.
        pca_dim: width after PCA-whitening; reduced to what N and D allow.
        kmeans_iter: k-means iterations a clustering.
        kmeans_redo: starts of it, of which the best is kept: with few clusters one start often is a bad one.
        balance: ``"sampling"``: rows uniform over clusters; ``"weights"``: rows uniform, losses weighted by N_c^-½.

    Raises:
        InputError: for another ``balance``, or no cluster.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        batch_size: int = 256,
        pca_dim: int = 256,
        kmeans_iter: int = 20,
        kmeans_redo: int = 1,
        balance: str = "sampling",
    ) -> None:
        super().__init__()
        if balance not in ("sampling", "weights"):
            raise InputError(f"DeepClusterHead balances by 'sampling' or 'weights', not by '{balance}'")
        if num_clusters < 1:
            raise InputError(f"DeepClusterHead's num_clusters must be at least 1, not {num_clusters}")
        self.num_clusters = num_clusters
        self.label_classes = (num_clusters,)
        self.batch_size = batch_size
        self.pca_dim = pca_dim
        self.kmeans_iter = kmeans_iter
        self.kmeans_redo = kmeans_redo
        self.balance = balance
        self.classifier = LinearClassifier(in_channels, num_clusters)
        # The last clustering. With fewer samples than dimensions the last columns stay zero.
        width = min(pca_dim, in_channels)
        self.mean = nn.Buffer(torch.zeros(in_channels))
        self.projection = nn.Buffer(torch.zeros(in_channels, width))
        self.centroids = nn.Buffer(torch.zeros(num_clusters, width))

    def plan(self, epoch: int) -> Plan:
        """Cluster before every epoch; the classifier starts anew."""
        balance = (0,) if self.balance == "sampling" else ()
        stream = Stream("train", self.batch_size, balance=balance)
        return Plan((stream,), refresh=Refresh(reset=("classifier",)))

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        """PCA-whiten, L2-normalise and cluster the features."""
        whitening = fit_whitening(table.features, self.pca_dim, comm)
        x, _ = l2_normalize(whitening.apply(table.features))
        labels, centroids = kmeans_over_ranks(
            x, self.num_clusters, n_iter=self.kmeans_iter, n_redo=self.kmeans_redo, generator=generator, comm=comm
        )
        d = whitening.projection.shape[1]
        self.mean.copy_(whitening.mean)
        self.projection.zero_()[:, :d] = whitening.projection
        self.centroids.zero_()[:, :d] = centroids
        return PseudoLabels(comm.gather(table.index)[:, None], labels[:, None], (self.num_clusters,))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Cross-entropy against the assignments."""
        batch = batches["train"]
        target = batch.target[:, 0]
        losses = F.cross_entropy(self.classifier(batch.z["train"][:, 0]), target, reduction="none")
        if self.balance == "weights":
            return Losses({"loss": weighted_mean(losses, labels.counts[target].float().rsqrt(), comm)})
        return Losses({"loss": losses.mean()})

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to minus half the squared distances (B, K) to the centroids of the last clustering."""
        x, _ = l2_normalize((z - self.mean) @ self.projection)
        return distances_to(x, self.centroids).square() / -2
