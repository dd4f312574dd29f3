"""DeeperCluster: two-level clustering and rotation predicted together, for many clusters and many images.

Caron, Bojanowski, Mairal, Joulin. *Unsupervised Pre-Training of Image Features on Non-Curated Data.* ICCV 2019
(arXiv:1905.01278). Every few epochs, with f the features before their last ReLU:

1. f(x) of every image, not rotated → PCA with whitening → L2 → k-means into m super-clusters, and inside each of them
   into its share of k sub-clusters.
2. An image is four rows of labels, one for each rotation by r · 90°. Its super-class is s = 4 · super-cluster + r, one
   of S = 4m, and its sub-label is its sub-cluster z, which its four rotations share.
3. The loss is CE(V relu f, s) + CE(W_s relu f, z), each a mean over the batch: one linear
   classifier V of the super-classes, and one W_s for each of them, over k/m sub-clusters instead of k. Rows are drawn
   uniformly over the super-classes, then uniformly over their sub-labels.

The cluster of an image is that of step 1, by the centroids of the last clustering: one of the k sub-clusters.

A new clustering brings new W_s; V is new too where m > 1, since the names of super-clusters change. With m = 1 it only
tells rotations apart, which stay what they are. What the paper compares with are options here: rotation alone (RotNet,
Gidaris et al., arXiv:1803.07728: m = k = 1), clustering alone, the sum of the two losses, and the flat product of the
classes.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from odc.clustering import TwoLevelResult, fit_whitening, l2_normalize, l2_normalize_, share_clusters, two_level_kmeans
from odc.errors import InputError
from odc.heads.base import ClusterHead, LinearClassifier
from odc.memory.shards import Shard, Sharded
from odc.reading import memory
from odc.registry import HEADS
from odc.structures import (
    Batch,
    Comm,
    FeatureTable,
    Labels,
    Losses,
    Plan,
    PseudoLabels,
    Refresh,
    Stream,
    make_generator,
    on_gpu,
    sort_into_groups,
)

_ROTATIONS = 4
_GIB = 2**30
_PADDED = 2**25  # numbers, 128 MiB
_NEVER = -1e30  # the score of a class that is missing; finite, since a block may have none


class SubClassifiers(Sharded):
    """G linear classifiers of C classes each, W_s (C, D) and a bias for s in 0..G - 1, from N(0, 0.01²) and 0.

    Classes may be missing from a classifier, where ``exists`` (G, C) bool says so: they are no part of its softmax.
    Gradients of weights and biases, not of the features, are multiplied by ``gradient_scale``.

    The classifiers are spread over the ranks, and where these are more, the classes of each are, too: a rank holds some
    blocks of neighbouring classes. Rows go to the blocks of their classifier, and come back as two numbers from each.

    Raises:
        InputError: weights, gradients and momentum do not fit into the memory that is free.
    """

    def __init__(self, groups: int, classes: int, in_channels: int, gradient_scale: float = 1.0) -> None:
        super().__init__()
        self.shard = shard = Shard.of_rows(groups, classes)
        _check_memory(shard.size, shard.width, in_channels)
        self.gradient_scale = gradient_scale
        # Zeros until a refresh draws them: what the global generator gives must not depend on the number of ranks.
        self.weight = nn.Parameter(torch.zeros(shard.size, shard.width, in_channels))
        self.bias = nn.Parameter(torch.zeros(shard.size, shard.width))
        self.exists = nn.Buffer(torch.ones(groups, classes, dtype=torch.bool))

    @property
    def shards(self) -> dict[str, Shard]:
        """Weights and biases."""
        return {"weight": self.shard, "bias": self.shard}

    def reset(self, generator: torch.Generator) -> None:
        """Draw all weights anew: each classifier's from a seed of its own, so that a rank draws none of the others'."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        G, C = self.exists.shape
        for group in range(G):  # one at a time: at scale they are most of what is in memory
            mine = self.shard.of_row(group)
            if mine:
                drawn = torch.empty(C, self.weight.shape[2]).normal_(std=0.01, generator=make_generator(seed, group))
                for block, part in mine:
                    self.weight.data[block].zero_()[: len(drawn[part])] = drawn[part]
        self.bias.data.zero_()

    def forward(self, x: Tensor, group: Tensor, target: Tensor, comm: Comm) -> Tensor:
        """Return the mean over this rank's rows ``x`` (B, D) of CE(W_group x, target).

        ``group`` (B,) int64 are their classifiers, ``target`` (B,) int64 classes of these. The gradient of the weights
        is, as that of all others, what the loop's average over the ranks would be.
        """
        P, width = self.shard.parts, self.shard.width
        if self.shard.world == 1:
            logsum, score = self._of_blocks(x, group, target, comm).unbind(1)
            return (logsum - score).mean()
        parts = torch.arange(P, device=x.device)
        block = (P * group[:, None] + parts).flatten()
        place = (target[:, None] - width * parts).flatten()  # in the block; outside of it for a class of another one
        order, send, receive = self.shard.route(block, comm)
        block, place = comm.all_to_all(torch.stack((block, place), 1)[order], send, receive).unbind(1)
        rows = comm.all_to_all(x[order // P], send, receive, gradient=True)
        found = self._of_blocks(rows, block - self.shard.start, place, comm)
        back = comm.all_to_all(found, receive, send, gradient=True)
        logsum, score = torch.zeros_like(back).index_copy(0, order, back).unflatten(0, (-1, P)).unbind(2)
        mean: Tensor = (logsum.logsumexp(1) - score.sum(1)).mean()
        return mean

    def _of_blocks(self, x: Tensor, block: Tensor, place: Tensor, comm: Comm) -> Tensor:
        """Return what a block tells of each row (n, D): ln Σ exp of its scores, and that of class ``place``; (n, 2).

        The second is 0 where ``place`` is outside of the block. Rows are sorted by their blocks (n,), and every block
        is filled up to the fullest, so that all the products are one batched product: with balanced sampling they are
        nearly even.
        """
        weight, bias = self.weight.view_as(self.weight), self.bias.view_as(self.bias)
        scale = self.gradient_scale / comm.world  # every rank's rows add to the gradient here
        if scale != 1.0 and weight.requires_grad:
            weight.register_hook(lambda gradient: gradient * scale)
            bias.register_hook(lambda gradient: gradient * scale)
        order, block, at, sizes = sort_into_groups(block, len(weight))
        most = _places(sizes, len(x), self.shard.width)
        rows = x.new_zeros(len(weight), most, x.shape[1]).index_put((block, at), x[order])
        bias = bias.masked_fill(~self.shard.part(self.exists), _NEVER)
        scores = torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))
        place = place[order]
        inside = (place >= 0) & (place < self.shard.width)
        score = scores[block, at, place * inside] * inside
        found = torch.stack((scores.logsumexp(2)[block, at], score), 1)
        return torch.zeros_like(found).index_copy(0, order, found)


def _places(sizes: Tensor, rows: int, width: int) -> int:
    """Return how many rows every group gets a place for: as many as the largest one of ``sizes`` (G,) has.

    On a GPU, whose answer would have to be waited for, that is all ``rows``, while their results of ``width`` numbers
    each are not too many.
    """
    return rows if on_gpu(sizes) and len(sizes) * rows * width <= _PADDED else int(sizes.max())


def _check_memory(blocks: int, classes: int, in_channels: int) -> None:
    """Compare with what is free where the model will be."""
    needed = 3 * 4 * blocks * classes * (in_channels + 1)
    place, meminfo = "this computer", Path("/proc/meminfo")
    if torch.cuda.is_available():
        free, place = torch.cuda.mem_get_info()[0], "the GPU"
    elif meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        free = memory()
    if needed > free:
        raise InputError(
            f"{blocks} sub-classifiers of {classes:,} sub-clusters x {in_channels:,} features need "
            f"{needed / _GIB:.1f} GiB (float32 weights, gradients and momentum), but {place} has {free / _GIB:.1f} GiB "
            "free: lower model.head.num_clusters, or the width of the features by a neck"
        )


@HEADS.register_module()
class DeeperClusterHead(ClusterHead):
    """DeeperCluster's head: a classifier of super-classes and, for each of these, one of its sub-clusters.

    Its streams want the view ``"rotated"``, in which ``Rotate90`` stands after crop and flip; without rotation the view
    ``"train"``. An epoch sees every image in each of its rotations. :meth:`refresh` overwrites ``table.features``, so
    that they are never in memory twice.

    Args:
        in_channels: D, the width of the features.
        num_clusters: k, the sub-clusters in all; 320,000 in the paper for 96 M images. 1: no clustering.
        num_super: m; 4 in the paper. Each super-cluster has k/m sub-clusters, the first ones one more where m does not
            divide k, and fewer where it has too few images.
        batch_size: rows a step, over all ranks; 3,072 in the paper.
        refresh_interval: epochs from one clustering to the next.
        pca_dim: width after PCA-whitening; ``None``: all D, as in the paper. Reduced to what N and D allow.
        kmeans_iter: k-means iterations on each level.
        rotation: tell rotations apart, too.
        classes: how rotation and clusters are combined: ``"hierarchy"``: the paper's; ``"sum"``: CE of the rotation +
            CE of the k clusters; ``"product"``: one CE of all 4k pairs of them.
        scale_sub_gradient: multiply the gradient of every W_s by S, the number of super-classes, as the public code
            does by averaging over the rows of s alone.

    Raises:
        InputError: for another ``classes``, numbers out of range, nothing to learn (one cluster and no rotation), or
            sub-classifiers that do not fit into memory.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        num_super: int = 4,
        batch_size: int = 256,
        refresh_interval: int = 3,
        pca_dim: int | None = None,
        kmeans_iter: int = 10,
        rotation: bool = True,
        classes: str = "hierarchy",
        scale_sub_gradient: bool = False,
    ) -> None:
        super().__init__()
        if classes not in ("hierarchy", "sum", "product"):
            raise InputError(f"DeeperClusterHead combines classes by 'hierarchy', 'sum' or 'product', not '{classes}'")
        if not 1 <= num_super <= num_clusters:
            raise InputError(
                f"DeeperClusterHead has {num_super} super-clusters of {num_clusters} clusters: num_super must be "
                "between 1 and num_clusters"
            )
        if refresh_interval < 1:
            raise InputError(f"DeeperClusterHead's refresh_interval must be at least 1, not {refresh_interval}")
        if num_clusters == 1 and not rotation:
            raise InputError("DeeperClusterHead has nothing to learn from 1 cluster without rotation")
        self.num_clusters = num_clusters
        self.num_super = num_super
        self.batch_size = batch_size
        self.refresh_interval = refresh_interval
        self.pca_dim = pca_dim
        self.kmeans_iter = kmeans_iter
        self.rotations = _ROTATIONS if rotation else 1
        self.classes = classes
        R, C = self.rotations, -(-num_clusters // num_super)
        # Super-classes, and classes below each of them: with "sum" and "product" there are no super-clusters.
        shapes = {"hierarchy": (R * num_super, C), "sum": (R, num_clusters), "product": (1, R * num_clusters)}
        self.label_classes = self.num_classes = shapes[classes]
        S, Z = self.num_classes
        # A classifier of one class has nothing to learn, and no gradient.
        self.classifier = LinearClassifier(in_channels, S) if S > 1 else None
        groups = S if classes == "hierarchy" else 1
        scale = float(S) if scale_sub_gradient else 1.0
        self.sub_classifiers = SubClassifiers(groups, Z, in_channels, scale) if Z > 1 else None
        # The last clustering. With fewer samples than dimensions the last columns stay zero.
        width = min(pca_dim or in_channels, in_channels)
        self.mean = nn.Buffer(torch.zeros(in_channels))
        self.projection = nn.Buffer(torch.zeros(in_channels, width))
        self.super_centroids = nn.Buffer(torch.zeros(num_super, width))
        self.centroids = nn.Buffer(torch.zeros(num_super, C, width))
        self.num_sub = nn.Buffer(torch.tensor(share_clusters(num_clusters, num_super)))
        self.num_asked = nn.Buffer(self.num_sub.clone(), persistent=False)  # sub-clusters asked for, of each

    def plan(self, epoch: int) -> Plan:
        """Cluster every ``refresh_interval`` epochs; the classifiers whose classes are new start anew."""
        view = "rotated" if self.rotations > 1 else "train"
        stream = Stream("train", self.batch_size, views=(view,), balance=(0, 1))
        if self.num_clusters == 1:
            return Plan((stream,), refresh=Refresh() if epoch == 0 else None)
        if epoch % self.refresh_interval:
            return Plan((stream,))
        renames = self.num_super > 1 and self.classes == "hierarchy"  # the super-classes
        reset: tuple[str, ...] = ("classifier",) if renames else ()
        if self.sub_classifiers is not None:
            reset += ("sub_classifiers",)
        return Plan((stream,), refresh=Refresh(reset=reset))

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        """PCA-whiten, L2-normalise and cluster the features on two levels."""
        index = comm.gather(table.index)
        if self.num_clusters == 1:
            nothing = torch.zeros_like(index)
            return self._rows(index, nothing, nothing)
        whitening = fit_whitening(table.features, self.pca_dim or table.features.shape[1], comm)
        x = whitening.apply(table.features, in_place=True)
        l2_normalize_(x)
        found = two_level_kmeans(
            x, self.num_clusters, self.num_super, n_iter=self.kmeans_iter, generator=generator, comm=comm
        )
        d = x.shape[1]
        self.mean.copy_(whitening.mean)
        self.projection.zero_()[:, :d] = whitening.projection
        self.super_centroids.zero_()[:, :d] = found.super_centroids
        self.centroids.zero_()[:, :, :d] = found.sub_centroids
        self.num_sub.copy_(found.num_sub)
        self._tell(found)
        if self.sub_classifiers is not None:
            self.sub_classifiers.exists.copy_(self._existing())
        return self._rows(index, comm.gather(found.super_labels), comm.gather(found.sub_labels))

    def _tell(self, found: TwoLevelResult) -> None:
        print_log(
            f"{self.num_super} super-clusters of {int(found.super_sizes.min()):,} to {int(found.super_sizes.max()):,} "
            f"images (imbalance {found.super_imbalance:.2f}), {int(found.num_sub.sum()):,} sub-clusters (imbalance "
            f"{found.sub_imbalance:.2f}); {found.refilled:,} refills of small clusters",
            "current",
        )
        if found.capped:
            print_log(
                f"{found.capped:,} of {self.num_clusters:,} sub-clusters are missing: a super-cluster has fewer images "
                f"than its {self.centroids.shape[1]:,} sub-clusters; lower model.head.num_clusters or num_super",
                "current",
                logging.WARNING,
            )

    def _existing(self) -> Tensor:
        """Return which classes (G, C) the sub-classifiers have."""
        C = self.centroids.shape[1]
        exists = torch.arange(C, device=self.num_sub.device) < self.num_sub[:, None]  # (m, C)
        if self.classes == "hierarchy":
            return exists.repeat_interleave(self.rotations, 0)
        flat = exists[self._asked()]
        return flat.repeat_interleave(self.rotations if self.classes == "product" else 1)[None]

    def _asked(self) -> Tensor:
        """Return (m, C) bool: the k sub-clusters that were asked for, of the places that there are."""
        return torch.arange(self.centroids.shape[1], device=self.num_asked.device) < self.num_asked[:, None]

    def _rows(self, index: Tensor, super_cluster: Tensor, sub_cluster: Tensor) -> PseudoLabels:
        """Return the rows: every image with each of its rotations."""
        R = self.rotations
        index, super_cluster, sub_cluster = (x.repeat_interleave(R) for x in (index, super_cluster, sub_cluster))
        rotation = torch.arange(R, device=index.device).repeat(len(index) // R)
        if self.classes == "hierarchy":
            columns = (R * super_cluster + rotation, sub_cluster)
        else:
            cluster = (self.num_asked.cumsum(0) - self.num_asked)[super_cluster] + sub_cluster  # among all k
            nothing = torch.zeros_like(rotation)
            columns = (rotation, cluster) if self.classes == "sum" else (nothing, R * cluster + rotation)
        return PseudoLabels(index[:, None], torch.stack(columns, 1), self.num_classes, rotation)

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Cross-entropy of the super-class, ``super_loss``, and below it, ``sub_loss``: means over the batch."""
        batch = batches["train"]
        (z,) = batch.z.values()
        x = F.relu(z[:, 0])
        s, sub = batch.target.unbind(1)
        losses = {}
        if self.classifier is not None:
            losses["super_loss"] = F.cross_entropy(self.classifier(x), s)
        if self.sub_classifiers is not None:
            group = s if self.classes == "hierarchy" else torch.zeros_like(s)
            losses["sub_loss"] = self.sub_classifiers(x, group, sub, comm)
        return Losses(losses)

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) of images that are not rotated to scores (B, k) of the last clustering's sub-clusters.

        The cluster of an image is found as its label was: the nearest super-centroid, then the nearest centroid in
        there. A score is x·c - ‖c‖²/2, x the whitened unit vector, less 4 outside the nearest super-cluster, which is
        more than these can differ; -inf where the clustering has fewer sub-clusters than asked for.
        """
        x, _ = l2_normalize((z - self.mean) @ self.projection)
        nearest = torch.addmm(self.super_centroids.square().sum(1) / -2, x, self.super_centroids.T).argmax(1)
        asked = self._asked()
        of, place = asked.nonzero().unbind(1)  # super-cluster of each of the k, and its place in there
        centroids = self.centroids[asked]
        scores = torch.addmm(centroids.square().sum(1) / -2, x, centroids.T)
        scores -= 4.0 * (of != nearest[:, None])
        return scores.masked_fill(place >= self.num_sub[of], -torch.inf)
