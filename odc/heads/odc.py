"""ODC: the labels move with every batch, from a memory of features and centroids, instead of once an epoch.

Zhan, Xie, Liu, Ong, Loy. *Online Deep Clustering for Unsupervised Representation Learning.* CVPR 2020
(arXiv:2006.10645). With f(x) the normalised feature of an image and w_c ∝ N_c^-½ (section 3.3), an iteration is

1. a step on the cross-entropy against the labels that the memory holds now, re-weighted by w (loss re-weighting);
2. F_m(x) ← m f(x) + (1 - m) F_m(x)  (samples memory);
3. y ← argmin_c ‖F_m(x) - C_c‖²;
4. every k-th iteration C_c ← mean of F_m over the cluster  (centroids memory);
5. with it, each cluster smaller than a threshold is dissolved into the normal ones, and the largest cluster is split
   in two to take its place ("Dealing with small clusters").

The memory starts from one k-means over the whole set: in the paper of f(x), whose neck is random then; where the
backbone is trained already, better of what that neck sees (``start="backbone"``). :class:`odc.memory.SampleMemory` does
steps 2 to 5. The cluster of an image is that of step 3 with f(x) in the place of F_m(x), x without augmentation: step 5
keeps the memory's clusters above the threshold, not those of this last assignment.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from odc.clustering.kmeans import kmeans_over_ranks
from odc.clustering.preprocess import check_differ, l2_normalize
from odc.errors import InputError
from odc.heads.base import ClusterHead, Counter, LinearClassifier, weighted_mean
from odc.memory.sample_memory import SampleMemory
from odc.registry import HEADS
from odc.structures import Batch, Comm, FeatureTable, LabelDelta, Labels, Losses, Plan, PseudoLabels, Refresh, Stream


@HEADS.register_module()
class ODCHead(ClusterHead):
    """ODC's head: a linear classifier of the labels in a sample memory.

    Args:
        in_channels: D, the width of the features.
        num_clusters: K; 10,000 in the paper for ImageNet.
        batch_size: rows a step, over all ranks.
        momentum: m of the sample memory.
        min_cluster: t, the size below which a cluster is dissolved; K·t must not exceed N. A float is a share of the
            mean size N/K: the paper's 20 on ImageNet is 0.16.
        centroid_interval: k, iterations between two updates of the centroids.
        kmeans_iter: iterations of the k-means that fills the memory.
        kmeans_redo: its starts, of which the best is kept. Labels later move by small steps, so with few clusters a bad
            start is never made good; the paper has one, of thousands of clusters.
        start: what is clustered to fill the memory, which holds the neck's features either way: these, ``"neck"``, as
            in the paper, or the ``"backbone"``'s, averaged over the image.
        replace: draw samples with replacement, as the paper's ImageNet setting does.
        assign: ``"l2"`` (the paper's rule) or ``"dot"`` (the public code's).
        renormalize: normalise F_m after the momentum step, as the public code does.

    Raises:
        InputError: for another ``assign`` or ``start``; at the first refresh when K·t > N.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        batch_size: int = 512,
        momentum: float = 0.5,
        min_cluster: int | float = 20,
        centroid_interval: int = 10,
        kmeans_iter: int = 20,
        kmeans_redo: int = 1,
        start: str = "neck",
        replace: bool = True,
        assign: str = "l2",
        renormalize: bool = False,
    ) -> None:
        super().__init__()
        if centroid_interval < 1:
            raise InputError(f"ODCHead's centroid_interval must be at least 1, not {centroid_interval}")
        if start not in ("neck", "backbone"):
            raise InputError(f"ODCHead's start must be 'neck' or 'backbone', not '{start}'")
        self.start = start
        self.batch_size = batch_size
        self.num_clusters = num_clusters
        self.label_classes = (num_clusters,)
        self.centroid_interval = centroid_interval
        self.kmeans_iter = kmeans_iter
        self.kmeans_redo = kmeans_redo
        self.replace = replace
        self.classifier = LinearClassifier(in_channels, num_clusters)
        self.memory = SampleMemory(
            in_channels,
            num_clusters,
            momentum=momentum,
            min_cluster=min_cluster,
            assign=assign,
            renormalize=renormalize,
        )
        self.iteration = Counter()

    def plan(self, epoch: int) -> Plan:
        """Fill the memory before the first epoch; after that the labels move with the batches."""
        stream = Stream("train", self.batch_size, replace=self.replace)
        refresh = Refresh(pooled=self.start == "backbone", reset=("classifier",))
        return Plan((stream,), refresh=refresh if epoch == 0 else None)

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        """Fill the memory with the normalised features, and labels from one k-means over these or the backbone's."""
        x, _ = l2_normalize(table.features)
        clustered = x if table.pooled is None else l2_normalize(table.pooled)[0]
        self.memory.check(table.total)
        labels, _ = kmeans_over_ranks(
            clustered,
            self.num_clusters,
            n_iter=self.kmeans_iter,
            n_redo=self.kmeans_redo,
            generator=generator,
            comm=comm,
        )
        # The memory's own may be equal though what was clustered is not; so are their extremes then.
        check_differ(comm.gather(torch.stack([x.amin(0), x.amax(0)])), table.total)
        self.memory.fill(x, labels, comm)
        self.iteration.set(0)
        return PseudoLabels(comm.gather(table.index)[:, None], labels[:, None], (self.num_clusters,))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Cross-entropy against the memory's labels, Σ w·l / Σ w with w = N_c^-½."""
        batch = batches["train"]
        target = batch.target[:, 0]
        losses = F.cross_entropy(self.classifier(batch.z["train"][:, 0]), target, reduction="none")
        # Every target has at least the row itself as a member: no empty cluster is ever weighted.
        return Losses({"loss": weighted_mean(losses, labels.counts[target].float().rsqrt(), comm)})

    def update(
        self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm
    ) -> Iterator[LabelDelta]:
        """Steps 2 to 5: move the memory, then the labels, the centroids and the small clusters.

        Features go to the ranks that hold their rows, which decide the labels of these, so every label is decided once.
        """
        batch = batches["train"]
        rows, stored = self.memory.momentum_step(batch.row, batch.z["train"][:, 0], comm)
        rows, new = self.memory.commit(rows, stored, self.memory.assign(stored), labels, comm)
        yield LabelDelta(rows, new[:, None])
        step = int(self.iteration) + 1
        self.iteration.set(step)
        if step % self.centroid_interval == 0:
            self.memory.update_centroids(labels.counts)
            rows, new = self.memory.plan_split(labels, generator, comm)
            if len(rows):
                self.memory.relabel(rows, new, labels, comm)
                yield LabelDelta(rows, new[:, None])
                self.memory.update_centroids(labels.counts)
        if step % max(1, labels.target.shape[0] // self.batch_size) == 0:
            # Once an epoch: the running sums are exact to 2e-7 after thousands of steps.
            self.memory.resync(labels.target[:, 0], comm)

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to what assignment compares, f·c - ‖c‖²/2 (B, K), f the normalised feature."""
        return torch.addmm(self.memory.bias, l2_normalize(z)[0], self.memory.centroids.T)
