"""SPICE-Self: clustering heads on a frozen network, trained on the samples around the most confident ones.

Niu, Shan, Wang. *SPICE: Semantic Pseudo-Labeling for Image Clustering.* IEEE Transactions on Image Processing 2022
(arXiv:2103.09382), "prototype pseudo-labeling". The backbone is a pre-trained one (MoCo) and does not change. For every
M images, and for each of H heads on its own:

1. z of the images, L2-normalised, are their embeddings; their weakly augmented views give the probabilities of the K
   clusters. The most confident samples of a cluster, a part of its share M/K, are averaged to its prototype; the M/K
   samples nearest to that get its label. So the clusters are equally large, and a sample can get several labels or
   none. Option ``unequal`` lets the clusters differ in size.
2. The heads are trained on strongly augmented views of the labelled samples by the cross-entropy of softmax(p), where p
   already is a softmax. That is meant: no loss falls below ln(e + K - 1) - 1, so no sample is ever fitted with full
   confidence.

After every epoch the same labels are made of all images without augmentation; the head with the lowest loss on them is
kept, over heads and epochs. Ground truth takes no part in that.

The telemetry tells a collapse: a loss near ln K, far above its floor, while all clusters are populated.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from odc.clustering.consistency import log_odds
from odc.clustering.kmeans import size_entropy
from odc.clustering.preprocess import check_differ, l2_normalize
from odc.errors import InputError
from odc.heads.base import ClusterHead, weighted_mean
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
    sort_into_groups,
)

_NOT_LEARNING = 0.75  # of the way from the floor to ln K


def double_softmax_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of softmax(softmax(logits)): (B, K) and (B,) int64 to (B,); or (H, K, B) to (H, B)."""
    return F.cross_entropy(logits.softmax(1), target, reduction="none")


def double_softmax_floor(num_clusters: int) -> float:
    """Return the least that :func:`double_softmax_loss` can be, at p one-hot: ln(e + K - 1) - 1; 1.461 for K = 10."""
    return math.log(math.e + num_clusters - 1) - 1.0


def label_around_prototypes(
    embedding: Tensor, confidence: Tensor, center_ratio: float, unequal: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Choose the samples of every cluster: the nearest to the mean of its most confident ones.

    Args:
        embedding: (N, D) float32, rows of unit length.
        confidence: (N, K) floating, of the clusters: only its order matters.
        center_ratio: share of a cluster's n_c samples that its prototype is the mean of, at least one.
        unequal: α. A cluster's n_c is in proportion to m_c^α, m_c of the samples being most confident of it: ⌊N/K⌋ for
            0, and about m_c for 1; at least one.

    Returns:
        Positions (n, K) int64 in ``embedding``, n the largest n_c, nearest (by cosine) first; of equals the first come
        first. And (n, K) bool, which of them are among the n_c of their cluster.

    Raises:
        InputError: K > N.
    """
    N, K = confidence.shape
    if N < K:
        raise InputError(f"{K} clusters cannot share {N} samples: lower model.head.num_clusters to at most {N}")
    weights = torch.bincount(confidence.argmax(1), minlength=K).clamp(min=1).double() ** unequal
    sizes = (weights / weights.sum() * N * (1 + 1e-12)).long().clamp(min=1)  # (K,); no share is rounded below N/K
    place = torch.arange(int(sizes.max()), device=sizes.device)[:, None]
    sure = (center_ratio * sizes).long().clamp(min=1)
    most = place[: int(sure.max())]
    first = confidence.sort(dim=0, descending=True, stable=True).indices[: len(most)]  # (k, K)
    prototype, _ = l2_normalize((embedding[first] * (most < sure)[:, :, None]).sum(0))
    nearest = (embedding @ prototype.T).sort(dim=0, descending=True, stable=True).indices[: len(place)]
    return nearest, place < sizes


def mean_pairwise_nmi(labels: Tensor, num_clusters: int) -> float:
    """Return the mean NMI (arithmetic) over all pairs of the columns of ``labels`` (N, H) int64; 1 for one column."""
    pairs = []
    for a, b in itertools.combinations(labels.unbind(1), 2):
        entropies = size_entropy(torch.bincount(a)) + size_entropy(torch.bincount(b))
        joint = size_entropy(torch.bincount(a * num_clusters + b))
        # Two heads that each put everything into one cluster agree.
        pairs.append(2 * (entropies - joint) / entropies if entropies > 0 else 1.0)
    return sum(pairs) / len(pairs) if pairs else 1.0


class ParallelMLPs(nn.Module):
    """H perceptrons D-hidden-K with ReLU, computed together.

    Initialised like ``nn.Linear``, each on its own.
    """

    def __init__(self, num_heads: int, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(num_heads, hidden_channels, in_channels))
        self.bias1 = nn.Parameter(torch.empty(num_heads, 1, hidden_channels))
        self.weight2 = nn.Parameter(torch.empty(num_heads, out_channels, hidden_channels))
        self.bias2 = nn.Parameter(torch.empty(num_heads, 1, out_channels))
        for parameter, width in zip(self.parameters(), (in_channels,) * 2 + (hidden_channels,) * 2, strict=True):
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (H, B, D), or (1, B, D) that all heads share, to logits (H, B, K)."""
        return mlp(x, *self.parameters())


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Map (H or 1, B, D) to (H, B, K) by the weights of :class:`ParallelMLPs`."""
    # A column a row of x: so the gradients of the weights come out as the weights lie, and need no copy.
    hidden = torch.baddbmm(bias1.mT, weight1, x.mT.expand(len(weight1), -1, -1)).relu_()
    return torch.baddbmm(bias2.mT, weight2, hidden).mT


@HEADS.register_module()
class SpiceSelfHead(ClusterHead):
    """SPICE-Self's heads; views ``"weak"`` and ``"strong"``.

    Args:
        in_channels: D.
        num_clusters: K.
        num_heads: H.
        hidden_channels: width of each head's hidden layer.
        batch_size: rows of each head a step, over all ranks.
        chunk: M, images a refresh. ``None``: 500·K, at least 5,000, so that a prototype is the mean of 250 samples:
            the public code's 5,000 for CIFAR-10 and 10,000 for CIFAR-100-20. All images where there are fewer.
        repeats: passes over the rows of a refresh.
        center_ratio: share of a cluster's samples that make its prototype, in (0, 1].
        overlap: what becomes of a sample that several clusters of a head choose: ``"keep"`` all its labels, or the
            ``"first"``, of the cluster in whose order of nearness it comes first (clusters then differ in size).
        unequal: α, in [0, 1]: how much the labelled samples of a cluster follow its size as the head predicts it, where
            classes differ in size; 0: equal numbers, as in the paper.

    Raises:
        InputError: for an option out of its range; at a refresh of fewer than K images.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        num_heads: int = 10,
        hidden_channels: int = 512,
        batch_size: int = 128,
        chunk: int | None = None,
        repeats: int = 8,
        center_ratio: float = 0.5,
        overlap: str = "keep",
        unequal: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= unequal <= 1.0:
            raise InputError(f"SpiceSelfHead's unequal must be in [0, 1], not {unequal}")
        if overlap not in ("keep", "first"):
            raise InputError(f"SpiceSelfHead's overlap must be 'keep' or 'first', not '{overlap}'")
        if not 0.0 < center_ratio <= 1.0:
            raise InputError(f"SpiceSelfHead's center_ratio must be in (0, 1], not {center_ratio}")
        if num_heads < 1 or num_clusters < 2:
            raise InputError(f"SpiceSelfHead needs 1 head and 2 clusters or more, not {num_heads} and {num_clusters}")
        if repeats < 1 or (chunk is not None and chunk < num_clusters):
            raise InputError(
                f"SpiceSelfHead needs repeats >= 1 and chunk >= num_clusters, not repeats={repeats} and chunk={chunk} "
                f"for {num_clusters} clusters"
            )
        self.num_clusters = num_clusters
        self.num_heads = num_heads
        self.label_classes = (num_heads, num_clusters)
        self.batch_size = batch_size
        self.chunk = max(5000, 500 * num_clusters) if chunk is None else chunk
        self.repeats = repeats
        self.center_ratio = center_ratio
        self.overlap = overlap
        self.unequal = unequal
        if unequal < 1.0:
            self.equal_sizes = f"labels equally many in each by unequal={unequal:g} (raise model.head.unequal, up to 1)"
        self.mlps = ParallelMLPs(num_heads, in_channels, hidden_channels, num_clusters)
        self.best_loss = nn.Buffer(torch.tensor(torch.inf))
        for name, parameter in self.mlps.named_parameters():
            self.register_buffer(f"best_{name}", parameter.detach()[:1].clone())
        # Of the last refresh: unique samples among the rows, clusters that a head predicts, agreement of the heads.
        self.health = nn.Buffer(torch.zeros(3))

    def plan(self, epoch: int) -> Plan:
        """Label every chunk anew, train on it ``repeats`` times, and choose a head at the end."""
        stream = Stream("train", self.batch_size * self.num_heads, views=("strong",), balance=(0,), turns=True)
        refresh = Refresh(chunk=self.chunk, repeats=self.repeats, logits="weak")
        return Plan((stream,), refresh=refresh, select=True)

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        """Label the samples of each head; rows have two target columns, head and cluster."""
        assert table.logits is not None
        index, embedding = comm.gather(table.index), l2_normalize(comm.gather(table.features))[0]
        check_differ(embedding)
        logits = comm.gather(table.logits)

        def choose() -> tuple[Tensor, ...]:
            rows = [self._rows(embedding, logits[:, h]) for h in range(self.num_heads)]
            position, cluster = (torch.cat(parts) for parts in zip(*rows, strict=True))
            return position, torch.cat([torch.full_like(p, h) for h, (p, _) in enumerate(rows)]), cluster

        position, head, cluster = comm.first(choose)  # ranks that each sorted could break a tie differently
        unique = torch.unique(torch.stack([head, position]), dim=1).shape[1] / len(position)
        predicted = logits.argmax(2)
        clusters = sum(len(column.unique()) for column in predicted.unbind(1)) / self.num_heads
        self.health.copy_(torch.tensor([unique, clusters, mean_pairwise_nmi(predicted, self.num_clusters)]))
        targets = torch.stack([head, cluster], dim=1)
        return PseudoLabels(index[position][:, None], targets, (self.num_heads, self.num_clusters))

    def _rows(self, embedding: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions (M,) and clusters (M,) that one head gives, from its logits (N, K)."""
        # Not the probabilities: most of a trained head's are exactly 1, and the first samples would be the surest.
        chosen, among = label_around_prototypes(embedding, log_odds(logits), self.center_ratio, self.unequal)
        position = chosen[among]
        cluster = torch.arange(self.num_clusters, device=position.device).expand_as(chosen)[among]
        if self.overlap == "first":
            order = position.argsort(stable=True)
            again = position[order].diff(prepend=position.new_tensor([-1])) == 0
            first = order[~again].sort().values
            position, cluster = position[first], cluster[first]
        return position, cluster

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Mean over the heads of the mean of :func:`double_softmax_loss` over their rows.

        The heads take turns in the rows, as the stream of :meth:`plan` draws them: of B rows none has more than ⌈B/H⌉.

        Logged besides: ``above_floor``, the loss minus its least value, and of the last refresh ``unique``, the share
        of its rows that are different samples of a head, ``clusters``, how many the heads predict on average, and
        ``agreement``, the mean NMI between two heads.
        """
        batch = batches["train"]
        head, cluster = batch.target.unbind(1)
        order, head, place, counts = sort_into_groups(head, self.num_heads)
        # Heads take turns, so none has more rows than that; one that has fewer gets row 0, whose loss is not taken.
        slots = order.new_zeros(self.num_heads, -(-len(order) // self.num_heads)).index_put_((head, place), order)
        x = batch.z["strong"][:, 0].index_select(0, slots.flatten()).unflatten(0, slots.shape)
        losses = double_softmax_loss(self.mlps(x).mT, cluster[slots])[head, place]
        loss = weighted_mean(losses, 1.0 / comm.sum(counts)[head], comm)
        names = ("unique", "clusters", "agreement")
        above = loss.detach() - double_softmax_floor(self.num_clusters)
        return Losses({"loss": loss}, log={"above_floor": above, **dict(zip(names, self.health.unbind(), strict=True))})

    def select(self, table: FeatureTable, comm: Comm) -> None:
        """Keep the head with the lowest loss on labels made anew of all samples, if it is the lowest of all epochs."""
        embedding, logits = l2_normalize(comm.gather(table.features))[0], comm.gather(self.logits(table.features))

        def losses() -> tuple[Tensor]:
            found = []
            for h in range(self.num_heads):
                position, cluster = self._rows(embedding, logits[:, h])
                found.append(double_softmax_loss(logits[position, h], cluster).mean())
            return (torch.stack(found),)

        lowest, head = comm.first(losses)[0].min(0)
        if lowest < self.best_loss:
            self.best_loss.copy_(lowest)
            for name, parameter in self.mlps.named_parameters():
                self.get_buffer(f"best_{name}").copy_(parameter[int(head)][None])
            above = float(lowest) - double_softmax_floor(self.num_clusters)
            print_log(f"head {int(head)} has the lowest loss so far, {above:.4f} above the floor", "current")

    def diagnosis(self, means: dict[str, float]) -> str | None:
        """Call it no learning where the loss stays near ln K, that of a guess, however many clusters are in use."""
        above, guess = means["above_floor"], math.log(self.num_clusters) - double_softmax_floor(self.num_clusters)
        if above < _NOT_LEARNING * guess:
            return None
        return (
            f"the heads do not learn: their loss is {above:.3f} above its floor, where a guess among "
            f"{self.num_clusters} clusters is {guess:.3f} above it; that {means['clusters']:.1f} clusters are in use "
            "does not show that they learn"
        )

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to the chosen head's logits (B, K); before the first choice, head 0's at the start."""
        return mlp(z[None], *(self.get_buffer(f"best_{name}") for name, _ in self.mlps.named_parameters()))[0]

    def logits(self, z: Tensor) -> Tensor:
        """Map features (B, D) to the logits of all heads (B, H, K)."""
        logits: Tensor = self.mlps(z[None]).transpose(0, 1)
        return logits
