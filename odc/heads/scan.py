"""SCAN: an image and its nearest neighbours in pre-trained features share a cluster, and all clusters are used.

Van Gansbeke, Vandenhende, Georgoulis, Proesmans, Van Gool. *SCAN: Learning to Classify Images without Labels.* ECCV
2020 (arXiv:2005.12320). A pre-trained network's features find k nearest neighbours of every image, once, before the
training. Each of H linear classifiers on its own, with p = softmax of its scores, x an image of the batch and x' one of
its neighbours, drawn anew each epoch (equation 2):

    loss = - mean log ⟨p(x), p(x')⟩  +  λ Σ_c p̄_c log p̄_c,   p̄ = mean of p(x) over the batch of all ranks

The first part wants neighbours in one cluster, and surely; the second wants the clusters equally large. With a frozen
network the classifiers train alone; else the whole network does, on strongly augmented images.

After every epoch the same loss of all images, each with all its neighbours, without augmentation, chooses the
classifier that is the answer. Ground truth and test images take no part in that: the public code chooses by the test
images, with λ = 1. Instead the answer may be the consensus of all H classifiers (:func:`odc.clustering.consensus`):
they differ in which clusters they join and split. A classifier's cluster then votes for consensus clusters in
proportion to the images that they share.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from odc.clustering.consensus import consensus
from odc.clustering.preprocess import unit_in_spaces
from odc.errors import InputError
from odc.heads.base import ClusterHead, checked_spaces, draw_pairs, find_neighbours
from odc.memory import SampleBuffer
from odc.registry import HEADS
from odc.structures import Batch, Comm, FeatureTable, Labels, Losses, Plan, PseudoLabels, Refresh, Stream

_CHUNK = 2**22  # numbers at a time, where all pairs are looked at
_NOT_LEARNING = 0.75  # of the loss of a guess, log K
_ROWS_A_CLUSTER = 5  # of a batch at least, or its mean p̄ is too poor an estimate


def pair_losses(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return -log Σ_c p_c q_c (...) from log-probabilities (..., K) of both; in logarithms nothing underflows."""
    return -(log_p + log_q).logsumexp(-1)


def negative_entropy(mean: Tensor) -> Tensor:
    """Return Σ_c p̄_c log p̄_c (...) of the mean probabilities p̄ (..., K); at least -log K, at most 0."""
    entropy: Tensor = torch.special.entr(mean).sum(-1)
    return -entropy


class NeighbourClassifiers(nn.Module):
    """H linear classifiers and the k neighbours of every image that they are judged by.

    It is all the state of SCAN's head and of self-labelling's, so that a checkpoint of the one starts the other.

    Args:
        in_channels: D.
        num_clusters: K.
        num_heads: H.
        neighbours: k.
        entropy_weight: λ.
        normalize: ``"none"``, or ``"unit"``: see :class:`SCANHead`.
        spaces: widths of the feature spaces that z is made of, D in all.

    Raises:
        InputError: for an option out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        num_heads: int,
        neighbours: int,
        entropy_weight: float,
        normalize: str,
        spaces: Sequence[int],
    ) -> None:
        super().__init__()
        if num_heads < 1 or num_clusters < 2 or neighbours < 1 or entropy_weight < 0:
            raise InputError(
                "SCAN needs 1 head, 2 clusters, 1 neighbour or more, and an entropy_weight of 0 or more, not "
                f"{num_heads}, {num_clusters}, {neighbours} and {entropy_weight}"
            )
        if normalize not in ("none", "unit"):
            raise InputError(f"SCAN's normalize must be 'none' or 'unit', not '{normalize}'")
        self.num_clusters = num_clusters
        self.num_heads = num_heads
        self.k = neighbours
        self.entropy_weight = entropy_weight
        self.normalize = normalize
        self.spaces = checked_spaces("SCAN", spaces, in_channels)
        self.linear = nn.Linear(in_channels, num_heads * num_clusters)
        self.mean: Tensor = nn.Buffer(torch.zeros(in_channels))  # of all images' unit features, where these are used
        self.scale: Tensor = nn.Buffer(torch.ones(()))
        self.nearest = SampleBuffer(neighbours, dtype=torch.int32)  # (N, k) sample ids, nearest first
        self.losses: Tensor = nn.Buffer(torch.zeros(num_heads))  # on all pairs, when they were last judged
        self.best: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))  # the head whose loss was the lowest then
        # (H, K, K): the share of a head's cluster that is in each cluster of the consensus, where that is asked for.
        self.votes: Tensor = nn.Buffer(torch.eye(num_clusters).repeat(num_heads, 1, 1))
        self.seed: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))  # of the consensus of this epoch
        self.running: Tensor = nn.Buffer(torch.full((num_heads, num_clusters), 1.0 / num_clusters))  # p̄, where it runs
        # What self-labelling began with: the chosen head's loss, and the shares (K,) of its clusters.
        self.first_loss: Tensor = nn.Buffer(torch.zeros(()))
        self.first_sizes: Tensor = nn.Buffer(torch.full((num_clusters,), 1.0 / num_clusters))

    def forward(self, z: Tensor) -> Tensor:
        """Map features (..., D) to the logits of all heads (..., H, K)."""
        logits: Tensor = self.linear(self._input(z)).unflatten(-1, (self.num_heads, self.num_clusters))
        return logits

    def one(self, head: int | Tensor, z: Tensor) -> Tensor:
        """Map features (..., D) to the logits (..., K) of one head."""
        shape = (self.num_heads, self.num_clusters, -1)
        weight, bias = self.linear.weight.view(shape), self.linear.bias.view(shape[:2])
        if isinstance(head, Tensor):  # an index of one number would be read from a GPU
            weight, bias = (x.index_select(0, head.view(1)).squeeze(0) for x in (weight, bias))
        else:
            weight, bias = weight[head], bias[head]
        logits: Tensor = F.linear(self._input(z), weight, bias)
        return logits

    def _input(self, z: Tensor) -> Tensor:
        """Map features (..., D) to what the classifiers see of them."""
        if self.normalize == "none":
            return z
        return (unit_in_spaces(z.flatten(0, -2), self.spaces).view_as(z) - self.mean) * self.scale

    def look(self, table: FeatureTable, comm: Comm) -> Tensor:
        """Find the neighbours of all images, if that is still to be done; return all images' ids (N,) int64.

        Raises:
            InputError: no more than k images, or all features are equal.
        """
        index = comm.gather(table.index)
        if len(self.nearest.rows) == table.total:
            return index
        nearest, unit = find_neighbours(index, comm.gather(table.features), self.spaces, self.k, comm)
        self.nearest.sized(table.total).copy_(nearest)
        if self.normalize == "unit":
            (mean,) = comm.first(lambda: (unit.mean(0),))
            (scale,) = comm.first(lambda: ((unit - mean).square().mean().rsqrt(),))
            self.mean.copy_(mean)
            self.scale.copy_(scale)
        return index

    @torch.no_grad()
    def judge(self, table: FeatureTable, comm: Comm, choose: bool = True) -> Tensor:
        """Compute the loss of every head on all images with all their neighbours, and choose the one with the lowest.

        Returns the clusters (H, N) int64 of every head, in the order of the ranks. Each rank looks at the pairs of its
        own images.
        """
        N, clusters = table.total, []
        order = comm.gather(table.index)
        place = torch.empty_like(order)
        place[order] = torch.arange(N, device=order.device)
        nearest = place[self.nearest.rows[table.index].long()]  # (Nr, k) rows of `every`
        for h in range(self.num_heads):
            mine = self.one(h, table.features).log_softmax(1)
            every = comm.gather(mine)
            rows = max(1, _CHUNK // (self.k * self.num_clusters))
            parts = zip(mine.split(rows), nearest.split(rows), strict=True)
            pairs = [pair_losses(a[:, None], every[b]).sum() for a, b in parts]
            consistency = comm.sum(torch.stack(pairs).sum()) / (N * self.k)
            self.losses[h] = consistency + self.entropy_weight * negative_entropy(every.exp().mean(0))
            clusters.append(every.argmax(1))
        if choose:
            self.best.copy_(self.losses.argmin())
        return torch.stack(clusters)

    def sizes(self, clusters: Tensor) -> Tensor:
        """Return the sizes (K,) int64 of the chosen head's clusters, from those of all, (H, N) int64."""
        return torch.bincount(clusters[int(self.best)], minlength=self.num_clusters)

    def agree(self, clusters: Tensor, generator: torch.Generator) -> Tensor:
        """Return how the clusters (H, N) int64 of the heads vote for those of their consensus: (H, K, K) shares."""
        K = self.num_clusters
        in_use = sum(len(own.unique()) for own in clusters)  # fewer than K where the heads have collapsed
        found = consensus(clusters, min(K, in_use, clusters.shape[1]), generator)
        pairs = (
            torch.stack([torch.bincount(own * K + found, minlength=K * K) for own in clusters]).view(-1, K, K).float()
        )
        return pairs / pairs.sum(2, keepdim=True).clamp(min=1)


@HEADS.register_module()
class SCANHead(ClusterHead):
    """SCAN's classifiers on features of a pre-trained network, frozen or not.

    Features are extracted before and after every epoch, which costs nothing where backbone and neck are frozen.
    Memory: N·k·4 bytes for the neighbours.

    Args:
        in_channels: D.
        num_clusters: K.
        num_heads: H; 1 in the paper for CIFAR and STL-10, 10 for ImageNet.
        neighbours: k; 20 in the paper, 50 for ImageNet. Less than the smallest class that one wants to find has.
        batch_size: pairs a step, over all ranks.
        entropy_weight: λ.
        answer: ``"best"``, the classifier with the lowest loss, or ``"consensus"``, that of all of them: some two
            seconds an epoch for 60,000 images and ten classifiers.
        mean_momentum: share that a running p̄ keeps of itself in a step, for batches of too few rows a cluster; 0: p̄ of
            the batch. The running mean's value then counts, with the gradient of the batch's.
        view: of the images that the loss sees, both of a pair: ``"strong"`` where the network trains.
        normalize: what the classifiers see: ``"none"``, features as they are, or ``"unit"``, of length 1 in each space,
            less their mean over all images before the training, over the root of their mean square: for features that
            do not train, whose size is arbitrary.
        spaces: widths of the feature spaces that z is made of, D in all; filled in from the backbone.

    Raises:
        InputError: for an option out of its range; at the first refresh with no more than k images.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        num_heads: int = 1,
        neighbours: int = 20,
        batch_size: int = 128,
        entropy_weight: float = 5.0,
        answer: str = "best",
        mean_momentum: float = 0.0,
        view: str = "train",
        normalize: str = "none",
        spaces: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not 0.0 <= mean_momentum < 1.0:
            raise InputError(f"SCANHead's mean_momentum must be in [0, 1), not {mean_momentum}")
        if answer not in ("best", "consensus"):
            raise InputError(f"SCANHead's answer must be 'best' or 'consensus', not '{answer}'")
        self.batch_size = batch_size
        self.entropy_weight = entropy_weight
        self.answer = answer
        self.mean_momentum = mean_momentum
        self.view = view
        self.label_classes = (1,)
        self.equal_sizes = f"favours equal ones by entropy_weight={entropy_weight:g} (lower model.head.entropy_weight)"
        self.classifiers = NeighbourClassifiers(
            in_channels, num_clusters, num_heads, neighbours, entropy_weight, normalize, spaces
        )

    def plan(self, epoch: int) -> Plan:
        """One pass over all images, each with a neighbour that is drawn anew before every epoch; then choose."""
        return Plan((Stream("pairs", self.batch_size, views=(self.view,)),), refresh=Refresh(), select=True)

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        """Draw a neighbour for every image; before the first epoch, find them."""
        K, fresh = self.classifiers.num_clusters, len(self.classifiers.nearest.rows) != table.total
        index = self.classifiers.look(table, comm)
        if fresh and self.batch_size < _ROWS_A_CLUSTER * K and self.mean_momentum == 0.0:
            print_log(
                f"{self.batch_size} rows a step are few for {K} clusters: their mean says little of the cluster sizes; "
                f"set model.head.batch_size to {_ROWS_A_CLUSTER * K} or more, or model.head.mean_momentum to 0.9",
                "current",
                logging.WARNING,
            )
        self.classifiers.seed.copy_(torch.randint(2**31, (), generator=generator))
        return draw_pairs(index, self.classifiers.nearest.rows, generator)

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Equation 2, summed over the heads; logged besides, as means over the heads: its parts.

        ``sizes`` is the entropy of p̄ as a share of log K: 1 where all clusters are equally large.
        """
        log_p = self.classifiers(batches["pairs"].z[self.view]).log_softmax(-1)  # (B, 2, H, K)
        consistency = pair_losses(log_p[:, 0], log_p[:, 1]).mean(0)
        mean = comm.gather(log_p[:, 0].exp().mean(0)[None], gradient=True).mean(0)  # ranks have equally many rows
        if self.mean_momentum:
            mean = self._moved(mean.detach()) + mean - mean.detach()
        entropy = negative_entropy(mean)
        return Losses(
            {"loss": (consistency + self.entropy_weight * entropy).sum()},
            log={
                "consistency": consistency.detach().mean(),
                "sizes": -entropy.detach().mean() / math.log(mean.shape[1]),
            },
        )

    def _moved(self, mean: Tensor) -> Tensor:
        """Return the running p̄ (H, K) after a step whose batch has ``mean``."""
        return self.mean_momentum * self.classifiers.running + (1.0 - self.mean_momentum) * mean

    @torch.no_grad()
    def update(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> tuple[()]:
        """Move the running p̄, where there is one."""
        if self.mean_momentum:
            p = self.classifiers(batches["pairs"].z[self.view][:, 0]).softmax(-1).mean(0)
            self.classifiers.running.copy_(self._moved(comm.sum(p) / comm.world))
        return ()

    def select(self, table: FeatureTable, comm: Comm) -> None:
        """Choose the head with the lowest loss on all pairs, and find the consensus, where that is the answer."""
        before = int(self.classifiers.best)
        clusters = self.classifiers.judge(table, comm)
        sizes, best = self.classifiers.sizes(clusters), int(self.classifiers.best)
        if best != before:
            low, high = int(sizes.min()), int(sizes.max())
            lowest = float(self.classifiers.losses[best])
            print_log(f"head {best} has the lowest loss, {lowest:.4f}, and clusters of {low} to {high}", "current")
        if self.answer == "consensus":
            generator = torch.Generator().manual_seed(int(self.classifiers.seed))
            (votes,) = comm.first(lambda: (self.classifiers.agree(clusters, generator),))
            self.classifiers.votes.copy_(votes)

    def diagnosis(self, means: dict[str, float]) -> str | None:
        """Call it no learning where neighbours share a cluster little more often than by chance."""
        guess = math.log(self.classifiers.num_clusters)
        if means["consistency"] < _NOT_LEARNING * guess:
            return None
        return (
            f"the classifiers do not learn: neighbours share a cluster by a loss of {means['consistency']:.3f}, where "
            f"a guess among {self.classifiers.num_clusters} clusters has {guess:.3f}"
        )

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to the chosen head's logits (B, K), or to the logarithm of the mean vote of all heads."""
        if self.answer == "best":
            return self.classifiers.one(self.classifiers.best, z)
        p = self.classifiers(z).softmax(2).transpose(0, 1)  # (H, B, K)
        return torch.bmm(p, self.classifiers.votes).mean(0).clamp(min=torch.finfo().tiny).log()

    def logits(self, z: Tensor) -> Tensor:
        """Map features (B, D) to the logits of all heads (B, H, K)."""
        logits: Tensor = self.classifiers(z)
        return logits
