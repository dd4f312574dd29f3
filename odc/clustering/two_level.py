"""K-means on two levels over any number of ranks: m super-clusters, and in each of them its share of k sub-clusters.

Hierarchical k-means as DeeperCluster (Caron et al., arXiv:1905.01278) needs it for hundreds of thousands
of clusters: a point is compared with m and then k/m centroids instead of k.

The points stay on the ranks that hold them. A rank assigns its own rows, and only sums and counts go through
:class:`odc.structures.Comm`. How the rows are spread changes nothing, to the last bit, on equal machines:

- Sums are exact, so their order is of no account: every coordinate is rounded to a multiple of 2^-24 of the largest
  one (a float32 sum rounds worse), and float64 adds N < 2^29 of those without any error.
- A product of matrices may round a row otherwise in another shape: rows are assigned in blocks of one fixed shape, the
  last one filled up with zeros.
- What is decided, who splits and who is refilled, follows from sums and counts over all ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odc.clustering.kmeans import LONGEST, imbalance
from odc.errors import InputError
from odc.structures import Comm

_GRID_BITS = 24  # of a coordinate; float32 has as many
_REPAIR_ROUNDS = 3  # assignments after the last iteration that only repair
_EPS = 1 / 1024  # relative distance between the two halves of a centroid that is split


@dataclass(frozen=True)
class TwoLevelResult:
    """A clustering: labels of this rank's rows; all else is of all ranks, and the same on each.

    C is k / m, rounded up; behind a super-cluster's last sub-cluster stand zeros.
    """

    super_labels: Tensor  # (Nr,) int64 super-cluster of each row
    sub_labels: Tensor  # (Nr,) int64 sub-cluster of each row, numbered within its super-cluster
    super_centroids: Tensor  # (m, D) float32
    sub_centroids: Tensor  # (m, C, D) float32
    num_sub: Tensor  # (m,) int64 sub-clusters of each super-cluster
    super_sizes: Tensor  # (m,) int64 points in each super-cluster; all at least 1
    sub_sizes: Tensor  # (m, C) int64 points in each sub-cluster
    super_imbalance: float  # of the sizes, see odc.clustering.imbalance
    sub_imbalance: float
    refilled: int  # times that a cluster of either level became too small and took part of the largest one
    capped: int  # sub-clusters fewer than asked for, because a super-cluster has too few points


def share_clusters(num_clusters: int, num_super: int) -> list[int]:
    """Return how many of the k sub-clusters each of the m super-clusters gets: k / m, the first ones one more."""
    return [num_clusters // num_super + (s < num_clusters % num_super) for s in range(num_super)]


@torch.no_grad()
def two_level_kmeans(
    x: Tensor, num_clusters: int, num_super: int, *, generator: torch.Generator, comm: Comm, n_iter: int = 10
) -> TwoLevelResult:
    """Cluster the rows of all ranks into ``num_super`` super-clusters, and these into ``num_clusters`` in all.

    Lloyd's iterations on all points, from random points of the set, on both levels; then every point is assigned once
    more. A label is the nearest centroid of its level. No cluster is empty: during the iterations and for some rounds
    after them, one that is gets half of the cluster that is largest then, counted over all ranks; on the first level
    also one with fewer points than sub-clusters. Where points repeat and so cannot be told apart, the largest
    clusters' members are dealt out in the order of the rows, and the centroids are the means of those.

    Args:
        x: (Nr, D) float32, this rank's rows; the order of all rows is that of the ranks. It is not changed.
        num_clusters: k, 1 to N.
        num_super: m, 1 to k.
        generator: in the same state on every rank.
        comm: the ranks.
        n_iter: Lloyd's iterations on each level; fewer where no label moves any more.

    Raises:
        InputError: k is not within 1..N, m not within 1..k, ``n_iter`` < 1, ``x`` is not (Nr, D), or rows are not
            finite.
    """
    if x.ndim != 2 or x.shape[1] < 1:
        raise InputError(f"x must be (N, D), D at least 1; got shape {tuple(x.shape)}")
    x = x.float().contiguous()
    N = _total(x.shape[0], x, comm)
    if not 1 <= num_clusters <= N:
        raise InputError(f"{num_clusters} clusters from {N} samples: lower the number of clusters to between 1 and {N}")
    if not 1 <= num_super <= num_clusters:
        raise InputError(f"{num_super} super-clusters of {num_clusters} clusters: take between 1 and {num_clusters}")
    if n_iter < 1:
        raise InputError(f"k-means needs at least 1 iteration, not {n_iter}")
    units = _units(x, N, comm)

    wanted = share_clusters(num_clusters, num_super)
    C = wanted[0]
    super_labels, super_centroids, super_sizes, refilled = _lloyd(x, num_super, C, n_iter, units, generator, comm)
    sub_labels = torch.zeros_like(super_labels)
    sub_centroids = x.new_zeros(num_super, C, x.shape[1])
    sub_sizes = super_sizes.new_zeros(num_super, C)
    num_sub = [min(k, int(size)) for k, size in zip(wanted, super_sizes.tolist(), strict=True)]
    for s, k in enumerate(num_sub):
        rows = (super_labels == s).nonzero().squeeze(1) if num_super > 1 else slice(None)
        sub_labels[rows], sub_centroids[s, :k], sub_sizes[s, :k], more = _lloyd(
            x[rows], k, 1, n_iter, units, generator, comm
        )
        refilled += more
    return TwoLevelResult(
        super_labels,
        sub_labels,
        super_centroids,
        sub_centroids,
        torch.tensor(num_sub, device=x.device),
        super_sizes,
        sub_sizes,
        imbalance(super_sizes, num_super),
        imbalance(sub_sizes, sum(num_sub)),
        refilled,
        num_clusters - sum(num_sub),
    )


def _total(count: int, like: Tensor, comm: Comm) -> int:
    return int(comm.sum(torch.tensor([count], device=like.device)))


def _units(x: Tensor, N: int, comm: Comm) -> float:
    """Return by what power of two coordinates are multiplied before they are rounded to integers."""
    largest = torch.stack(torch.aminmax(x)).abs().max() if x.numel() else x.new_zeros(())  # NaN is the largest
    largest = comm.gather(largest[None]).max()
    if not bool(largest.isfinite()):
        bad = sum(int((~rows.isfinite().all(1)).sum()) for rows in x.split(16384))
        raise InputError(
            f"{_total(bad, x, comm)} of {N} rows to cluster are not finite: remove them, or lower the learning rate"
        )
    if float(largest) * math.sqrt(x.shape[1]) > LONGEST:
        raise InputError(f"of the {N} rows to cluster some are longer than {LONGEST:g}: lower the learning rate")
    exponent = math.frexp(float(largest))[1]  # every |coordinate| < 2^exponent
    return 2.0 ** (min(_GRID_BITS, 53 - N.bit_length()) - exponent)


def _block_rows(K: int, device: torch.device) -> int:
    """Return rows to assign at a time: a function of nothing that differs between the ranks. The scores stay small."""
    if device.type == "cpu":
        scores, least, most = 1 << 22, 256, 1 << 10
    else:
        scores, least, most = 1 << 28, 1 << 10, 1 << 15
    return min(most, max(least, 1 << (scores // K).bit_length() >> 1))  # a power of two


class _Sums:
    """Exact sums (K, D) float64, in units of the grid, of this rank's rows in each cluster.

    They follow the rows that move: what is exact can be added and taken away again for ever.
    """

    def __init__(self, K: int, x: Tensor, units: float) -> None:
        self.total = x.new_zeros(K, x.shape[1], dtype=torch.float64)
        self.units = units
        self._buffer = self.total.new_empty(_block_rows(K, x.device), x.shape[1])

    def move(self, rows: Tensor, before: Tensor, after: Tensor) -> None:
        """Take rows (n, D) from their clusters ``before`` (n,), -1 for none, to ``after``; n is a block at most."""
        moved = (before != after).nonzero().squeeze(1)
        if len(moved) < len(rows):
            rows, before, after = rows[moved], before[moved], after[moved]
        rounded = self._buffer[: len(rows)].copy_(rows).mul_(self.units).round_()
        self.total.index_add_(0, after, rounded)
        if len(before) and int(before[0]) >= 0:  # all rows have a cluster, or none has
            self.total.index_add_(0, before, rounded, alpha=-1)

    def means(self, counts: Tensor, comm: Comm) -> Tensor:
        """Return (K, D) float32 means over all ranks, zeros for an empty cluster; ``counts`` (K,) are of all ranks."""
        return (comm.sum(self.total) / (counts.clamp(min=1).double()[:, None] * self.units)).float()


def _assign(x: Tensor, centroids: Tensor, labels: Tensor, sums: _Sums | None) -> None:
    """Write the nearest centroid of each of this rank's rows into ``labels`` (n,); the sums follow in the same pass."""
    n, D = x.shape
    block = _block_rows(len(centroids), x.device)
    bias = centroids.square().sum(1) / -2
    scores = x.new_empty(block, len(centroids))
    for start in range(0, n, block):
        rows, before = x[start : start + block], labels[start : start + block]
        full = rows if len(rows) == block else torch.cat((rows, x.new_zeros(block - len(rows), D)))
        torch.addmm(bias, full, centroids.T, out=scores)
        # NumPy's argmax is the faster one on a CPU.
        best = torch.from_numpy(scores.numpy().argmax(1)) if scores.device.type == "cpu" else scores.argmax(1)
        if sums is not None:
            sums.move(rows, before, best[: len(rows)])
        before.copy_(best[: len(rows)])


def _lloyd(
    x: Tensor, K: int, min_size: int, n_iter: int, units: float, generator: torch.Generator, comm: Comm
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Cluster the rows of all ranks, at least K of them.

    Returns labels (n,) int64, centroids (K, D), sizes (K,) over all ranks, none of them 0, and how often a cluster of
    fewer than ``min_size`` points was refilled. Clusters smaller than that may remain.
    """
    centroids = _random_rows(x, K, generator, comm)
    labels = torch.full((len(x),), -1, device=x.device)
    sums = _Sums(K, x, units)
    last = n_iter + _REPAIR_ROUNDS
    refilled = 0
    for iteration in range(last + 1):
        updates = iteration < n_iter
        before = labels.clone()
        _assign(x, centroids, labels, sums if updates else None)
        counts = comm.sum(torch.bincount(labels, minlength=K))
        small = bool((counts < min_size).any())
        if iteration == last or not (updates or small):
            break
        if updates:
            if not small and not _total(int((labels != before).any()), x, comm):
                break  # the centroids are the means already
            centroids = sums.means(counts, comm)
        if small:
            split = _split_largest(centroids, counts, min_size)
            if not split and not updates:
                break  # no cluster is large enough to be split
            refilled += split
    empty = int((counts == 0).sum())
    if empty:
        labels = _deal(labels, counts, comm)
        counts = comm.sum(torch.bincount(labels, minlength=K))
        sums = _Sums(K, x, units)
        block = _block_rows(K, x.device)
        for rows, of in zip(x.split(block), labels.split(block), strict=True):
            sums.move(rows, torch.full_like(of, -1), of)
        centroids = sums.means(counts, comm)
    return labels, centroids, counts, refilled + empty


def _random_rows(x: Tensor, K: int, generator: torch.Generator, comm: Comm) -> Tensor:
    """Return K different rows (K, D) of all ranks' at random, the same on every rank."""
    lengths = comm.gather(torch.tensor([len(x)], device=x.device)).tolist()
    chosen = torch.randperm(sum(lengths), generator=generator)[:K].sort().values - sum(lengths[: comm.rank])
    mine = chosen[(chosen >= 0) & (chosen < len(x))]
    return comm.gather(x[mine.to(x.device)])


def _split_largest(centroids: Tensor, counts: Tensor, min_size: int) -> int:
    """Give every cluster of fewer than ``min_size`` points half of the one that is largest then; in place.

    Both halves keep the centroid, moved a little apart: the next assignment divides the points. A donor counts half
    as much afterwards, so that the next small cluster may have another one. Returns how many were refilled.
    """
    sizes = counts.numpy(force=True).copy()
    shift = torch.full_like(centroids[0], _EPS)
    shift[1::2] *= -1
    refilled = 0
    for cluster in np.flatnonzero(sizes < min_size).tolist():
        donor = int(sizes.argmax())
        n = int(sizes[donor])
        if n < 2 * min_size:
            break
        centroids[cluster] = centroids[donor] * (1 + shift)
        centroids[donor] *= 1 - shift
        sizes[donor], sizes[cluster] = n - n // 2, n // 2
        refilled += 1
    return refilled


def _deal(labels: Tensor, counts: Tensor, comm: Comm) -> Tensor:
    """Return labels with the empty clusters filled from the largest, members dealt in the order of all ranks' rows."""
    K = len(counts)
    sizes = counts.numpy(force=True)
    parts = [[c] if n else [] for c, n in enumerate(sizes.tolist())]  # the clusters that share what is now in c
    share = sizes.astype(np.float64)  # members for each of them
    for cluster in np.flatnonzero(sizes == 0).tolist():
        donor = int(share.argmax())
        parts[donor].append(cluster)
        share[donor] = sizes[donor] / len(parts[donor])
    shares = torch.tensor([len(p) for p in parts], device=labels.device)
    names = torch.tensor([c for p in parts for c in p], device=labels.device)

    here = torch.bincount(labels, minlength=K)
    before = comm.gather(here[None])[: comm.rank].sum(0)  # members on the ranks before this one
    order = labels.argsort(stable=True)
    position = torch.empty_like(labels)
    position[order] = torch.arange(len(labels), device=labels.device) - (here.cumsum(0) - here)[labels[order]]
    position += before[labels]
    part = position * shares[labels] // counts[labels]
    return names[(shares.cumsum(0) - shares)[labels] + part]
